"""Tables of particles, micrographs or movies as rows to choose from: read without images, written as they stood."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from polarice.io import optics as optics_
from polarice.io.star import Block, StarFile, read_star, write_star
from polarice.io.table import Table
from polarice.types import InputError

KINDS = (("particles", "rlnImageName"), ("micrographs", "rlnMicrographName"), ("movies", "rlnMicrographMovieName"))
Kind = Literal["particles", "micrographs", "movies"]


@dataclass(frozen=True, eq=False)
class RowTable:
    """One table of a STAR file; all other blocks go along untouched."""

    kind: Kind
    star: StarFile
    place: int  # of the table's block
    table: Table
    optics_table: Table | None  # None up to RELION 3.0

    def __len__(self) -> int:
        return len(self.table)

    @property
    def path(self) -> Path:
        return self.star.path

    def take(self, rows: np.ndarray) -> RowTable:
        """The rows (int indices or a boolean mask), in that order."""
        return replace(self, table=self.table.take(rows))

    def blocks(self) -> list[Block]:
        """As they are written."""
        return [
            replace(block, table=self.table) if place == self.place else block
            for place, block in enumerate(self.star.blocks)
        ]

    def per_row(self, *labels: str) -> np.ndarray | None:
        """(n,) the first of these optics columns that is there, for every row; None where none is."""
        if self.optics_table is None:
            label = next((each for each in labels if each in self.table), None)
            return None if label is None else self.table.numbers(label)
        label = next((each for each in labels if each in self.optics_table), None)
        if label is None:
            return None
        return self.optics_table.numbers(label)[optics_.groups_of_particles(self.table, self.optics_table)]

    def origins_A(self) -> np.ndarray:
        """(n, 2) origins in A, x then y. Raises InputError where the table has none."""
        if "rlnOriginX" not in self.table or "rlnOriginXAngst" in self.table:
            return np.stack([self.table.numbers(f"rlnOrigin{letter}Angst") for letter in "XY"], axis=1)
        pixel_A = self.image_pixel_A()
        if pixel_A is None:
            raise InputError(f"{self.table.where}: origins in pixels, and no pixel size; add _rlnImagePixelSize")
        return np.stack([self.table.numbers(f"rlnOrigin{letter}") for letter in "XY"], axis=1) * pixel_A[:, None]

    def image_pixel_A(self) -> np.ndarray | None:
        """(n,) pixel size of the images; None where nothing says."""
        if self.optics_table is None:
            optics_table, optics_of = optics_.optics_from_columns(self.table)
            groups = optics_.optics_groups(optics_table)
            sizes = np.array([group.pixel_size_A for group in groups])[optics_of]
            return sizes if (sizes > 0).all() else None
        return self.per_row("rlnImagePixelSize", "rlnPixelSize")

    def micrograph_pixel_A(self) -> np.ndarray | None:
        """(n,) pixel size of the micrographs that coordinates are of; None where nothing says."""
        return self.per_row("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize")


def read_rows(path: str | os.PathLike[str]) -> RowTable:
    """The table of a STAR file. Raises InputError where it holds none of particles, micrographs or movies."""
    star = read_star(path)
    for kind, label in KINDS:
        for place, block in enumerate(star.blocks):
            if block.table is not None and label in block.table:
                return _row_table(kind, star, place, block.table)  # type: ignore[arg-type]
    raise InputError(f"{path}: no table of particles, micrographs or movies (_rlnImageName, _rlnMicrographName)")


def _row_table(kind: Kind, star: StarFile, place: int, table: Table) -> RowTable:
    if len(table) == 0:
        raise InputError(f"{table.where} has no {kind}; check how it was selected")
    optics = next((block for block in star if block.name == "optics"), None)
    optics_table = optics.table if optics is not None else None
    if optics is not None and optics_table is None and optics.pairs:
        columns = {label: np.array([text], object) for label, text in optics.pairs.items()}
        optics_table = Table.of(columns, {label: "%s" for label in columns}, f"{star.path}, data_optics")
    return RowTable(kind, star, place, table, optics_table)


def write_rows(path: str | os.PathLike[str], rows: RowTable, columns: Mapping[str, Any] | None = None) -> None:
    """Write the file's blocks with the rows' table, `columns` (n,) replaced or added."""
    write_star(path, replace(rows, table=rows.table.with_columns(columns or {})).blocks())

"""Tables of movies and of micrographs (`movies.star`, `micrographs.star`) in RELION 3.1's layout, in and out."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from polarice.io import optics as optics_
from polarice.io.movies import EER_ENDING, MRC_ENDINGS, TIFF_ENDINGS
from polarice.io.star import Block, read_star, write_star
from polarice.io.table import Table
from polarice.types import InputError, Optics

KINDS = (*MRC_ENDINGS, *TIFF_ENDINGS, EER_ENDING)  # endings of movies and micrographs, lower case
PACKED = ".gz"  # may stand behind an MRC file's ending
NAME_LABELS = {"movies": "rlnMicrographMovieName", "micrographs": "rlnMicrographName"}


@dataclass(frozen=True, eq=False)
class MicrographTable:
    """Movies or micrographs, one a row of `table`; columns that Polarice does not know go through untouched."""

    kind: str  # "movies" or "micrographs": the name of the block
    names: tuple[str, ...]  # as the table has them
    files: tuple[str, ...]  # where they were found; the name itself where no such file is there
    optics: tuple[Optics, ...]
    optics_of: np.ndarray  # (n,) int32 into `optics`
    table: Table
    optics_table: Table
    path: Path

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> MicrographTable:
        """The rows of `rows` (int indices or a boolean mask), in that order."""
        index = np.arange(len(self))[rows].tolist()
        return replace(
            self,
            names=tuple(self.names[row] for row in index),
            files=tuple(self.files[row] for row in index),
            optics_of=self.optics_of[index],
            table=self.table.take(np.array(index, np.int64)),
        )


def read_micrographs(path: str | os.PathLike[str], kind: str = "micrographs") -> MicrographTable:
    """Read a table of `kind` "movies" or "micrographs".

    A file that is missing is no error here: whoever opens it says so, and the rest of the table can be used. Raises
    InputError where the table cannot be read, is empty, or holds the other kind.
    """
    star = read_star(path)
    label = NAME_LABELS[kind]
    blocks = [block.table for block in star if block.table is not None and label in block.table]
    if not blocks:
        raise InputError(f"{path}: no column _{label}; a table of {kind} is wanted, as polarice import writes it")
    table = blocks[0]
    if len(table) == 0:
        raise InputError(f"{table.where} has no {kind}; check how it was selected")
    old = "optics" not in star or star["optics"].table is None
    if old:
        optics_table, optics_of = optics_.optics_from_columns(table)
    else:
        optics_table = star.table("optics")
        optics_of = optics_.groups_of_particles(table, optics_table)
    names = tuple(table.text(label).tolist())
    files = tuple(found(name, star.path) for name in names)
    groups = optics_.optics_groups(optics_table)
    for group in groups:
        if not all(map(math.isfinite, (group.pixel_size_A, group.voltage_kV, group.cs_mm, group.amplitude_contrast))):
            raise InputError(
                f"{star.path}: optics group {group.name} has a value that is no number; correct data_optics"
            )
    if old:
        numbers = optics_table.integers("rlnOpticsGroup")[optics_of]
        table = table.with_columns({"rlnOpticsGroup": numbers}).without(*optics_.MICROSCOPE_LABELS)
    return MicrographTable(kind, names, files, groups, optics_of, table, optics_table, star.path)


def named_files(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Where the movies or micrographs of a table were found; none of what is no such table."""
    for kind in NAME_LABELS:
        with suppress(InputError):
            return read_micrographs(path, kind).files
    return ()


def require_pixel_sizes(table: MicrographTable) -> None:
    """Raise InputError where a micrograph's optics group states no pixel size."""
    for number in np.unique(table.optics_of):
        if table.optics[number].pixel_size_A <= 0:
            name = table.optics[number].name
            raise InputError(f"{table.path}: optics group {name} has no pixel size; give it with --angpix")


def bare_name(name: str) -> str:
    """The name of a micrograph's or movie's file without folder and ending: m of Mic/m.mrc.gz.

    Only an ending of `KINDS` is one: a dot within a name (m_1.5, as Topaz writes m_1.5.mrc) stays.
    """
    base = PurePosixPath(name).name
    plain = base[: -len(PACKED)] if base.lower().endswith(PACKED) else base
    ending = PurePosixPath(plain).suffix
    return plain[: -len(ending)] if ending.lower() in KINDS else plain


def folders_of(name: str) -> tuple[str, ...]:
    """The folders that tell a file from others of its bare name: (Movies,) of Import/job001/Movies/a.tiff.

    What stands before another job's jobNNN, the root, and ways up (../) tell nothing.
    """
    parts = PurePosixPath(name).parts[:-1]
    jobs = [place for place, part in enumerate(parts) if _is_job(part) or part in ("/", "//", "..")]
    return parts[jobs[-1] + 1 :] if jobs else parts


def stem_of(name: str, folder: Path) -> str:
    """Where a job writes what belongs to a file, less the ending. Movies/a.tiff in M/job002: M/job002/Movies/a.

    Of a name out of another job's folder (Import/job001/Movies/a.tiff) what stands behind jobNNN is kept; of an
    absolute name, and of one that climbs (../), the file's own folder.
    """
    path = PurePosixPath(name)
    parts = list(path.parts[:-1])
    jobs = [place for place, part in enumerate(parts) if _is_job(part)]
    parts = parts[jobs[-1] + 1 :] if jobs else parts
    if path.is_absolute() or ".." in parts:
        parts = [part for part in parts[-1:] if part not in ("/", "..")]
    return str(Path(folder, *parts, bare_name(name)))


def _is_job(part: str) -> bool:
    return part.startswith("job") and part[3:].isdigit()


def found(name: str, table: Path) -> str:
    """Where the file of this name lies: seen from the working directory, from the table, or from a folder above it."""
    beside = table.absolute().parent
    places = (os.path.join(root, name) for root in (Path.cwd(), beside, *beside.parents))
    return next(filter(os.path.exists, places), name)


def write_micrographs(
    path: str | os.PathLike[str],
    table: MicrographTable,
    columns: Mapping[str, Any] | None = None,
    kind: str | None = None,
    optics_columns: Mapping[str, Any] | None = None,
) -> None:
    """Write the table as RELION 3.1 reads it, `columns` (n,) and `optics_columns` (groups,) replaced or added.

    `kind` names the block, where movies have become micrographs. Raises InputError where the disk is full or the
    folder may not be written.
    """
    optics = table.optics_table.with_columns(optics_columns or {})
    rows = table.table.with_columns(columns or {})
    write_star(path, [Block("optics", table=optics), Block(kind or table.kind, table=rows)])

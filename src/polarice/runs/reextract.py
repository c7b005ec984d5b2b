"""Particles of a table cut anew from their micrographs: with another box or scale, about the centres found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from polarice.io.joining import modern
from polarice.io.micrographs import MicrographTable, found, read_micrographs, stem_of
from polarice.io.optics import groups_of_particles, optics_groups
from polarice.io.rows import RowTable, read_rows
from polarice.io.star import Block, write_star
from polarice.io.table import Table
from polarice.runs.selecting import micrograph_key
from polarice.types import InputError

_OF_IMAGES = ("rlnImagePixelSize", "rlnImageSize", "rlnImageDimensionality", "rlnCtfDataAreCtfPremultiplied")


@dataclass(frozen=True, eq=False)
class Source:
    """The table, and the micrographs that it names."""

    particles: RowTable
    micrographs: MicrographTable
    micrograph_of: np.ndarray  # (n,) row of `micrographs`; -1 where its micrograph is not there
    remarks: tuple[str, ...] = ()

    def write(self, folder: Path) -> list[str]:
        """A STAR file with the rows of each micrograph below the folder; "" for one without particles."""
        files = [""] * len(self.micrographs)
        order = np.argsort(self.micrograph_of, kind="stable")
        of = self.micrograph_of[order]
        for rows in np.split(order, np.flatnonzero(np.diff(of)) + 1):
            number = int(self.micrograph_of[rows[0]])
            if number < 0:
                continue
            path = Path(f"{stem_of(self.micrographs.names[number], folder)}.star")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_star(path, [Block("particles", table=self.particles.table.take(rows))])
            files[number] = str(path)
        return files


def read_source(particles: Path, micrographs_star: Path | None, recenter: bool, angpix: float | None) -> Source:
    """The particles, recentred where that is asked for, and their micrographs: of a table, or as particles name them.

    Raises InputError where coordinates, origins or micrographs are missing.
    """
    rows = read_rows(particles)
    if rows.kind != "particles" or not all(label in rows.table for label in ("rlnCoordinateX", "rlnMicrographName")):
        raise InputError(f"{rows.path}: no coordinates in micrographs (_rlnCoordinateX, _rlnMicrographName)")
    rows = modern(rows)
    names, of = rows.table.codes("rlnMicrographName")
    if micrographs_star is not None:
        micrographs, place = _among(read_micrographs(micrographs_star), names, rows)
    else:
        micrographs, place = _named(rows, names, of), np.arange(len(names))
    micrograph_of, remarks = place[of], tuple[str, ...]()
    if lost := int((micrograph_of < 0).sum()):
        remarks = (f"{lost:,} particles are of micrographs that {micrographs_star} does not name: left out",)
    if recenter:
        pixel_A = np.array([group.pixel_size_A for group in micrographs.optics])[micrographs.optics_of]
        sizes = np.full(len(rows), angpix) if angpix else pixel_A[np.maximum(micrograph_of, 0)]
        rows = replace(rows, table=recentred(rows, sizes))
    return Source(rows, micrographs, micrograph_of, remarks)


def recentred(rows: RowTable, micrograph_pixel_A: np.ndarray) -> Table:
    """The table with coordinates moved, by whole pixels, to where particles lie; origins keep the rest.

    An origin is the shift that brings the particle to the image's centre: a particle at +d has the origin -d, and
    origins are subtracted from coordinates, as RELION does.
    """
    origins_px = rows.origins_A() / micrograph_pixel_A[:, None]
    whole_px = np.trunc(origins_px + np.copysign(0.5, origins_px))
    rest_A = (origins_px - whole_px) * micrograph_pixel_A[:, None]
    columns: dict[str, np.ndarray] = {}
    for axis, letter in enumerate("XY"):
        columns[f"rlnCoordinate{letter}"] = rows.table.numbers(f"rlnCoordinate{letter}") - whole_px[:, axis]
        columns[f"rlnOrigin{letter}Angst"] = rest_A[:, axis] + 0.0
    return rows.table.with_columns(columns)


def _among(table: MicrographTable, names: tuple[str, ...], rows: RowTable) -> tuple[MicrographTable, np.ndarray]:
    """The micrographs of a table that the particles name, and which of them each name is; -1: none."""
    known = {micrograph_key(name): row for row, name in enumerate(table.names)}
    row_of = np.array([known.get(micrograph_key(name), -1) for name in names])
    used = np.unique(row_of[row_of >= 0])
    if not len(used):
        raise InputError(f"{table.path}: names none of the micrographs of {rows.path}, {names[0]} for one")
    place = np.full(len(table) + 1, -1)
    place[used] = np.arange(len(used))
    return table.take(used), place[row_of]


def _named(rows: RowTable, names: tuple[str, ...], of: np.ndarray) -> MicrographTable:
    """The micrographs as particles tell of them. Raises InputError where nothing states their pixel size."""
    assert rows.optics_table is not None
    label = next(
        (each for each in ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize") if each in rows.optics_table),
        None,
    )
    if label is None:
        raise InputError(
            f"{rows.path}: states no pixel size of micrographs; give their table as well, micrographs.star"
        )
    sizes = rows.optics_table.numbers(label)
    optics = rows.optics_table.without(*_OF_IMAGES).with_columns({"rlnMicrographPixelSize": sizes})
    groups = [
        replace(group, pixel_size_A=float(size)) for group, size in zip(optics_groups(optics), sizes, strict=True)
    ]
    group_of = groups_of_particles(rows.table, rows.optics_table)
    first = np.zeros(len(names), int)
    first[of[::-1]] = np.arange(len(of))[::-1]
    numbers = rows.optics_table.integers("rlnOpticsGroup")[group_of[first]]
    table = Table.of({"rlnMicrographName": np.array(names, object), "rlnOpticsGroup": numbers}, where=str(rows.path))
    files = tuple(found(name, rows.path) for name in names)
    return MicrographTable("micrographs", names, files, tuple(groups), group_of[first], table, optics, rows.path)

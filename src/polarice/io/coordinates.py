"""Coordinates of particles in micrographs, as pickers write them: all become centres, from the first pixel (0, 0).

| file | holds | coordinates |
|---|---|---|
| .star | RELION: one micrograph, or many with rlnMicrographName | centres, rlnAutopickFigureOfMerit |
| .box | EMAN: x y width height, one micrograph | first corner of the box |
| .cbox | crYOLO: a data_cryolo table, or rows as .box with a confidence | first corner of the box |
| .txt, .tsv, .csv | Topaz: image_name x_coord y_coord score, many micrographs | centres |
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polarice.io.star import Block, read_star, write_star
from polarice.io.table import Table
from polarice.types import InputError

ENDINGS = (".star", ".box", ".cbox", ".txt", ".tsv", ".csv")
SCORE = "rlnAutopickFigureOfMerit"


@dataclass(frozen=True)
class Coordinates:
    """Centres in one or several micrographs."""

    xy_px: np.ndarray  # (n, 2) float64, x then y
    scores: np.ndarray | None  # (n,)
    micrograph: np.ndarray | None = None  # (n,) names without folder and ending, where the file holds several

    def take(self, rows: np.ndarray) -> Coordinates:
        parts = (None if part is None else part[rows] for part in (self.scores, self.micrograph))
        return Coordinates(self.xy_px[rows], *parts)


def read_coordinates(path: str | os.PathLike[str], scale: float = 1.0) -> Coordinates:
    """Read a file of coordinates, multiplied by `scale` (pickers that work on shrunken micrographs).

    Raises InputError naming file, row and remedy where a value is not a number, a column is missing, or the ending is
    none of `ENDINGS`.
    """
    path = Path(path)
    readers = {".star": _star, ".box": _box, ".cbox": _cbox, ".txt": _topaz, ".tsv": _topaz, ".csv": _topaz}
    if path.suffix not in readers:
        raise InputError(f"{path}: coordinates are read from {', '.join(ENDINGS)}; convert the file to one of them")
    found = readers[path.suffix](path)
    bad = ~np.isfinite(found.xy_px).all(axis=1)
    if bad.any():
        raise InputError(f"{path}: coordinate {int(np.argmax(bad)) + 1} is not a finite number; remove it")
    return Coordinates(found.xy_px * scale, found.scores, found.micrograph)


def write_coordinates(
    path: str | os.PathLike[str], found: Coordinates, more: dict[str, np.ndarray] | None = None
) -> None:
    """Write coordinates of one micrograph as RELION reads them, with `more` columns."""
    columns = {"rlnCoordinateX": found.xy_px[:, 0], "rlnCoordinateY": found.xy_px[:, 1]}
    if found.scores is not None:
        columns[SCORE] = found.scores
    write_star(path, [Block("", table=Table.of(columns | (more or {})))])


def coordinate_files(source: Path, names: Sequence[str], folder: Path, scale: float = 1.0) -> list[str]:
    """A file of coordinates for each micrograph of `names`; "" where there is none.

    source: a folder (searched deeply) with files whose names begin with the micrograph's, or one file about all
    micrographs, which is split into STAR files in `folder`/coords. A scale other than 1 makes STAR files, too. Raises
    InputError where nothing fits any micrograph.
    """
    stems = [Path(name).stem for name in names]
    if source.is_dir():
        files = _files_by_stem(source, stems)
    elif source.is_file():
        files = _split(read_coordinates(source), source, stems, folder / "coords")
    else:
        raise InputError(f"{source}: no such file or folder of coordinates")
    if not any(files):
        raise InputError(
            f"{source}: nothing there belongs to {stems[0]} or any other of the {len(stems)} micrographs; "
            "coordinates go with micrographs by their names"
        )
    return [_scaled(file, stem, scale, folder / "coords") for file, stem in zip(files, stems, strict=True)]


def _files_by_stem(source: Path, stems: Sequence[str]) -> list[str]:
    """Of files that begin with a micrograph's name, the one with the shortest ending; never one of a longer name."""
    found = sorted((path for path in source.rglob("*") if path.suffix in ENDINGS), key=lambda p: (len(p.name), str(p)))
    by_stem: dict[str, str] = {}
    longest_first = sorted(set(stems), key=len, reverse=True)
    for path in found:
        owner = next((stem for stem in longest_first if path.name.startswith(stem)), None)
        if owner is not None:
            by_stem.setdefault(owner, str(path))
    return [by_stem.get(stem, "") for stem in stems]


def _split(found: Coordinates, source: Path, stems: Sequence[str], folder: Path) -> list[str]:
    if found.micrograph is None:
        if len(stems) > 1:
            raise InputError(
                f"{source} does not say to which micrographs its coordinates belong; give a folder of files"
            )
        return [str(source)]
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for stem in stems:
        rows = np.flatnonzero(found.micrograph == stem)
        files.append(str(folder / f"{stem}.star") if len(rows) else "")
        if len(rows):
            write_coordinates(files[-1], found.take(rows))
    return files


def _scaled(file: str, stem: str, scale: float, folder: Path) -> str:
    if not file or scale == 1:
        return file
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{stem}_scaled.star"
    write_coordinates(target, read_coordinates(file, scale))
    return str(target)


def _star(path: Path) -> Coordinates:
    tables = [block.table for block in read_star(path) if block.table is not None]
    chosen = next((table for table in tables if "rlnCoordinateX" in table), None)
    if chosen is None:
        if all(len(table) == 0 for table in tables):
            return Coordinates(np.zeros((0, 2)), None)
        raise InputError(f"{path}: no column _rlnCoordinateX; is this a table of coordinates?")
    xy = np.stack([chosen.numbers("rlnCoordinateX"), chosen.numbers("rlnCoordinateY")], axis=1)
    names = _stems(chosen.text("rlnMicrographName")) if "rlnMicrographName" in chosen else None
    return Coordinates(xy, chosen.numbers(SCORE) if SCORE in chosen else None, names)


def _box(path: Path) -> Coordinates:
    rows = _numbers(path, 4)
    return Coordinates(rows[:, :2] + rows[:, 2:4] / 2, None)


def _cbox(path: Path) -> Coordinates:
    if not any(line.startswith(b"data_") for line in path.read_bytes().splitlines()):
        rows = _numbers(path, 5)
        return Coordinates(rows[:, :2] + rows[:, 2:4] / 2, rows[:, 4])
    table = read_star(path).table("cryolo")
    corner = np.stack([table.numbers("CoordinateX"), table.numbers("CoordinateY")], axis=1)
    size = np.stack([table.numbers("Width"), table.numbers("Height")], axis=1)
    return Coordinates(corner + size / 2, table.numbers("Confidence") if "Confidence" in table else None)


def _topaz(path: Path) -> Coordinates:
    lines = [line for line in _text(path).splitlines() if line.strip()]
    comma = "," if "," in (lines or [""])[0] else None
    head = [word.strip() for word in lines[0].split(comma)] if lines else []
    if "image_name" not in head:
        raise InputError(
            f"{path}: no column image_name in its first line; Topaz writes image_name x_coord y_coord score"
        )
    place = {name: column for column, name in enumerate(head)}
    missing = {"x_coord", "y_coord"} - set(place)
    if missing:
        raise InputError(f"{path}: no column {', '.join(sorted(missing))}")
    cells = [line.split(comma) for line in lines[1:]]
    values = []
    for row, words in enumerate(cells, 2):
        try:
            values.append([float(words[place[name]]) for name in ("x_coord", "y_coord", "score") if name in place])
        except (ValueError, IndexError):
            raise InputError(f"{path}, line {row}: {lines[row - 1]!r} is not a row of coordinates; remove it") from None
    numbers = np.array(values).reshape(len(values), -1)
    names = _stems(np.array([words[place["image_name"]].strip() for words in cells]))
    return Coordinates(numbers[:, :2].reshape(-1, 2), numbers[:, 2] if "score" in place else None, names)


def _text(path: Path) -> str:
    """The file's text; InputError where it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start + 1} is no text; is this a file of coordinates?") from None


def _stems(names: np.ndarray) -> np.ndarray:
    """Names without folder and ending; Topaz leaves endings off, and a dot in a name is no ending then."""
    return np.array(
        [Path(name).stem if name.endswith((".mrc", ".tif", ".tiff", ".mrcs")) else Path(name).name for name in names]
    )


def _numbers(path: Path, least: int) -> np.ndarray:
    """Rows of at least so many numbers, (n, least)."""
    rows = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append([float(word) for word in line.split()[:least]])
            if len(rows[-1]) < least:
                raise ValueError
        except ValueError:
            raise InputError(f"{path}, line {number}: {line!r} is not {least} numbers; remove the line") from None
    return np.array(rows, np.float64).reshape(-1, least)

"""Coordinates of particles in micrographs, as pickers write them: all become centres, from the first pixel (0, 0).

| file | holds | coordinates |
|---|---|---|
| .star | RELION: one micrograph, or many with rlnMicrographName | centres, rlnAutopickFigureOfMerit |
| .box | EMAN: x y width height, one micrograph | first corner of the box |
| .cbox | crYOLO: a data_cryolo table, or rows as .box with a confidence | first corner of the box |
| autopick.star | RELION: rlnMicrographName and rlnMicrographCoordinates, a file for each micrograph | as in these |
| .txt, .tsv, .csv | Topaz: image_name x_coord y_coord score, many micrographs | centres |
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polarice.io.micrographs import stem_of
from polarice.io.pairing import Matching, Names, shortened
from polarice.io.star import Block, read_star, write_star
from polarice.io.table import Table
from polarice.types import InputError

ENDINGS = (".star", ".box", ".cbox", ".txt", ".tsv", ".csv")
FARTHEST_PX = 1e7  # micrographs have some ten thousand pixels a side
LARGEST_SCORE = 1e9  # any picker writes
SCORE, LISTED = "rlnAutopickFigureOfMerit", "rlnMicrographCoordinates"


@dataclass(frozen=True)
class Coordinates:
    """Centres in one or several micrographs."""

    xy_px: np.ndarray  # (n, 2) float64, x then y
    scores: np.ndarray | None  # (n,)
    micrograph: np.ndarray | None = None  # (n,) names as the file has them, where it holds several

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
    bad = ~(np.abs(found.xy_px) <= FARTHEST_PX).all(axis=1)
    if bad.any():
        what = f"is not a finite number, or beyond {FARTHEST_PX:g} pixels"
        raise InputError(f"{path}: coordinate {int(np.argmax(bad)) + 1} {what}; remove it")
    if found.scores is not None and not (good := np.abs(found.scores) <= LARGEST_SCORE).all():
        row = int(np.argmin(good)) + 1
        raise InputError(f"{path}: the score of coordinate {row} is no number, or beyond {LARGEST_SCORE:g}; remove it")
    return Coordinates(found.xy_px * scale, found.scores, found.micrograph)


def write_coordinates(
    path: str | os.PathLike[str], found: Coordinates, more: dict[str, np.ndarray] | None = None
) -> None:
    """Write coordinates of one micrograph as RELION reads them, with `more` columns."""
    columns = {"rlnCoordinateX": found.xy_px[:, 0], "rlnCoordinateY": found.xy_px[:, 1]}
    if found.scores is not None:
        columns[SCORE] = found.scores
    write_star(path, [Block("", table=Table.of(columns | (more or {})))])


@dataclass(frozen=True)
class Assigned:
    """Files of coordinates, one a micrograph, and what the user should know of how they were found."""

    files: list[str]  # "" where there is none
    remarks: tuple[str, ...] = ()


def coordinate_files(
    source: Path, names: Sequence[str], folder: Path, scale: float = 1.0, matching: Matching | None = None
) -> Assigned:
    """A file of coordinates for each micrograph of `names`.

    source: a folder (searched deeply) with a file for each micrograph, a table that names these files (RELION's
    autopick.star), or one file about all micrographs, which is split into STAR files in `folder`/coords. A scale other
    than 1 makes STAR files, too. Raises InputError where nothing fits any micrograph, where a named file is missing,
    and where it is not clear what belongs to which.
    """
    known = Names(names, matching or Matching())
    if source.is_dir():
        files = _files_of_folder(source, known)
    elif source.is_file() and (listed := _listed(source)) is not None:
        files = _files_of_list(listed, source, known)
    elif source.is_file():
        files = _split(read_coordinates(source), source, known, folder / "coords")
    else:
        raise InputError(f"{source}: no such file or folder of coordinates")
    if not any(files):
        why = "; ".join(known.remarks(str(source))) or "coordinates go with micrographs by their names"
        raise InputError(
            f"{source}: nothing there belongs to {shortened(known.stem(0))} or any other of the {len(names)} "
            f"micrographs; {why}"
        )
    scaled = [_scaled(file, name, scale, folder / "coords") for file, name in zip(files, names, strict=True)]
    return Assigned(scaled, known.remarks(str(source)))


def twins(xy_px: np.ndarray, distance_px: float = 1.0) -> np.ndarray:
    """(n,) bool: coordinates (n, 2) that lie closer than `distance_px` to one before them."""
    from scipy.spatial import cKDTree

    twin = np.zeros(len(xy_px), bool)
    if len(xy_px) > 1:
        pairs = cKDTree(xy_px).query_pairs(np.nextafter(distance_px, 0), output_type="ndarray")
        twin[pairs.max(axis=1)] = True
    return twin


def _files_of_folder(source: Path, known: Names) -> list[str]:
    files = [""] * len(known)
    for path in sorted(source.rglob("*")):
        if path.suffix not in ENDINGS:
            continue
        row = known.owner_of_file(path, source)
        if row is None:
            continue
        if files[row]:
            raise InputError(
                f"{known.names[row]}: both {files[row]} and {path} have coordinates for it; say which with "
                "--coord-suffix (_autopick, .box), or give the folder of one of them"
            )
        files[row] = str(path)
    return files


def _listed(source: Path) -> Table | None:
    """The table of RELION's autopick.star, which names a file of coordinates for each micrograph; None of others."""
    if source.suffix != ".star":
        return None
    tables = (block.table for block in read_star(source))
    wanted = ("rlnMicrographName", LISTED)
    return next((each for each in tables if each is not None and all(label in each for label in wanted)), None)


def _files_of_list(listed: Table, source: Path, known: Names) -> list[str]:
    files, owner = [""] * len(known), dict[int, int]()
    pairs = zip(listed.text("rlnMicrographName").tolist(), listed.text(LISTED).tolist(), strict=True)
    for place, (name, file) in enumerate(pairs):
        if (row := known.owner_of_row(name, 1, str(source))) is None:
            continue
        if row in owner:
            raise InputError(
                f"{listed.where}, rows {owner[row] + 1} and {place + 1}: both fit {shortened(known.names[row])}; "
                "remove the one that is not meant"
            )
        owner[row] = place
        files[row] = _named_file(file, listed.where, place, source)
    return files


def _named_file(name: str, where: str, row: int, source: Path) -> str:
    """A file that a table names: seen from the working directory, the table's folder, or one above it (the project's).

    Raises InputError where it is in none of these.
    """
    beside = source.absolute().parent
    for root in (Path.cwd(), beside, *beside.parents):
        if (path := root / name).is_file():
            return str(path)
    raise InputError(
        f"{where}, row {row + 1}: {shortened(name)} not found; start in the project's folder, or give the "
        "coordinates' folder"
    )


def _split(found: Coordinates, source: Path, known: Names, folder: Path) -> list[str]:
    if found.micrograph is None:
        if len(known) > 1:
            raise InputError(
                f"{source} does not say to which micrographs its coordinates belong; give a folder of files"
            )
        return [str(source)]
    given, which = np.unique(found.micrograph, return_inverse=True)
    count = np.bincount(which, minlength=len(given)).tolist()
    files = [""] * len(known)
    owner: dict[int, int] = {}
    for place, name in enumerate(given.tolist()):
        row = known.owner_of_row(name, count[place], str(source))
        if row is None:
            continue
        if row in owner:
            raise InputError(
                f"{source}: rows of {shortened(str(given[owner[row]]))} and of {shortened(name)} both fit "
                f"{shortened(known.names[row])}; name its folder in the table of micrographs"
            )
        owner[row] = place
    order = np.argsort(which, kind="stable")
    first = np.concatenate([[0], np.cumsum(count)])
    for row, place in owner.items():
        files[row] = f"{stem_of(known.names[row], folder)}.star"
        _make_folder(Path(files[row]).parent)
        write_coordinates(files[row], found.take(order[first[place] : first[place + 1]]))
    return files


def _scaled(file: str, name: str, scale: float, folder: Path) -> str:
    if not file or scale == 1:
        return file
    target = Path(f"{stem_of(name, folder)}_scaled.star")
    _make_folder(target.parent)
    write_coordinates(target, read_coordinates(file, scale))
    return str(target)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}; choose another with --o") from None


def _star(path: Path) -> Coordinates:
    tables = [block.table for block in read_star(path) if block.table is not None]
    chosen = next((table for table in tables if "rlnCoordinateX" in table), None)
    if chosen is None:
        if all(len(table) == 0 for table in tables):
            return Coordinates(np.zeros((0, 2)), None)
        if any(LISTED in table for table in tables):
            raise InputError(f"{path}: names files of coordinates and holds none; give the folder of these files")
        raise InputError(f"{path}: no column _rlnCoordinateX; is this a table of coordinates?")
    xy = np.stack([chosen.numbers("rlnCoordinateX"), chosen.numbers("rlnCoordinateY")], axis=1)
    names = chosen.text("rlnMicrographName") if "rlnMicrographName" in chosen else None
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
    wanted = [name for name in ("x_coord", "y_coord", "score") if name in place]
    values, names = [], []
    for row, line in enumerate(lines[1:], 2):
        words = line.split(comma)
        try:
            values.append([float(words[place[name]]) for name in wanted])
            names.append(words[place["image_name"]].strip())
        except (ValueError, IndexError):
            raise InputError(f"{path}, line {row}: {line[:80]!r} is not a row of coordinates; remove it") from None
    numbers = np.array(values, np.float64).reshape(len(values), len(wanted))
    return Coordinates(numbers[:, :2], numbers[:, 2] if "score" in place else None, np.array(names, np.str_))


def _text(path: Path) -> str:
    """The file's text; InputError where it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start + 1} is no text; is this a file of coordinates?") from None


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
            raise InputError(f"{path}, line {number}: {line[:80]!r} is not {least} numbers; remove the line") from None
    return np.array(rows, np.float64).reshape(-1, least)

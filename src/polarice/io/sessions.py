"""What a microscope's programs leave beside movies: SerialEM's .mdoc files, the names of EPU, beam shifts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polarice.types import InputError

FARTHEST_SHIFT_UM = 1e4  # a centimetre; a beam is shifted by some 10
MOST_CHARACTERS = 1 << 22  # of an .mdoc file; a section of a tilt series has some thousand
_EPU = re.compile(r"FoilHole_\d+_Data_(\d+)_")


@dataclass(frozen=True)
class Mdoc:
    """One movie's entry of an .mdoc file; None where it says nothing."""

    pixel_size_A: float | None = None
    dose_e_A2: float | None = None  # of the whole movie
    frames: int | None = None
    image_shift_um: tuple[float, float] | None = None
    voltage_kV: float | None = None
    gain: str | None = None
    defects: str | None = None


def read_mdoc(movie: Path) -> Mdoc | None:
    """What stands in the .mdoc beside a movie (a.tif.mdoc, or a.mdoc), or None where there is none.

    Raises InputError for a file that is longer than any .mdoc.
    """
    for path in (movie.with_name(movie.name + ".mdoc"), movie.with_suffix(".mdoc")):
        if path.is_file():
            with open(path, encoding="utf-8", errors="replace") as stream:
                text = stream.read(MOST_CHARACTERS + 1)
            if len(text) > MOST_CHARACTERS:
                raise InputError(f"{path}: longer than {MOST_CHARACTERS:,} characters; is it an .mdoc file?")
            return parse_mdoc(text)
    return None


def parse_mdoc(text: str) -> Mdoc:
    """`Key = value` lines; of keys that stand there more than once the last counts, as the newest."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and value.strip():
            values[key.strip()] = value.strip()

    def number(key: str, low: float, high: float) -> float | None:
        try:
            found = float(values[key].split()[0])
        except (KeyError, ValueError, IndexError):
            return None
        return found if low <= found <= high else None

    shift = _pair(values.get("ImageShift", ""))
    frames = number("NumSubFrames", 1, 1e6)
    return Mdoc(
        number("PixelSpacing", 0.01, 100), number("ExposureDose", 1e-3, 1e4), None if frames is None else int(frames),
        shift, number("Voltage", 10, 3000), values.get("GainReference"), values.get("DefectFile"),
    )  # fmt: skip


def _pair(text: str) -> tuple[float, float] | None:
    try:
        x, y = (float(word) for word in text.split())
    except ValueError:
        return None
    return (x, y) if max(abs(x), abs(y)) <= FARTHEST_SHIFT_UM else None


def epu_template(movie: Path) -> str | None:
    """The place within the hole template that EPU's name states (the number behind Data_), or None for other names."""
    found = _EPU.search(movie.name)
    return found.group(1) if found else None


def clusters(shifts: np.ndarray, radius: float) -> np.ndarray:
    """Group (n,) int from 0 of beam shifts (n, 2): those that a chain of steps up to `radius` joins are one.

    Groups are numbered by their mean shift, along y, then x.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    spots, of = np.unique(np.round(np.asarray(shifts, np.float64) / (radius / 10)), axis=0, return_inverse=True)
    pairs = cKDTree(spots).query_pairs(10.0, output_type="ndarray")
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(spots), len(spots)))
    count, label = connected_components(graph, directed=False)
    group = label[of.reshape(-1)]
    middle = np.array([np.asarray(shifts)[group == each].mean(0) for each in range(count)])
    middle = np.round(middle / (2 * radius))  # a row of the template is a row
    rank = np.argsort(np.lexsort((middle[:, 0], middle[:, 1])))
    return rank[group]

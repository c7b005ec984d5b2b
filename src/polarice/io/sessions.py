"""What a microscope's programs leave beside movies: SerialEM's .mdoc files, EPU's .xml files and names, beam shifts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polarice.types import InputError

FARTHEST_SHIFT_UM = 1e4  # a centimetre; a beam is shifted by some 10
MOST_CHARACTERS = 1 << 22  # of an .mdoc file; a section of a tilt series has some thousand
_OF_MOVIE = re.compile(r"[_-](fractions|eer|movie|frames)$", re.IGNORECASE)  # behind the name of EPU's image
_EPU = re.compile(r"FoilHole_\d+_Data_(\d+)_")


@dataclass(frozen=True)
class Mdoc:
    """One movie's entry of an .mdoc file, or EPU's .xml file; None where it says nothing."""

    pixel_size_A: float | None = None
    dose_e_A2: float | None = None  # of the whole movie
    frames: int | None = None
    image_shift_um: tuple[float, float] | None = None
    voltage_kV: float | None = None
    gain: str | None = None
    defects: str | None = None
    kind: str = ".mdoc"


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


def read_beside(movie: Path) -> Mdoc | None:
    """What stands beside a movie: its .mdoc, or else EPU's .xml; None where there is neither.

    Raises InputError for one that is longer than any, and for an .xml file that is damaged.
    """
    found = read_mdoc(movie)
    return found if found is not None else read_epu(movie)


def read_epu(movie: Path) -> Mdoc | None:
    """What EPU's .xml beside a movie says (FoilHole_.._Data_...xml beside ..._Fractions.tiff); None: nothing.

    Beam shifts stand there in a unit that is the microscope's own: EPU's names tell the place in the template instead.
    """
    stem = movie.name.partition(".")[0]
    for path in dict.fromkeys(movie.with_name(f"{each}.xml") for each in (stem, _OF_MOVIE.sub("", stem))):
        if path.is_file():
            return parse_epu(path)
    return None


def parse_epu(path: Path) -> Mdoc | None:
    """Pixel size and voltage of a MicroscopeImage; None for other XML. Raises InputError for a damaged file."""
    from xml.etree import ElementTree

    with open(path, "rb") as stream:
        text = stream.read(MOST_CHARACTERS + 1)
    if len(text) > MOST_CHARACTERS or b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise InputError(f"{path}: no .xml file of EPU (too long, or with entities of its own); move it away")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path}: damaged ({error}); copy it again, or move it away") from None
    if root.tag.rpartition("}")[2] != "MicroscopeImage":
        return None

    def number(low: float, high: float, factor: float, *names: str) -> float | None:
        element: ElementTree.Element | None = root
        for name in names:
            found = element.iter() if element is not None else iter(())
            element = next((each for each in found if each.tag.rpartition("}")[2] == name), None)
        try:
            value = factor * float((element.text if element is not None else None) or "nan")
        except ValueError:
            return None
        return value if low <= value <= high else None

    pixel_size_A = number(0.01, 100, 1e10, "pixelSize", "x", "numericValue")  # metres there
    return Mdoc(pixel_size_A, voltage_kV=number(10, 3000, 1e-3, "AccelerationVoltage"), kind=".xml")


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

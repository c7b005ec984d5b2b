"""Rules about the rows of a table of particles or micrographs: values in columns, names, places, neighbours.

Columns are RELION's labels; a table is anything with `in`, `numbers` and `text`. A condition on a column that the table
lacks raises InputError: nothing is chosen by what is not known.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from polarice.selection.choice import Rule
from polarice.types import InputError

_CONDITION = re.compile(r"\s*_?(\w+)\s*(<=|>=|==|!=|<|>|=)\s*(\S.*?)\s*")
_HOLDS = {
    "<=": np.less_equal,
    ">=": np.greater_equal,
    "<": np.less,
    ">": np.greater,
    "=": np.equal,
    "!=": np.not_equal,
}
BEST_FIRST = ("rlnMaxValueProbDistribution", "rlnAutopickFigureOfMerit")  # which of two duplicates stays


class Columns(Protocol):
    """A table as rules see it."""

    @property
    def where(self) -> str: ...  # names the table in messages

    def __len__(self) -> int: ...

    def __contains__(self, label: object) -> bool: ...

    def numbers(self, label: str) -> np.ndarray: ...

    def text(self, label: str) -> np.ndarray: ...


@dataclass(frozen=True)
class RowWishes:
    """What is wanted of rows; None or empty: no condition."""

    fit_resolution_A: float | None = None  # of the CTF, at most
    defocus_A: tuple[float, ...] = ()  # least and largest mean of both defoci
    astigmatism_A: float | None = None  # at most
    figure_of_merit: float | None = None  # of the CTF, at least
    ice: float | None = None  # at most
    drift: float | None = None  # of the CTF's rings, at most
    motion_A: float | None = None  # in all, at most
    names: tuple[str, ...] = ()  # patterns of micrographs
    not_names: tuple[str, ...] = ()
    probability: float | None = None  # of the best pose, at least
    shift_A: float | None = None  # length, at most
    conditions: tuple[str, ...] = ()  # "rlnX>=3"


def rules_of_rows(table: Columns, wishes: RowWishes) -> list[Rule]:
    """A rule for each wish. Raises InputError for a column that is not there, and for a condition that is none."""
    rules = [
        _bound(table, label, value, words, unit, least)
        for label, value, words, unit, least in (
            ("rlnCtfMaxResolution", wishes.fit_resolution_A, "CTF fits to", "A or finer", False),
            ("rlnCtfFigureOfMerit", wishes.figure_of_merit, "CTF figure of merit at least", "", True),
            ("rlnCtfIceRingDensity", wishes.ice, "ice ring at most", "", False),
            ("polariceCtfDrift", wishes.drift, "drift at most", "", False),
            ("rlnAccumMotionTotal", wishes.motion_A, "motion at most", "A", False),
            ("rlnMaxValueProbDistribution", wishes.probability, "probability of the best pose at least", "", True),
        )
        if value is not None
    ]
    if wishes.defocus_A:
        rules.append(_defocus(table, wishes.defocus_A))
    if wishes.astigmatism_A is not None:
        difference = np.abs(table.numbers("rlnDefocusU") - table.numbers("rlnDefocusV"))
        rules.append(Rule(f"astigmatism at most {wishes.astigmatism_A:g} A", difference <= wishes.astigmatism_A))
    if wishes.shift_A is not None:
        length = np.hypot(*shifts_A(table).T)
        rules.append(Rule(f"shift at most {wishes.shift_A:g} A", length <= wishes.shift_A))
    if wishes.names:
        rules.append(Rule(f"micrograph named {' or '.join(wishes.names)}", _named(table, wishes.names)))
    if wishes.not_names:
        rules.append(Rule(f"micrograph not named {' or '.join(wishes.not_names)}", ~_named(table, wishes.not_names)))
    return rules + [_condition(table, text) for text in wishes.conditions]


def _bound(table: Columns, label: str, value: float, words: str, unit: str, least: bool) -> Rule:
    values = table.numbers(label)
    said = f"{words} {value:g} {unit}".strip()
    return Rule(said, values >= value if least else values <= value)


def _defocus(table: Columns, bounds: Sequence[float]) -> Rule:
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        raise InputError(f"--defocus {' '.join(f'{v:g}' for v in bounds)}: give the least and the largest, in A")
    mean = (table.numbers("rlnDefocusU") + table.numbers("rlnDefocusV")) / 2
    return Rule(f"defocus {bounds[0]:g} to {bounds[1]:g} A", (mean >= bounds[0]) & (mean <= bounds[1]))


def _named(table: Columns, patterns: Sequence[str]) -> np.ndarray:
    """(n,) bool: rows whose micrograph's name, or its last part, fits one of the patterns of a shell."""
    names, row_of = np.unique(micrographs_of(table), return_inverse=True)
    fits = [
        any(fnmatch.fnmatchcase(each, pattern) for pattern in patterns for each in (name, name.rpartition("/")[2]))
        for name in names.tolist()
    ]
    return np.array(fits, bool)[row_of.reshape(-1)]


def micrographs_of(table: Columns) -> np.ndarray:
    """(n,) the name of every row's micrograph or movie. Raises InputError where the table names none."""
    for label in ("rlnMicrographName", "rlnMicrographMovieName"):
        if label in table:
            return table.text(label)
    raise InputError(f"{table.where}: no column _rlnMicrographName; nothing can be chosen by micrograph")


def _condition(table: Columns, text: str) -> Rule:
    """A rule from "LABEL<=NUMBER" or "LABEL=TEXT"."""
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise InputError(f"--where {text!r}: give LABEL, one of < <= > >= = !=, and a value: rlnDefocusU<=20000")
    label, sign, value = match[1], match[2].replace("==", "="), match[3]
    try:
        number = float(value)
    except ValueError:
        if sign not in ("=", "!="):
            raise InputError(f"--where {text!r}: {value!r} is not a number; texts are compared with = and !=") from None
        values = table.text(label)
        return Rule(f"{label} {sign} {value}", _HOLDS[sign](values, value))
    return Rule(f"{label} {sign} {value}", _HOLDS[sign](table.numbers(label), number))


def shifts_A(table: Columns) -> np.ndarray:
    """(n, 2) origins as RELION has them, in A. Raises InputError where the table has none."""
    columns = [table.numbers(f"rlnOrigin{letter}Angst") for letter in "XY"]
    return np.stack(columns, axis=1)


@dataclass(frozen=True, eq=False)
class Places:
    """Where particles lie in their micrographs."""

    micrograph: np.ndarray  # (n,) codes
    xy_A: np.ndarray  # (n, 2)
    merit: np.ndarray  # (n,) of two that are too near, the larger stays; of equals the first


def apart(places: Places, distance_A: float, among: np.ndarray) -> Rule:
    """No two of the rows `among` (n,) bool that stay lie closer than `distance_A` on one micrograph.

    Rows are gone through from the largest merit down; one stays where none that stays is too near. Rows not among them
    are left alone.
    """
    kept = np.ones(len(places.micrograph), bool)
    rows = np.flatnonzero(among)
    order = rows[np.argsort(places.micrograph[rows], kind="stable")]
    cuts = np.flatnonzero(np.diff(places.micrograph[order])) + 1
    for group in np.split(order, cuts):
        kept[_crowded(places, distance_A, group)] = False
    return Rule(f"at least {distance_A:g} A from a better particle of the micrograph", kept)


def _crowded(places: Places, distance_A: float, rows: np.ndarray) -> list[int]:
    """Rows of one micrograph that go."""
    from scipy.spatial import cKDTree

    if len(rows) < 2:
        return []
    tree = cKDTree(places.xy_A[rows])
    to_device: list[list[int]] = tree.query_ball_point(places.xy_A[rows], np.nextafter(distance_A, 0))
    stays, goes = np.zeros(len(rows), bool), list[int]()
    for place in np.argsort(-places.merit[rows], kind="stable").tolist():
        if any(stays[other] for other in to_device[place]):
            goes.append(int(rows[place]))
        else:
            stays[place] = True
    return goes


def within(latent: np.ndarray, corners: Sequence[float]) -> Rule:
    """Places on a manifold (n, axes) inside a rectangle (2 x axes numbers: from, to of each axis) or a polygon.

    A polygon, of places on two axes, is the x y of three corners or more, in order. Raises InputError.
    """
    axes, count = latent.shape[1], len(corners)
    told = " ".join(f"{value:g}" for value in corners)
    if count == 2 * axes:
        low, high = np.sort(np.array(corners).reshape(axes, 2), axis=1).T
        return Rule(f"on the manifold within {told}", ((latent >= low) & (latent <= high)).all(axis=1))
    if axes != 2 or count < 6 or count % 2:
        wanted = f"{2 * axes} numbers, from and to along each axis" + (
            ", or x y of three corners or more" if axes == 2 else ""
        )
        raise InputError(f"--latent {told}: give {wanted}")
    return Rule(f"on the manifold within the polygon {told}", _inside(latent, np.array(corners).reshape(-1, 2)))


def _inside(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """(n,) bool by the even-odd rule: a ray to the right crosses the outline an odd number of times."""
    inside = np.zeros(len(points), bool)
    x, y = points.T
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        crosses = (y0 > y) != (y1 > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside

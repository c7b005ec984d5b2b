"""Point groups, their axes where RELION has them: rotations g under which a density is the same, V(g r) = V(r).

Cn    n along z                             T    3 along z, 2 along (0, sqrt 2, 1)
Dn    n along z, 2 along x                  O    4 along z, 3 along (1, 1, 1)
I, I2 2 along x, y and z, a 5 in the xz plane next to z      I1   the same, the 5 in the yz plane
I3    5 along z, a 2 along (-0.53, 0, 0.85)                  I4   5 along z, a 2 along (0.53, 0, 0.85)
"""

from __future__ import annotations

import math
import re

import numpy as np

from polarice.types import InputError

MOST_FOLD = 99
MOST_OPERATORS = 2 * MOST_FOLD
GOLDEN = (1 + math.sqrt(5)) / 2
KNOWN = "C1 to C99, D1 to D99, T, O, I, I1, I2, I3, I4"

_POLYHEDRA: dict[str, tuple[tuple[int, tuple[float, float, float]], ...]] = {
    "T": ((3, (0, 0, 1)), (2, (0, math.sqrt(2), 1))),
    "O": ((4, (0, 0, 1)), (3, (1, 1, 1))),
    "I1": ((2, (0, 0, 1)), (2, (1, 0, 0)), (5, (0, 1, GOLDEN))),
    "I2": ((2, (0, 0, 1)), (2, (1, 0, 0)), (5, (1, 0, GOLDEN))),
    "I3": ((5, (0, 0, 1)), (2, (-1, 0, GOLDEN))),
    "I4": ((5, (0, 0, 1)), (2, (1, 0, GOLDEN))),
}  # (fold, axis) of rotations that make the group


def operators(name: str) -> np.ndarray:
    """(g, 3, 3) rotations of a group, the identity first. Raises InputError for a name that is none."""
    plain = name.strip().upper()
    if match := re.fullmatch(r"([CD])(\d{1,3})", plain):
        kind, fold = match[1], int(match[2])
        if 1 <= fold <= MOST_FOLD:
            made = [(fold, (0.0, 0.0, 1.0))] + ([(2, (1.0, 0.0, 0.0))] if kind == "D" else [])
            return _closed([_rotation(order, axis) for order, axis in made])
    plain = "I2" if plain == "I" else plain
    if plain not in _POLYHEDRA:
        raise InputError(f"--sym {name}: no such point group; known are {KNOWN}")
    return _closed([_rotation(order, axis) for order, axis in _POLYHEDRA[plain]])


def _rotation(fold: int, axis: tuple[float, float, float]) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    along = np.array(axis) / np.linalg.norm(axis)
    return Rotation.from_rotvec(2 * math.pi / fold * along).as_matrix()


def _closed(generators: list[np.ndarray]) -> np.ndarray:
    """All products of some rotations."""
    found = [np.eye(3)]
    for one in found:  # grows meanwhile
        for other in generators:
            product = one @ other
            if not any(np.abs(product - known).max() < 1e-6 for known in found):
                found.append(product)
        assert len(found) <= MOST_OPERATORS, "these rotations make no finite group"
    return np.array(found)


def generators(name: str) -> np.ndarray:
    """(1 or 2, 3, 3) rotations that make a group; none of C1. Raises InputError for a name that is none."""
    group = operators(name)
    plain = "I2" if name.strip().upper() == "I" else name.strip().upper()
    if plain in _POLYHEDRA:
        return np.array([_rotation(order, axis) for order, axis in _POLYHEDRA[plain]])
    fold = int(plain[1:])
    made = [_rotation(fold, (0.0, 0.0, 1.0))] if fold > 1 else []
    made += [_rotation(2, (1.0, 0.0, 0.0))] if plain[0] == "D" else []
    return np.array(made).reshape(-1, 3, 3) if made else group[:0]


def in_one_unit(directions: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(n,) bool: of every direction and its mates, one: that which lies nearest to a point without symmetry."""
    point = np.array([0.17, 0.31, 0.93])
    mates = np.einsum("gij,nj->gni", group, directions) @ point
    return mates[0] >= mates.max(axis=0) - 1e-9

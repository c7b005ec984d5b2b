"""Half sets of the particles, which share no image: what two half maps agree on means nothing otherwise.

Rows are of one image where their pixels are the same, whatever stack they stand in, or where they lie in the same
pixel of one micrograph. Drawn halves keep such rows together; a table whose halves share more than a few is refused.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from polarice.runs.particle_job import image_name, places_of
from polarice.types import InputError

if TYPE_CHECKING:
    from polarice.io.particles import ParticleTable
    from polarice.runs.particle_job import CheckedParticles

FEW_SHARED = 0.01  # of the particles, in both halves: told; more make the FSC worthless


def given_halves(table: ParticleTable) -> np.ndarray | None:
    """(n,) int8 0 or 1 by rlnRandomSubset, None where there is none. Raises InputError for other numbers."""
    if "rlnRandomSubset" not in table.table:
        return None
    given = table.table.numbers("rlnRandomSubset")
    wrong = np.flatnonzero(~np.isin(given, (1, 2)))
    if len(wrong):
        where = f"{table.table.where}, row {wrong[0] + 1}"
        raise InputError(f"{where}: _rlnRandomSubset is neither 1 nor 2; correct or remove it")
    return given.astype(np.int8) - 1


def halves_of(looked: CheckedParticles, seed: int) -> np.ndarray:
    """(n,) int8 half set of every particle, -1 for those left out: the table's rlnRandomSubset, else drawn.

    Raises InputError where the table's makes no two halves, or two that share images.
    """
    half_of = np.full(len(looked.table.particles), -1, np.int8)
    if (given := given_halves(looked.table)) is not None:
        half_of[looked.rows] = given[looked.rows]
        sizes = [int((half_of == half).sum()) for half in (0, 1)]
        if min(sizes) < max(sizes) / 10:
            one, two = sizes
            raise InputError(
                f"{looked.table.table.where}: _rlnRandomSubset puts {one} particles into half 1 and {two} into half 2; "
                "remove the column to have them drawn"
            )
        require_apart(looked, half_of)
        return half_of
    rng = np.random.default_rng([seed, 3])
    drawn = rng.permutation(np.arange(len(looked.rows)) % 2)
    half_of[looked.rows] = drawn[_first_of(same_images(looked)[looked.rows])]
    return half_of


def require_apart(looked: CheckedParticles, half_of: np.ndarray) -> None:
    """Raise InputError where many images stand in both halves; tell where a few do.

    half_of  (n,) 0 or 1; -1: takes no part
    """
    image_of = same_images(looked)
    sides = [np.unique(image_of[half_of == half]) for half in (0, 1)]
    shared = np.intersect1d(sides[0], sides[1])
    if not len(shared):
        return
    rows = np.flatnonzero((image_of == shared[0]) & (half_of >= 0))
    one, two = (int(rows[half_of[rows] == half][0]) for half in (0, 1))
    said = (
        f"{looked.table.table.where}: {len(shared):,} particles stand in both half sets, the first in rows {one + 1} "
        f"and {two + 1} ({image_name(looked.table, one)}, {image_name(looked.table, two)})"
    )
    if len(shared) > FEW_SHARED * len(np.union1d(sides[0], sides[1])):
        raise InputError(
            f"{said}, so that half maps would agree on their noise; remove the copies, or _rlnRandomSubset to have "
            "halves drawn anew"
        )
    print(f"warning: {said}; halves agree a little too well by that", file=sys.stderr)


def same_images(looked: CheckedParticles) -> np.ndarray:
    """(n,) number of the image that each row shows: the same for rows of the same pixels or the same place."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(looked.table.particles)
    rows = np.arange(n)
    columns = [np.unique(looked.marks, return_inverse=True)[1]] if looked.marks is not None else []
    if (places := places_of(looked.table)) is not None:
        known, keys = places
        there, which = np.unique(keys, axis=1, return_inverse=True)
        place = rows.copy()  # each its own, where coordinates are not known
        if there.shape[1] > len(np.unique(keys[0])):  # else they stand for nothing: one place in each micrograph
            place[known] = n + which.ravel()
        columns.append(np.unique(place, return_inverse=True)[1])
    if not columns:
        return rows
    edges, offset = list[np.ndarray](), n
    for column in columns:
        edges.append(column + offset)
        offset += n
    pairs = (np.tile(rows, len(edges)), np.concatenate(edges))
    graph = coo_array((np.ones(len(pairs[0]), np.int8), pairs), shape=(offset, offset))
    return np.asarray(connected_components(graph, directed=False)[1][:n])


def _first_of(numbers: np.ndarray) -> np.ndarray:
    """For each of some numbers, where it stands first."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return np.asarray(first[inverse])

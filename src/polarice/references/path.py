"""A way through a map, along its occupied nodes from one end to the other."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from polarice.references.manifold.latent import LatentGrid
from polarice.references.manifold.model import Manifold

OCCUPIED = 0.2  # of an equal share: nodes with less are a detour
DETOUR = 10.0  # a step onto a node that is not occupied counts so many times


def path_points(model: Manifold, share: np.ndarray, frames: int) -> np.ndarray:
    """(frame, axis) points on the latent grid, evenly far apart by what changes in the images; share (K,) of the
    particles.

    The way is the shortest between the two occupied nodes that are farthest apart; steps go to neighbours on the grid
    (diagonals too) and are as long as the difference of the two images, weighted by the noise.
    """
    occupied = share * model.grid.k >= OCCUPIED
    steps = _steps(model, occupied)
    fullest = int(share.argmax())
    one_end = _farthest(dijkstra(steps, indices=fullest), occupied)
    length, before = dijkstra(steps, indices=one_end, return_predecessors=True)
    way = [_farthest(length, occupied)]
    while way[-1] != one_end:
        way.append(int(before[way[-1]]))
    nodes = model.grid.nodes.cpu().numpy()[way]
    gone = length[way]  # falls to 0
    at = np.linspace(gone[0], 0, frames)
    return np.stack([np.interp(-at, -gone, along) for along in nodes.T], axis=1)


def images_at(model: Manifold, points: np.ndarray) -> Tensor:
    """(point, N, N) float32 images anywhere on the map; points (point, axis) in [-1, 1]."""
    functions = model.grid.at(torch.from_numpy(points).to(model.coefficients))
    return model.packed.images((functions @ model.dense).float())


def _farthest(length: np.ndarray, occupied: np.ndarray) -> int:
    return int(np.argmax(np.where(occupied, length, -1.0)))


def _steps(model: Manifold, occupied: np.ndarray) -> coo_array:
    """(K, K) length of every step that may be taken, both ways."""
    a, b = _neighbours(model.grid)
    scale = model.scale.mean(dim=0).sqrt().float()[model.packed.ring_of]
    vectors = model.vectors * scale
    parts = zip(np.array_split(a, 1 + len(a) // 4096), np.array_split(b, 1 + len(a) // 4096), strict=True)
    length = np.concatenate([(vectors[i] - vectors[j]).norm(dim=1).cpu().numpy() for i, j in parts])
    length = np.maximum(length, 1e-6 * length.max(initial=1.0))
    to_a, to_b = (length * np.where(occupied[end], 1, DETOUR) for end in (a, b))
    k = model.grid.k
    return coo_array((np.concatenate([to_b, to_a]), (np.concatenate([a, b]), np.concatenate([b, a]))), shape=(k, k))


def _neighbours(grid: LatentGrid) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of nodes one step apart on every axis at the most, each pair once."""
    index = np.arange(grid.k).reshape(grid.shape)
    pairs = []
    for step in itertools.product((-1, 0, 1), repeat=len(grid.shape)):
        if step <= (0,) * len(grid.shape):
            continue
        here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, grid.shape, strict=True))
        there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, grid.shape, strict=True))
        pairs.append((index[here].ravel(), index[there].ravel()))
    return np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])

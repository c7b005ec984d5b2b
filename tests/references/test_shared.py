"""A map's equations shared out over ranks: threads that stand for them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from polarice.cluster.packed import joined
from polarice.references.manifold import ManifoldPrior, expect_nodes
from references.maps import problem


@dataclass
class Board:
    """What ranks hand each other."""

    size: int
    said: dict[int, np.ndarray] = field(default_factory=dict)
    barrier: Any = None

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=60)


@dataclass(frozen=True)
class Rank:
    """One of them."""

    board: Board
    rank: int

    @property
    def size(self) -> int:
        return self.board.size

    def join(self, parts: Any) -> Any:
        return joined(parts, self._gathered)

    def _gathered(self, own: np.ndarray) -> list[np.ndarray]:
        self.board.said[self.rank] = own
        self.board.barrier.wait()
        found = [self.board.said[rank] for rank in range(self.size)]
        self.board.barrier.wait()
        return found


@pytest.mark.parametrize("size", [2, 5, 40])  # 40: more than there are rings
def test_ranks_that_share_the_rings_find_the_same_map(size):
    where = problem(48, 0.0, noise=0.02)
    model, prior = where.model, ManifoldPrior()
    sums = expect_nodes(model.triangle, model.nodes(where.even), where.aligned)[1].double()
    alone = model.maximize(sums, prior)
    board = Board(size)
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(lambda rank: model.maximize(sums, prior, Rank(board, rank)), range(size)))
    scale = alone.coefficients.abs().max()
    for each in found:
        assert torch.equal(each.coefficients, found[0].coefficients)
        assert (each.coefficients - alone.coefficients).abs().max() < 1e-6 * scale
        torch.testing.assert_close(each.noise_power, alone.noise_power, rtol=2e-5, atol=0)
        torch.testing.assert_close(each.tau2, alone.tau2, rtol=1e-5, atol=0)

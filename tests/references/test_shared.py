"""A map's equations shared out over ranks: threads that stand for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polarice.cluster import SERIAL, Comm, part
from polarice.cluster.packed import dealt, joined, summed
from polarice.references.manifold.component_count import unseen_rank
from polarice.references.manifold.model import Manifold, ManifoldPrior
from polarice.references.manifold.nodes import expect_nodes, expect_thin, gathered
from polarice.references.manifold.sharing import RingShares
from references.maps import problem, species_set


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

    def all_gather(self, parts: Any) -> Any:
        return joined(parts, self._gathered)

    def sum(self, stats: Any) -> Any:
        def all_reduce(buffer: np.ndarray) -> None:
            buffer[:] = np.sum(self._gathered(buffer.copy()), axis=0)

        return summed(stats, all_reduce)

    def reduce_scatter(self, parts: Any) -> Any:
        def reduce_scatter(sent: np.ndarray, own: np.ndarray, counts: list[int]) -> None:
            whole = np.sum(self._gathered(sent), axis=0)
            own[:] = np.split(whole, np.cumsum(counts)[:-1])[self.rank]

        return dealt(parts, self.rank, reduce_scatter)

    def _gathered(self, own: np.ndarray) -> list[np.ndarray]:
        self.board.said[self.rank] = own
        self.board.barrier.wait()
        found = [self.board.said[rank] for rank in range(self.size)]
        self.board.barrier.wait()
        return found


@pytest.mark.parametrize("rank", [0, 2, 8])  # 8: too many for rows to be cheaper than nodes
@pytest.mark.parametrize("astigmatism", [0.0, 3000.0])
@pytest.mark.parametrize("size", [2, 3, 40])  # 40: more than there are rings, nodes and images
def test_ranks_that_share_images_and_rings_find_the_map_of_one(size, astigmatism, rank):
    """Sums, their dealing, both ways to gather them, node images and the noise, in two iterations."""
    where = problem(48, astigmatism, n=24)
    start = where.model.cut(rank) if rank else where.model
    images, even, prior = where.aligned, where.even, ManifoldPrior()

    def iterated(comm: Comm) -> Manifold:
        model, own = start, images.take(part(np.zeros(24), comm.rank, comm.size))
        for _ in range(2):
            nodes, packed, shares, gather = model.nodes(even), model.packed, model.shares(comm), None
            if model.low_rank:
                _, sums, first = expect_thin(packed, nodes, own)
                sums = comm.sum(sums.double())
                gather = partial(_dealt, shares, partial(gathered, packed, nodes, own, first, None))
            else:
                sums = shares.together(expect_nodes(packed, nodes, own)[1].double())
            model = model.maximize(sums, prior, comm, gather)
        return model

    alone, board = iterated(SERIAL), Board(size)
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(lambda rank: iterated(Rank(board, rank)), range(size)))
    scale = alone.dense.abs().max()
    assert (alone.dense - start.dense).abs().max() > 1e-2 * start.dense.abs().max()
    for each in found:
        assert torch.equal(each.coefficients, found[0].coefficients)
        assert (each.dense - alone.dense).abs().max() < 1e-4 * scale
        assert (each.vectors - alone.vectors).abs().max() < 1e-4 * alone.vectors.abs().max()
        torch.testing.assert_close(each.ring_power, alone.ring_power, rtol=1e-3, atol=0)
        torch.testing.assert_close(each.noise_power, alone.noise_power, rtol=5e-4, atol=0)
        torch.testing.assert_close(each.tau2, alone.tau2, rtol=1e-3, atol=0)


def _dealt(shares: RingShares, of_batch: Callable[[Tensor], Tensor], design: Tensor) -> Tensor:
    return shares.deal(of_batch(design).double())


def test_ranks_agree_on_how_many_ways_unseen_images_confirm():
    """Each keeps some of its own images apart, so that the number need not be that of one rank; near it is."""
    where, board = species_set(24, 0.5, (60,)), Board(3)

    def found(comm: Comm) -> int:
        own = where.aligned.take(part(np.zeros(400), comm.rank, comm.size))
        return unseen_rank(where.empty, 400, own, where.even, ManifoldPrior(equal_shares=1.5), 0, comm)

    with ThreadPoolExecutor(3) as pool:
        several = set(pool.map(lambda rank: found(Rank(board, rank)), range(3)))
    assert len(several) == 1 and several <= {21, 27, 34}

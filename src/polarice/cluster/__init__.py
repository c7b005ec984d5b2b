"""Who else works on this job: the work is a sum, and the cluster is an argument.

Every rank calls the same methods of its `Comm` in the same order. Alone (`Serial`) they hand back what they were given.
`world` finds out who is there: the ranks that mpirun or srun started, or nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from polarice.cluster.launch import Launch, launched

__all__ = ["SERIAL", "Comm", "Launch", "Serial", "launched", "part", "world"]

T = TypeVar("T")
NEAR_A_FILE = 0.02  # of a rank's share: so far its end is moved for a file to be read by one rank alone


class Comm(Protocol):
    """The ranks that share one job."""

    @property
    def rank(self) -> int:
        """This rank, from 0; rank 0 writes files and talks."""
        ...

    @property
    def size(self) -> int:
        """How many ranks there are."""
        ...

    @property
    def node_ranks(self) -> tuple[int, ...]:
        """The ranks on this one's node, ascending."""
        ...

    def sum(self, stats: T) -> T:
        """The sum over all ranks of `stats`: a tensor, an array, a number, or a dataclass, dict or tuple of them."""
        ...

    def reduce_scatter(self, parts: Sequence[T]) -> T:
        """The sum over all ranks of parts[rank], tensors of real numbers: `sum` where each needs a part."""
        ...

    def all_gather(self, parts: T) -> T:
        """Arrays of all ranks (a dataclass, dict or tuple of them), one rank's after another's along the first axis."""
        ...

    def collect(self, value: T) -> list[T]:
        """What every rank has, in their order; anything, as long as it is small."""
        ...

    def broadcast(self, value: T, root: int = 0) -> T:
        """`value` as rank `root` holds it."""
        ...

    def on_root(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, where alone it is called; if it raises there, every rank ends."""
        ...

    def on_node_root(self, make: Callable[[], T]) -> T:
        """What `make` gives on this node's first rank, where alone it is called; other nodes' ranks do theirs."""
        ...


@dataclass(frozen=True)
class Serial:
    """One rank: the sum over the ranks is what this one has."""

    rank: int = 0
    size: int = 1
    node_ranks: tuple[int, ...] = (0,)

    def sum(self, stats: T) -> T:
        return stats

    def reduce_scatter(self, parts: Sequence[T]) -> T:
        return parts[0]

    def all_gather(self, parts: T) -> T:
        return parts

    def collect(self, value: T) -> list[T]:
        return [value]

    def broadcast(self, value: T, root: int = 0) -> T:
        return value

    def on_root(self, make: Callable[[], T]) -> T:
        return make()

    def on_node_root(self, make: Callable[[], T]) -> T:
        return make()


SERIAL = Serial()


_OPEN: list[Comm] = []  # the ranks, while a block runs: MPI begins and ends once in a process


@contextmanager
def world(job: str) -> Iterator[Comm]:
    """All ranks of this job, while the block runs; alone where nothing launched several. `job` names it in messages.

    A rank that is killed, or leaves the block by an exception, ends all of them, with a message that names the rank,
    its host and the cause. A job within another's block has the same ranks. InputError where several were launched and
    mpi4py is missing.
    """
    launch = launched()
    if launch is None:
        yield SERIAL
        return
    if _OPEN:
        yield _OPEN[-1]
        return
    from polarice.cluster.mpi import joined_world

    with joined_world(job, launch) as comm:
        _OPEN.append(comm)
        try:
            yield comm
        finally:
            _OPEN.pop()


def part(files: np.ndarray, rank: int, size: int) -> slice:
    """Which of some rows are a rank's: even parts one after another, their ends at the end of a file if one is near.

    files  (n,) the file of each row; rows of one file stand together
    """
    n = len(files)
    ends = np.flatnonzero(np.diff(files)) + 1
    slack = NEAR_A_FILE * n / size

    def edge(number: int) -> int:
        even = round(number * n / size)
        to_device = ends[np.abs(ends - even) <= slack] if 0 < number < size else ends[:0]
        return int(to_device[np.argmin(np.abs(to_device - even))]) if len(to_device) else even

    return slice(edge(rank), edge(rank + 1))

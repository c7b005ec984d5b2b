"""Who else works on this job: the work is a sum, and the cluster is an argument.

Every rank calls `sum` and `broadcast` in the same order. Alone (`Serial`) both hand back what they were given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


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

    def sum(self, stats: T) -> T:
        """The sum over all ranks of `stats`: a tensor, an array, a number, or a dataclass, dict or tuple of them."""
        ...

    def broadcast(self, value: T, root: int = 0) -> T:
        """`value` as rank `root` holds it."""
        ...


@dataclass(frozen=True)
class Serial:
    """One rank: the sum over the ranks is what this one has."""

    rank: int = 0
    size: int = 1

    def sum(self, stats: T) -> T:
        return stats

    def broadcast(self, value: T, root: int = 0) -> T:
        return value

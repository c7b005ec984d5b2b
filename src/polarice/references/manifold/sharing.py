"""Which rings and nodes of a map are each rank's: what it needs of the sums, and what it hands to the others."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from polarice.cluster import SERIAL, Comm, part
from polarice.references.manifold.aligned import PackedHarmonics
from polarice.references.manifold.nodes import NodeSums

RING_WORK = 32  # what is done once for a ring is the work of so many of its numbers


@dataclass(frozen=True)
class RingShares:
    """Rings dealt out to ranks one after another, as much work to each as to any other; some may get none."""

    packed: PackedHarmonics
    comm: Comm = SERIAL

    @property
    def own(self) -> slice:
        """This rank's rings."""
        return self._rings[self.comm.rank]

    @property
    def place(self) -> slice:
        """Where the numbers of this rank's rings stand among those of an image."""
        return self._place(self.own)

    def some(self, count: int) -> slice:
        """This rank's part of `count` things of equal work, such as nodes; all parts joined are all."""
        return part(np.zeros(count), self.comm.rank, self.comm.size)

    def deal(self, values: Tensor) -> Tensor:
        """The sum over all ranks of values (n, d), of this rank's rings: (n, own); sent in single precision."""
        if self.comm.size == 1:
            return values
        return self.comm.reduce_scatter([values[:, self._place(each)].float() for each in self._rings]).to(values.dtype)

    def join(self, values: Tensor) -> Tensor:
        """All ranks' values (n, own), or of rings, (n, own ring), side by side; sent in single precision."""
        return values if self.comm.size == 1 else self.comm.all_gather(values.T.float()).T.to(values.dtype)

    def together(self, sums: NodeSums) -> NodeSums:
        """The sums of all ranks, the numerator that of this rank's rings; float64 as they were."""
        if self.comm.size == 1:
            return sums
        own = self.deal(sums.numerator)
        rest = self.comm.sum(replace(sums, numerator=sums.numerator[:, :0]).light())
        return replace(rest.double(), numerator=own)

    @cached_property
    def _rings(self) -> list[slice]:
        bounds = self.packed.bounds
        work, size = bounds + RING_WORK * np.arange(len(bounds)), self.comm.size
        edges = np.rint(np.interp(work[-1] * np.arange(size + 1) / size, work, np.arange(len(work)))).astype(int)
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]

    def _place(self, rings: slice) -> slice:
        return slice(int(self.packed.bounds[rings.start]), int(self.packed.bounds[rings.stop]))

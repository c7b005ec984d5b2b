"""One pass over the images: prepare what is not at hand, expect, sum."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from polarice.align.expect import Posterior, References, expect
from polarice.align.images import Clock, ParticleImages
from polarice.align.memory_chunks import Portions
from polarice.align.model import M
from polarice.align.polar import PolarBasis
from polarice.align.search import Level, Search
from polarice.align.store import PolarStore
from polarice.align.sums import Sums
from polarice.types import Assignment, Pose2D
from polarice.workers import in_turn

PREPARED_AT_ONCE = {"cpu": 32, "cuda": 256}  # images; always as many, so that each one's bits depend on it alone
Item = TypeVar("Item")
SURVIVORS = 4  # at the finest level, one row in so many is expected to be left


@dataclass(frozen=True)
class Sweep(Generic[M]):
    """A pass: which images meet which model, and how."""

    images: ParticleImages
    model: M
    search: Search
    batch: int  # images compared at once
    workers: int = 1

    def run(
        self, used: np.ndarray, before: Assignment, crop_centre_px: np.ndarray, store: PolarStore, clock: Clock
    ) -> tuple[Assignment, Sums]:
        """New assignments of the rows `used` (others stay) and their sums; images are cut around cut_px (n, 2)."""
        basis = self.model.basis
        basis.prepare()
        store.reset(basis)
        kept, streamed = store.parted(used)
        centre_px = before.pose.shift_px
        fill(store, self.images, basis, store.missing(kept, crop_centre_px[kept]), crop_centre_px, self.workers, clock)

        references = self.model.references(self.images.even_harmonics(basis))
        assignment = _writable(before)
        totals: list[Sums | None] = [None] * self.workers
        clocks = [Clock() for _ in totals]

        portions = [Portions() for _ in totals]

        def work(worker: int, batch: _Batch) -> tuple[np.ndarray, Posterior]:
            def part(some: slice) -> tuple[Posterior, Sums]:
                rows, since = batch.rows[some], time.perf_counter()
                polar = self.images.polar(basis, rows, batch.field(some), crop_centre_px[rows], centre_px[rows])
                since = clocks[worker].add("preparation", since)
                found = expect(basis, references, polar, self.search, self.model.ring_noise)
                clocks[worker].add("expectation", since)
                return found

            found = portions[worker].each(part, len(batch.rows))
            with clocks[worker].counting("expectation"):
                sums = reduce(add, (sums for _, sums in found))
                total = totals[worker]
                totals[worker] = sums.double() if total is None else total.include(sums)
            return batch.rows, Posterior.joined([posterior for posterior, _ in found])

        batches = clock.waiting("reading", self._batches(store, kept, streamed, crop_centre_px))
        for rows, posterior in _one_behind(in_turn(batches, work, self.workers)):
            _store(assignment, rows, posterior)
            self.images.progress(len(rows))
        clock.share(clocks)
        return assignment, sum((total for total in totals if total is not None), self._nothing(references))

    def _nothing(self, references: References) -> Sums:
        """The sums of no images."""
        level = self.search.levels[-1]
        even = min(len(references.power_conjugate), (level.n_q + 1) // 2)
        shape = (level.n_q, even, level.rings, len(references))
        return Sums.of_none(shape, self.images.groups, self.images.device)

    def _batches(
        self, store: PolarStore, kept: np.ndarray, streamed: np.ndarray, crop_centre_px: np.ndarray
    ) -> Iterator[_Batch]:
        """Rows, and what makes their fields where they are worked on."""

        def taken(rows: np.ndarray) -> _Batch:
            return _Batch(rows, lambda some: store.take(rows[some]))

        def made(rows: np.ndarray, pixels: Tensor) -> _Batch:
            return _Batch(
                rows, lambda some: self.images.fields(self.model.basis, pixels[some], crop_centre_px[rows[some]])
            )

        chunks = [kept[start : start + self.batch] for start in range(0, len(kept), self.batch)]
        if store.at_hand:
            yield from map(taken, chunks)
        else:
            for rows, fields in zip(chunks, self.images.sent(store.take(rows) for rows in chunks), strict=True):
                yield _Batch(rows, fields.__getitem__)
        for rows, pixels in self.images.batches(streamed, self.batch):
            yield made(rows, pixels)


def fill(
    store: PolarStore,
    images: ParticleImages,
    basis: PolarBasis,
    rows: np.ndarray,
    crop_centre_px: np.ndarray,
    workers: int,
    clock: Clock,
) -> None:
    """Prepare the images of some rows, cut around cut_px (n, 2), and keep their fields in the store."""
    clocks = [Clock() for _ in range(workers)]
    portions = [Portions() for _ in clocks]
    size = PREPARED_AT_ONCE[basis.device.type]

    def work(worker: int, item: tuple[np.ndarray, Tensor]) -> None:
        chunk, pixels = item
        with clocks[worker].counting("preparation"):
            whole = torch.cat([pixels, pixels.new_zeros(size - len(pixels), *pixels.shape[1:])])
            cut = np.concatenate([crop_centre_px[chunk], np.zeros((size - len(chunk), 2))])
            made = portions[worker].each(lambda some: images.fields(basis, whole[some], cut[some]), size)
            store.put(chunk, torch.cat(made)[: len(chunk)], crop_centre_px[chunk])

    for _ in in_turn(clock.waiting("reading", images.batches(rows, size)), work, workers):
        pass
    clock.share(clocks)


@dataclass(frozen=True)
class _Batch:
    """Rows that are compared at once, and their fields."""

    rows: np.ndarray
    field: Callable[[slice], Tensor]  # of some of them: (row, ring, angle)


def _one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each when the next one has been asked for: on an accelerator, work that has begun."""
    before: list[Item] = []
    for item in items:
        yield from before
        before = [item]
    yield from before


def batch_size(basis: PolarBasis, references: int, search: Search, batch_bytes: int) -> int:
    """Images whose weights, and what is made on the way to them, fit into `batch_bytes`."""

    def level_bytes(level: Level) -> int:
        return len(level.shifts_px) * (
            4 * 3 * references * (level.psi_count + 2) + 8 * 3 * level.rings * (level.n_theta // 2 + 1)
        )

    first, last = search.levels[0], search.levels[-1]
    weights = max(level_bytes(first), level_bytes(last) // (1 if first is last else SURVIVORS))
    preparation = 40 * basis.box_px**2  # padded twofold, its transform, and their copies (PolarBasis.sample)
    return max(1, int(batch_bytes / max(weights, preparation)))


def _writable(assignment: Assignment) -> Assignment:
    pose = assignment.pose
    return Assignment(
        pose=Pose2D(pose.class_of.copy(), pose.psi_deg.copy(), pose.shift_px.copy()),
        log_likelihood=assignment.log_likelihood.copy(),
        max_probability=assignment.max_probability.copy(),
        significant=assignment.significant.copy(),
    )


def _store(assignment: Assignment, rows: np.ndarray, posterior: Posterior) -> None:
    """Write a batch's posterior, brought here at once, into arrays that this pass owns."""
    found = posterior.table().cpu().numpy()
    assignment.pose.class_of[rows] = found[0]
    assignment.pose.psi_deg[rows] = np.rad2deg(found[1])
    assignment.pose.shift_px[rows] = found[2:4].T
    assignment.log_likelihood[rows] = found[4]
    assignment.max_probability[rows] = found[5]
    assignment.significant[rows] = found[6]

"""One pass over the images: prepare what is not at hand, expect, sum."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

import numpy as np
import torch

from polarice.align.expect import PolarImages, Posterior, References, expect
from polarice.align.images import Clock, ParticleImages
from polarice.align.model import M
from polarice.align.polar import PolarBasis
from polarice.align.search import Level, Search
from polarice.align.store import PolarStore
from polarice.align.sums import Sums
from polarice.types import Assignment, Pose2D
from polarice.workers import in_turn

PREPARED_AT_ONCE = {"cpu": 32, "cuda": 256}  # images; always as many, so that each one's bits depend on it alone
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
        self, used: np.ndarray, before: Assignment, cut_px: np.ndarray, store: PolarStore, clock: Clock
    ) -> tuple[Assignment, Sums]:
        """New assignments of the rows `used` (others stay) and their sums; images are cut around cut_px (n, 2)."""
        basis = self.model.basis
        basis.prepare()
        store.suit(basis)
        kept, streamed = store.parted(used)
        centre_px = before.pose.shift_px
        self._fill(store, store.missing(kept, cut_px[kept]), cut_px, clock)

        references = self.model.references(self.images.even_harmonics(basis))
        assignment = _writable(before)
        totals: list[Sums | None] = [None] * self.workers
        clocks = [Clock() for _ in totals]

        def work(worker: int, item: tuple[np.ndarray, np.ndarray | None]) -> tuple[np.ndarray, Posterior]:
            rows, pixels = item
            since = time.perf_counter()
            field = store.take(rows) if pixels is None else self.images.fields(basis, pixels, cut_px[rows])
            batch = self.images.polar(basis, rows, field, cut_px[rows], centre_px[rows])
            since = clocks[worker].add("preparation", since)
            posterior, sums = self._expect(references, batch)
            total = totals[worker]
            totals[worker] = sums.double() if total is None else total.include(sums)
            clocks[worker].add("expectation", since)
            return rows, posterior

        batches = self._batches(kept, streamed)
        for rows, posterior in in_turn(clock.waiting("reading", batches), work, self.workers):
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

    def _batches(self, kept: np.ndarray, streamed: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for start in range(0, len(kept), self.batch):
            yield kept[start : start + self.batch], None
        yield from self.images.raw(streamed, self.batch)

    def _fill(self, store: PolarStore, rows: np.ndarray, cut_px: np.ndarray, clock: Clock) -> None:
        """Prepare images and keep their fields."""
        clocks = [Clock() for _ in range(self.workers)]
        size = PREPARED_AT_ONCE[self.model.basis.device.type]

        def work(worker: int, item: tuple[np.ndarray, np.ndarray]) -> None:
            chunk, pixels = item
            since = time.perf_counter()
            whole = np.concatenate([pixels, np.zeros((size - len(pixels), *pixels.shape[1:]), pixels.dtype)])
            cut = np.concatenate([cut_px[chunk], np.zeros((size - len(chunk), 2))])
            fields = self.images.fields(self.model.basis, whole, cut)
            store.put(chunk, fields[: len(chunk)], cut_px[chunk])
            clocks[worker].add("preparation", since)

        for _ in in_turn(clock.waiting("reading", self.images.raw(rows, size)), work, self.workers):
            pass
        clock.share(clocks)

    def _expect(self, references: References, batch: PolarImages) -> tuple[Posterior, Sums]:
        """The expectation of a batch; on a GPU whose memory is short, of its halves."""
        try:
            return expect(self.model.basis, references, batch, self.search, self.model.ring_noise)
        except torch.OutOfMemoryError:
            half = len(batch) // 2
            if half == 0:
                raise
        torch.cuda.empty_cache()
        parts = [self._expect(references, batch.take(part)) for part in (slice(0, half), slice(half, None))]
        return Posterior.joined([posterior for posterior, _ in parts]), parts[0][1] + parts[1][1]


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
    """Write a batch's posterior into arrays that this pass owns."""
    assignment.pose.class_of[rows] = posterior.class_of.cpu().numpy()
    assignment.pose.psi_deg[rows] = np.rad2deg(posterior.psi_rad.double().cpu().numpy())
    assignment.pose.shift_px[rows] = posterior.shift_px.double().cpu().numpy()
    assignment.log_likelihood[rows] = posterior.log_likelihood.double().cpu().numpy()
    assignment.max_probability[rows] = posterior.max_probability.cpu().numpy()
    assignment.significant[rows] = posterior.significant.cpu().numpy()

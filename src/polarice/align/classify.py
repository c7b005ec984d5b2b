"""The expectation of classes: images meet all of them at all angles and shifts of the step's grid."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Generic

import numpy as np
import torch

from polarice.align.fit import Expected, State
from polarice.align.fused import Kernel
from polarice.align.images import Clock, ParticleImages
from polarice.align.model import M
from polarice.align.products import Precision
from polarice.align.schedule import Step, shift_grid
from polarice.align.search import Search
from polarice.align.store import CacheBudget, PolarStore
from polarice.align.sweep import Sweep, batch_size
from polarice.cluster import SERIAL, Comm, part
from polarice.types import Assignment

FARTHEST_FROM_CUT_PX = 2.0  # images are cut anew when their centre is farther than this, along x or y
CONCENTRATED = 0.02  # share of the cells that images had significant, below which coarse levels come first


@dataclass(frozen=True)
class Settings:
    """How a run goes about its steps."""

    tau2_fudge: float = 2.0
    batch_bytes: int = 64 << 20  # memory of one batch's weights
    workers: int = 1  # threads that each work on a batch
    room: CacheBudget = CacheBudget()  # for polar fields
    precision: Precision = "float32"  # of the products of images and references
    kernel: Kernel = "plain"  # what sums the weights of coarse levels


DEFAULT = Settings()


@dataclass(frozen=True)
class Cuts:
    """Where images were cut last."""

    crop_centre_px: np.ndarray  # (n, 2) whole pixels


@dataclass(frozen=True)
class Searched(Expected[M, Cuts]):
    """What a pass over the images found, and on which grid."""

    search: Search


class ClassExpectation(Generic[M]):
    """Compares a step's particles with all classes, and keeps their polar fields from one step to the next."""

    def __init__(
        self, images: ParticleImages, rows: np.ndarray, settings: Settings = DEFAULT, comm: Comm = SERIAL
    ) -> None:
        """rows: the particles to use, of all ranks, in the order of the disk."""
        self.images, self.rows, self.settings, self.comm = images, rows, settings, comm
        self.own = part(images.particles.stack_of[rows], comm.rank, comm.size)  # this rank's
        self.store = PolarStore(rows[self.own], settings.room)

    def __call__(
        self, state: State[M, Cuts], model: M, step: Step, rng: np.random.Generator, clock: Clock
    ) -> Searched[M]:
        """Compare the step's batch of particles; every rank its own part of them."""
        rows, own, settings, comm = self.rows, self.own, self.settings, self.comm
        search = replace(
            _search(model, step, state.assignment, rng), precision=settings.precision, kernel=settings.kernel
        )
        drawn = _drawn(len(rows), step.batch, rng)
        used, mine = rows[drawn], rows[drawn[slice(*np.searchsorted(drawn, (own.start, own.stop)))]]
        size = batch_size(model.basis, len(model.weights), search, settings.batch_bytes)
        sweep = Sweep(self.images, model, search, size, settings.workers)
        crop_centre_px = _cut(state.carried.crop_centre_px, state.pose.shift_px)
        assignment, sums = sweep.run(mine, state.assignment, crop_centre_px, self.store, clock)
        if comm.size > 1:
            since = time.perf_counter()
            sums = comm.sum(sums.light())
            assignment = assignment.put(used, comm.all_gather(assignment.take(mine)))
            clock.add("communication", since)
        prior = step.prior(settings.tau2_fudge)
        return Searched(
            model, assignment, Cuts(crop_centre_px), used, sums, lambda: model.maximize(sums, prior), search
        )


def _drawn(count: int, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted places (batch,) among `count`: one at random in each of `batch` even stretches, the first of which begins
    anywhere (the end is joined to the beginning). So every part of the rows has its share of every mini-batch."""
    if batch >= count:
        return np.arange(count)
    edges = ((np.arange(batch + 1) + rng.random()) * count / batch).astype(np.int64)
    return np.sort(rng.integers(edges[:-1], edges[1:]) % count)


def _cut(crop_centre_px: np.ndarray, centre_px: np.ndarray) -> np.ndarray:
    """Where to cut images (n, 2): where they were cut before, or anew where their centre has gone too far from it."""
    far = np.abs(centre_px - crop_centre_px).max(axis=1) > FARTHEST_FROM_CUT_PX
    return np.where(far[:, None], np.rint(centre_px), crop_centre_px)


def _search(model: M, step: Step, before: Assignment, rng: np.random.Generator) -> Search:
    """The step's grid, moved at random within one grid step while poses are those of the grid."""
    on_grid = step.between_px == 0 and step.number < step.total
    perturbation = rng.uniform(-0.5, 0.5, 2) if on_grid else np.zeros(2)
    shifts = shift_grid(step.shift_range_px, step.shift_step_px, perturbation)
    finest = model.basis.n_theta
    count = finest if step.psi_step_deg is None else max(finest, 2 * math.ceil(180 / step.psi_step_deg))
    shifts_px = torch.from_numpy(shifts).float().to(model.basis.device)
    cells = len(shifts) * len(model.weights) * count
    known = before.significant[before.pose.class_of >= 0]
    concentrated = len(known) > 0 and known.mean() < CONCENTRATED * cells
    search = Search.over(model.basis, shifts_px, count, model.shift_sigma_px, coarse_to_fine=bool(concentrated))
    return replace(search, between_px=step.between_px)

"""Refinement of a density by its half maps: what comes next, and the expectation as the driver asks for it.

Directions become finer as the resolution rises (a step is to move the particle's edge by no more than it), and where
nothing is gained; from an order on, images are searched around where they were, and when that grid is fine enough,
among directions of their own between its points. When nothing is gained any more, one last iteration goes to Nyquist.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from polarice.align.classify import FARTHEST_FROM_CUT_PX
from polarice.align.fit import Expected, State
from polarice.align.fused import Kernel
from polarice.align.images import Clock, ParticleImages
from polarice.align.polar import PolarBasis
from polarice.align.prepare import MASK_EDGE_PX
from polarice.align.products import Precision
from polarice.align.schedule import shift_grid
from polarice.align.search import Search
from polarice.align.store import CacheBudget, PolarStore
from polarice.cluster import SERIAL, Comm, part
from polarice.references.directions import step_deg
from polarice.references.halfmaps import HALVES, HalfMaps
from polarice.references.slices import FourierGrid
from polarice.references.symmetry import operators
from polarice.references.views import Found, Halves, Pass, ViewGrid
from polarice.types import Assignment

FIRST_ORDER = 2  # 15 degrees
COARSEST = 1.2  # times the resolution, by which a step may move the particle's edge
FINEST = 0.45  # times it, beyond which steps do not become finer
MORE_RINGS, RING_SHARE = 4, 1.15  # compared beyond the resolution
FIRST_RINGS = 5  # beyond the reference's resolution, in the first iteration
SCALE_IMAGES, SCALE_PASSES = 100, 3  # of each half, that the reference's grey scale is fitted to
MOST_ORDER = 6
BEST_ALONE = 0.05  # times the noise: best poses take all


@dataclass(frozen=True)
class RefineStep:
    """One iteration."""

    number: int
    total: int
    order: int  # HEALPix
    local: bool
    r_max: int
    shift_range_px: float
    shift_step_px: float
    last: bool = False  # refinement has come to its end
    own_step_deg: float = 0.0  # not 0: each image meets directions of its own, so far around its last
    best_alone: bool = False  # each image counts at its best pose alone

    @property
    def between_px(self) -> float:
        """The best pose is looked for so far beside the grid's points."""
        return self.shift_step_px / 2 if self.local else 0.0


@dataclass(frozen=True)
class Progress:
    """What refinement carries on beside the poses that every job has."""

    crop_centre_px: np.ndarray  # (n, 2) where images were cut last
    direction: np.ndarray  # (n, 3) unit vectors, where particles are seen from; 0: unknown
    half_of: np.ndarray  # (n,) int8, 0 or 1; -1: takes no part
    step: RefineStep | None = None  # the last one
    best_shell: int = 0  # the finest that halves had agreed to before it
    idle: int = 0  # iterations in a row before it that had not bettered that

    def gained(self, shell: int) -> Progress:
        """With an outcome: halves agree up to `shell`."""
        better = shell > self.best_shell
        return replace(self, best_shell=max(shell, self.best_shell), idle=0 if better else self.idle + 1)


RefineState = State[HalfMaps, Progress]


@dataclass(frozen=True)
class RefineSchedule:
    """What is done when."""

    box_px: int
    pixel_size_A: float
    diameter_A: float
    iterations: int  # at the most
    limit_shell: int  # Nyquist's, or a coarser one
    first_shell: int  # of the reference
    local_order: int = 4
    offset_range_px: float = 5.0
    offset_step_px: float = 1.0
    first_best_alone: bool = True

    def next(self, state: RefineState) -> RefineStep | None:
        """The step that follows; None after the last."""
        before, number = state.carried.step, state.number + 1
        if (before is not None and before.last) or number > self.iterations:
            return None
        if before is None:
            rings = min(self.limit_shell, self.first_shell + FIRST_RINGS)
            shifts = self._shifts(FIRST_ORDER, number)
            step = RefineStep(number, self.iterations, FIRST_ORDER, False, rings, *shifts)
            return replace(step, best_alone=self.first_best_alone)
        shell = state.model.shell
        idle = state.carried.gained(shell).idle
        order, fine = self._order(before.order, shell, idle)
        rings = min(self.limit_shell, int(RING_SHARE * shell) + MORE_RINGS)
        shifts = self._shifts(order, number if order == before.order else 0)
        step = RefineStep(number, self.iterations, order, order >= self.local_order, rings, *shifts)
        last = replace(step, r_max=self.limit_shell, last=True)
        if number == self.iterations:  # a run that is given more goes on from here
            return replace(last, last=False, own_step_deg=before.own_step_deg)
        if not step.local or not fine:
            return step
        if not before.own_step_deg:
            return replace(step, own_step_deg=step_deg(order) / 2)  # between the grid's directions
        return replace(last, own_step_deg=before.own_step_deg / 2)

    def _order(self, before: int, shell: int, idle: int) -> tuple[int, bool]:
        """The next order, and whether the grid is as fine as it should become; one is kept while there is gain."""
        moved_deg = math.degrees(2 * self.box_px * self.pixel_size_A / shell / self.diameter_A)  # by the resolution
        wanted = FIRST_ORDER
        while step_deg(wanted) > COARSEST * moved_deg and wanted < MOST_ORDER:
            wanted += 1
        if wanted > before:
            return before + 1, False
        if not idle:
            return before, False
        fine = before >= self.local_order and (step_deg(before) <= FINEST * moved_deg or before == MOST_ORDER)
        return (before, True) if fine else (before + 1, False)

    def _shifts(self, order: int, again: int) -> tuple[float, float]:
        """Range and step, px: finer as directions are."""
        if order < self.local_order:
            fine = order > FIRST_ORDER and again > 0
            return (0.6 if fine else 1.0) * self.offset_range_px, (1.0 if fine else 2.0) * self.offset_step_px
        beyond = order - self.local_order
        step = self.offset_step_px / (2.0 if beyond else 1.0)
        return 2 * step, step


@dataclass(frozen=True)
class RefineSettings:
    """How a refinement goes about its steps."""

    tau2_fudge: float = 1.0
    join_shell: int = 0  # up to which both halves are one
    batch_bytes: int = 64 << 20
    workers: int = 1
    room: CacheBudget = CacheBudget()
    precision: Precision = "float32"
    kernel: Kernel = "plain"
    group: np.ndarray = field(default_factory=lambda: operators("C1"))  # (g, 3, 3)


@dataclass(frozen=True)
class Refined(Expected[HalfMaps, Progress]):
    """What a pass over the images found, and how fine it was."""

    search: Search


class ViewExpectation:
    """Compares each half's particles with slices of its map, and keeps their polar fields between iterations."""

    def __init__(self, images: ParticleImages, rows: np.ndarray, settings: RefineSettings, comm: Comm = SERIAL) -> None:
        """rows: the particles to use, of all ranks, in the order of the disk."""
        self.images, self.rows, self.settings, self.comm = images, rows, settings, comm
        self.own = rows[part(images.particles.stack_of[rows], comm.rank, comm.size)]  # this rank's
        self.store = PolarStore(self.own, settings.room)

    def __call__(
        self, state: RefineState, model: HalfMaps, step: RefineStep, rng: np.random.Generator, clock: Clock
    ) -> Refined:
        progress, settings = state.carried, self.settings
        rows = tuple(self.own[progress.half_of[self.own] == half] for half in range(HALVES))
        shift_px = state.pose.shift_px
        far = np.abs(shift_px - progress.crop_centre_px).max(axis=1) > FARTHEST_FROM_CUT_PX
        crop_centre_px = np.where(far[:, None], np.rint(shift_px), progress.crop_centre_px)
        search = self._search(model, step, rng)
        work = Pass(
            self.images, self._basis(step), search, settings.batch_bytes, settings.workers, group=settings.group
        )
        halves = Halves(rows, Found.of(state.assignment, progress.direction), crop_centre_px, self.store)
        if step.number == 1:
            model = self._scaled(model, work, progress.half_of, halves, rng)
        work = replace(work, temperature=BEST_ALONE if step.best_alone else 1.0)
        found, sums = work.run(model, self._grids(step, halves, rng), halves, clock)
        if self.comm.size > 1:
            with clock.counting("communication"):
                sums = self.comm.sum(sums)
                found = found.put_all(self.rows, self.comm.all_gather(found.of_rows(self.own)))

        def maximize() -> HalfMaps:
            grid = FourierGrid(model.box_px, step.r_max, self.images.device)
            return model.maximize(sums, grid, settings.tau2_fudge, settings.join_shell)

        carried = replace(
            progress.gained(state.model.shell), crop_centre_px=crop_centre_px, direction=found.direction, step=step
        )
        return Refined(model, found.assignment(self.rows), carried, self.rows, sums, maximize, search)

    def _grids(self, step: RefineStep, halves: Halves, rng: np.random.Generator) -> tuple[ViewGrid, ...]:
        """The directions that each half's particles meet."""
        if step.own_step_deg:
            last = halves.before.direction
            return tuple(ViewGrid.around(last, rows, step.order, step.own_step_deg) for rows in halves.rows)
        return (ViewGrid.drawn(step.order, step.local, rng, self.settings.group),) * HALVES

    def _basis(self, step: RefineStep) -> PolarBasis:
        preparation = self.images.preparation
        radius_px = min(preparation.box_px / 2, preparation.radius_px + MASK_EDGE_PX / 2)
        slack_px = step.shift_range_px + step.shift_step_px + FARTHEST_FROM_CUT_PX
        return PolarBasis(preparation.box_px, radius_px, step.r_max, slack_px, self.images.device)

    def _search(self, model: HalfMaps, step: RefineStep, rng: np.random.Generator) -> Search:
        perturbation = np.zeros(2) if step.local else rng.uniform(-0.5, 0.5, 2)
        shifts = shift_grid(step.shift_range_px, step.shift_step_px, perturbation)
        basis, settings = self._basis(step), self.settings
        shifts_px = torch.from_numpy(shifts).float().to(basis.device)
        search = Search.over(basis, shifts_px, basis.n_theta, model.shift_sigma_px, coarse_to_fine=True)
        return replace(search, between_px=step.between_px, precision=settings.precision, kernel=settings.kernel)

    def _scaled(
        self,
        model: HalfMaps,
        work: Pass,
        half_of: np.ndarray,
        halves: Halves,
        rng: np.random.Generator,
    ) -> HalfMaps:
        """The maps in the images' grey scale: by their power at first, then by how well they explain some images."""
        every = (self.rows[half_of[self.rows] == half] for half in range(HALVES))
        chosen = [rows[:: max(1, len(rows) // SCALE_IMAGES)][:SCALE_IMAGES] for rows in every]
        some = tuple(rows[np.isin(rows, self.own)] for rows in chosen)
        rows = np.concatenate(chosen)
        model = model.scaled(self.comm.on_root(lambda: scale_by_power(model, self.images, rows, work.basis)))
        few = replace(halves, rows=some, store=PolarStore(np.sort(np.concatenate(some)), self.settings.room))
        for _ in range(SCALE_PASSES):
            grid = ViewGrid.drawn(FIRST_ORDER, False, rng, work.group)
            _, sums = work.run(model, (grid, grid), few, Clock())
            model = model.scaled(self.comm.sum(sums.powers).scale)
        return model


def scale_by_power(model: HalfMaps, images: ParticleImages, rows: np.ndarray, basis: PolarBasis) -> float:
    """By how much the map is to be multiplied so that its slices have the power that images have beyond their noise.

    The noise is taken to be what images hold on the outer half of all rings.
    """
    from polarice.references.directions import healpix, views_along

    outer = replace(basis, r_max=basis.box_px // 2 - 1)
    centres = np.zeros((len(rows), 2))
    seen = images.fields(outer, images.read(rows), centres).square().mean(dim=(0, 2))
    noise = seen[len(seen) // 2 :].mean()
    inner = replace(outer, r_max=basis.r_max)
    grid = FourierGrid(basis.box_px, basis.r_max, basis.device)
    slices = grid.slices(grid.transform(model.densities[0]), inner, views_along(healpix(1)))
    expected = slices.square().mean(dim=(0, 2)) * images.polar_ctf(inner, rows).square().mean(dim=(0, 2))
    signal = ((seen[: basis.r_max] - noise) * inner.weight).sum()
    return float((signal / (expected * inner.weight).sum().clamp_min(1e-30)).clamp_min(1e-12).sqrt())


class KeepProgress:
    """Nothing is done to half maps beside maximization."""

    def before(self, state: RefineState, step: RefineStep, rng: np.random.Generator) -> HalfMaps:
        return state.model

    def after(
        self, model: HalfMaps, found: Expected[HalfMaps, Progress], step: RefineStep, rng: np.random.Generator
    ) -> tuple[HalfMaps, Assignment, tuple[int, ...]]:
        return model, found.assignment, ()

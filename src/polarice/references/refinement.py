"""Refinement of a density by its half maps: what comes next, and the expectation as the driver asks for it.

Directions become finer as the resolution rises (a step is to move the particle's edge by no more than it), and where
nothing is gained; from an order on, images are searched around where they were, and when that grid is fine enough,
among directions of their own between its points. When nothing is gained any more, one last iteration goes to Nyquist.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, Self, TypeVar

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
from polarice.references.halfmaps import HALVES, HalfMaps, ReferencePowers, Solvent, VolumeSums
from polarice.references.slices import FourierGrid
from polarice.references.symmetry import operators
from polarice.references.views import Found, Maps, Parts, Pass, ViewGrid
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
    apart: bool = False  # of several maps, each particle meets that of its set alone
    pooled: bool = False  # and all of these become one again
    posed: bool = False  # particles keep their poses
    temperature: float = 1.0  # times the noise that images are compared with

    @property
    def between_px(self) -> float:
        """The best pose is looked for so far beside the grid's points."""
        return self.shift_step_px / 2 if self.local else 0.0


@dataclass(frozen=True)
class Progress:
    """What refinement carries on beside the poses that every job has."""

    crop_centre_px: np.ndarray  # (n, 2) where images were cut last
    direction: np.ndarray  # (n, 3) unit vectors, where particles are seen from; 0: unknown
    set_of: np.ndarray  # (n,) half set (and the class that each begins in, where there are any); -1: takes no part
    step: RefineStep | None = None  # the last one
    best_shell: int = 0  # the finest that had been reached before it
    idle: int = 0  # iterations in a row before it that had not bettered that

    def gained(self, shell: int) -> Self:
        """With an outcome: maps reach up to `shell`."""
        better = shell > self.best_shell
        return replace(self, best_shell=max(shell, self.best_shell), idle=0 if better else self.idle + 1)


class Scaled(Maps, Protocol):
    """Maps in some grey scale."""

    @property
    def box_px(self) -> int: ...
    @property
    def shell(self) -> int: ...  # up to which maps are known
    @property
    def shift_sigma_px(self) -> float: ...
    def scaled(self, factors: list[float]) -> Self: ...
    def fitted(self, powers: ReferencePowers) -> Self: ...


M = TypeVar("M", bound=Scaled)
Met = TypeVar("Met", bound=Maps, contravariant=True)


class AnyPass(Protocol[Met]):
    """A pass over the images of some parts."""

    @property
    def basis(self) -> PolarBasis: ...
    @property
    def group(self) -> np.ndarray: ...
    def run(
        self, model: Met, grids: tuple[ViewGrid, ...], parts: Parts, clock: Clock, temperature: float = 1.0
    ) -> tuple[Found, VolumeSums]: ...


RefineState = State[HalfMaps, Progress]


@dataclass(frozen=True)
class MapSchedule:
    """How finely is searched."""

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

    def order_after(self, before: int, shell: int, idle: int) -> tuple[int, bool]:
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

    def shifts(self, order: int, again: int) -> tuple[float, float]:
        """Range and step, px: finer as directions are."""
        if order < self.local_order:
            fine = order > FIRST_ORDER and again > 0
            return (0.6 if fine else 1.0) * self.offset_range_px, (1.0 if fine else 2.0) * self.offset_step_px
        beyond = order - self.local_order
        step = self.offset_step_px / (2.0 if beyond else 1.0)
        return 2 * step, step


@dataclass(frozen=True)
class RefineSchedule(MapSchedule):
    """What is done when."""

    def next(self, state: RefineState) -> RefineStep | None:
        """The step that follows; None after the last."""
        before, number = state.carried.step, state.number + 1
        if (before is not None and before.last) or number > self.iterations:
            return None
        if before is None:
            rings = min(self.limit_shell, self.first_shell + FIRST_RINGS)
            shifts = self.shifts(FIRST_ORDER, number)
            step = RefineStep(number, self.iterations, FIRST_ORDER, False, rings, *shifts)
            return replace(step, best_alone=self.first_best_alone)
        shell = state.model.shell
        idle = state.carried.gained(shell).idle
        order, fine = self.order_after(before.order, shell, idle)
        rings = min(self.limit_shell, int(RING_SHARE * shell) + MORE_RINGS)
        shifts = self.shifts(order, number if order == before.order else 0)
        step = RefineStep(number, self.iterations, order, order >= self.local_order, rings, *shifts)
        last = replace(step, r_max=self.limit_shell, last=True)
        if number == self.iterations:  # a run that is given more goes on from here
            return replace(last, last=False, own_step_deg=before.own_step_deg)
        if not step.local or not fine:
            return step
        if not before.own_step_deg:
            return replace(step, own_step_deg=step_deg(order) / 2)  # between the grid's directions
        return replace(last, own_step_deg=before.own_step_deg / 2)


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
    solvent: Solvent | None = None


@dataclass(frozen=True)
class Refined(Expected[M, Progress]):
    """What a pass over the images found, and how fine it was."""

    search: Search


class ViewExpectation(ABC, Generic[M]):
    """Compares particles with slices of maps, and keeps their polar fields between iterations. Subclasses know the
    model."""

    def __init__(self, images: ParticleImages, rows: np.ndarray, settings: RefineSettings, comm: Comm = SERIAL) -> None:
        """rows: the particles to use, of all ranks, in the order of the disk."""
        self.images, self.rows, self.settings, self.comm = images, rows, settings, comm
        self.own = rows[part(images.particles.stack_of[rows], comm.rank, comm.size)]  # this rank's
        self.store = PolarStore(self.own, settings.room)

    def __call__(
        self, state: State[M, Progress], model: M, step: RefineStep, rng: np.random.Generator, clock: Clock
    ) -> Refined[M]:
        progress = state.carried
        shift_px = state.pose.shift_px
        far = np.abs(shift_px - progress.crop_centre_px).max(axis=1) > FARTHEST_FROM_CUT_PX
        crop_centre_px = np.where(far[:, None], np.rint(shift_px), progress.crop_centre_px)
        search = self._search(model, step, rng)
        work = self.work(step, search)
        before = Found.of(state.assignment, progress.direction)
        parts = Parts(*self.parts(model, progress, step), before, crop_centre_px, self.store)
        if step.number == 1:
            model = self._scaled(model, work, progress.set_of, parts, rng)
        temperature = BEST_ALONE if step.best_alone else step.temperature
        found, sums = work.run(model, self._grids(step, parts, rng), parts, clock, temperature)
        if self.comm.size > 1:
            with clock.counting("communication"):
                sums = self.comm.sum(sums)
                found = found.put_all(self.rows, self.comm.all_gather(found.of_rows(self.own)))

        def maximize() -> M:
            return self.maximized(model, sums, FourierGrid(model.box_px, step.r_max, self.images.device), step)

        carried = replace(self.gained(state), crop_centre_px=crop_centre_px, direction=found.direction, step=step)
        return Refined(model, found.assignment, carried, self.rows, sums, maximize, search)

    @abstractmethod
    def parts(
        self, model: M, progress: Progress, step: RefineStep
    ) -> tuple[tuple[np.ndarray, ...], tuple[tuple[int, ...], ...]]:
        """This rank's particles in parts, and which maps each part meets."""

    @abstractmethod
    def maximized(self, model: M, sums: VolumeSums, grid: FourierGrid, step: RefineStep) -> M:
        """The model that the sums of all ranks speak for."""

    def work(self, step: RefineStep, search: Search) -> AnyPass[M]:
        """The pass over the images."""
        settings = self.settings
        return Pass(self.images, self._basis(step), search, settings.batch_bytes, settings.workers, settings.group)

    def gained(self, state: State[M, Progress]) -> Progress:
        """What is carried on, with the outcome of the iteration before."""
        return state.carried.gained(state.model.shell)

    def own_of_set(self, progress: Progress, number: int) -> np.ndarray:
        """This rank's particles of a set."""
        return self.own[progress.set_of[self.own] == number]

    def _grids(self, step: RefineStep, parts: Parts, rng: np.random.Generator) -> tuple[ViewGrid, ...]:
        """The directions that each part's particles meet."""
        if step.own_step_deg:
            last = parts.before.direction
            return tuple(ViewGrid.around(last, rows, step.order, step.own_step_deg) for rows in parts.rows)
        return (ViewGrid.drawn(step.order, step.local, rng, self.settings.group),) * len(parts.rows)

    def _basis(self, step: RefineStep) -> PolarBasis:
        preparation = self.images.preparation
        radius_px = min(preparation.box_px / 2, preparation.radius_px + MASK_EDGE_PX / 2)
        slack_px = step.shift_range_px + step.shift_step_px + FARTHEST_FROM_CUT_PX
        return PolarBasis(preparation.box_px, radius_px, step.r_max, slack_px, self.images.device)

    def _search(self, model: M, step: RefineStep, rng: np.random.Generator) -> Search:
        perturbation = np.zeros(2) if step.local else rng.uniform(-0.5, 0.5, 2)
        shifts = shift_grid(step.shift_range_px, step.shift_step_px, perturbation)
        basis, settings = self._basis(step), self.settings
        shifts_px = torch.from_numpy(shifts).float().to(basis.device)
        search = Search.over(basis, shifts_px, basis.n_theta, model.shift_sigma_px, coarse_to_fine=True)
        return replace(search, between_px=step.between_px, precision=settings.precision, kernel=settings.kernel)

    def _scaled(
        self,
        model: M,
        work: AnyPass[M],
        set_of: np.ndarray,
        parts: Parts,
        rng: np.random.Generator,
    ) -> M:
        """The maps in the images' grey scale: by their power at first, then by how well they explain some images."""
        every = (self.rows[set_of[self.rows] == number] for number in range(len(model.densities)))
        chosen = [rows[:: max(1, len(rows) // SCALE_IMAGES)][:SCALE_IMAGES] for rows in every]
        some = tuple(rows[np.isin(rows, self.own)] for rows in chosen)
        alone = tuple((number,) for number in range(len(chosen)))  # each set meets its own map
        rows = np.concatenate(chosen)
        model = model.scaled(self.comm.on_root(lambda: scales_by_power(model, self.images, rows, work.basis)))
        few = replace(parts, rows=some, maps=alone, store=PolarStore(np.sort(np.concatenate(some)), self.settings.room))
        for _ in range(SCALE_PASSES):
            grid = ViewGrid.drawn(FIRST_ORDER, False, rng, work.group)
            _, sums = work.run(model, (grid,) * len(some), few, Clock())
            model = model.fitted(self.comm.sum(sums.powers))
        return model


class HalvesExpectation(ViewExpectation[HalfMaps]):
    """Each half's particles meet slices of its map."""

    def parts(
        self, model: HalfMaps, progress: Progress, step: RefineStep
    ) -> tuple[tuple[np.ndarray, ...], tuple[tuple[int, ...], ...]]:
        rows = tuple(self.own_of_set(progress, half) for half in range(HALVES))
        return rows, tuple((half,) for half in range(HALVES))

    def maximized(self, model: HalfMaps, sums: VolumeSums, grid: FourierGrid, step: RefineStep) -> HalfMaps:
        return model.maximize(sums, grid, self.settings.tau2_fudge, self.settings.join_shell, self.settings.solvent)


def scales_by_power(model: Scaled, images: ParticleImages, rows: np.ndarray, basis: PolarBasis) -> list[float]:
    """By how much each map is to be multiplied so that its slices have the power that images have beyond their noise.

    The noise is taken to be what images hold on the outer half of all rings.
    """
    from polarice.references.directions import healpix, views_along

    outer = replace(basis, r_max=basis.box_px // 2 - 1)
    centres = np.zeros((len(rows), 2))
    seen = images.fields(outer, images.read(rows), centres).square().mean(dim=(0, 2))
    noise = seen[len(seen) // 2 :].mean()
    inner = replace(outer, r_max=basis.r_max)
    signal = ((seen[: basis.r_max] - noise) * inner.weight).sum()
    grid = FourierGrid(basis.box_px, basis.r_max, basis.device)
    ctf_power = images.polar_ctf(inner, rows).square().mean(dim=(0, 2))
    factors = []
    for density in model.densities:
        slices = grid.slices(grid.transform(density), inner, views_along(healpix(1)))
        expected = slices.square().mean(dim=(0, 2)) * ctf_power
        factors.append(float((signal / (expected * inner.weight).sum().clamp_min(1e-30)).clamp_min(1e-12).sqrt()))
    return factors


class KeepMaps(Generic[M]):
    """Nothing is done to maps beside maximization."""

    def before(self, state: State[M, Progress], step: RefineStep, rng: np.random.Generator) -> M:
        return state.model

    def after(
        self, model: M, found: Expected[M, Progress], step: RefineStep, rng: np.random.Generator
    ) -> tuple[M, Assignment, tuple[int, ...]]:
        return model, found.assignment, ()

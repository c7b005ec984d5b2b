"""What align2d and class2d share: their parameters, and the way from a particle table to class averages on disk."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polarice.cluster import SERIAL, Comm, world
from polarice.project.params import RUN, option
from polarice.project.usage import Usage, Watch
from polarice.runs.particle_job import (
    SURVEY_BATCH,
    CheckedParticles,
    ParticleJob,
    check_images,
    last_ring,
    open_particles,
    relion_settings,
    with_copies,
)
from polarice.runs.particle_run import ClassReportRun, figures_of_pass
from polarice.runs.resources import (
    Comparing,
    batch_bytes,
    cache_budget_of,
    card_of,
    device_of,
    kernel_of,
    precision_of,
    require_room,
    workers_of,
)
from polarice.runs.running import carry_out, page_of, settled
from polarice.types import Assignment, ClassModel, InputError, Iteration, Pose2D

if TYPE_CHECKING:
    import torch

    from polarice.align.classify import Cuts, Searched
    from polarice.align.fit import IterationResult, State
    from polarice.align.images import ParticleImages
    from polarice.align.polar import PolarBasis
    from polarice.align.schedule import Schedule, Step
    from polarice.references.averages import Averages
    from polarice.report import Report

    ClassState = State[Averages, Cuts]
    ClassResult = IterationResult[Averages, Cuts, Step, Searched[Averages]]

PERIODS_AT_START = 8  # resolution of the first iteration: so many periods across the particle
FIRST_SHIFT_SIGMA_PX = 3.0
MOST_SHIFTS = 5000  # of one image
MOST_JUDGED = 1200  # classes that the report says something about


@dataclass(frozen=True)
class Classification(Comparing, ParticleJob):
    """Parameters of align2d and class2d."""

    k: int = option(50, "number of classes", low=1, high=100_000, flags=("-k", "--K"), level="essential")
    tau2_fudge: float = option(2.0, "strength of the data against the prior", low=0.01, high=100)
    psi_step: float | None = option(
        None,
        "coarsest step of the in-plane angle",
        derived="as fine as the resolution asks",
        unit="deg",
        low=0.1,
        high=90,
    )
    offset_range: float = option(
        5.0, "shifts are searched this far from each particle's last centre, at first", unit="px", low=0
    )
    offset_step: float = option(
        1.0,
        "step of the shifts; twice it at first, and once poses are fine the best ones are found between the steps",
        unit="px",
        low=0.1,
        high=10,
    )
    ref: Path | None = option(
        None,
        "folder of a run of align2d or class2d whose classes this one begins with: as many, of the same box",
        derived="classes of random particles",
        path=RUN,
    )
    center_classes: bool = option(True, "centre class averages where their particles were picked")
    profile: bool = option(
        False, "write where the time goes to profile.json, by one more pass at the end", resource=True
    )

    @property
    def classes(self) -> int:
        return self.k


def classify(job: str, params: Classification, growing_batches: bool, iterations: int) -> None:
    """Run or continue a classification; `iterations` is how many where nothing is said.

    Raises InputError for what cannot be used, and for a full disk; Ctrl-C says how to go on.
    """
    with world(job) as comm, ExitStack() as held:
        params = comm.on_root(lambda: settled(job, params, iterations))
        device = device_of(params, comm)
        watch = Watch(comm, card_of(device))
        table, images = open_particles(params, device, comm, held_bytes)
        comm.on_root(lambda: _require_suitable(params, images))

        def begin() -> ClassRun:
            watch.mark("loading")
            looked = check_images(table, with_copies(images, params, comm, held), params, comm)
            watch.mark("looking at images")
            run = ClassRun(job, params, looked, growing_batches, (comm, watch))
            watch.mark("first classes")
            return run

        carry_out(job, params, [table.path, *table.particles.stacks], begin, comm)


def _require_suitable(params: Classification, images: ParticleImages) -> None:
    """Raise InputError where shifts are too many, the classes of --ref do not suit, or classes take all memory."""
    box_px = images.preparation.box_px
    if params.ref is not None and params.continue_ is None:  # what goes on needs it no more
        known_classes(images, params)
    require_few_shifts(params.offset_range, params.offset_step, box_px)
    require_room(params, images.device, held_bytes(images, params), f"{params.k} classes of {box_px} px")


def require_few_shifts(offset_range: float, offset_step: float, box_px: int) -> None:
    """Raise InputError where shifts go beyond the box, or are more than can be searched."""
    if offset_range > box_px / 2:
        raise InputError(f"--offset-range {offset_range:g}: at most half the box, {box_px / 2:g} px")
    shifts = np.pi * (offset_range / offset_step) ** 2
    if shifts > MOST_SHIFTS:
        raise InputError(
            f"--offset-range {offset_range:g} --offset-step {offset_step:g}: {shifts:.0f} shifts for "
            f"each image, at most {MOST_SHIFTS} are searched; take a coarser step or a smaller range"
        )


def held_bytes(images: ParticleImages, params: Classification) -> int:
    """Memory for the classes of a run that comes to the last ring."""
    from polarice.align.classify import FARTHEST_FROM_CUT_PX
    from polarice.references.averages import Averages

    slack_px = params.offset_range + 2 * params.offset_step + FARTHEST_FROM_CUT_PX
    basis = _basis(images, last_ring(images, params), slack_px)
    return Averages.held_bytes(basis, params.k, workers_of(params, images.device))


def _basis(images: ParticleImages, r_max: int, slack_px: float) -> PolarBasis:
    from polarice.align.polar import PolarBasis
    from polarice.align.prepare import MASK_EDGE_PX

    preparation = images.preparation
    radius_px = min(preparation.box_px / 2, preparation.radius_px + MASK_EDGE_PX / 2)
    return PolarBasis(preparation.box_px, radius_px, r_max, slack_px, images.device)


class ClassRun(ClassReportRun["ClassResult", None]):
    """align2d and class2d at work."""

    params: Classification

    def __init__(
        self,
        job: str,
        params: Classification,
        looked: CheckedParticles,
        growing_batches: bool,
        ranks: tuple[Comm, Watch],
    ) -> None:
        self.schedule = schedule_of(looked.images, params, len(looked.rows), growing_batches)
        super().__init__(job, params, looked, ranks)

    def images_of_iterations(self) -> list[int]:
        return [self.schedule.step(i + 1).batch for i in range(self.params.iterations)]

    def beginning(self) -> ClassState:
        from polarice.runs.checkpoint import read_checkpoint, read_iteration

        params, done = self.params, self.done
        if not done:
            given = (self.looked.order, self.looked.noise_power, params, self.comm)
            return first_state(self.images, self.schedule, *given)
        if done == params.iterations:
            self.last = read_iteration(params.o, done, done, self.rows)
        return read_checkpoint(params.o, done, self.images.device)

    def following(self, state: ClassState) -> int:
        return self.schedule.after(state.number, state.changed_class)

    def finish(self, result: ClassResult | None) -> None:
        if self.params.profile and result is not None:
            self.profile(result)

    def profile(self, result: ClassResult) -> None:
        """profile.json, of a pass as the last one."""
        from polarice.align.sweep import batch_size
        from polarice.runs.profile import told, write_profile

        model, device = result.state.model, self.images.device
        room = batch_bytes(self.params, device, 1, held_bytes(self.images, self.params))
        batch = batch_size(model.basis, len(model.weights), result.found.search, room)
        images = replace(self.images, progress=int)
        print(told(write_profile(self.params.o, images, result, batch)))

    def results(self) -> Iterator[ClassResult]:
        looked = replace(self.looked, images=self.images)
        return iterations(self.state, self.schedule, looked, self.params, self.comm)

    def prepared(self, result: ClassResult) -> None:
        return None

    def write(self, result: ClassResult, prepared: None) -> Iteration:
        from polarice.io.relion_run.class2d import write_iteration
        from polarice.report import append_history
        from polarice.runs.checkpoint import write_checkpoint

        folder, since = self.params.o, time.perf_counter()
        iteration = iteration_of(result, self.images, self.rows)
        settings = relion_settings(self.params, self.images, self.params.tau2_fudge)
        write_iteration(folder, iteration, self.looked.table, settings, rows=self.rows, columns=self.columns)
        iteration = replace(iteration, seconds=iteration.seconds | {"writing": time.perf_counter() - since})
        append_history(folder, iteration)
        write_checkpoint(folder, result.state, iteration.model)
        self.bar.write(told(iteration, self.params.k), file=sys.stderr)
        upcoming = self.following(result.state)
        if upcoming > iteration.number + 1:
            self.bar.write(f"assignments have settled: on to iteration {upcoming}", file=sys.stderr)
            self.bar.update(sum(self.batches[iteration.number : upcoming - 1]))
        self.bar.set_description(f"{self.job} {min(upcoming, iteration.total)}/{iteration.total}")
        return iteration

    def page(self, usage: Usage) -> Report:
        assert self.last is not None, "the last iteration has been made, or read"
        return page_of(self.job, self.params, self.looked, self.last, notes=_notes(self), usage=usage.lines())

    def conclusion(self, page: Path) -> str:
        bad = self.looked.bad
        left_out = f", {len(bad)} left out" if bad else ""
        return f"{len(self.rows)} particles in {self.params.k} classes{left_out}; report: {page}"


def iterations(
    state: ClassState, schedule: Schedule, looked: CheckedParticles, params: Classification, comm: Comm = SERIAL
) -> Iterator[ClassResult]:
    """Every iteration that follows on a state; nothing is written."""
    from polarice.align.classify import ClassExpectation, Settings
    from polarice.align.fit import fit
    from polarice.align.policy import ClassPolicy
    from polarice.references.averages import Averages

    device, held = looked.images.device, held_bytes(looked.images, params)
    workers = workers_of(params, device)
    settings = Settings(
        tau2_fudge=params.tau2_fudge,
        batch_bytes=batch_bytes(params, device, workers, held),
        workers=workers,
        room=cache_budget_of(params, device, len(comm.node_ranks), held),
        precision=precision_of(params),
        kernel=kernel_of(params, device),
    )
    expect = ClassExpectation[Averages](looked.images, looked.order, settings, comm)
    return fit(state, schedule, expect, ClassPolicy[Averages](params.center_classes), params.seed)


def _notes(run: ClassRun) -> dict[str, str]:
    """What is to be said of classes that look like no particle."""
    from polarice.report import class_counts
    from polarice.selection.classes import ClassSet
    from polarice.selection.quality import doubts, judge

    assert run.last is not None
    model, diameter_px = run.last.model, 2 * run.images.preparation.radius_px
    classes = ClassSet(
        class_counts(run.last), model.resolution_A, model.averages, model.pixel_size_A, diameter_px * model.pixel_size_A
    )
    return {"classes": doubts(judge(classes))} if len(classes) <= MOST_JUDGED else {}


def told(iteration: Iteration, k: int) -> str:
    """One line about an iteration of a run that asks for k classes."""
    from polarice.report import class_counts
    from polarice.selection.quality import median_of_particles

    used = class_counts(iteration) > 0
    median = median_of_particles(iteration.model.resolution_A, class_counts(iteration))
    growing = f" (growing to {k})" if len(used) < k else ""
    return (
        f"iteration {iteration.number}/{iteration.total}: {iteration.particles_used} images, {int(used.sum())} of "
        f"{len(used)} classes in use{growing}, median {median:.1f} A, {100 * iteration.changed_class:.0f} % changed "
        f"class, {sum(iteration.seconds.values()):.1f} s"
    )


def first_state(
    images: ParticleImages,
    schedule: Schedule,
    rows: np.ndarray,
    noise_power: np.ndarray,
    params: Classification,
    comm: Comm = SERIAL,
) -> ClassState:
    """Before the first iteration, nothing assigned: averages of random particles, or the classes of --ref."""
    import torch

    from polarice.align.classify import Cuts
    from polarice.align.fit import State

    noise = torch.from_numpy(noise_power).to(images.device)
    known_px = images.particles.pose.shift_px
    shift_sigma_px = float(np.hypot(FIRST_SHIFT_SIGMA_PX, np.sqrt(np.mean(known_px[rows] ** 2))))
    if params.ref is None:
        model = _random_classes(images, schedule, rows, noise, params, comm)
    else:
        model = replace(known_classes(images, params), noise_power=noise)
    n = len(images)
    unknown = replace(Pose2D.unknown(n), shift_px=known_px.copy())
    nothing = Assignment(unknown, np.zeros(n), np.zeros(n, np.float32), np.zeros(n, np.int32))
    return State(0, replace(model, shift_sigma_px=shift_sigma_px), nothing, Cuts(np.rint(unknown.shift_px)))


def _random_classes(
    images: ParticleImages,
    schedule: Schedule,
    rows: np.ndarray,
    noise: torch.Tensor,
    params: Classification,
    comm: Comm,
) -> Averages:
    from polarice.align.image_statistics import random_sums
    from polarice.references.averages import Averages

    step = schedule.step(1)
    slack_px = step.shift_range_px + step.shift_step_px  # the loop widens it
    basis = _basis(images, step.whole_rings(step.ramp_px), slack_px)
    empty = Averages.empty(basis, step.references, noise, FIRST_SHIFT_SIGMA_PX, images.preparation.mask_fraction)
    draw, workers = (rows, params.seed, SURVEY_BATCH), workers_of(params, images.device)
    sums = random_sums(images, basis, step.references, empty.ring_noise, draw, workers, comm)
    return empty.maximize(sums, step.prior(params.tau2_fudge))


def known_classes(images: ParticleImages, params: Classification) -> Averages:
    """The classes at the end of the run in --ref. Raises InputError where they do not suit the particles and --k."""
    from polarice.project.provenance import read_job_json
    from polarice.runs.checkpoint import checkpoints, read_checkpoint

    ref = params.ref
    assert ref is not None
    done = checkpoints(ref)
    if not done:
        raise InputError(f"--ref {ref}: holds no iteration of align2d or class2d; give the folder of such a run")
    if (job := read_job_json(ref)["job"]) not in ("align2d", "class2d"):
        raise InputError(f"--ref {ref}: is of {job}; give the folder of a run of align2d or class2d")
    model = read_checkpoint(ref, done[-1], images.device).model
    box = images.preparation.box_px
    if model.basis.box_px != box:
        raise InputError(f"--ref {ref}: classes of {model.basis.box_px} px, particles of {box}; rescale these")
    if len(model.weights) != params.k:
        raise InputError(f"--ref {ref}: has {len(model.weights)} classes, --k asks for {params.k}; ask for as many")
    basis = replace(model.basis, r_max=min(model.basis.r_max, last_ring(images, params)))
    return replace(model.on(basis), mask_fraction=images.preparation.mask_fraction)


def iteration_of(result: ClassResult, images: ParticleImages, rows: np.ndarray) -> Iteration:
    """What an iteration left behind, in pixels and shells, about the particles `rows`."""
    model, assignment = result.state.model, result.state.assignment
    box, pixel_A = images.preparation.box_px, images.pixel_size_A
    mask = images.preparation.mask(images.device)

    def shells(rings: torch.Tensor) -> np.ndarray:
        values = np.zeros((len(rings), box // 2 + 1))
        values[:, 1 : model.basis.r_max + 1] = rings.cpu().numpy()
        return values

    resolution_A = box * pixel_A / model.resolution_px().cpu().numpy()
    return Iteration(
        total=result.step.total,
        model=ClassModel(
            averages=(model.images() * mask).cpu().numpy(),
            weights=model.weights.cpu().numpy(),
            noise_power=model.noise_power.cpu().numpy(),
            signal_power=shells(model.tau2),
            ssnr=shells(model.ssnr),
            resolution_A=resolution_A,
            pixel_size_A=pixel_A,
            shift_sigma_px=model.shift_sigma_px,
        ),
        assignment=assignment.take(rows),
        resolution_limit_A=box * pixel_A / model.basis.r_max,
        psi_step_deg=360 / result.found.search.psi_count,
        shift_range_px=result.step.shift_range_px,
        shift_step_px=result.step.shift_step_px,
        particles_used=len(result.found.used),
        **figures_of_pass(result),
    )


def schedule_of(images: ParticleImages, params: Classification, particles: int, growing_batches: bool) -> Schedule:
    from polarice.align.schedule import Schedule

    box = images.preparation.box_px
    limit = last_ring(images, params)
    start = round(PERIODS_AT_START * box / (2 * images.preparation.radius_px))
    return Schedule(
        k=params.k,
        iterations=params.iterations,
        particles=particles,
        start_px=min(limit, start),
        limit_px=limit,
        offset_range_px=params.offset_range,
        offset_step_px=params.offset_step,
        psi_step_deg=params.psi_step,
        growing_batches=growing_batches,
        grown=params.ref is not None,
    )

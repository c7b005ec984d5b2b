"""A refinement at work: from a particle table and a map to half maps, poses and a report on disk."""

from __future__ import annotations

import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from polarice.cluster import Comm, world
from polarice.project.params import MAP, option, output
from polarice.project.usage import Usage, Watch
from polarice.runs.classification import require_few_shifts
from polarice.runs.half_sets import halves_of
from polarice.runs.particle_job import (
    CheckedParticles,
    ParticleJob,
    check_images,
    last_ring,
    open_particles,
    relion_settings,
    with_copies,
)
from polarice.runs.particle_run import ParticleRun, figures_of_pass
from polarice.runs.resources import batch_bytes, cache_budget_of, card_of, device_of, memory_bytes, workers_of
from polarice.runs.running import Run, carry_out, settled
from polarice.types import Assignment, ClassModel, InputError, Iteration, Pose2D

if TYPE_CHECKING:
    from polarice.align.fit import IterationResult, State
    from polarice.align.images import ParticleImages
    from polarice.io.relion_run.model3d import Search3D
    from polarice.references.halfmaps import HalfMaps, Solvent
    from polarice.references.refinement import (
        MapSchedule,
        Progress,
        Refined,
        RefineSchedule,
        RefineSettings,
        RefineState,
        RefineStep,
    )
    from polarice.report.refinement import MapPage

    RefineResult = IterationResult[HalfMaps, Progress, RefineStep, Refined[HalfMaps]]

R = TypeVar("R", bound="IterationResult[Any, Any, Any, Any]")

SIZE_OF_ONE = 1e6  # grey values up to here, and down to one over it, are computed with as they are
SAME_PIXEL = 0.01  # relative difference of the map's pixel size from the particles' that is rounding
FEWEST_PARTICLES = 20
BYTES_A_POINT = 80  # of a transform's grid: a map's sums, and what is made of them, as measured
MOST_ITERATIONS = 25
FEW_PARTICLES = 100


@dataclass(frozen=True)
class MapJob(ParticleJob):
    """Parameters of all jobs that compare particles with maps."""

    ini_high: float = option(60.0, "resolution that maps are low-passed to at first", unit="A", low=1)
    sym: str = option(
        "C1", "point group of the particle, its axes where RELION has them: C1, D2, T, O, I ...", level="essential"
    )
    iter: int | None = option(
        None,
        "most iterations; the job ends by itself",
        derived="25; with --continue, as before",
        low=1,
        high=999,
        renewable=True,
        level="essential",
    )
    firstiter_cc: bool = option(
        True,
        "in the first iteration each image counts at its best pose alone, so that round particles find a beginning",
    )
    tau2_fudge: float = option(1.0, "strength of the data against the prior", low=0.01, high=100)
    offset_range: float = option(5.0, "shifts are searched this far from each last centre, at first", unit="px", low=0)
    offset_step: float = option(1.0, "step of the shifts; twice it at first, half of it at the end", unit="px", low=0.1)

    @property
    def maps(self) -> int:
        """How many have sums of their own in memory."""
        return 2


@dataclass(frozen=True)
class Refinement(MapJob):
    """A reference, and how far and how finely to search."""

    o: Path = output("Refine3D")
    ref: Path | None = option(
        None,
        "map to begin with (.mrc), of the particles' box and pixel size",
        level="essential",
        path=MAP,
        derived="that of the run that goes on",
    )
    low_resol_join_halves: float = option(
        40.0, "halves are one up to this resolution, so that they keep pose and hand", unit="A", low=1
    )
    solvent_mask: Path | None = option(
        None, "solvent mask, 0 to 1: references are multiplied by it", derived="the particle's sphere", path=MAP
    )
    solvent_correct_fsc: bool = option(
        False, "the FSC that drives resolution and prior is that within the mask, corrected by randomised phases",
        needs=("solvent_mask", True),
    )  # fmt: skip
    auto_local_healpix_order: int = option(4, "HEALPix order from which particles are searched locally", low=3, high=6)

    def faults(self) -> Iterator[str]:
        if self.ref is None and self.continue_ is None:
            yield "--ref: refine3d begins with a map; give one (.mrc), or make one with polarice initial3d"


P = TypeVar("P", bound=MapJob)
S = TypeVar("S", bound="MapSchedule")


def refine(job: str, params: Refinement) -> None:
    """Run or continue a refinement. Raises InputError for what cannot be used, and for a full disk."""

    def require(params: Refinement, images: ParticleImages) -> None:
        if params.continue_ is None and params.ref is not None:
            require_suitable(params, [params.ref], images)
        solvent_of(params, images)  # refused now, not after an iteration
        require_room_of_halves(params, images)

    run_on_maps(job, params, RefineRun, require)


def run_on_maps(
    job: str,
    params: P,
    run_of: Callable[[str, P, CheckedParticles, tuple[Comm, Watch]], Run],
    require: Callable[[P, ParticleImages], None],
    iterations: int = MOST_ITERATIONS,
) -> None:
    """Run or continue a job that compares particles with maps. Raises InputError as `require` does, which is asked
    before images are looked at, for what else cannot be used, and for a full disk."""
    from polarice.references.symmetry import operators

    with world(job) as comm, ExitStack() as held:
        params = comm.on_root(lambda: settled(job, params, iterations))
        operators(params.sym)
        device = device_of(params, comm)
        watch = Watch(comm, card_of(device))
        table, images = open_particles(params, device, comm, held_bytes)
        comm.on_root(lambda: require(params, images))  # what is wrong is told before images are looked at
        if len(table.particles) < FEWEST_PARTICLES:
            raise InputError(f"{table.path}: {len(table.particles)} particles are too few; at least {FEWEST_PARTICLES}")
        if len(table.particles) < FEW_PARTICLES:
            print(
                f"warning: {table.path}: {len(table.particles)} particles make no map worth its name", file=sys.stderr
            )

        def begin() -> Run:
            watch.mark("loading")
            looked = check_images(table, with_copies(images, params, comm, held), params, comm, marked=True)
            watch.mark("looking at images")
            return run_of(job, params, looked, (comm, watch))

        carry_out(job, params, [params.particles, *table.particles.stacks], begin, comm)


def held_bytes(images: ParticleImages, params: MapJob) -> int:
    """Memory for the transforms of the job's maps, on the last ring."""
    return _bytes_of_maps(images, params, params.maps)


def _bytes_of_maps(images: ParticleImages, params: ParticleJob, maps: int) -> int:
    from polarice.references.slices import FourierGrid

    limit = min(images.preparation.box_px // 2 - 1, last_ring(images, params))
    return maps * BYTES_A_POINT * FourierGrid(images.preparation.box_px, limit).shape[0] ** 3


def require_room_of_halves(params: ParticleJob, images: ParticleImages) -> None:
    """Raise InputError where the grids of both halves have no room."""
    wanted, there = _bytes_of_maps(images, params, 2), memory_bytes(params, images.device)
    _require_room(wanted, there, images.preparation.box_px, "two half maps")


def require_room_of_maps(params: MapJob, images: ParticleImages, what: str) -> None:
    """Raise InputError where the grids of the job's maps have no room."""
    wanted, there = held_bytes(images, params), memory_bytes(params, images.device)
    _require_room(wanted, there, images.preparation.box_px, what)


def _require_room(wanted: int, there: int, box: int, what: str) -> None:
    if wanted > there:
        raise InputError(
            f"the transforms of {what} of {box} px take up to {wanted / (1 << 30):.3g} GiB, and there are "
            f"{there / (1 << 30):.3g}; compare to a coarser resolution (--strict-highres-exp), or scale the particles "
            "down (polarice extract --scale)"
        )


def solvent_of(params: Refinement, images: ParticleImages) -> Solvent | None:
    """What --solvent-mask asks for. Raises InputError where the mask is not on the grid of the map, or is none."""
    import torch

    from polarice.postprocessing.corrected import curves
    from polarice.postprocessing.result import Map
    from polarice.references.halfmaps import Solvent
    from polarice.runs.density import read_mask

    if params.solvent_mask is None:
        return None
    box = images.preparation.box_px
    grid = Map(params.particles, np.broadcast_to(np.float32(0), (box,) * 3), images.pixel_size_A)
    mask = torch.from_numpy(read_mask(params.solvent_mask, grid)).to(images.device)

    def corrected(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return curves((one, other), mask, params.seed).corrected

    return Solvent(mask, corrected if params.solvent_correct_fsc else None)


def read_reference(path: Path, images: ParticleImages) -> np.ndarray:
    """The map (N, N, N) float32, divided by its largest value where that is far from 1.

    Raises InputError where its box or pixel size is not the particles', and where it is no molecule's.
    """
    from polarice.io.mrc import read_volume, require_density
    from polarice.io.optics import UNSET_PIXEL_A

    density, pixel_A = read_volume(path)
    box = images.preparation.box_px
    if density.shape != (box,) * 3:
        sides = " x ".join(map(str, density.shape[::-1]))
        raise InputError(f"--ref {path}: {sides} voxels, the particles' box is {box} px; crop, pad or rescale the map")
    same = abs(pixel_A / images.pixel_size_A - 1) <= SAME_PIXEL
    if not same and pixel_A not in (0.0, UNSET_PIXEL_A):
        raise InputError(
            f"--ref {path}: {pixel_A:.4g} A a voxel, and the particles' pixels are {images.pixel_size_A:.4g} A; "
            "rescale the map, or correct what is wrong of the two"
        )
    require_density(f"--ref {path}", density)
    largest = float(np.abs(density).max())
    if 1 / SIZE_OF_ONE < largest < SIZE_OF_ONE:
        return density
    return (density / np.float64(largest)).astype(np.float32)


def _tell_of_pixel_size(path: Path, images: ParticleImages) -> None:
    """Warn where the map's header does not say it."""
    from polarice.io.mrc import read_header
    from polarice.io.optics import UNSET_PIXEL_A

    stated_A, pixel_A = read_header(path).pixel_size_A, images.pixel_size_A
    if stated_A in (0.0, UNSET_PIXEL_A) and abs(stated_A / pixel_A - 1) > SAME_PIXEL:
        says = "states no pixel size" if not stated_A else "states 1 A a voxel, which stands for none"
        print(f"warning: --ref {path}: its header {says}; {pixel_A:.4g} A of the particles is taken", file=sys.stderr)


def require_suitable(params: MapJob, references: Sequence[Path], images: ParticleImages) -> None:
    """Raise InputError where shifts are too many, a map cannot be used, or nothing of it is to be left."""
    require_few_shifts(params.offset_range, params.offset_step, images.preparation.box_px)
    diameter_A = 2 * images.preparation.radius_px * images.pixel_size_A
    if params.ini_high > diameter_A:
        raise InputError(
            f"--ini-high {params.ini_high:g}: the particle is {diameter_A:g} A wide, and nothing would be left of the "
            "map; give a finer resolution, 30 to 70 A as a rule"
        )
    for path in references:
        read_reference(path, images)
        _tell_of_pixel_size(path, images)


class MapRun(ParticleRun[R, None]):
    """A job at work that compares particles with maps. Subclasses know which."""

    params: MapJob

    @abstractmethod
    def beginning(self) -> State[Any, Progress]: ...

    def images_of_iterations(self) -> list[int]:
        return [len(self.looked.order)] * self.params.iterations

    def following(self, state: State[Any, Any]) -> int:
        return int(state.number) + 1

    def prepared(self, result: R) -> None:
        return None

    def refine_settings(self, join_A: float) -> RefineSettings:
        """How the engine goes about its steps; join_A: resolution up to which halves are one."""
        from polarice.references.refinement import RefineSettings
        from polarice.references.symmetry import operators

        params, device = self.params, self.images.device
        workers, held = workers_of(params, device), held_bytes(self.images, params)
        return RefineSettings(
            tau2_fudge=params.tau2_fudge,
            join_shell=int(self.images.preparation.box_px * self.images.pixel_size_A / join_A),
            batch_bytes=batch_bytes(params, device, workers, held),
            workers=workers,
            room=cache_budget_of(params, device, len(self.comm.node_ranks), held),
            group=operators(params.sym),
        )

    def views_of(self, state: State[Any, Progress]) -> dict[str, np.ndarray]:
        """Columns of the particles' directions."""
        from polarice.references.directions import angles_of

        rot_deg, tilt_deg = angles_of(state.carried.direction[self.rows])
        return {"rlnAngleRot": rot_deg, "rlnAngleTilt": tilt_deg, **self.columns}

    def say(self, result: R, iteration: Iteration, what: str) -> None:
        """Tell what an iteration came to."""
        step = result.step
        where = f"within {step.own_step_deg:.2g} deg" if step.own_step_deg else "local" if step.local else "global"
        searched = "poses kept" if step.posed else f"order {step.order} {where}"
        self.bar.write(
            f"iteration {step.number}: {what}, {searched}, {step.r_max} rings, "
            f"mean probability {iteration.max_probability:.2f}, {sum(iteration.seconds.values()):.1f} s",
            file=sys.stderr,
        )

    def report(self, usage: Usage, chart_processes: Any) -> Path:
        return self.comm.on_root(lambda: self.finished(usage))

    @property
    def about(self) -> MapPage:
        """What its page is about."""
        from polarice.report.refinement import MapPage
        from polarice.runs.resume import go_on_command

        looked, folder = self.looked, self.params.o
        return MapPage(
            folder, self.params, go_on_command(self.job, folder), looked.table.path, looked.rows, looked.bad,
            looked.images.pixel_size_A,
        )  # fmt: skip

    @abstractmethod
    def finished(self, usage: Usage) -> Path:
        """Write the maps, the poses and the page; the page's path."""


class RefineRun(MapRun["RefineResult"]):
    """refine3d at work."""

    params: Refinement

    def __init__(self, job: str, params: Refinement, looked: CheckedParticles, ranks: tuple[Comm, Watch]) -> None:
        self.schedule = _schedule(looked.images, params)
        super().__init__(job, params, looked, ranks)

    def beginning(self) -> RefineState:
        from polarice.runs.checkpoint3d import read_refinement

        if self.done:
            state = read_refinement(self.params.o, self.done, self.images.device)
            if state.carried.step is not None and state.carried.step.last:
                print(
                    f"{self.params.o}: refinement has come to its end; nothing but the report is made", file=sys.stderr
                )
            return state
        assert self.params.ref is not None  # refine3d asks for it
        return first_state(self.looked, read_reference(self.params.ref, self.images), self.schedule, self.params)

    def results(self) -> Iterator[RefineResult]:
        from polarice.align.fit import fit
        from polarice.references.refinement import HalvesExpectation, KeepMaps

        settings = self.refine_settings(self.params.low_resol_join_halves)
        settings = replace(settings, solvent=solvent_of(self.params, self.images))
        expect = HalvesExpectation(self.images, self.looked.order, settings, self.comm)
        return fit(self.state, self.schedule, expect, KeepMaps(), self.params.seed)

    def write(self, result: RefineResult, prepared: None) -> Iteration:
        from polarice.io.relion_run.model3d import Reference3D, write_iteration_3d
        from polarice.io.relion_run.refine3d import write_half_maps
        from polarice.report import append_history
        from polarice.runs.checkpoint3d import write_maps

        since = time.perf_counter()
        iteration = iteration_of(result, self.images, self.rows)
        root = self.params.o / f"run_it{result.state.number:03d}"
        model = result.state.model
        maps = write_half_maps(root, model.densities.cpu().numpy(), self.images.pixel_size_A)
        fsc = model.fsc.cpu().numpy()
        write_iteration_3d(
            self.params.o / "run", iteration, (self.looked.table, self.rows, self._columns(result.state)),
            relion_settings(self.params, self.images, self.params.tau2_fudge), self._search_of(result.step),
            {f"half{half}_": Reference3D((path,), fsc) for half, path in enumerate(maps, 1)},
        )  # fmt: skip
        iteration = replace(iteration, seconds=iteration.seconds | {"writing": time.perf_counter() - since})
        append_history(self.params.o, iteration)
        write_maps(self.params.o, result.state, iteration.model)
        self.say(result, iteration, f"{iteration.model.resolution_A[0]:.1f} A")
        return iteration

    def finished(self, usage: Usage) -> Path:
        from polarice.io.mrc import write_volume
        from polarice.io.relion_run.refine3d import write_fsc, write_unfiltered
        from polarice.report.refinement import write_page

        model, pixel_A, root = self.state.model, self.images.pixel_size_A, self.params.o / "run"
        write_volume(f"{root}_class001.mrc", model.joined.cpu().numpy(), pixel_A)
        write_unfiltered(root, model.unfiltered.cpu().numpy(), pixel_A)
        write_fsc(Path(f"{root}_fsc.star"), model.fsc.cpu().numpy(), model.box_px * pixel_A)
        self._write_poses(root, self.state)
        return write_page(self.about, self.state, usage)

    def _write_poses(self, root: Path, state: RefineState) -> None:
        """ROOT_data.star."""
        from polarice.io.relion_run.refine3d import write_poses

        rows = self.rows
        columns = self._columns(state)
        write_poses(Path(f"{root}_data.star"), self.looked.table, rows, state.assignment.take(rows), columns)

    def _columns(self, state: RefineState) -> dict[str, np.ndarray]:
        return self.views_of(state) | {"rlnRandomSubset": state.carried.set_of[self.rows].astype(np.int64) + 1}

    def _search_of(self, step: RefineStep) -> Search3D:
        from polarice.io.relion_run.model3d import Search3D

        return Search3D(self.params.sym, step.order, self.params.auto_local_healpix_order, step.local)

    def conclusion(self, page: Path) -> str:
        from polarice.references.halfmaps import HALVES_ARE_ONE

        box_A = self.images.preparation.box_px * self.images.pixel_size_A
        bad = self.looked.bad
        left_out = f", {len(bad)} left out" if bad else ""
        model = self.state.model
        if model.halves_are_one:
            print(f"warning: {self.params.o}: {HALVES_ARE_ONE}", file=sys.stderr)
            return f"{len(self.rows)} particles{left_out}, resolution not known; report: {page}"
        resolution_A = box_A / model.shell
        return f"{len(self.rows)} particles{left_out}, {resolution_A:.1f} A where halves agree; report: {page}"


def map_schedule(kind: Callable[..., S], images: ParticleImages, params: MapJob, local_order: int, **more: Any) -> S:
    """The schedule of a job that improves maps; `more` are fields of its kind alone."""
    box, pixel_A = images.preparation.box_px, images.pixel_size_A
    limit = min(box // 2 - 1, last_ring(images, params))
    return kind(
        box_px=box,
        pixel_size_A=pixel_A,
        diameter_A=2 * images.preparation.radius_px * pixel_A,
        iterations=params.iterations,
        limit_shell=limit,
        first_shell=max(1, min(limit, round(box * pixel_A / params.ini_high))),
        local_order=local_order,
        offset_range_px=params.offset_range,
        offset_step_px=params.offset_step,
        first_best_alone=params.firstiter_cc,
        **more,
    )


def _schedule(images: ParticleImages, params: Refinement) -> RefineSchedule:
    from polarice.references.refinement import RefineSchedule

    return map_schedule(RefineSchedule, images, params, params.auto_local_healpix_order)


def first_state(
    looked: CheckedParticles, density: np.ndarray, schedule: RefineSchedule, params: Refinement
) -> RefineState:
    """Before the first iteration: both halves begin with the low-passed map, nothing is assigned."""
    import torch

    from polarice.align.fit import State
    from polarice.references.halfmaps import HalfMaps
    from polarice.references.refinement import Progress

    images, n = looked.images, len(looked.table.particles)
    preparation = images.preparation
    model = HalfMaps.begun(
        torch.from_numpy(density).to(images.device),
        schedule.box_px * schedule.pixel_size_A / params.ini_high,
        torch.from_numpy(looked.noise_power).to(images.device),
        preparation.radius_px,
        preparation.mask_fraction,
    )
    shift_px = looked.table.particles.pose.shift_px.copy()
    unknown = replace(Pose2D.unknown(n), shift_px=shift_px)
    nothing = Assignment(unknown, np.zeros(n), np.zeros(n, np.float32), np.zeros(n, np.int32))
    progress = Progress(np.rint(shift_px), np.zeros((n, 3)), halves_of(looked, params.seed))
    return State(0, model, nothing, progress)


def iteration_of(result: RefineResult, images: ParticleImages, rows: np.ndarray) -> Iteration:
    """What an iteration left behind, as of one class, about the particles `rows`."""
    from polarice.references.fsc import power_of, ssnr_of

    model, box, pixel_A = result.state.model, images.preparation.box_px, images.pixel_size_A
    known = {
        "averages": model.joined.sum(dim=0)[None].cpu().numpy(),
        "weights": np.ones(1),
        "signal_power": power_of(model.joined)[None].cpu().numpy(),
        "ssnr": ssnr_of(model.fsc)[None].cpu().numpy(),
        "resolution_A": np.array([box * pixel_A / model.shell]),
    }
    return iteration_with(result, images, rows, known)


def iteration_with(
    result: IterationResult[Any, Any, RefineStep, Refined[Any]],
    images: ParticleImages,
    rows: np.ndarray,
    known: Mapping[str, np.ndarray],
) -> Iteration:
    """What an iteration left behind about the particles `rows`; known: what its ClassModel says of classes."""
    model, box, pixel_A = result.state.model, images.preparation.box_px, images.pixel_size_A
    return Iteration(
        total=result.step.total,
        model=ClassModel(
            noise_power=model.noise_power.cpu().numpy(),
            pixel_size_A=pixel_A,
            shift_sigma_px=model.shift_sigma_px,
            **known,
        ),
        assignment=result.state.assignment.take(rows),
        resolution_limit_A=box * pixel_A / result.step.r_max,
        psi_step_deg=360 / result.found.search.psi_count,
        shift_range_px=result.step.shift_range_px,
        shift_step_px=result.step.shift_step_px,
        particles_used=len(result.found.used),
        **figures_of_pass(result),
    )

"""A 3D classification at work: from a particle table and maps to K maps, classes and a report on disk."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polarice.cluster import Comm
from polarice.project.params import MAP, option, output
from polarice.project.usage import Usage, Watch
from polarice.runs.particle_job import CheckedParticles, relion_settings
from polarice.runs.refinement import (
    MapJob,
    MapRun,
    iteration_with,
    map_schedule,
    read_reference,
    require_room_of_maps,
    require_suitable,
    run_on_maps,
)
from polarice.types import Assignment, InputError, Iteration, Pose2D

if TYPE_CHECKING:
    from polarice.align.fit import IterationResult
    from polarice.align.images import ParticleImages
    from polarice.io.particles import ParticleTable
    from polarice.io.relion_run.model3d import Search3D
    from polarice.references.classes3d import ClassSchedule, ClassState
    from polarice.references.refinement import Progress, Refined, RefineStep
    from polarice.references.volumes import Volumes

    ClassResult = IterationResult[Volumes, Progress, RefineStep, Refined[Volumes]]

CLASSES = 3  # where neither --k nor several references say how many
MOST_ITERATIONS = 40
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")


@dataclass(frozen=True)
class Classification3D(MapJob):
    """References, how many classes, and how to search."""

    o: Path = output("Class3D")
    ref: tuple[Path, ...] = option(
        (), "map to begin with (.mrc), of the particles' box and pixel size; or one for each class",
        level="essential", path=MAP, derived="those of the run that goes on",
    )  # fmt: skip
    k: int | None = option(
        None, "number of classes", derived="that of the references, 3 where there is one", low=1, high=100,
        flags=("-k", "--K"), level="essential",
    )  # fmt: skip
    iter: int | None = option(
        None, "most iterations; the job ends by itself", derived="40; with --continue, as before", low=1, high=999,
        renewable=True, level="essential",
    )  # fmt: skip
    tau2_fudge: float = option(4.0, "strength of the data against the prior", low=0.01, high=100)
    healpix_order: int = option(
        3, "finest HEALPix order of the directions: 2 is 15 degrees, 3 is 7.5 (RELION's 2, which it halves)",
        low=2, high=5,
    )  # fmt: skip
    skip_align: bool = option(False, "particles keep the poses of the table; only their classes are found")
    local: bool = option(False, "directions are searched around those of the table, from the first iteration on")
    seeds: int = option(1, "runs from different random beginnings, whose classes are compared", low=1, high=20)

    @property
    def classes(self) -> int:
        """How many the job makes."""
        return self.k or (len(self.ref) if len(self.ref) > 1 else CLASSES)

    @property
    def maps(self) -> int:
        return 2 * self.classes  # of two halves

    def faults(self) -> Iterator[str]:
        if not self.ref and self.continue_ is None:
            yield "--ref: class3d begins with a map; give one (.mrc), or make one with polarice initial3d"
        if len(self.ref) > 1 and self.k not in (None, len(self.ref)):
            yield f"--k {self.k}: {len(self.ref)} references are given; give one, or as many as classes"
        if self.skip_align and self.local:
            yield "--local: nothing is searched for with --skip-align; leave one of them out"


def classify(job: str, params: Classification3D) -> None:
    """Run or continue a classification. Raises InputError for what cannot be used, and for a full disk."""

    def require(params: Classification3D, images: ParticleImages) -> None:
        if params.continue_ is None:
            require_suitable(params, params.ref, images)
        require_room_of_maps(params, images, f"{params.classes} maps")

    run_on_maps(job, params, ClassRun, require, MOST_ITERATIONS)


def read_references(params: Classification3D, images: ParticleImages) -> np.ndarray:
    """(K, N, N, N) float32: one map many times, or several. Raises InputError as `read_reference`."""
    found = [read_reference(path, images) for path in params.ref]
    return np.stack(found if len(found) > 1 else found * params.classes)


def given_directions(table: ParticleTable, wanted: str) -> np.ndarray:
    """(n, 3) unit vectors by rlnAngleRot and rlnAngleTilt. Raises InputError where `wanted` needs what is not there."""
    from polarice.references.directions import directions_of

    missing = [f"_{label}" for label in ANGLES if label not in table.table]
    if missing:
        raise InputError(f"{wanted}: {table.table.where} has no {', '.join(missing)}; refine first, or leave it out")
    return directions_of(*(table.table.finite(label, 1e6) for label in ANGLES[:2]))


class ClassRun(MapRun["ClassResult"]):
    """class3d at work."""

    params: Classification3D

    def __init__(self, job: str, params: Classification3D, looked: CheckedParticles, ranks: tuple[Comm, Watch]) -> None:
        self.schedule = _schedule(looked.images, params)
        super().__init__(job, params, looked, ranks)

    def beginning(self) -> ClassState:
        from polarice.runs.checkpoint3d import read_classes

        if self.done:
            state = read_classes(self.params.o, self.done, self.images.device)
            if self.schedule.settled(state):
                print(f"{self.params.o}: classes have been found; nothing but the report is made", file=sys.stderr)
            return state
        return first_state(self.looked, read_references(self.params, self.images), self.schedule, self.params)

    def results(self) -> Iterator[ClassResult]:
        from polarice.align.fit import fit
        from polarice.references.classes3d import ClassExpectation
        from polarice.references.refinement import KeepMaps

        expect = ClassExpectation(self.images, self.looked.order, self.refine_settings(1e9), self.comm)
        return fit(self.state, self.schedule, expect, KeepMaps(), self.params.seed)

    def write(self, result: ClassResult, prepared: None) -> Iteration:
        from polarice.io.relion_run.model3d import Reference3D, write_iteration_3d
        from polarice.report import append_history
        from polarice.runs.checkpoint3d import write_maps

        since = time.perf_counter()
        state = result.state
        iteration = class_iteration_of(result, self.images, self.rows)
        root = self.params.o / "run"
        maps = self._write_maps(Path(f"{root}_it{state.number:03d}"), state.model)
        settings = relion_settings(self.params, self.images, self.params.tau2_fudge)
        write_iteration_3d(
            root, iteration, (self.looked.table, self.rows, self.views_of(state)), settings,
            self._search_of(result.step), {"": Reference3D(maps)},
        )  # fmt: skip
        iteration = replace(iteration, seconds=iteration.seconds | {"writing": time.perf_counter() - since})
        append_history(self.params.o, iteration)
        write_maps(self.params.o, state, iteration.model)
        shares = " ".join(f"{100 * each:.1f}" for each in iteration.model.weights)
        best = np.nanmin(iteration.model.resolution_A)
        self.say(result, iteration, f"{best:.1f} A, classes {shares} %, {iteration.changed_class:.1%} changed theirs")
        return iteration

    def _write_maps(self, root: Path, model: Volumes) -> tuple[str, ...]:
        """ROOT_class001.mrc ...; their paths."""
        from polarice.io.mrc import write_volume

        paths = tuple(f"{root}_class{k:03d}.mrc" for k in range(1, len(model.maps) + 1))
        for path, density in zip(paths, model.maps, strict=True):
            write_volume(path, density.cpu().numpy(), self.images.pixel_size_A)
        return paths

    def _search_of(self, step: RefineStep) -> Search3D:
        from polarice.io.relion_run.model3d import Search3D

        params = self.params
        return Search3D(params.sym, step.order, params.healpix_order + 1, step.local, params.skip_align)

    def finished(self, usage: Usage) -> Path:
        from polarice.io.relion_run.refine3d import write_poses
        from polarice.report.classes3d import write_page

        root, state, rows = self.params.o / "run", self.state, self.rows
        self._write_maps(root, state.model)
        columns = self.views_of(state) | {"rlnClassNumber": state.pose.class_of[rows] + 1}
        write_poses(Path(f"{root}_data.star"), self.looked.table, rows, state.assignment.take(rows), columns)
        return write_page(self.about, self.params.tau2_fudge, state, usage)

    def conclusion(self, page: Path) -> str:
        box_A, model = self.images.preparation.box_px * self.images.pixel_size_A, self.state.model
        left_out = f", {len(self.looked.bad)} left out" if self.looked.bad else ""
        shells = zip(model.weights.tolist(), model.shells.tolist(), strict=True)
        classes = ", ".join(f"{share:.1%} at {box_A / shell:.1f} A" if share else "empty" for share, shell in shells)
        return f"{len(self.rows)} particles{left_out}; classes: {classes}; report: {page}"


def _schedule(images: ParticleImages, params: Classification3D) -> ClassSchedule:
    from polarice.references.classes3d import ClassSchedule

    return map_schedule(
        ClassSchedule,
        images,
        params,
        params.healpix_order + 1,
        order=params.healpix_order,
        local=params.local,
        posed=params.skip_align,
        drawn=len(params.ref) == 1 and params.classes > 1,
    )


def first_state(
    looked: CheckedParticles, densities: np.ndarray, schedule: ClassSchedule, params: Classification3D
) -> ClassState:
    """Before the first iteration: low-passed maps, and no particle has a class; poses are the table's, if wanted."""
    import torch

    from polarice.align.fit import State
    from polarice.references.classes3d import ClassProgress
    from polarice.references.volumes import Volumes, random_sets

    images, table = looked.images, looked.table
    n, given = len(table.particles), table.particles.pose
    model = Volumes.begun(
        torch.from_numpy(densities).to(images.device),
        schedule.box_px * schedule.pixel_size_A / params.ini_high,
        torch.from_numpy(looked.noise_power).to(images.device),
        images.preparation.radius_px,
        images.preparation.mask_fraction,
    )
    pose, direction = replace(Pose2D.unknown(n), shift_px=given.shift_px.copy()), np.zeros((n, 3))
    if params.skip_align or params.local:
        direction = given_directions(table, "--skip-align" if params.skip_align else "--local")
        pose = replace(pose, psi_deg=given.psi_deg.copy())
    nothing = Assignment(pose, np.zeros(n), np.zeros(n, np.float32), np.zeros(n, np.int32))
    sets = random_sets(looked.rows, params.classes, n, np.random.default_rng([params.seed, 3]))
    return State(0, model, nothing, ClassProgress(np.rint(pose.shift_px), direction, sets))


def class_iteration_of(result: ClassResult, images: ParticleImages, rows: np.ndarray) -> Iteration:
    """What an iteration left behind about the particles `rows`."""
    model, box_A = result.state.model, images.preparation.box_px * images.pixel_size_A
    shells = model.shells.cpu().numpy().astype(float)
    weights = model.weights.cpu().numpy()
    known = {
        "averages": model.maps.sum(dim=1).cpu().numpy(),
        "weights": weights,
        "signal_power": model.tau2.cpu().numpy(),
        "ssnr": model.ssnr.cpu().numpy(),
        "resolution_A": np.where(weights > 0, box_A / shells, np.nan),
    }
    return iteration_with(result, images, rows, known)

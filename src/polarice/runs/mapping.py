"""What sml does: from a table of aligned particles to a map of classes on disk."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.cluster import world
from polarice.project.usage import Usage, Watch
from polarice.runs.particle_job import CheckedParticles, check_images, open_particles, relion_settings, with_copies
from polarice.runs.particle_run import ClassReportRun, figures_of_pass
from polarice.runs.resources import card_of, device_of, give_back_freed_memory
from polarice.runs.running import carry_out, page_of, settled
from polarice.types import Assignment, ClassModel, InputError, Iteration

if TYPE_CHECKING:
    import torch

    from polarice.align.fit import Expected, IterationResult
    from polarice.io.particles import ParticleTable
    from polarice.references.manifold.aligned_particles import AlignedParticles
    from polarice.references.manifold.mapping import Latent, ManifoldState, ManifoldStep
    from polarice.references.manifold.model import Manifold
    from polarice.report import Report
    from polarice.report.index import Chapter
    from polarice.runs.manifold_job import ManifoldJob

    ManifoldResult = IterationResult[Manifold, Latent, ManifoldStep, Expected[Manifold, Latent]]

ITERATIONS = 30
FEWEST_PER_NODE = 3  # particles; with fewer, nodes are told about before the run
NAMED = 20  # nodes without particles that are named on the screen


def map_particles(job: str, params: ManifoldJob) -> None:
    """Run or continue a map. Raises InputError for what cannot be used, and for a full disk."""
    from polarice.runs.memory_estimate import require_room_for_map

    _ = params.shape
    with world(job) as comm, ExitStack() as held:
        params = comm.on_root(lambda: settled(job, params, ITERATIONS))
        device = device_of(params, comm)
        watch = Watch(comm, card_of(device))
        table, images = open_particles(params, device, comm)
        comm.on_root(lambda: require_poses(table))
        comm.on_root(lambda: require_room_for_map(images, params))
        warn_of_few(len(table.particles), params.classes)

        def begin() -> ManifoldRun:
            watch.mark("loading")
            looked = check_images(table, with_copies(images, params, comm, held), params, comm)
            watch.mark("looking at images")
            run = ManifoldRun(job, params, looked, (comm, watch))
            watch.mark("first classes")
            return run

        carry_out(job, params, [table.path, *table.particles.stacks], begin, comm)


def require_poses(table: ParticleTable) -> None:
    """Raise InputError where the particles have not been aligned."""
    pose = table.particles.pose
    aligned = "polarice align2d first, or take its run_itNNN_data.star"
    if "rlnAnglePsi" not in table.table:
        raise InputError(f"{table.path}: no column _rlnAnglePsi: the particles are not aligned; run {aligned}")
    if not pose.psi_deg.any() and not pose.shift_px.any():
        raise InputError(f"{table.path}: all angles and origins are 0: the particles are not aligned; run {aligned}")


def warn_of_few(n: int, k: int) -> None:
    """Say what to expect of k nodes for n particles, where those are few."""
    if FEWEST_PER_NODE * k > n:
        print(
            f"warning: {k} nodes for {n} particles: most will hold fewer than {FEWEST_PER_NODE}, many none; the map "
            f"between them is made of their neighbours; --k {max(2, n // 20)} would leave 20 to a node",
            file=sys.stderr,
        )


class ManifoldRun(ClassReportRun["ManifoldResult", "Pictures | None"]):
    """sml at work."""

    params: ManifoldJob

    posed: AlignedParticles | None = None  # while iterations are made

    def images_of_iterations(self) -> list[int]:
        return [len(self.looked.order)] * int(self.params.iterations)

    def beginning(self) -> ManifoldState:
        from polarice.runs.checkpoint import read_iteration, read_map_checkpoint
        from polarice.runs.manifold_start import aligned_particles, first_map, plan_of

        params, done, device = self.params, self.done, self.images.device
        if done == params.iterations:
            self.last = read_iteration(params.o, done, done, self.rows)
            return read_map_checkpoint(params.o, done, device)
        self.posed = aligned_particles(self.images, self.looked, params, self.comm)
        self.plan = plan_of(self.posed, params)
        if done:
            return read_map_checkpoint(params.o, done, device)
        first = first_map(self.posed, self.looked, self.plan, params)
        give_back_freed_memory()  # much, in pieces, below the images that will be kept
        return first

    def following(self, state: ManifoldState) -> int:
        return state.number + 1

    def results(self) -> Iterator[ManifoldResult]:
        from polarice.align.fit import fit
        from polarice.references.manifold.mapping import KeepModel, ManifoldExpectation

        if self.posed is None:
            return
        try:
            for result in fit(self.state, self.plan, ManifoldExpectation(self.posed, self.plan), KeepModel()):
                if self.params.memory is not None:
                    give_back_freed_memory()
                yield result
        except ValueError as error:  # what the mathematics finds wrong with the data
            raise InputError(f"{self.looked.table.path}: {error}") from error

    def prepared(self, result: ManifoldResult) -> Pictures | None:
        """What RELION's files will show, where it is time for them."""
        number, since = result.state.number, time.perf_counter()
        if number < self.params.iterations and number % self.params.write_every:
            return None
        assert self.posed is not None
        made = pictures_of(result, self.posed, self.params)
        result.clock.add("writing", since)
        return made

    def write(self, result: ManifoldResult, prepared: Pictures | None) -> Iteration:
        from polarice.io.relion_run.class2d import write_iteration
        from polarice.report import append_history
        from polarice.runs.checkpoint import path_of, write_map_checkpoint

        params, folder, since = self.params, self.params.o, time.perf_counter()
        number = result.state.number
        model = _outline(result) if prepared is None else class_model(result, prepared, self.images.pixel_size_A)
        iteration = iteration_of(result, model, self.looked, params.iterations)
        if prepared is not None:
            settings = relion_settings(params, self.images, params.tau2_fudge)
            columns = self.columns | latent_columns(result.state, self.rows)
            write_iteration(folder, iteration, self.looked.table, settings, rows=self.rows, columns=columns)
        spent = iteration.seconds.get("writing", 0.0) + time.perf_counter() - since
        iteration = replace(iteration, seconds=iteration.seconds | {"writing": spent})
        append_history(folder, iteration)
        write_map_checkpoint(folder, result.state, iteration.model)
        if number > 1 and (number - 1) % params.write_every:  # nothing of RELION's goes with it
            path_of(folder, number - 1).unlink(missing_ok=True)
        self.bar.write(told(iteration, result), file=sys.stderr)
        self.bar.set_description(f"{self.job} {min(number + 1, params.iterations)}/{params.iterations}")
        return iteration

    def release(self) -> None:
        self.posed = None
        give_back_freed_memory()  # of the images: the report wants none

    def page(self, usage: Usage) -> Report:
        """Manifold, movie, and the report."""
        from polarice.report import class_counts

        assert self.last is not None, "the last iteration has been made, or read"
        empty = np.flatnonzero(class_counts(self.last) == 0)
        chapter = map_chapter(self.params, self.state, self.last, 2 * self.images.preparation.radius_px)
        notes = {"classes": _empty_words(empty, len(empty))} if len(empty) else {}
        if len(empty):
            print(_empty_words(empty, NAMED))
        return page_of(self.job, self.params, self.looked, self.last, [chapter], notes, usage.lines())

    def conclusion(self, page: Path) -> str:
        k, bad = self.params.classes, self.looked.bad
        left_out = f", {len(bad)} left out" if bad else ""
        return f"{len(self.rows)} particles on a map of {k} nodes{left_out}; report: {page}"


def _empty_words(empty: np.ndarray, named: int) -> str:
    numbers = ", ".join(str(node + 1) for node in empty[:named]) + (" ..." if len(empty) > named else "")
    many = "1 node is" if len(empty) == 1 else f"{len(empty)} nodes are"
    return f"{many} no particle's best; their averages are what their neighbours make of them: {numbers}"


def told(iteration: Iteration, result: ManifoldResult) -> str:
    """One line about an iteration."""
    from polarice.report import class_counts

    counts = class_counts(iteration)
    return (
        f"iteration {iteration.number}/{iteration.total}: {result.step.rings} rings, {int((counts > 0).sum())} of "
        f"{len(counts)} nodes in use, mean probability {result.found.max_probability:.2f}, "
        f"{100 * result.changed[0]:.0f} % changed node, {sum(iteration.seconds.values()):.1f} s"
    )


def latent_columns(state: ManifoldState, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Where on the map the particles `rows` lie: mean and standard deviation of the posterior along each axis."""
    latent = state.carried
    return {
        f"polariceLatent{axis + 1}{kind}": values[rows, axis].astype(np.float64)
        for kind, values in (("", latent.mean), ("Sd", latent.sd))
        for axis in range(values.shape[1])
    }


@dataclass(frozen=True)
class Pictures:
    """Averages of all nodes."""

    averages: np.ndarray  # (K, N, N) float32
    ssnr: torch.Tensor | None  # (K, ring) where they have one of their own, and not the map's


def pictures_of(result: ManifoldResult, posed: AlignedParticles, params: ManifoldJob) -> Pictures:
    """Averages as --average asks for them; every rank makes its share and has them all."""
    model, comm = result.state.model, posed.comm
    vectors, ssnr = (
        (model.vectors, None) if params.average == "soft" else _hard_averages(result, posed, params.threshold)
    )
    vectors = vectors[model.shares(comm).some(len(vectors))]
    mask = posed.images.preparation.mask(model.basis.device)
    pixels = mask.new_empty(0, *mask.shape)
    if len(vectors):  # there may be more ranks than nodes
        pixels = model.packed.images(vectors).mul_(mask)
    return Pictures(comm.all_gather(pixels).cpu().numpy(), ssnr)


def class_model(result: ManifoldResult, pictures: Pictures, pixel_A: float) -> ClassModel:
    """Averages of all nodes and what is known about them."""
    from polarice.references.snr import resolved_px, smooth_ssnr

    model, ssnr = result.state.model, pictures.ssnr
    basis = model.basis
    if ssnr is None:
        ssnr = smooth_ssnr(model.ring_power.double() / basis.n_theta, model.error(result.found.sums))
    box = basis.box_px
    prior = model.grid.squares[:, None] * model.tau2 * model.pose_prior
    return replace(
        _outline(result),
        averages=pictures.averages,
        signal_power=_shells(prior, box),
        ssnr=_shells(ssnr, box),
        resolution_A=box * pixel_A / resolved_px(ssnr).cpu().numpy(),
        pixel_size_A=pixel_A,
    )


def _hard_averages(
    result: ManifoldResult, posed: AlignedParticles, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors and SSNR of plain averages; nodes without particles keep the map's image, with no signal of its own."""
    import torch

    from polarice.align.images import Clock
    from polarice.references.plain import PlainAverages

    model, assignment = result.state.model, result.state.assignment
    label = np.where(assignment.max_probability >= threshold, assignment.pose.class_of, -1)
    how = (model.grid.k, model.scale, model.mask_fraction)
    plain = PlainAverages.of(posed, assignment.pose, label, how, Clock())
    there = torch.from_numpy(plain.count > 0).to(plain.vector.device)
    return torch.where(there[:, None], plain.vector.float(), model.vectors), plain.ssnr


def _shells(rings: torch.Tensor, box_px: int) -> np.ndarray:
    values = np.zeros((len(rings), box_px // 2 + 1))
    values[:, 1 : rings.shape[1] + 1] = rings.cpu().numpy()
    return values


def _outline(result: ManifoldResult) -> ClassModel:
    """A class model without averages, for iterations that leave no more than a line of figures."""
    model, pose = result.state.model, result.state.pose
    k, shells = len(model.weights), model.noise_power.shape[1]
    nothing = np.zeros((k, shells))
    return ClassModel(
        averages=np.zeros((k, 0, 0), np.float32),
        weights=(result.found.sums.node_weight / result.found.sums.node_weight.sum()).cpu().numpy(),
        noise_power=model.noise_power.cpu().numpy(),
        signal_power=nothing,
        ssnr=nothing,
        resolution_A=np.full(k, np.inf),
        pixel_size_A=1.0,
        shift_sigma_px=float(np.sqrt(np.mean(pose.shift_px**2))),
    )


def iteration_of(result: ManifoldResult, model: ClassModel, looked: CheckedParticles, total: int) -> Iteration:
    """What an iteration left behind, about the particles looked at."""
    rows, found = looked.rows, result.state.assignment
    basis = result.state.model.basis
    return Iteration(
        total=total,
        model=replace(model, pixel_size_A=looked.images.pixel_size_A),
        assignment=Assignment(
            found.pose.take(rows), found.log_likelihood[rows], found.max_probability[rows], found.significant[rows]
        ),
        resolution_limit_A=basis.box_px * looked.images.pixel_size_A / result.step.rings,
        psi_step_deg=360 / basis.n_theta,
        shift_range_px=0.0,
        shift_step_px=0.0,
        particles_used=len(rows),
        **figures_of_pass(result),
    )


def map_chapter(params: ManifoldJob, state: ManifoldState, last: Iteration, diameter_px: float) -> Chapter:
    """The map's part of the report; its sheet, heat map and movie are written beside it."""
    from polarice.io.mrc import write_stack
    from polarice.io.star import Block, Table, write_star
    from polarice.references.path import images_at, path_points
    from polarice.report import charts, class_counts, latent
    from polarice.report.index import Chapter, Picture
    from polarice.report.montage import png_bytes

    shape, counts, model = state.model.grid.shape, class_counts(last), last.model
    radius_px, root = diameter_px / 2, params.o / f"run_it{last.number:03d}"
    sheet = png_bytes(latent.map_sheet(model.averages, shape, counts, radius_px))
    _write_bytes(root.with_name(f"{root.name}_map.png"), sheet)
    figure = latent.occupancy(shape, counts, state.carried.mean)
    shown = charts.png(figure)
    _write_bytes(params.o / "report_map.png", shown)
    points = path_points(state.model, counts / max(counts.sum(), 1), params.frames)
    frames = images_at(state.model, points).cpu().numpy()
    write_stack(root.with_name(f"{root.name}_path.mrcs"), frames, model.pixel_size_A)
    latent.write_movie(root.with_name(f"{root.name}_path.gif"), frames, radius_px)
    places = {f"polariceLatent{axis + 1}": values for axis, values in enumerate(points.T)}
    write_star(root.with_name(f"{root.name}_path.star"), [Block("path", table=Table.of(places))])
    grid = f"grid of {' x '.join(map(str, shape))}" if len(shape) > 1 else f"line of {shape[0]}, read as a page is"
    return Chapter(
        title="Latent map",
        text=(
            f"The nodes' averages at their places on the {grid}. Neighbours are tied together by smooth "
            "functions, so that states that change steadily lie side by side. Nodes that are no particle's best are "
            "faint. Every particle's coordinates (polariceLatent1, 2, 3, from -1 to 1) and the spread of its posterior "
            "(polariceLatent1Sd ...) stand in the particle table.",
        ),
        pictures=(
            Picture(sheet, f"Node averages on the {grid}."),
            Picture(shown, "How full the nodes are, and where particles lie."),
        ),
        links=(
            (f"Movie along the map ({root.name}_path.gif)", f"{root.name}_path.gif"),
            (f"its frames ({root.name}_path.mrcs)", f"{root.name}_path.mrcs"),
        ),
    )


def _write_bytes(path: Any, content: bytes) -> None:
    from polarice.io.atomic import replacing

    with replacing(path) as stream:
        stream.write(content)

"""What align2d and class2d share: their parameters, and the way from a particle table to class averages on disk."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polarice.jobs.params import argument, as_dict, command_line, from_dict, option
from polarice.types import Assignment, ClassModel, InputError, Iteration, Pose2D

if TYPE_CHECKING:
    import torch

    from polarice.align.images import ParticleImages
    from polarice.align.loop import State, Turn
    from polarice.align.schedule import Schedule
    from polarice.io.class2d import RunSettings
    from polarice.io.particles import ParticleTable
    from polarice.references.averages import Averages

DIAMETER_OF_BOX = 0.8  # where the particle's diameter is not given
PERIODS_AT_START = 8  # resolution of the first iteration: so many periods across the particle
TOLERATED_BAD = 0.1  # share of unusable images beyond which a run is refused
FIRST_SHIFT_SIGMA_PX = 3.0
SURVEY_BATCH = 256


@dataclass(frozen=True)
class Classification:
    """Parameters of align2d and class2d; names are RELION's where RELION has them."""

    particles: Path = argument("particles.star of RELION 3.0 or later", flags=("--i",), unless="continue_")
    o: Path = option(Path("Class2D"), "folder for the results")
    k: int = option(50, "number of classes", low=1, high=100_000, flags=("-k", "--K"))
    iter: int = option(25, "number of iterations", low=1, high=999)
    particle_diameter: float | None = option(None, "diameter of the particle's mask; 0.8 of the box", unit="A", low=1)
    tau2_fudge: float = option(2.0, "strength of the data against the prior", low=0.01, high=100)
    psi_step: float | None = option(
        None, "coarsest step of the in-plane angle; as fine as the resolution asks", unit="deg", low=0.1, high=90
    )
    offset_range: float = option(5.0, "shifts are searched this far from each particle's last centre", unit="px", low=0)
    offset_step: float = option(1.0, "finest step of the shifts", unit="px", low=0.1, high=10)
    strict_highres_exp: float | None = option(
        None, "compare images up to this resolution at most; Nyquist", unit="A", low=0.1
    )
    ctf: bool = option(True, "correct for the contrast transfer function")
    ctf_intact_first_peak: bool = option(False, "leave the CTF alone up to its first peak")
    center_classes: bool = option(True, "bring class averages to the centre of their mass")
    norm: bool = option(True, "bring every image's background to mean 0 and standard deviation 1")
    image_dir: Path | None = option(None, "folder that the image names of the table are relative to")
    angpix: float | None = option(None, "pixel size, for tables that do not state it", unit="A", low=0.01, high=100)
    unsigned: bool = option(False, "MRC mode 0 holds unsigned bytes, as before 2014")
    seed: int = option(1, "seed of everything random", low=0, flags=("--random-seed",))
    continue_: Path | None = option(None, "folder (or a run_itNNN_optimiser.star) of a run to go on with")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute")
    threads: int | None = option(None, "processor threads; all", low=1, high=1024, flags=("--j",))
    memory: float | None = option(None, "memory for the engine's batches; a small share", unit="GiB", low=0.01)


def classify(job: str, params: Any, growing_batches: bool) -> None:
    """Run or continue a classification. Raises InputError for what cannot be used; Ctrl-C says how to go on."""
    if params.continue_ is not None:
        params = _continued(job, params)
    _make_folder(params)
    device = _device(params)
    run = _Run(job, params, device, growing_batches)
    try:
        for iteration in run.iterations():
            run.write(iteration)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(run.how_to_go_on()) from None
    finally:
        run.close()
    run.report()


class _Run:
    """One job at work: what has been read, where it stands, what it has written."""

    def __init__(self, job: str, params: Any, device: torch.device, growing_batches: bool) -> None:
        from tqdm import tqdm

        self.job, self.params, self.device = job, params, device
        self.table, self.images = open_particles(params, device, lambda n: self.bar.update(n))
        self.rows, self.bad, norm, noise = _look_at_images(self.table, self.images, params)
        self.columns = {} if norm is None else {"rlnNormCorrection": norm[self.rows]}
        self.schedule = _schedule(self.images, params, len(self.rows), growing_batches)
        self.state = self._first_state(noise)
        done = sum(self.schedule.step(i + 1).batch for i in range(self.state.number))
        total = sum(self.schedule.step(i + 1).batch for i in range(params.iter))
        self.bar = tqdm(total=total, initial=done, unit="img", desc=job, smoothing=0.05, file=sys.stderr)
        self.last: Iteration | None = None

    def _first_state(self, noise: np.ndarray) -> State[Averages]:
        from polarice.io.class2d import discard_from
        from polarice.jobs.checkpoint import checkpoints, read_checkpoint
        from polarice.jobs.provenance import write_job_json
        from polarice.jobs.report import rewind_history

        params = self.params
        found = [number for number in checkpoints(params.o) if _wanted(params, number)]
        if params.continue_ is None or not found:
            discard_from(params.o, 0)
            rewind_history(params.o, 0)
            write_job_json(
                params.o,
                self.job,
                as_dict(replace(params, continue_=None)),
                command_line(self.job, replace(params, continue_=None)),
                inputs=[self.table.path, *self.table.particles.stacks],
                seed=params.seed,
            )
            return first_state(self.images, self.schedule, self.rows, noise, params)
        if found[-1] >= params.iter:
            raise InputError(f"{params.o}: all {found[-1]} iterations are done; ask for more with --iter")
        discard_from(params.o, found[-1] + 1)
        rewind_history(params.o, found[-1] + 1)
        return read_checkpoint(params.o, found[-1], self.device)

    def iterations(self) -> Iterator[tuple[Turn[Averages], Iteration]]:
        from polarice.align.loop import Settings, fit

        settings = Settings(
            self.params.tau2_fudge, self.params.seed, _batch_bytes(self.params, self.device), self.params.center_classes
        )
        for turn in fit(self.images, self.state, self.schedule, self.rows, settings):
            yield turn, iteration_of(turn, self.images, self.rows)

    def write(self, done: tuple[Turn[Averages], Iteration]) -> None:
        """Put one iteration on disk: RELION's files, then the checkpoint, then its line of the history."""
        from polarice.io.class2d import write_iteration
        from polarice.jobs.checkpoint import write_checkpoint
        from polarice.jobs.report import append_history

        turn, iteration = done
        since = time.perf_counter()
        write_iteration(
            self.params.o, iteration, self.table, _relion_settings(self.params, self.images), rows=self.rows,
            columns=self.columns,
        )  # fmt: skip
        write_checkpoint(self.params.o, turn.state)
        iteration = replace(iteration, seconds=iteration.seconds | {"writing": time.perf_counter() - since})
        append_history(self.params.o, iteration)
        self.last, self.state = iteration, turn.state
        classes = int((np.bincount(iteration.assignment.pose.class_of.clip(0)) > 0).sum())
        self.bar.set_postfix_str(
            f"iteration {iteration.number}/{iteration.total}, {classes} classes, "
            f"{np.min(iteration.model.resolution_A):.1f} A"
        )

    def report(self) -> None:
        """report.html and its pictures, of the last iteration."""
        from polarice.jobs.provenance import versions
        from polarice.jobs.report import LeftOut, Report, parameters_of, read_history, write_report

        if self.last is None:
            return
        plain = replace(self.params, continue_=None)
        report = Report(
            title=f"{self.job}: {self.table.path.name}",
            job=self.job,
            history=read_history(self.params.o),
            iteration=self.last,
            command=command_line(self.job, plain),
            continue_command=f"polarice {self.job} --continue {self.params.o} --iter {self.params.iter + 10}",
            parameters=parameters_of(plain),
            versions=versions(),
            left_out=[LeftOut(_image_name(self.table, row), reason) for row, reason in sorted(self.bad.items())],
            optics_names=[optics.name for optics in self.table.particles.optics],
            particle_diameter_A=2 * self.images.preparation.radius_px * self.images.pixel_size_A,
            working_directory=os.getcwd(),
        )
        page = write_report(self.params.o, report)
        print(f"{len(self.rows)} particles in {len(self.last.model.weights)} classes; report: {page}")

    def how_to_go_on(self) -> str:
        return f"stopped; to go on: polarice {self.job} --continue {self.params.o}"

    def close(self) -> None:
        self.bar.close()


def open_particles(
    params: Any, device: torch.device, progress: Callable[[int], object]
) -> tuple[ParticleTable, ParticleImages]:
    """The table and its images, checked as far as headers tell."""
    from polarice.align.images import ParticleImages
    from polarice.align.prepare import Preparation
    from polarice.io.particles import StackSource, read_ahead, read_particles

    table = read_particles(params.particles, params.image_dir, params.ctf, params.angpix)
    if params.k > len(table.particles):
        raise InputError(
            f"{params.particles}: {params.k} classes asked of {len(table.particles)} particles; ask for fewer with --k"
        )
    source = StackSource(table.particles, params.unsigned, params.particles)
    source.check()
    pixel_A = table.particles.optics[0].pixel_size_A
    radius_px = (params.particle_diameter or DIAMETER_OF_BOX * source.box_px * pixel_A) / 2 / pixel_A
    if radius_px > source.box_px / 2:
        raise InputError(
            f"--particle-diameter {params.particle_diameter:g}: the box is {source.box_px * pixel_A:g} A wide; "
            "give a smaller diameter, or extract in a larger box"
        )
    preparation = Preparation(source.box_px, radius_px, params.norm)
    images = ParticleImages(
        table.particles, source, preparation, device, read_ahead, params.ctf, params.ctf_intact_first_peak, progress
    )
    return table, images


def _look_at_images(
    table: ParticleTable, images: ParticleImages, params: Any
) -> tuple[np.ndarray, dict[int, str], np.ndarray | None, np.ndarray]:
    """Usable rows in the order of the disk, the others with reasons, background deviations, the noise spectrum."""
    from polarice.align.images import Clock
    from polarice.align.survey import survey
    from polarice.io.particles import disk_order

    order = disk_order(table.particles)
    found = survey(images, order, params.seed, SURVEY_BATCH, Clock())
    for row, reason in sorted(found.bad.items())[:10]:
        print(f"left out: row {row + 1} of {table.path}, {_image_name(table, row)}: {reason}", file=sys.stderr)
    if len(found.bad) > 10:
        print(f"left out: {len(found.bad) - 10} more images that cannot be used", file=sys.stderr)
    if len(found.bad) > max(1, TOLERATED_BAD * len(order)) or len(found.bad) == len(order):
        row, reason = min(found.bad.items())
        raise InputError(
            f"{table.path}: {len(found.bad)} of {len(order)} images cannot be used; the first is row {row + 1}, "
            f"{_image_name(table, row)}: {reason}; extract the particles again"
        )
    rows = order[~np.isin(order, list(found.bad))]
    if params.k > len(rows):
        raise InputError(f"{table.path}: {params.k} classes asked of {len(rows)} usable particles; ask for fewer")
    scaled = np.abs(found.background_sd[rows] - 1) > 0.05
    return rows, found.bad, found.background_sd if params.norm and scaled.any() else None, found.noise_power


def first_state(
    images: ParticleImages, schedule: Schedule, rows: np.ndarray, noise_power: np.ndarray, params: Any
) -> State[Averages]:
    """Before the first iteration: references that are averages of random particles, nothing assigned."""
    import torch

    from polarice.align.loop import State
    from polarice.align.model import Prior
    from polarice.align.polar import PolarBasis
    from polarice.align.prepare import MASK_EDGE_PX
    from polarice.align.survey import random_sums
    from polarice.references.averages import Averages

    preparation = images.preparation
    step = schedule.step(1)
    radius_px = min(preparation.box_px / 2, preparation.radius_px + MASK_EDGE_PX / 2)
    slack_px = step.shift_range_px + step.shift_step_px
    basis = PolarBasis(preparation.box_px, radius_px, step.ramp_px, slack_px, images.device)
    noise = torch.from_numpy(noise_power).to(images.device)
    empty = Averages.empty(basis, step.references, noise, FIRST_SHIFT_SIGMA_PX, preparation.mask_fraction)
    sums = random_sums(images, basis, step.references, empty.ring_noise, (rows, params.seed, SURVEY_BATCH))
    n = len(images)
    unknown = replace(Pose2D.unknown(n), shift_px=images.particles.pose.shift_px.copy())
    nothing = Assignment(unknown, np.zeros(n), np.zeros(n, np.float32), np.zeros(n, np.int32))
    return State(0, empty.maximize(sums, Prior(params.tau2_fudge, step.balance)), nothing)


def iteration_of(turn: Turn[Averages], images: ParticleImages, rows: np.ndarray) -> Iteration:
    """What an iteration left behind, in pixels and shells, about the particles `rows`."""
    model, assignment = turn.state.model, turn.state.assignment
    box, pixel_A = images.preparation.box_px, images.pixel_size_A
    mask = images.preparation.mask(images.device)

    def shells(rings: torch.Tensor) -> np.ndarray:
        values = np.zeros((len(rings), box // 2 + 1))
        values[:, 1 : model.basis.r_max + 1] = rings.cpu().numpy()
        return values

    resolution_A = box * pixel_A / model.resolution_px().cpu().numpy()
    return Iteration(
        number=turn.state.number,
        total=turn.step.total,
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
        assignment=Assignment(
            assignment.pose.take(rows),
            assignment.log_likelihood[rows],
            assignment.max_probability[rows],
            assignment.significant[rows],
        ),
        resolution_limit_A=box * pixel_A / model.basis.r_max,
        psi_step_deg=360 / turn.search.psi_count,
        shift_range_px=turn.step.shift_range_px,
        shift_step_px=turn.step.shift_step_px,
        particles_used=len(turn.used),
        log_likelihood=turn.log_likelihood,
        max_probability=turn.max_probability,
        changed_class=turn.changed[0],
        changed_psi_deg=turn.changed[1],
        changed_shift_px=turn.changed[2],
        reseeded=turn.revived,
        seconds=dict(turn.clock.seconds),
    )


def _schedule(images: ParticleImages, params: Any, particles: int, growing_batches: bool) -> Schedule:
    from polarice.align.schedule import Schedule

    box, pixel_A = images.preparation.box_px, images.pixel_size_A
    limit = box // 2
    if params.strict_highres_exp:
        limit = max(4, min(limit, int(box * pixel_A / params.strict_highres_exp)))
    start = round(PERIODS_AT_START * box / (2 * images.preparation.radius_px))
    return Schedule(
        k=params.k,
        iterations=params.iter,
        particles=particles,
        start_px=min(limit, start),
        limit_px=limit,
        offset_range_px=params.offset_range,
        offset_step_px=params.offset_step,
        psi_step_deg=params.psi_step,
        growing_batches=growing_batches,
    )


def _continued(job: str, params: Any) -> Any:
    """The parameters of the run to go on with; iterations, device, threads and memory may be given anew."""
    from polarice.jobs.provenance import changed_inputs, read_job_json

    folder = params.continue_ if params.continue_.is_dir() else params.continue_.parent
    saved = read_job_json(folder)
    if saved.get("job") != job:
        raise InputError(f"{folder}: this is a run of {saved.get('job')}; go on with polarice {saved.get('job')}")
    if changed := changed_inputs(saved):
        raise InputError(f"{changed[0]}: changed since the run in {folder} began; start anew with --o another folder")
    old = from_dict(type(params), saved["params"])
    fresh = type(params)(params.particles)
    anew = {
        name: getattr(params, name)
        for name in ("iter", "device", "threads", "memory")
        if getattr(params, name) != getattr(fresh, name)
    }
    return replace(old, o=folder, continue_=params.continue_, **anew)


def _wanted(params: Any, number: int) -> bool:
    """Of `--continue run_itNNN_optimiser.star`, only checkpoints up to NNN count."""
    import re

    named = re.match(r"run_it(\d{3,})_", params.continue_.name) if params.continue_ is not None else None
    return named is None or number <= int(named[1])


def _make_folder(params: Any) -> None:
    if params.continue_ is None and (params.o / "job.json").exists():
        raise InputError(
            f"{params.o}: holds a run already; choose another folder with --o, or go on with --continue {params.o}"
        )
    try:
        params.o.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{params.o}: cannot make this folder ({error.strerror}); choose another with --o") from error


def _device(params: Any) -> torch.device:
    import torch

    torch.set_num_threads(params.threads or os.cpu_count() or 1)
    there = torch.cuda.is_available()
    if params.device == "cuda" and not there:
        raise InputError("--device cuda: no CUDA device is there; use --device cpu or auto")
    return torch.device("cuda" if params.device != "cpu" and there else "cpu")


def _batch_bytes(params: Any, device: torch.device) -> int:
    """Memory of one batch: small on a processor, for its cache's sake; a quarter of what is free on a GPU."""
    import torch

    default = 128 << 20 if device.type == "cpu" else torch.cuda.mem_get_info(device)[0] // 4
    return default if params.memory is None else min(default, int(params.memory * (1 << 30)) // 4)


def _relion_settings(params: Any, images: ParticleImages) -> RunSettings:
    from polarice.io.class2d import RunSettings

    return RunSettings(
        particle_diameter_A=2 * images.preparation.radius_px * images.pixel_size_A,
        tau2_fudge=params.tau2_fudge,
        seed=params.seed,
        strict_highres_exp_A=params.strict_highres_exp,
        ctf=images.apply_ctf and images.particles.ctf is not None,
        ctf_intact_first_peak=params.ctf_intact_first_peak,
    )


def _image_name(table: ParticleTable, row: int) -> str:
    particles = table.particles
    return f"{particles.section[row] + 1:06d}@{particles.stacks[particles.stack_of[row]]}"

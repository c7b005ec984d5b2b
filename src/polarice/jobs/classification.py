"""What align2d and class2d share: their parameters, and the way from a particle table to class averages on disk."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polarice.jobs.params import argument, command_line, option
from polarice.types import Assignment, ClassModel, InputError, Iteration, Particles, Pose2D

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
SMALLEST_BOX_PX = 16
MOST_SHIFTS = 5000  # of one image
HIGHEST_CTF = 1e6  # a B factor far below zero makes it grow


@dataclass(frozen=True)
class Classification:
    """Parameters of align2d and class2d; names are RELION's where RELION has them."""

    particles: Path = argument("particles.star of RELION 3.0 or later", flags=("--i",), unless="continue_")
    o: Path = option(Path("Class2D"), "folder for the results")
    k: int = option(50, "number of classes", low=1, high=100_000, flags=("-k", "--K"))
    iter: int | None = option(None, "number of iterations; 25, or those of the run that goes on", low=1, high=999)
    particle_diameter: float | None = option(None, "diameter of the particle's mask; 0.8 of the box", unit="A", low=1)
    tau2_fudge: float = option(2.0, "strength of the data against the prior", low=0.01, high=100)
    psi_step: float | None = option(
        None, "coarsest step of the in-plane angle; as fine as the resolution asks", unit="deg", low=0.1, high=90
    )
    offset_range: float = option(
        5.0, "shifts are searched this far from each particle's last centre, at first", unit="px", low=0
    )
    offset_step: float = option(
        1.0, "step of the shifts; twice it at first, half of it in the last two iterations", unit="px", low=0.1, high=10
    )
    strict_highres_exp: float | None = option(
        None, "compare images up to this resolution at most; Nyquist", unit="A", low=0.1
    )
    ctf: bool = option(True, "correct for the contrast transfer function")
    ctf_intact_first_peak: bool = option(False, "leave the CTF alone up to its first peak")
    center_classes: bool = option(True, "centre class averages where their particles were picked")
    norm: bool = option(True, "bring every image's background to mean 0 and standard deviation 1")
    image_dir: Path | None = option(None, "folder that the image names of the table are relative to")
    angpix: float | None = option(None, "pixel size, for tables that do not state it", unit="A", low=0.01, high=100)
    unsigned: bool = option(False, "MRC mode 0 holds unsigned bytes, as before 2014")
    seed: int = option(1, "seed of everything random", low=0, flags=("--random-seed",))
    continue_: Path | None = option(None, "folder (or a run_itNNN_optimiser.star) of a run to go on with")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute")
    threads: int | None = option(None, "processor threads; all", low=1, high=1024, flags=("--j",))
    memory: float | None = option(
        None, "memory for the engine: half for batches, half to keep prepared images; 2 for these, or a quarter of all",
        unit="GiB", low=0.01,
    )  # fmt: skip
    profile: bool = option(False, "write where the time goes to profile.json, by one more pass at the end")
    scratch: Path | None = option(None, "folder on a fast disk to keep all prepared images in, instead of memory")


def classify(job: str, params: Any, growing_batches: bool, iterations: int) -> None:
    """Run or continue a classification; `iterations` is how many where nothing is said.

    Raises InputError for what cannot be used, and for a full disk; Ctrl-C says how to go on.
    """
    from polarice.jobs import resume

    if params.continue_ is not None:
        params = resume.continued(job, params)
    else:
        params = replace(params, iter=params.iter or iterations)
        resume.require_free(job, params.o)
    device = device_of(params)
    table, images = open_particles(params, device)
    begun, new = params.continue_ is not None, False
    try:
        new = resume.claim(job, params, [table.path, *table.particles.stacks])
        run = _Run(job, params, look_at_images(table, images, params), growing_batches)
        begun = True
        run.all()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; to go on: {resume.go_on_command(job, params.o)}") from None
    except InputError as error:
        if begun:
            raise InputError(f"{error}; to go on: {resume.go_on_command(job, params.o)}") from error
        resume.abandon(params.o, new)
        raise
    except OSError as error:
        if params.scratch is None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise InputError(
            f"--scratch {params.scratch}: {error.strerror}; name another folder, or none, and go on: "
            f"{resume.go_on_command(job, params.o)}"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise InputError(
            "out of memory; allow less with --memory, or ask for fewer classes or a smaller --offset-range"
        ) from error


@dataclass(frozen=True)
class Looked:
    """A table and its images, every one of which has been looked at."""

    table: ParticleTable
    images: ParticleImages
    order: np.ndarray  # usable rows, in the order of the disk
    bad: dict[int, str]  # row -> why its image cannot be used
    background_sd: np.ndarray | None  # (n,) of every image, where they were not normalised
    noise_power: np.ndarray  # (G, S)

    @property
    def rows(self) -> np.ndarray:
        """Usable rows, in the order of the table, which is that of everything written."""
        return np.sort(self.order)


class _Run:
    """One job at work: what has been read, where it stands, what it has written."""

    def __init__(self, job: str, params: Any, looked: Looked, growing_batches: bool) -> None:
        from polarice.jobs.checkpoint import read_checkpoint
        from polarice.jobs.resume import rewind

        self.job, self.params = job, params
        self.table, self.rows, self.bad = looked.table, looked.rows, looked.bad
        self.order = looked.order
        self.schedule = _schedule(looked.images, params, len(self.rows), growing_batches)
        sd = looked.background_sd
        self.columns = {} if sd is None else {"rlnNormCorrection": sd[self.rows]}
        done = rewind(params)
        self.batches = [self.schedule.step(i + 1).batch for i in range(params.iter)]
        self.bar = progress_bar(f"{job} {done + 1}/{params.iter}", sum(self.batches), sum(self.batches[:done]))
        self.images = replace(looked.images, progress=self.bar.update)
        self.state = (
            read_checkpoint(params.o, done, self.images.device)
            if done
            else first_state(self.images, self.schedule, self.order, looked.noise_power, params)
        )
        self.last: Iteration | None = None

    def all(self) -> None:
        """Every iteration that is left, then the report."""
        turn = None
        with self.bar:
            for turn in self.turns():
                self.write(turn)
        self.report()
        if self.params.profile and turn is not None:
            self.profile(turn)

    def profile(self, turn: Turn[Averages]) -> None:
        """profile.json, of a pass as the last one."""
        from polarice.align.sweep import batch_size
        from polarice.jobs.profile import told, write_profile

        model, device = turn.state.model, self.images.device
        batch = batch_size(model.basis, len(model.weights), turn.search, batch_bytes(self.params, device, 1))
        images = replace(self.images, progress=int)
        print(told(write_profile(self.params.o, images, turn, batch)))

    def turns(self) -> Iterator[Turn[Averages]]:
        from polarice.align.loop import Settings, fit

        params = self.params
        workers = _threads(params) if self.images.device.type == "cpu" else 1
        settings = Settings(
            tau2_fudge=params.tau2_fudge,
            seed=params.seed,
            batch_bytes=batch_bytes(params, self.images.device, workers),
            workers=workers,
            store_bytes=_store_bytes(params, self.images.device),
            scratch=params.scratch,
            centre_classes=params.center_classes,
        )
        return fit(self.images, self.state, self.schedule, self.order, settings)

    def write(self, turn: Turn[Averages]) -> None:
        """Put one iteration on disk: RELION's files, its line of the history, and last the checkpoint."""
        from polarice.io.class2d import write_iteration
        from polarice.jobs.checkpoint import write_checkpoint
        from polarice.jobs.report import append_history

        folder, since = self.params.o, time.perf_counter()
        iteration = iteration_of(turn, self.images, self.rows)
        settings = _relion_settings(self.params, self.images)
        write_iteration(folder, iteration, self.table, settings, rows=self.rows, columns=self.columns)
        iteration = replace(iteration, seconds=iteration.seconds | {"writing": time.perf_counter() - since})
        append_history(folder, iteration)
        write_checkpoint(folder, turn.state)
        self.last = iteration
        self.bar.write(told(iteration), file=sys.stderr)
        upcoming = self.schedule.after(turn.state.number, turn.state.changed_class)
        if upcoming > iteration.number + 1:
            self.bar.write(f"assignments have settled: on to iteration {upcoming}", file=sys.stderr)
            self.bar.update(sum(self.batches[iteration.number : upcoming - 1]))
        self.bar.set_description(f"{self.job} {min(upcoming, iteration.total)}/{iteration.total}")

    def report(self) -> None:
        """report.html and its pictures, of the last iteration."""
        from polarice.jobs.provenance import versions
        from polarice.jobs.report import LeftOut, Report, parameters_of, read_history, write_report
        from polarice.jobs.resume import go_on_command

        assert self.last is not None, "a run that goes on has iterations left"
        plain = replace(self.params, continue_=None)
        report = Report(
            title=f"{self.job}: {self.table.path.name}",
            job=self.job,
            history=read_history(self.params.o),
            iteration=self.last,
            command=command_line(self.job, plain),
            continue_command=f"{go_on_command(self.job, self.params.o)} --iter {self.params.iter + 10}",
            parameters=parameters_of(plain),
            versions=versions(),
            left_out=[LeftOut(_image_name(self.table, row), reason) for row, reason in sorted(self.bad.items())],
            optics_names=[optics.name for optics in self.table.particles.optics],
            particle_diameter_A=2 * self.images.preparation.radius_px * self.images.pixel_size_A,
            working_directory=os.getcwd(),
        )
        page = write_report(self.params.o, report)
        left_out = f", {len(self.bad)} left out" if self.bad else ""
        print(f"{len(self.rows)} particles in {len(self.last.model.weights)} classes{left_out}; report: {page}")


def told(iteration: Iteration) -> str:
    """One line about an iteration."""
    from polarice.jobs.report import class_counts

    used = class_counts(iteration) > 0
    best = float(np.min(iteration.model.resolution_A[used], initial=np.inf))
    return (
        f"iteration {iteration.number}/{iteration.total}: {iteration.particles_used} images, {int(used.sum())} of "
        f"{len(used)} classes in use, best {best:.1f} A, {100 * iteration.changed_class:.0f} % changed class, "
        f"{sum(iteration.seconds.values()):.1f} s"
    )


def progress_bar(what: str, total: int, done: int = 0, leave: bool = True) -> Any:
    """A bar on stderr, where that is a terminal; a log file is spared it."""
    from tqdm import tqdm

    return tqdm(
        total=total, initial=done, unit="img", desc=what, smoothing=0.05, file=sys.stderr, disable=None, leave=leave
    )


def open_particles(params: Any, device: torch.device) -> tuple[ParticleTable, ParticleImages]:
    """The table and its images, checked as far as headers tell."""
    from polarice.align.images import ParticleImages
    from polarice.align.prepare import Preparation
    from polarice.io.particles import StackSource, read_ahead, read_particles

    table = read_particles(params.particles, params.image_dir, params.ctf, params.angpix)
    particles = table.particles
    if params.scratch is not None and not params.scratch.is_dir():
        raise InputError(f"--scratch {params.scratch}: no such folder; make it first, or leave the option out")
    if params.k > len(particles):
        raise InputError(
            f"{params.particles}: {params.k} classes asked of {len(particles)} particles; ask for fewer with --k"
        )
    source = StackSource(particles, params.unsigned, params.particles)
    source.check()
    pixel_A = particles.optics[int(particles.optics_of[0])].pixel_size_A
    radius_px = (params.particle_diameter or DIAMETER_OF_BOX * source.box_px * pixel_A) / 2 / pixel_A
    _require_sizes(params, source.box_px, pixel_A, radius_px)
    images = ParticleImages(
        particles,
        source,
        Preparation(source.box_px, radius_px, params.norm),
        device,
        read_ahead,
        params.ctf,
        params.ctf_intact_first_peak,
    )
    _require_plausible(table, images)
    return table, images


def _require_sizes(params: Any, box_px: int, pixel_A: float, radius_px: float) -> None:
    """Raise InputError where box, particle and search do not fit each other."""
    if box_px < SMALLEST_BOX_PX:
        raise InputError(
            f"{params.particles}: a box of {box_px} px is too small; extract in one of {SMALLEST_BOX_PX} px or more"
        )
    if not 2 <= radius_px <= box_px / 2:
        raise InputError(
            f"--particle-diameter {params.particle_diameter:g}: the box is {box_px} px = {box_px * pixel_A:g} A wide; "
            f"give a diameter from {4 * pixel_A:g} to {box_px * pixel_A:g} A, or extract in another box"
        )
    if params.offset_range > box_px / 2:
        raise InputError(f"--offset-range {params.offset_range:g}: at most half the box, {box_px / 2:g} px")
    shifts = np.pi * (params.offset_range / params.offset_step) ** 2
    if shifts > MOST_SHIFTS:
        raise InputError(
            f"--offset-range {params.offset_range:g} --offset-step {params.offset_step:g}: {shifts:.0f} shifts for "
            f"each image, at most {MOST_SHIFTS} are searched; take a coarser step or a smaller range"
        )


def _require_plausible(table: ParticleTable, images: ParticleImages) -> None:
    """Raise InputError naming the row where a CTF has no value up to Nyquist, or an origin lies outside of the box."""
    import torch

    from polarice.ctf import ctf

    particles, box = table.particles, images.preparation.box_px
    far = ~(np.abs(particles.pose.shift_px).max(axis=1) <= box)
    if far.any():
        row = int(np.argmax(far))
        x, y = particles.pose.shift_px[row]
        raise InputError(
            f"{table.path}, row {row + 1}: its origin is {-x:g}, {-y:g} px from the box's centre, outside of the box "
            f"of {box} px; correct rlnOriginX/YAngst or remove the row"
        )
    if particles.ctf is None or not images.apply_ctf:
        return
    fx, fy = 0.5 / images.pixel_size_A * torch.tensor([[1, 0.7, 0, 0], [0, 0.7, 1, 0]])  # the engine's precision
    for group in np.unique(particles.optics_of).tolist():
        rows, optics = np.flatnonzero(particles.optics_of == group), particles.optics[group]
        values = np.full((len(rows), 1), np.nan)
        if optics.voltage_kV > 0 and -1 <= optics.amplitude_contrast <= 1:
            values = ctf(optics, particles.ctf.take(rows), fx, fy).numpy()
        wrong = ~(np.abs(values) < HIGHEST_CTF).all(axis=1)
        if wrong.any():
            row = int(rows[np.argmax(wrong)])
            raise InputError(
                f"{table.path}, row {row + 1}: no contrast transfer function comes of defocus "
                f"{particles.ctf.defocus_u_A[row]:g} / {particles.ctf.defocus_v_A[row]:g} A at {optics.voltage_kV:g} "
                f"kV, Cs {optics.cs_mm:g} mm, contrast {optics.amplitude_contrast:g} ({optics.name}), B factor "
                f"{particles.ctf.bfactor_A2[row]:g} A^2; correct or remove the row, or leave the CTF out with --no-ctf"
            )


def look_at_images(table: ParticleTable, images: ParticleImages, params: Any) -> Looked:
    """Look at every image once; what is left out is named on stderr. InputError where too many cannot be used."""
    from polarice.align.images import Clock
    from polarice.align.survey import survey

    order = disk_order(table.particles)
    with progress_bar("looking at images", len(order), leave=False) as bar:

        def counted(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            for batch in images.read_ahead(batches):
                yield batch
                bar.update(len(batch))

        with np.errstate(all="ignore"):  # unusable images are what is looked for
            found = survey(replace(images, read_ahead=counted), order, params.seed, SURVEY_BATCH, Clock())
    bad = found.bad | {
        row: "its grey values are too large" for row in np.flatnonzero(~np.isfinite(found.background_sd)).tolist()
        if row not in found.bad
    }  # fmt: skip
    _tell_left_out(table, bad)
    rows = order[~np.isin(order, list(bad))]
    if params.k > len(rows):
        raise InputError(f"{table.path}: {params.k} classes asked of {len(rows)} usable particles; ask for fewer")
    scaled = bool((np.abs(found.background_sd[rows] - 1) > 0.05).any())
    return Looked(table, images, rows, bad, found.background_sd if params.norm and scaled else None, found.noise_power)


def disk_order(particles: Particles) -> np.ndarray:
    """Rows (n,) by name of the stack and section: reading walks the disk forwards, however the table is sorted."""
    _, place = np.unique(particles.stacks, return_inverse=True)
    return np.lexsort((particles.section, place[particles.stack_of]))


def _tell_left_out(table: ParticleTable, bad: dict[int, str]) -> None:
    n = len(table.particles)
    if len(bad) > max(1, TOLERATED_BAD * n) or len(bad) == n:
        row, reason = min(bad.items())
        raise InputError(
            f"{table.path}: {len(bad)} of {n} images cannot be used; the first is row {row + 1}, "
            f"{_image_name(table, row)}: {reason}; extract the particles again"
        )
    for row, reason in sorted(bad.items())[:10]:
        print(f"left out: row {row + 1} of {table.path}, {_image_name(table, row)}: {reason}", file=sys.stderr)
    if len(bad) > 10:
        print(f"left out: {len(bad) - 10} more images; report.html names them", file=sys.stderr)


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
    slack_px = step.shift_range_px + step.shift_step_px  # the loop widens it
    basis = PolarBasis(preparation.box_px, radius_px, step.whole_rings(step.ramp_px), slack_px, images.device)
    noise = torch.from_numpy(noise_power).to(images.device)
    known_px = images.particles.pose.shift_px[rows]
    shift_sigma_px = float(np.hypot(FIRST_SHIFT_SIGMA_PX, np.sqrt(np.mean(known_px**2))))
    empty = Averages.empty(basis, step.references, noise, shift_sigma_px, preparation.mask_fraction)
    sums = random_sums(images, basis, step.references, empty.ring_noise, (rows, params.seed, SURVEY_BATCH))
    n = len(images)
    unknown = replace(Pose2D.unknown(n), shift_px=images.particles.pose.shift_px.copy())
    nothing = Assignment(unknown, np.zeros(n), np.zeros(n, np.float32), np.zeros(n, np.int32))
    model = replace(
        empty.maximize(sums, Prior(params.tau2_fudge, step.balance, step.min_ssnr, step.min_shift_sigma_px)),
        shift_sigma_px=shift_sigma_px,
    )
    return State(0, model, nothing, np.rint(unknown.shift_px))


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


def device_of(params: Any) -> torch.device:
    """Where to compute, by --device and --threads; InputError where it is not there."""
    import torch

    _keep_freed_memory()
    torch.set_num_threads(_threads(params))
    there = torch.cuda.is_available()
    if params.device == "cuda" and not there:
        raise InputError("--device cuda: no CUDA device is there; use --device cpu")
    return torch.device("cuda" if params.device != "cpu" and there else "cpu")


def _threads(params: Any) -> int:
    return params.threads or len(os.sched_getaffinity(0))


def _keep_freed_memory() -> None:
    """Ask glibc to keep large freed blocks: the engine's arrays come and go many times a second, and handing them back
    to the kernel each time costs a quarter of its speed. Elsewhere, nothing happens."""
    import ctypes

    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, 1 << 30)


def _is_out_of_memory(error: BaseException) -> bool:
    """Python's, CUDA's, and what torch says on a processor, which is a plain RuntimeError."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def batch_bytes(params: Any, device: torch.device, workers: int) -> int:
    """Memory of one batch: small on a processor, for its cache's sake; an eighth of a GPU's."""
    import torch

    default = 64 << 20 if device.type == "cpu" else torch.cuda.mem_get_info(device)[1] // 8
    return default if params.memory is None else min(default, int(params.memory * (1 << 30)) // (2 * workers))


def _store_bytes(params: Any, device: torch.device) -> int:
    """Memory for prepared images; on a GPU two fifths of it."""
    import torch

    if params.memory is not None:
        return int(params.memory * (1 << 30)) // 2
    if device.type == "cuda":
        return int(0.4 * torch.cuda.mem_get_info(device)[1])
    return min(2 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)


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

"""The way in, for every job that takes a table of particles: its parameters, the table, a look at every image."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from polarice.cluster import SERIAL, Comm, part
from polarice.project.params import IMAGE_FOLDER, PARTICLES, Parameters, PathRole, argument, option, output
from polarice.project.progress import Bar
from polarice.runs.resources import Resources, pixel_bytes, threads_of
from polarice.types import ImageSource, InputError, Particles

if TYPE_CHECKING:
    import torch

    from polarice.align.images import ParticleImages
    from polarice.align.pixels import PixelStore
    from polarice.io.particles import ParticleTable
    from polarice.io.relion_run.class2d import RunSettings

IMAGES = "images"  # heading of options about how images are taken
DIAMETER_OF_BOX = 0.8  # where the particle's diameter is not given
TOLERATED_BAD = 0.1  # share of unusable images beyond which a run is refused
SURVEY_BATCH = 64  # images, that stay in a processor's cache
SMALLEST_BOX_PX = 16
HIGHEST_CTF = 1e6  # a B factor far below zero makes it grow
MOST_COORDINATE_PX = 1e9
LEAST_POWER = 1e-9  # of the images' noise; arithmetic in single precision wants more


@dataclass(frozen=True)
class _Source(Parameters):
    """What is read, and where results go."""

    particles: Path = argument("particle table (STAR)", flags=("--i",), unless="continue_", path=PARTICLES)
    o: Path = output("Class2D")


@dataclass(frozen=True)
class ParticleJob(Resources, _Source):
    """Parameters of all jobs that compare particles with references; names are RELION's where RELION has them."""

    particle_diameter: float | None = option(
        None, "diameter of the particle's mask", unit="A", low=1, derived="80 % of the box", level="essential"
    )
    strict_highres_exp: float | None = option(
        None, "compare images up to this resolution at most", derived="Nyquist", unit="A", low=0.1, section=IMAGES
    )
    ctf: bool = option(True, "correct for the contrast transfer function", section=IMAGES)
    ctf_intact_first_peak: bool = option(False, "leave the CTF alone up to its first peak", section=IMAGES)
    ctf_phase_flipped: bool = option(
        False, "the images have been phase-flipped: use the CTF's absolute value", section=IMAGES
    )
    outlier_images: Literal["exclude", "clip", "keep"] = option(
        "exclude", "what to do with images of which pixels lie 100 standard deviations outside (X-rays, hot pixels)",
        section=IMAGES,
    )  # fmt: skip
    norm: bool = option(True, "bring every image's background to mean 0 and standard deviation 1", section=IMAGES)
    image_dir: Path | None = option(
        None, "folder that the image names of the table are relative to", derived="as the table has them",
        section=IMAGES, renewable=True, path=IMAGE_FOLDER,
    )  # fmt: skip
    angpix: float | None = option(
        None, "pixel size", derived="the table's", unit="A", low=0.01, high=100, section=IMAGES
    )
    unsigned: bool = option(False, "MRC mode 0 holds unsigned bytes, as before 2014", section=IMAGES)
    iter: int | None = option(
        None, "iterations", derived="25; with --continue, as before", low=1, high=999, renewable=True, level="essential"
    )
    seed: int = option(1, "seed of everything random", low=0, flags=("--random-seed",))
    continue_: Path | None = option(
        None, "folder (or a run_itNNN_optimiser.star) of a run to go on with", derived="begin a new run",
        level="essential", path=PathRole("input", "any", "run"),
    )  # fmt: skip

    @property
    def classes(self) -> int:
        """How many the job makes."""
        return 1

    @property
    def iterations(self) -> int:
        """How many are asked for, once that is settled."""
        assert self.iter is not None, "the job has not settled how many iterations it takes"
        return self.iter


P = TypeVar("P", bound=ParticleJob)


def progress_bar(what: str, total: int, done: int = 0, leave: bool = True) -> Bar:
    """A bar on stderr, where that is a terminal; in a log file, a line now and then."""
    return Bar(what, total, done, leave=leave)


@dataclass(frozen=True)
class CheckedParticles:
    """A table and its images, every one of which has been looked at."""

    table: ParticleTable
    images: ParticleImages
    order: np.ndarray  # usable rows, in the order of the disk
    bad: dict[int, str]  # row -> why its image cannot be used
    background_sd: np.ndarray | None  # (n,) of every image, where they were not normalised
    noise_power: np.ndarray  # (G, S)
    marks: np.ndarray | None = None  # (n,) int64, the same where images are; where they were asked for

    @property
    def rows(self) -> np.ndarray:
        """Usable rows, in the order of the table, which is that of everything written."""
        return np.sort(self.order)


def open_particles(
    params: P,
    device: torch.device,
    comm: Comm = SERIAL,
    held_bytes: Callable[[ParticleImages, P], int] | None = None,
) -> tuple[ParticleTable, ParticleImages]:
    """The table and its images, checked as far as headers tell; rank 0 reads and checks for all.

    held_bytes: memory that the model takes beside images, of which as many as have room are kept on a GPU.
    """
    from polarice.io.particles import StackSource

    table = comm.on_root(lambda: _checked_table(params, comm.size))
    source = StackSource(table.particles, params.unsigned, params.particles)
    images = images_of(params, table.particles, source, device)
    held = held_bytes(images, params) if held_bytes is not None and device.type == "cuda" else 0
    images = replace(images, pixels=_pixel_store(params, images, held, comm.size))
    comm.on_root(lambda: require_plausible(table, images))
    return table, images


def images_of(params: ParticleJob, particles: Particles, source: ImageSource, device: torch.device) -> ParticleImages:
    """The images of a source, prepared as the parameters ask."""
    from polarice.align.images import ParticleImages
    from polarice.align.prepare import Preparation
    from polarice.io.particles import read_ahead

    return ParticleImages(
        particles,
        source,
        Preparation(source.box_px, _radius_px(params, particles, source.box_px), params.norm),
        device,
        read_ahead,
        params.ctf,
        params.ctf_intact_first_peak,
    )


def _pixel_store(params: ParticleJob, images: ParticleImages, held: int, ranks: int) -> PixelStore | None:
    """Room on a GPU for a rank's images as they are read; None where there is no GPU, or no room."""
    from polarice.align.pixels import PixelStore

    room, rows = pixel_bytes(params, images.device, held), len(images)
    if not room:
        return None
    return PixelStore(rows, min(-(-rows // ranks), room // (4 * images.preparation.box_px**2)), images.device)


def with_copies(images: ParticleImages, params: ParticleJob, comm: Comm, held: ExitStack) -> ParticleImages:
    """The images, those of this node's ranks read from copies where --copy-to asks for them, until `held` ends."""
    from polarice.io.copies import copied
    from polarice.io.particles import StackSource

    folder = params.copy_to
    if folder is None:
        return images
    particles, order = images.particles, disk_order(images.particles)
    rows = [order[part(particles.stack_of[order], rank, comm.size)] for rank in comm.node_ranks]
    copies = comm.on_node_root(lambda: held.enter_context(copied(folder, particles, rows, params.unsigned)))
    return replace(images, source=StackSource(particles, params.unsigned, params.particles, copies))


def _checked_table(params: ParticleJob, ranks: int) -> ParticleTable:
    """The table, and the headers of its stacks as they should be."""
    from polarice.io.particles import StackSource, read_particles

    table = read_particles(params.particles, params.image_dir, params.ctf, params.angpix)
    if table.remark:
        print(f"warning: {table.remark}", file=sys.stderr)
    if params.ctf_phase_flipped:
        table = as_phase_flipped(table)
    particles = table.particles
    source = StackSource(particles, params.unsigned, params.particles)
    if params.scratch is not None and not params.scratch.is_dir():
        raise InputError(f"--scratch {params.scratch}: no such folder; make it first, or name another")
    if ranks > len(particles):
        raise InputError(f"{params.particles}: {ranks} ranks for {len(particles)} particles; start fewer")
    source.check()
    require_usable(params, table, source.box_px)
    if mixed := source.mixed_sizes():
        print(f"warning: {mixed}", file=sys.stderr)
    _tell_of_twins(table)
    return table


def as_phase_flipped(table: ParticleTable) -> ParticleTable:
    """The table with its images flagged as phase-flipped, also for what goes on from the results."""
    from polarice.io.optics import PHASE_FLIPPED

    optics = tuple(replace(group, phase_flipped=True) for group in table.particles.optics)
    flagged = table.optics_table.with_columns({PHASE_FLIPPED: [1] * len(optics)})
    return replace(table, particles=replace(table.particles, optics=optics), optics_table=flagged)


def require_usable(params: ParticleJob, table: ParticleTable, box_px: int) -> None:
    """Raise InputError where the particles cannot be compared as asked: their CTF, their number, their box."""
    from polarice.io.optics import require_one_treatment

    particles = table.particles
    if params.ctf:
        used = [particles.optics[group] for group in np.unique(particles.optics_of)]
        require_one_treatment(used, str(params.particles))
    if params.classes > len(particles):
        raise InputError(
            f"{params.particles}: {params.classes} classes asked of {len(particles)} particles; ask for fewer with --k"
        )
    pixel_A = particles.optics[int(particles.optics_of[0])].pixel_size_A
    _require_sizes(params, box_px, pixel_A, _radius_px(params, particles, box_px))


def _tell_of_twins(table: ParticleTable) -> None:
    """Warn of images that stand in several rows: each counts as a particle of its own."""
    if crowded := _in_one_pixel(table):
        print(
            f"warning: {table.path}: {crowded:,} particles lie in the same pixel of their micrograph as another; are "
            "they the same ones, picked or extracted twice?",
            file=sys.stderr,
        )
    places = (table.particles.stack_of.astype(np.int64) << 32) | table.particles.section
    _, first, rows = np.unique(places, return_index=True, return_counts=True)
    if len(twins := np.sort(first[rows > 1])):
        row = int(twins[0])
        print(
            f"warning: {table.path}: {len(twins)} images stand in several rows, the first in row {row + 1} "
            f"({image_name(table, row)}); each row counts as a particle; remove those that are not meant",
            file=sys.stderr,
        )


def places_of(table: ParticleTable) -> tuple[np.ndarray, np.ndarray] | None:
    """Which rows (n,) bool have usable coordinates, and of these (3, m) int64 micrograph and whole pixel; None: none.

    Coordinates that are no finite numbers count as none.
    """
    labels = ("rlnCoordinateX", "rlnCoordinateY")
    if "rlnMicrographName" not in table.table or not all(label in table.table for label in labels):
        return None
    _, micrograph = table.table.codes("rlnMicrographName")
    try:
        x, y = (table.table.numbers(label) for label in labels)
    except InputError:
        return None  # a classification goes without coordinates
    known = (np.abs(x) <= MOST_COORDINATE_PX) & (np.abs(y) <= MOST_COORDINATE_PX)
    places = np.rint(np.stack([x[known], y[known]])).astype(np.int64)
    return known, np.vstack([micrograph[known].astype(np.int64), places])


def _in_one_pixel(table: ParticleTable) -> int:
    """How many particles have the coordinates, to a pixel, of one before them in the same micrograph."""
    if (places := places_of(table)) is None:
        return 0
    _, keys = places
    order = np.lexsort(keys)
    same = (np.diff(keys[:, order], axis=1) == 0).all(axis=0)
    return int(same.sum())


def _radius_px(params: ParticleJob, particles: Particles, box_px: int) -> float:
    """Of the particle's mask."""
    pixel_A = particles.optics[int(particles.optics_of[0])].pixel_size_A
    return float((params.particle_diameter or DIAMETER_OF_BOX * box_px * pixel_A) / 2 / pixel_A)


def _require_sizes(params: ParticleJob, box_px: int, pixel_A: float, radius_px: float) -> None:
    """Raise InputError where box and particle do not fit each other."""
    if box_px < SMALLEST_BOX_PX:
        raise InputError(
            f"{params.particles}: a box of {box_px} px is too small; extract in one of {SMALLEST_BOX_PX} px or more"
        )
    if not 2 <= radius_px <= box_px / 2:
        raise InputError(
            f"--particle-diameter {params.particle_diameter:g}: the box is {box_px} px = {box_px * pixel_A:g} A wide; "
            f"give a diameter from {4 * pixel_A:g} to {box_px * pixel_A:g} A, or extract in another box"
        )


def require_plausible(table: ParticleTable, images: ParticleImages) -> None:
    """Raise InputError naming the row where a CTF has no value up to Nyquist, or an origin lies outside of the box."""
    import torch

    from polarice.contrast_transfer import ctf

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


def check_images(
    table: ParticleTable, images: ParticleImages, params: ParticleJob, comm: Comm = SERIAL, marked: bool = False
) -> CheckedParticles:
    """Look at every image once; what is left out is named on stderr. InputError where too many cannot be used.

    `marked`: images that are the same get the same mark.
    """
    from polarice.align.image_statistics import survey
    from polarice.runs.marked_images import MarkedSource

    order = disk_order(table.particles)
    with progress_bar("looking at images", len(order), leave=False) as bar:

        def counted(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            for batch in images.read_ahead(batches):
                yield batch
                bar.update(len(batch) * comm.size)

        with np.errstate(all="ignore"):  # unusable images are what is looked for
            workers = threads_of(params)  # whatever the device: images are looked at on the processor
            marks = np.zeros(len(table.particles), np.int64) if marked else None
            source = images.source if marks is None else MarkedSource(images.source, marks)
            looking, mode = replace(images, read_ahead=counted, source=source), params.outlier_images
            found = survey(looking, order, params.seed, SURVEY_BATCH, workers, comm, mode)
    images = replace(images, clipped=np.array(list(found.clipped), np.int64))
    comm.on_root(lambda: _tell_clipped(table, found.clipped))
    bad = found.bad | {
        row: "its grey values are too large" for row in np.flatnonzero(~np.isfinite(found.background_sd)).tolist()
        if row not in found.bad
    }  # fmt: skip
    comm.on_root(lambda: _tell_left_out(table, bad))
    if found.noise_power.max() < LEAST_POWER:
        sd = float(found.noise_power.max()) ** 0.5
        raise InputError(
            f"{table.path}: the images' grey values are too small (noise of {sd:.1g}); leave --no-norm out, or extract "
            "the particles again, normalised"
        )
    rows = order[~np.isin(order, list(bad))]
    if params.classes > len(rows):
        raise InputError(f"{table.path}: {params.classes} classes asked of {len(rows)} usable particles; ask for fewer")
    scaled = bool((np.abs(found.background_sd[rows] - 1) > 0.05).any())
    sd = found.background_sd if params.norm and scaled else None
    marks = None if marks is None else comm.sum(marks)  # each image has been read by one rank
    return CheckedParticles(table, images, rows, bad, sd, found.noise_power, marks)


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
            f"{image_name(table, row)}: {reason}; extract the particles again"
        )
    for row, reason in sorted(bad.items())[:10]:
        print(f"left out: row {row + 1} of {table.path}, {image_name(table, row)}: {reason}", file=sys.stderr)
    if len(bad) > 10:
        print(f"left out: {len(bad) - 10} more images; report.html names them", file=sys.stderr)


def _tell_clipped(table: ParticleTable, found: dict[int, str]) -> None:
    if found:
        row, reason = min(found.items())
        print(
            f"clipped: {len(found)} images of {table.path}, the first in row {row + 1}, "
            f"{image_name(table, row)}: {reason}",
            file=sys.stderr,
        )


def last_ring(images: ParticleImages, params: ParticleJob) -> int:
    """The last ring that images are compared on, in Fourier pixels: Nyquist's, or that of --strict-highres-exp."""
    box = images.preparation.box_px
    if not params.strict_highres_exp:
        return box // 2
    return max(4, min(box // 2, int(box * images.pixel_size_A / params.strict_highres_exp)))


def relion_settings(params: ParticleJob, images: ParticleImages, tau2_fudge: float) -> RunSettings:
    """What RELION wants to know of the run."""
    from polarice.io.relion_run.class2d import RunSettings

    used = np.unique(images.particles.optics_of)
    return RunSettings(
        particle_diameter_A=2 * images.preparation.radius_px * images.pixel_size_A,
        tau2_fudge=tau2_fudge,
        seed=params.seed,
        strict_highres_exp_A=params.strict_highres_exp,
        ctf=images.apply_ctf and images.particles.ctf is not None,
        ctf_intact_first_peak=params.ctf_intact_first_peak,
        phase_flipped=any(images.particles.optics[g].phase_flipped for g in used),
    )


def image_name(table: ParticleTable, row: int) -> str:
    """SECTION@STACK of a row."""
    particles = table.particles
    return f"{particles.section[row] + 1:06d}@{particles.stacks[particles.stack_of[row]]}"

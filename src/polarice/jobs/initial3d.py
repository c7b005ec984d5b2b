"""`polarice initial3d`: a first map from the class averages of a finished run, and how far one can trust it."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarice.project.params import RUN, argument, option, output
from polarice.runs.resources import Computing
from polarice.types import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from polarice.io.particles import ParticleTable
    from polarice.references.abinitio import AbInitio, ClassImages, Start

SUMMARY = "make a first map from class averages, from several random starts, and tell how far these agree"
EXAMPLE = "polarice initial3d Class2D/job006 --o InitialModel/job008"
FILES = ("report.html", "initial_model.mrc", "seeds.json", "run_data.star")
SAME_PIXEL = 0.01  # relative difference of pixel sizes that is rounding
DIAMETER_OF_BOX = 0.8  # where nothing is said, as class2d takes it
HARDLY_SYMMETRIC = 0.5  # correlation of a map with its mates
FEWEST_PIXELS = 8  # across the particle
FEWEST_PARTICLES = 5  # of a class that takes part


@dataclass(frozen=True)
class Params(Computing):
    """The classes, and how many times to begin."""

    classes: Path = argument("folder of a finished run of align2d or class2d", flags=("--i",), path=RUN)
    o: Path = output("InitialModel")
    seeds: int = option(8, "number of random starts", low=1, high=1000)
    iter: int = option(40, "iterations of each", low=5, high=1000)
    particle_diameter: float | None = option(
        None, "particle diameter", derived="that of the classes' run", unit="A", low=1
    )
    sym: str = option(
        "C1", "point group of the particle: the map is found without it, then its axes are found and applied",
        level="essential",
    )  # fmt: skip
    seed: int = option(1, "seed of everything random", low=0, flags=("--random-seed",))


def run(params: Params) -> None:
    """Begin several times, keep the best by likelihood. Raises InputError for what cannot be used."""
    from polarice.project.outputs import claimed
    from polarice.project.params import as_dict, command_line
    from polarice.project.provenance import write_job_json
    from polarice.references.abinitio import FEWEST_CLASSES, ClassImages
    from polarice.references.symmetry import operators
    from polarice.report.initial import write_page
    from polarice.runs.checkpoint import checkpoints, path_of, read_checkpoint
    from polarice.runs.resources import device_of

    operators(params.sym)  # refused now, not after all starts
    folder, record = params.classes, _record(params.classes)
    done = checkpoints(folder)
    if not done:
        raise InputError(f"{folder}: no iteration of align2d or class2d is in it; give the folder of a run")
    device = device_of(params)
    state = read_checkpoint(folder, done[-1], device)
    table = _table_of(folder, done[-1])
    pixel_A = table.particles.optics[int(table.particles.optics_of[0])].pixel_size_A
    _require_same_run(folder, done[-1], table, int((state.pose.class_of >= 0).sum()))
    box_A = state.model.basis.box_px * pixel_A
    diameter_A = params.particle_diameter or _diameter_of(record, folder) or DIAMETER_OF_BOX * box_A
    if not FEWEST_PIXELS * pixel_A <= diameter_A <= box_A:
        raise InputError(
            f"--particle-diameter {diameter_A:g}: the classes' box is {box_A:.0f} A wide; give the particle's diameter"
        )
    least = FEWEST_PARTICLES / max(1, len(table.particles))
    images = ClassImages.of(state.model, least)
    if len(images.number) < FEWEST_CLASSES:
        raise InputError(
            f"{folder}: {len(images.number)} classes hold {FEWEST_PARTICLES} particles or more; a map wants at least "
            f"{FEWEST_CLASSES}, better 50: classify again with more (class2d --k 60)"
        )
    inputs = [folder / "job.json", path_of(folder, done[-1]), table.path]
    with ExitStack() as held:
        kept = claimed("initial3d", params.o, FILES, inputs, held)
        write_job_json(
            params.o, "initial3d", as_dict(params), command_line("initial3d", params),
            inputs=inputs, seed=params.seed, more={"outputs": kept},
        )  # fmt: skip
        starts = _starts(params, images, diameter_A / pixel_A)
        made = _onto_axes(params.sym, starts[0].found)
        _write(params, made, starts, images, table)
        page = write_page(params.o, params, (made.density, pixel_A, made.said), starts, images)
    agree = sum(each.same for each in starts)
    print(f"{agree} of {len(starts)} starts found the map of the best one, hand apart; report: {page}")
    if 2 * agree <= len(starts) > 1:
        print(
            f"warning: {len(starts) - agree} of {len(starts)} starts found other maps; do not trust this one: more "
            "classes, or more particles, may help"
        )


@dataclass(frozen=True)
class Made:
    """The map as it is written, and how it lies against the one that was found."""

    density: torch.Tensor  # (N, N, N)
    rotation: np.ndarray  # (3, 3)
    shift_px: np.ndarray  # (3,)
    said: str = ""


def _onto_axes(sym: str, best: AbInitio) -> Made:
    """The map with its symmetry axes where RELION has them, averaged over the group; as it is for C1."""
    import numpy as np

    from polarice.postprocessing.fit import align_axes
    from polarice.postprocessing.resample import Interpolated, symmetrised
    from polarice.references.symmetry import generators, operators

    group = operators(sym)
    if len(group) == 1:
        return Made(best.density, np.eye(3), np.zeros(3))
    found = align_axes(best.density, group, generators(sym))
    said = f"axes of {sym.upper()}: the map correlates with its mates by {found.correlation:.2f}"
    print(said)
    if found.correlation < HARDLY_SYMMETRIC:
        print(f"warning: the map hardly has the symmetry {sym.upper()}; look at it without (--sym C1)", file=sys.stderr)
    density = symmetrised(Interpolated(best.density).moved(found.move), group)
    return Made(density, found.move.rotation, found.move.shift_px, said)


def _starts(params: Params, images: ClassImages, diameter_px: float) -> list[Start]:
    """Every start, the likeliest first, and how far each is from that."""
    import time

    from polarice.references.abinitio import Start, agreement_deg, densities

    starts: list[Start] = []
    for seed in range(params.seed, params.seed + params.seeds):
        since = time.perf_counter()
        *_, found = densities(images, diameter_px, seed, params.iter)
        starts.append(Start(seed, found, time.perf_counter() - since))
        print(f"seed {seed}: log likelihood {found.log_likelihood:,.0f}, {starts[-1].seconds:.1f} s", flush=True)
    starts.sort(key=lambda each: -each.found.log_likelihood)
    best = starts[0].found
    return [Start(each.seed, each.found, each.seconds, *agreement_deg(best, each.found)) for each in starts]


def _record(folder: Path) -> dict[str, Any]:
    """job.json of the classes' run."""
    from polarice.project.provenance import read_job_json

    if folder.is_file():
        raise InputError(f"{folder}: is a file; a first map is made of classes: give the folder of their run")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give that of a finished run of align2d or class2d")
    record = read_job_json(folder)
    if record.get("job") not in ("align2d", "class2d"):
        raise InputError(f"{folder}: is of {record.get('job')}; give the folder of a run of align2d or class2d")
    return record


def _diameter_of(record: dict[str, Any], folder: Path) -> float | None:
    """What the classes' run was told; None where it took its own."""
    given = record.get("params")
    found = given.get("particle_diameter") if isinstance(given, dict) else None
    if found is not None and not isinstance(found, int | float):
        raise InputError(f"{folder / 'job.json'}: particle_diameter is no number; give --particle-diameter")
    return found


def _table_of(folder: Path, number: int) -> ParticleTable:
    from polarice.io.particles import read_particles

    return read_particles(folder / f"run_it{number:03d}_data.star", need_ctf=False)


def _require_same_run(folder: Path, number: int, table: ParticleTable, assigned: int) -> None:
    """Raise InputError where the table is not that of the checkpoint: particles are gone, or of another pixel size."""
    from polarice.runs.checkpoint import read

    classes_A = read(folder, number, lambda arrays: float(arrays["classes.pixel_size_A"]))
    pixel_A = table.particles.optics[int(table.particles.optics_of[0])].pixel_size_A
    if len(table.particles) < assigned:
        raise InputError(
            f"{table.path}: {len(table.particles):,} particles, and {assigned:,} when the classes were made; "
            "put the run's own table back, or classify again"
        )
    if abs(pixel_A / classes_A - 1) > SAME_PIXEL:
        raise InputError(
            f"{table.path}: {pixel_A:.4g} A per pixel, and {classes_A:.4g} A when the classes were made; put the run's "
            "own table back"
        )


def _write(params: Params, made: Made, starts: list[Start], images: ClassImages, table: ParticleTable) -> None:
    """The best map, the figures of all starts, and the particles' views as their classes' say."""
    import json

    from polarice.io.atomic import replacing
    from polarice.io.mrc import write_volume

    pixel_A = table.particles.optics[int(table.particles.optics_of[0])].pixel_size_A
    write_volume(params.o / "initial_model.mrc", made.density.cpu().numpy(), pixel_A)
    rows = [
        {
            "seed": each.seed, "log_likelihood": each.found.log_likelihood, "seconds": each.seconds,
            "apart_deg": each.apart_deg, "mirrored": each.mirrored, "same_map": each.same,
        }
        for each in starts
    ]  # fmt: skip
    with replacing(params.o / "seeds.json", "w") as stream:
        json.dump({"classes": len(images.number), "starts": rows, "symmetry": made.said}, stream, indent=2)
    _write_particles(params.o / "run_data.star", (starts[0].found, made), images, table)


def _write_particles(path: Path, found: tuple[AbInitio, Made], images: ClassImages, table: ParticleTable) -> None:
    """run_data.star: each particle at the view of its class in the map as written; others' classes are left out."""
    import numpy as np

    from polarice.io.particles import write_particles
    from polarice.references.directions import angles_of, moved_poses

    best, made = found
    pose = table.particles.pose
    place = np.full(int(pose.class_of.max(initial=-1)) + 1, -1)
    known = images.number[images.number < len(place)]
    place[known] = np.arange(len(images.number))[images.number < len(place)]
    class_of = np.where(pose.class_of >= 0, place[pose.class_of], -1)
    rows = np.flatnonzero(class_of >= 0)
    mine = class_of[rows]
    rot_deg, tilt_deg = (each[mine] for each in angles_of(best.direction))
    psi_deg = -(pose.psi_deg[rows] + best.psi_deg[mine])
    shift_px = _shifts(pose.shift_px[rows], pose.psi_deg[rows], best.shift_px[mine])
    pixel_A = table.particles.optics[int(table.particles.optics_of[0])].pixel_size_A
    angles_deg, shift_px = moved_poses(
        np.stack([rot_deg, tilt_deg, psi_deg], axis=1), shift_px, made.rotation, made.shift_px
    )
    columns = {
        "rlnAngleRot": angles_deg[:, 0],
        "rlnAngleTilt": angles_deg[:, 1],
        "rlnAnglePsi": angles_deg[:, 2] - 360 * np.ceil((angles_deg[:, 2] - 180) / 360),
        "rlnOriginXAngst": -shift_px[:, 0] * pixel_A,
        "rlnOriginYAngst": -shift_px[:, 1] * pixel_A,
        "rlnClassNumber": np.ones(len(rows), np.int64),
    }
    write_particles(path, table, rows, columns)


def _shifts(particle_px: np.ndarray, psi_deg: np.ndarray, class_px: np.ndarray) -> np.ndarray:
    """(n, 2) shifts of particles from the map's slices: image = shift of (rotation of (the class, shifted itself))."""
    import numpy as np

    c, s = np.cos(np.radians(psi_deg)), np.sin(np.radians(psi_deg))
    x, y = class_px.T
    return particle_px + np.stack([c * x - s * y, s * x + c * y], axis=1)

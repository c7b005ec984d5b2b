"""`polarice reconstruct`: a map from particles whose angles are known, whoever found them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polarice.project.params import PARTICLES, argument, option, output
from polarice.runs.particle_job import ParticleJob
from polarice.runs.resources import Computing
from polarice.types import InputError

if TYPE_CHECKING:
    import torch

    from polarice.align.images import ParticleImages
    from polarice.io.particles import ParticleTable
    from polarice.references.slices import FourierGrid

SUMMARY = "make a map, and half maps, from particles whose angles are known"
EXAMPLE = "polarice reconstruct Refine3D/job009/run_data.star --o Reconstruct/job010"
FILES = ("run_class001.mrc", "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc", "run_fsc.star")
BATCH = 256
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")


@dataclass(frozen=True)
class Params(Computing):
    """The table, and how far to go."""

    particles: Path = argument("particle table with rlnAngleRot, Tilt and Psi", flags=("--i",), path=PARTICLES)
    o: Path = output("Reconstruct")
    sym: str = option("C1", "point group of the particle, its axes where RELION has them: C1, D2, T, O, I ...")
    maxres: float | None = option(None, "go up to this resolution", derived="Nyquist", unit="A", low=0.1)
    particle_diameter: float | None = option(
        None, "diameter of the sphere that half maps are compared in", derived="80 % of the box", unit="A", low=1
    )
    tau2_fudge: float = option(
        1.0, "strength of the data against the prior, where there are halves", low=0.01, high=100
    )
    ctf: bool = option(True, "correct for the contrast transfer function")
    image_dir: Path | None = option(None, "folder that the image names of the table are relative to")
    angpix: float | None = option(None, "pixel size", derived="the table's", unit="A", low=0.01, high=100)
    unsigned: bool = option(False, "MRC mode 0 holds unsigned bytes, as before 2014")


def run(params: Params) -> None:
    """Reconstruct. Raises InputError for what cannot be used."""
    from polarice.align.memory_chunks import is_out_of_memory
    from polarice.project.outputs import claimed
    from polarice.project.params import as_dict, command_line
    from polarice.project.provenance import write_job_json
    from polarice.references.symmetry import operators
    from polarice.runs.half_sets import given_halves, require_apart
    from polarice.runs.particle_job import check_images, open_particles
    from polarice.runs.refinement import require_room_of_halves
    from polarice.runs.resources import device_of

    group, given = operators(params.sym), _given(params)
    device = device_of(params)
    table, images = open_particles(given, device)
    angles, half_of = _angles(table), given_halves(table)
    require_room_of_halves(given, images)
    with ExitStack() as held:
        inputs: list[str | Path] = [params.particles, *table.particles.stacks]
        kept = claimed("reconstruct", params.o, FILES, inputs, held)
        looked = check_images(table, images, given, marked=half_of is not None)
        if half_of is not None:
            taken = np.full(len(half_of), -1, np.int8)
            taken[looked.rows] = half_of[looked.rows]
            require_apart(looked, taken)
        write_job_json(
            params.o, "reconstruct", as_dict(params), command_line("reconstruct", params),
            inputs=inputs, seed=0, more={"outputs": kept},
        )  # fmt: skip
        halves = [looked.rows] if half_of is None else [looked.rows[half_of[looked.rows] == half] for half in range(2)]
        try:
            told = _write(params, looked.images, halves, angles, group)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError("out of memory; go up to a coarser resolution (--maxres)") from error
    print(f"{params.o / FILES[0]}: {len(looked.rows)} particles; {told}")


def _given(params: Params) -> ParticleJob:
    """What of the parameters is about the particles, as all jobs take it."""
    same = ("particles", "o", "particle_diameter", "ctf", "image_dir", "angpix", "unsigned", "device", "threads")
    shared = {name: getattr(params, name) for name in same}
    return ParticleJob(**shared, norm=False, strict_highres_exp=params.maxres)


def _write(
    params: Params, images: ParticleImages, halves: list[np.ndarray], angles: np.ndarray, group: np.ndarray
) -> str:
    """Make the maps and write them; what is to be said of them."""
    from polarice.io.mrc import write_volume
    from polarice.io.relion_run.refine3d import write_fsc, write_unfiltered
    from polarice.references.fsc import correlation, of_one_map, resolved_shell, soft_sphere, ssnr_of
    from polarice.references.halfmaps import HALVES_ARE_ONE
    from polarice.references.slices import FourierGrid
    from polarice.runs.particle_job import last_ring

    box, pixel_A = images.preparation.box_px, images.pixel_size_A
    limit = min(box // 2 - 1, last_ring(images, _given(params)))
    grid = FourierGrid(box, limit, images.device)
    sums = [_spread(images, grid, rows, angles, group) for rows in halves]
    both = sum(sums[1:], sums[0])
    if len(halves) == 1 or not all(map(len, halves)):
        density = grid.density(grid.solved(*grid.whole(both)))
        write_volume(params.o / FILES[0], density.cpu().numpy(), pixel_A)
        for name in FILES[1:]:  # of a table before this one
            (params.o / name).unlink(missing_ok=True)
        why = "no half sets (rlnRandomSubset)" if len(halves) == 1 else "all of one half set"
        return f"{why}, so nothing is known of the map's resolution"
    unfiltered = [grid.density(grid.solved(*grid.whole(each))) for each in sums]
    sphere = soft_sphere(box, images.preparation.radius_px, 5.0, images.device)
    fsc = correlation(unfiltered[0] * sphere, unfiltered[1] * sphere)
    fsc[limit + 1 :] = 0
    ssnr = 2 * params.tau2_fudge * ssnr_of(fsc[: limit + 1])
    density = grid.density(grid.solved(*grid.whole(both), ssnr))
    write_volume(params.o / FILES[0], density.cpu().numpy(), pixel_A)
    write_unfiltered(params.o / "run", np.stack([each.cpu().numpy() for each in unfiltered]), pixel_A)
    write_fsc(params.o / "run_fsc.star", fsc.cpu().numpy(), box * pixel_A)
    if of_one_map(fsc, limit):
        return HALVES_ARE_ONE
    return f"halves agree up to {box * pixel_A / min(limit, resolved_shell(fsc)):.1f} A"


def _angles(table: ParticleTable) -> np.ndarray:
    """(n, 3) rot, tilt, psi in degrees."""
    missing = [label for label in ANGLES if label not in table.table]
    if missing:
        raise InputError(f"{table.table.where} has no {', '.join('_' + label for label in missing)}; refine first")
    return np.stack([table.table.finite(label, 1e6) for label in ANGLES], axis=1)


def _spread(
    images: ParticleImages, grid: FourierGrid, rows: np.ndarray, angles: np.ndarray, group: np.ndarray
) -> torch.Tensor:
    """(re, im and denominator, *shape) sums of some particles, each at its own angles; images are not masked.

    Images are padded twofold, so that there are rings at every half Fourier pixel: with whole ones alone, points of the
    grid between two rings would hardly be reached.
    """
    import torch

    from polarice.align.polar import PolarBasis
    from polarice.references.directions import posed_views

    box = grid.box_px
    basis = PolarBasis(2 * box, box / 2, 2 * grid.r_max, 0.0, grid.device)
    total = grid.empty()
    shift_px = images.particles.pose.shift_px
    before = box - box // 2
    for some, pixels in images.batches(rows, BATCH):
        plain = pixels - pixels.mean(dim=(1, 2), keepdim=True)
        wide = torch.nn.functional.pad(plain, (before, box - before, before, box - before))
        nowhere = np.zeros((len(some), 2))
        polar = images.polar(basis, some, 2 * basis.sample(wide), nowhere, shift_px[some])
        weight = basis.weight[:, None]
        numerator, denominator = polar.field * polar.ctf * weight, polar.ctf.square() * weight
        total += grid.spread(numerator, denominator, basis, posed_views(*angles[some].T), group)
    return total

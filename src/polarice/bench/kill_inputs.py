"""Small inputs for every job that `polarice bench kills` kills, and the command lines that take them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polarice.bench.job_kills import OUT, Task
from polarice.types import InputError

MICROGRAPHS, SIZE_PX, PIXEL_A, FRAMES = 4, 384, 2.0, 6
PARTICLES = 16  # of a micrograph
DIAMETER_A = 60.0
DEFOCUS_A, VOLTAGE_KV, CS_MM, CONTRAST, WAVELENGTH_A = 15000.0, 300.0, 2.7, 0.1, 0.019687
CLASSES = 12
_NOT_CONTINUED = ("motion", "ctf", "pick", "extract", "initial3d", "reconstruct")  # the same command goes on


def make_inputs(folder: Path, particles: Path) -> dict[str, Task]:
    """Write movies, micrographs, coordinates and a workflow into `folder`; the task of each job. `particles` is the
    table that classifications take."""
    from polarice.io.coordinates import Coordinates, write_coordinates
    from polarice.io.mrc import write_image, write_stack

    folder = folder.absolute()
    (folder / "coordinates").mkdir(parents=True, exist_ok=True)
    for number in range(MICROGRAPHS):
        image, centres = _micrograph(number)
        write_image(folder / f"m{number}.mrc", image, PIXEL_A)
        write_coordinates(folder / f"coordinates/m{number}.star", Coordinates(centres, None))
        write_stack(folder / f"movie{number}.mrcs", _movie(image, number), PIXEL_A)
    _write_table(folder / "micrographs.star", "micrographs", [str(folder / f"m{n}.mrc") for n in range(MICROGRAPHS)])
    _write_table(folder / "movies.star", "movies", [str(folder / f"movie{n}.mrcs") for n in range(MICROGRAPHS)])
    (folder / "flow.toml").write_text(
        f'threads = 1\n\n[[step]]\njob = "ctf"\nname = "{OUT}"\nmicrographs = "{folder}/micrographs.star"\n'
        f'workers = 1\nbox = 256\nkeep_ringless = true\n\n[[step]]\njob = "class2d"\nk = 3\niter = 3\n'
        f'particles = "{particles.absolute()}"\nparticle_diameter = 330.0\n'
    )
    made = _prepared(folder, particles.absolute())
    return {task.job: task for task in _tasks(folder, particles.absolute(), made)}


@dataclass(frozen=True)
class _Prepared:
    """What later jobs take from earlier ones."""

    aligned: Path  # a map of images takes no other particles
    classes: Path  # folder of a run, enough of them for a first map
    reference: Path  # the density of the true angles


def _prepared(folder: Path, particles: Path) -> _Prepared:
    """Results of short runs in `folder`, made where they are not there yet."""
    plain = "--particle-diameter 330 --threads 1 --device cpu"
    lines = {
        "aligned/run_it002_data.star": f"align2d {particles} --o aligned --k 3 --iter 2 {plain}",
        "classes/run_it003_data.star": f"class2d {particles} --o classes --k {CLASSES} --iter 3 {plain}",
        "map/run_class001.mrc": f"reconstruct {particles.parent / 'truth.star'} --o map {plain}",
    }
    for name, line in lines.items():
        if not (folder / name).exists():
            command = [sys.executable, "-m", "polarice", *line.split()]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise InputError(f"{folder}: {line.split()[0]} failed: {done.stderr.strip()[-200:]}")
    return _Prepared(folder / "aligned/run_it002_data.star", folder / "classes", folder / "map/run_class001.mrc")


def _tasks(folder: Path, particles: Path, made: _Prepared) -> list[Task]:
    plain = f"--o {OUT} --threads 1 --device cpu"
    each = {
        "motion": f"{folder}/movies.star --dose-per-frame 1 --patch-x 2 --patch-y 2 --workers 1",
        "ctf": f"{folder}/micrographs.star --box 256 --keep-ringless --workers 1",
        "pick": f"{folder}/micrographs.star --blob --particle-diameter {DIAMETER_A:g} --workers 1",
        "extract": f"{folder}/micrographs.star --coords {folder}/coordinates --box 48 --workers 1",
        "align2d": f"{particles} --k 3 --iter 3 --particle-diameter 330",
        "class2d": f"{particles} --k 3 --iter 3 --particle-diameter 330",
        "sml": f"{made.aligned} --k 9 --iter 3 --particle-diameter 330",
        "deep2d": f"{particles} --k 9 --iter 2 --align-k 3 --align-iter 2 --particle-diameter 330",
        "initial3d": f"{made.classes} --seeds 3 --iter 10 --particle-diameter 330",
        "refine3d": f"{particles} --ref {made.reference} --iter 3 --particle-diameter 330",
        "reconstruct": f"{particles.parent / 'truth.star'} --particle-diameter 330",
    }
    tasks = [Task(job, (job, *f"{line} {plain}".split()), job not in _NOT_CONTINUED) for job, line in each.items()]
    return [*tasks, Task("run", ("run", "flow.toml"), False)]


def _micrograph(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Dark discs in noise with Thon rings, (SIZE_PX, SIZE_PX) float32, and the discs' centres (n, 2)."""
    rng = np.random.default_rng(number)
    y, x = np.indices((SIZE_PX, SIZE_PX))
    centres = rng.uniform(40, SIZE_PX - 40, (PARTICLES, 2)).round()
    inside = [np.hypot(x - cx, y - cy) < DIAMETER_A / PIXEL_A / 2 for cx, cy in centres]
    specimen = rng.normal(size=(SIZE_PX, SIZE_PX)) - 1.5 * np.any(inside, axis=0)
    frequency = np.fft.fftfreq(SIZE_PX, PIXEL_A)
    s2 = frequency[:, None] ** 2 + frequency[None] ** 2
    phase = np.pi * WAVELENGTH_A * s2 * (DEFOCUS_A + 500 * number - CS_MM * 1e7 * WAVELENGTH_A**2 * s2 / 2)
    seen = np.fft.ifft2(np.fft.fft2(specimen) * np.sin(phase + np.arcsin(CONTRAST))).real
    return (seen + 0.3 * rng.normal(size=seen.shape)).astype(np.float32), centres


def _movie(image: np.ndarray, number: int) -> np.ndarray:
    """Frames (FRAMES, SIZE_PX, SIZE_PX) float32 of counted electrons; each is moved a pixel and half a pixel on."""
    rng = np.random.default_rng(100 + number)
    frequency = np.fft.fftfreq(SIZE_PX)
    transform = np.fft.fft2(0.1 * image / image.std())
    frames = []
    for frame in range(FRAMES):
        moved = np.exp(-2j * np.pi * frame * (frequency[None] + 0.5 * frequency[:, None]))
        frames.append(rng.poisson(np.maximum(2.0 * (1 + np.fft.ifft2(transform * moved).real), 0)))
    return np.array(frames, np.float32)


def _write_table(path: Path, kind: str, names: list[str]) -> None:
    from polarice.io.micrographs import NAME_LABELS
    from polarice.io.star import Block, write_star
    from polarice.io.table import Table

    size = {"movies": "rlnMicrographOriginalPixelSize", "micrographs": "rlnMicrographPixelSize"}[kind]
    optics = {
        "rlnOpticsGroupName": np.array(["opticsGroup1"], object), "rlnOpticsGroup": np.array([1]),
        size: np.array([PIXEL_A]), "rlnVoltage": np.array([VOLTAGE_KV]), "rlnSphericalAberration": np.array([CS_MM]),
        "rlnAmplitudeContrast": np.array([CONTRAST]),
    }  # fmt: skip
    rows = {NAME_LABELS[kind]: np.array(names, object), "rlnOpticsGroup": np.ones(len(names), np.int64)}
    write_star(path, [Block("optics", table=Table.of(optics)), Block(kind, table=Table.of(rows))])

"""`sml --search`: a map inside each class of an earlier job, in folders of their own, and one table of all."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.cluster import Comm, world
from polarice.types import InputError

if TYPE_CHECKING:
    from polarice.io.particles import ParticleTable
    from polarice.runs.manifold_job import PerClassJob

LEAST_PER_NODE = 3  # particles: classes with fewer for each node are left as they are


def searches(params: PerClassJob) -> bool:
    """Whether --search is asked for, or the run that goes on was begun so."""
    from polarice.project.provenance import NAME, read_job_json

    named = params.continue_
    if params.search or named is None or not (named / NAME).exists():
        return bool(params.search)
    return bool(read_job_json(named)["params"].get("search"))


def search(params: PerClassJob) -> None:
    """Map every class of the table. Raises InputError for what cannot be used.

    classNNN/ is the folder of a run of its own; run_data.star holds all particles, those of class c's node k with the
    number (place of c) * K + k. Classes with fewer than LEAST_PER_NODE particles for each node have one number.
    """
    from polarice.runs import resume

    with world("sml") as comm, ExitStack() as held:
        params, table, classes, large = comm.on_root(lambda: _begun(params, held))
        try:
            for place, number in enumerate(large.tolist()):
                many = np.count_nonzero(table.particles.pose.class_of == number)
                print(f"class {number + 1} ({place + 1} of {len(large)}): {many} particles", flush=True)
                _map_class(params, table, number, comm)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; to go on: {resume.go_on_command('sml', params.o)}") from None
        comm.on_root(lambda: _join(params, table, classes, large))


def _begun(params: PerClassJob, held: ExitStack) -> tuple[Any, ParticleTable, np.ndarray, np.ndarray]:
    """The parameters of a run that begins or goes on, its table, all classes, and those that are mapped; the folder is
    this process's until `held` is closed."""
    from polarice.io.particles import read_particles
    from polarice.runs import resume
    from polarice.runs.defaults import settled_defaults
    from polarice.runs.mapping import ITERATIONS, require_poses

    if params.continue_ is not None:
        params = resume.saved("sml", params)
    else:
        resume.require_free("sml", params.o)
        params = settled_defaults(replace(params, iter=params.iter or ITERATIONS))
    table = read_particles(params.particles, params.image_dir, params.ctf, params.angpix)
    require_poses(table)
    if "rlnClassNumber" not in table.table:
        raise InputError(f"{table.path}: no column _rlnClassNumber, and --search maps inside each class; leave it out")
    classes, counts = np.unique(table.particles.pose.class_of, return_counts=True)
    large = classes[counts >= LEAST_PER_NODE * params.classes]
    if not len(large):
        raise InputError(
            f"{params.particles}: no class holds {LEAST_PER_NODE * params.classes} particles, {LEAST_PER_NODE} for "
            f"each of {params.classes} nodes; ask for fewer with --k"
        )
    resume.claim("sml", params, [table.path, *table.particles.stacks], held)
    return params, table, classes, large


def _folder(params: PerClassJob, number: int) -> Path:
    return Path(params.o / f"class{number + 1:03d}")


def _map_class(params: PerClassJob, table: ParticleTable, number: int, comm: Comm) -> None:
    """Run one class's map, go on with it, or leave it as it is where it has ended."""
    from polarice.io.particles import write_particles
    from polarice.project.provenance import NAME
    from polarice.runs import resume
    from polarice.runs.mapping import map_particles

    folder, particles = _folder(params, number), params.o / f"class{number + 1:03d}.star"

    def left() -> bool | None:
        """Whether it had been begun; None where it has ended."""
        begun = (folder / NAME).exists()
        if not begun:
            write_particles(particles, table, np.flatnonzero(table.particles.pose.class_of == number))
        return None if resume.finished(folder, params.iterations) else begun

    begun = comm.on_root(left)
    if begun is None:
        return
    inside = replace(
        params,
        particles=particles,
        image_dir=params.image_dir or params.particles.parent,
        o=folder,
        search=False,
        register=False,
        continue_=folder if begun else None,
    )
    map_particles("sml", inside)


def _join(params: PerClassJob, table: ParticleTable, classes: np.ndarray, large: np.ndarray) -> None:
    """run_data.star: every usable particle with its place in all maps; and the page that leads to them."""
    from polarice.io.particles import read_particles, write_particles
    from polarice.report.index import Chapter, Picture, write_index

    images = _images(table)
    number = np.zeros(len(table.particles), np.int64)
    latent: dict[str, np.ndarray] = {}
    chapters, first = [], 1
    for label in classes.tolist():
        if label not in large:
            number[table.particles.pose.class_of == label] = first
            first += 1
            continue
        folder = _folder(params, label)
        data = folder / f"run_it{params.iter:03d}_data.star"
        found = read_particles(data, params.image_dir, params.ctf, params.angpix)
        own = iter(np.flatnonzero(table.particles.pose.class_of == label))  # some images may have been left out
        rows = np.array([next(row for row in own if images[row] == image) for image in _images(found)])
        number[rows] = first + found.particles.pose.class_of
        first += params.classes
        for name in [name for name in found.table.labels if name.startswith("polariceLatent")]:
            latent.setdefault(name, np.zeros(len(number)))[rows] = found.table.numbers(name)
        picture = folder / f"run_it{params.iter:03d}_map.png"
        chapters.append(
            Chapter(
                title=f"Class {label + 1}",
                text=(f"{len(rows)} particles, numbers {first - params.classes} to {first - 1} in run_data.star.",),
                pictures=(Picture(picture.read_bytes(), picture.name),),
                links=((f"report of {folder.name}", f"{folder.name}/report.html"),),
            )
        )
    rows = np.flatnonzero(number)
    columns = {"rlnClassNumber": number[rows], **{name: values[rows] for name, values in latent.items()}}
    write_particles(params.o / "run_data.star", table, rows, columns)
    page = write_index(params.o / "report.html", f"sml inside {len(large)} classes", str(params.o), chapters)
    small = len(classes) - len(large)
    if small:
        print(f"{small} classes have too few particles and were left as they are", file=sys.stderr)
    print(f"{len(rows)} particles on {len(large)} maps of {params.classes} nodes; report: {page}")


def _images(table: ParticleTable) -> list[tuple[str, int]]:
    """Real path of the stack, and section, of every particle."""
    particles = table.particles
    paths = [str(Path(stack).resolve()) for stack in particles.stacks]
    pairs = zip(particles.stack_of.tolist(), particles.section.tolist(), strict=True)
    return [(paths[stack], section) for stack, section in pairs]

"""`polarice deep2d`: align2d, then sml on what it aligned, in one command and one folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from polarice.cluster import Comm, world
from polarice.jobs import align2d, sml
from polarice.project import registry
from polarice.project.fault import spared
from polarice.project.params import option, output
from polarice.runs.manifold_job import ManifoldJob
from polarice.types import InputError

SUMMARY = "align particles, then classify them deeply: align2d and sml in one command"
EXAMPLE = "polarice deep2d Extract/job005/particles.star --o Deep2D/job006 -k 1000 --particle-diameter 180"
RANKS = True
ALIGN_ITERATIONS, MAP_ITERATIONS = 25, 30


@dataclass(frozen=True)
class Params(ManifoldJob):
    """Those of sml, and what differs for align2d; the rest goes to both."""

    o: Path = output("Deep2D", "folder for the results, align2d and sml inside")
    align_k: int = option(50, "number of references of align2d", low=1, high=100_000)
    align_iter: int | None = option(None, "iterations of align2d", derived="25", low=1, high=999)
    align_tau2_fudge: float = option(2.0, "strength of the data against the prior, in align2d", low=0.01, high=100)
    offset_range: float = option(
        5.0, "align2d searches shifts this far from each particle's last centre, at first", unit="px", low=0
    )
    offset_step: float = option(1.0, "step of the shifts in align2d", unit="px", low=0.1, high=10)


def run(params: Params) -> None:
    """Both jobs, or what is left of them. Raises InputError for what cannot be used."""
    from polarice.runs import resume

    with world("deep2d") as comm, ExitStack() as held:
        params = comm.on_root(lambda: _begun(params, held))
        first, second = parts_of(params)
        try:
            print(f"1/2  align2d with {first.k} references, in {first.o}", flush=True)
            _do("align2d", first, comm)
            print(f"2/2  sml with {second.classes} nodes, in {second.o}", flush=True)
            _do("sml", second, comm)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; to go on: {resume.go_on_command('deep2d', params.o)}") from None
        comm.on_root(lambda: _tell_page(params, first, second))


def _tell_page(params: Params, first: Any, second: Any) -> None:
    page = spared(lambda: _write_page(params, first, second), params.o / "report.html")
    print(f"report of both: {page}")


def _begun(params: Params, held: ExitStack) -> Params:
    """The parameters of a run that begins or goes on; its folder is this process's until `held` is closed."""
    from polarice.runs import resume
    from polarice.runs.defaults import settled_defaults

    if params.continue_ is not None:
        params = resume.saved("deep2d", params)
    else:
        resume.require_free("deep2d", params.o)
        params = replace(params, iter=params.iter or MAP_ITERATIONS, align_iter=params.align_iter or ALIGN_ITERATIONS)
        params = settled_defaults(params)
        _require_enough(params)
    resume.claim("deep2d", params, [params.particles], held)
    return params


def _require_enough(params: Params) -> None:
    """Say now, not after the alignment, that there are too few particles."""
    from polarice.io.particles import read_particles
    from polarice.runs.mapping import warn_of_few

    n = len(read_particles(params.particles, params.image_dir, params.ctf, params.angpix).particles)
    if max(params.classes, params.align_k) > n:
        raise InputError(
            f"{params.particles}: --k {params.k} and --align-k {params.align_k} for {n} particles; ask for fewer"
        )
    warn_of_few(n, params.classes)


def parts_of(params: Params) -> tuple[align2d.Params, sml.Params]:
    """The parameters of the two jobs."""
    both = {name: value for name, value in vars(params).items() if name in {each.name for each in fields(ManifoldJob)}}
    shared = {name: value for name, value in both.items() if name in {each.name for each in fields(align2d.Params)}}
    first = align2d.Params(
        **shared
        | {
            "o": params.o / "align2d",
            "k": params.align_k,
            "iter": params.align_iter,
            "tau2_fudge": params.align_tau2_fudge,
            "offset_range": params.offset_range,
            "offset_step": params.offset_step,
            "continue_": None,
        }
    )
    aligned = first.o / f"run_it{first.iter:03d}_data.star"
    return first, sml.Params(**both | {"o": params.o / "sml", "particles": aligned, "continue_": None})


def _do(job: str, wanted: Any, comm: Comm) -> None:
    """Run a part, go on with it, or leave it as it is where it has ended."""
    from polarice.project.provenance import NAME
    from polarice.runs import resume

    ended, begun = comm.on_root(lambda: (resume.finished(wanted.o, wanted.iter), (wanted.o / NAME).exists()))
    if not ended:
        registry.run(job, replace(wanted, continue_=wanted.o if begun else None))


def _write_page(params: Params, first: Any, second: Any) -> Path:
    """report.html, with the sheets of both and links to their own pages."""
    from polarice.report.index import Chapter, Picture, write_index

    def chapter(title: str, part: Any, kind: str, text: Sequence[str]) -> Chapter:
        picture = part.o / f"run_it{part.iter:03d}_{kind}.png"
        return Chapter(
            title=title,
            text=text,
            pictures=(Picture(picture.read_bytes(), picture.name),) if picture.exists() else (),
            links=((f"report of {part.o.name}", f"{part.o.name}/report.html"),),
        )

    chapters = [
        chapter("Alignment", first, "classes", (f"align2d: {first.k} references, {first.iter} iterations.",)),
        chapter("Map of classes", second, "map", (f"sml: {second.classes} nodes, {second.iter} iterations.",)),
    ]
    return write_index(params.o / "report.html", f"deep2d: {params.particles.name}", f"{params.o}", chapters)

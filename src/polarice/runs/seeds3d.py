"""Several runs of class3d from different seeds, compared: classes that all of them find are stable."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.cluster import Comm, world
from polarice.project import registry
from polarice.project.fault import spared

if TYPE_CHECKING:
    from polarice.io.particles import ParticleTable
    from polarice.runs.classification3d import Classification3D

STABLE = 0.8  # share of the particles on whose class all seeds agree, below which a warning is given
TABLE, STABLE_TABLE, FIGURES = "run_data.star", "run_stable_data.star", "agreement.json"


@dataclass(frozen=True)
class Seed:
    """What came of one seed; classes are numbered as the best seed's are."""

    number: int
    folder: Path
    log_likelihood: float  # mean of the particles, of the last iteration
    class_of: np.ndarray  # (n,) from 0
    named: np.ndarray  # (K,) number of each of its own classes
    agreement: float = 1.0  # share of the particles that are in the same class as with the best seed
    adjusted_rand: float = 1.0


def classify_from_seeds(params: Classification3D) -> None:
    """All runs, or what is left of them, and their comparison. Raises InputError for what cannot be used."""
    from polarice.runs import resume

    with world("class3d") as comm, ExitStack() as held:
        params = comm.on_root(lambda: _begun(params, held))
        parts = parts_of(params)
        try:
            for number, each in enumerate(parts, 1):
                print(f"{number}/{len(parts)}  seed {each.seed}, in {each.o}", flush=True)
                _do(each, comm)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; to go on: {resume.go_on_command('class3d', params.o)}") from None
        comm.on_root(lambda: _compare(params, parts))


def parts_of(params: Classification3D) -> list[Classification3D]:
    """The parameters of each run."""
    return [
        replace(params, seeds=1, seed=params.seed + each, o=params.o / f"seed{each + 1}", continue_=None)
        for each in range(params.seeds)
    ]


def _begun(params: Classification3D, held: ExitStack) -> Any:
    """The parameters of a run that begins or goes on; its folder is this process's until `held` is closed."""
    from polarice.runs import resume
    from polarice.runs.classification3d import MOST_ITERATIONS

    if params.continue_ is not None:
        params = resume.saved("class3d", params)
    else:
        resume.require_free("class3d", params.o)
        params = replace(params, iter=params.iter or MOST_ITERATIONS)
    resume.claim("class3d", params, [params.particles], held)
    return params


def _do(wanted: Any, comm: Comm) -> None:
    """Run a part, go on with it, or leave it as it is where it has ended."""
    begun, ended = comm.on_root(lambda: _stands(wanted))
    if not ended:
        registry.run("class3d", replace(wanted, continue_=wanted.o if begun else None))


def _stands(wanted: Any) -> tuple[bool, bool]:
    """Whether a part has begun, and whether it has ended: by itself, or with all iterations."""
    from polarice.project.provenance import NAME, read_job_json
    from polarice.runs.checkpoint import checkpoints
    from polarice.runs.resume import finished

    if not (wanted.o / NAME).exists():
        return False, False
    done = checkpoints(wanted.o)
    if not done or not finished(wanted.o, done[-1]):
        return True, False
    by_itself = done[-1] < read_job_json(wanted.o)["params"]["iter"]
    return True, by_itself or done[-1] >= wanted.iter


def _compare(params: Classification3D, parts: list[Any]) -> None:
    """Write what seeds agree on, and tell it."""
    from polarice.io.particles import read_particles

    tables = [read_particles(each.o / TABLE, need_ctf=False) for each in parts]
    seeds = compared([_seed_of(each, table) for each, table in zip(parts, tables, strict=True)], params.classes)
    together = np.all([each.class_of == seeds[0].class_of for each in seeds], axis=0)
    _write(params, seeds, together, tables[[each.o for each in parts].index(seeds[0].folder)])
    page = spared(lambda: _write_page(params, seeds, together), params.o / "report.html")
    others = ", ".join(f"{each.adjusted_rand:.2f}" for each in seeds[1:])
    print(
        f"{together.mean():.1%} of {len(together)} particles are in the same class with all {len(seeds)} seeds "
        f"(adjusted Rand index {others}); the likeliest is {seeds[0].folder}; report: {page}"
    )
    if together.mean() < STABLE:
        print("warning: classes depend on the seed; do not trust them alone: fewer classes may be stable")


def _seed_of(part: Any, table: ParticleTable) -> Seed:
    from polarice.report import read_history

    likelihood = read_history(part.o)[-1]["log_likelihood"]
    return Seed(part.seed, part.o, likelihood, table.particles.pose.class_of.astype(np.int64), np.arange(part.k))


def compared(seeds: list[Seed], classes: int) -> list[Seed]:
    """The likeliest first, and what of the others agrees with it."""
    from polarice.references.agreement import adjusted_rand, matched

    best, *others = sorted(seeds, key=lambda each: -each.log_likelihood)

    def to_best(each: Seed) -> Seed:
        named = matched(best.class_of, each.class_of, classes)
        class_of = named[each.class_of]
        alike = adjusted_rand(best.class_of, class_of, classes)
        agreement = float((class_of == best.class_of).mean())
        return replace(each, class_of=class_of, named=named, agreement=agreement, adjusted_rand=alike)

    return [best, *map(to_best, others)]


def _write(params: Classification3D, seeds: list[Seed], together: np.ndarray, table: ParticleTable) -> None:
    """The figures, and the likeliest run's particles: all, and those on whose class seeds agree."""
    from polarice.io.atomic import replacing
    from polarice.io.particles import write_particles

    best = seeds[0].class_of
    of_class = [float(together[best == k].mean()) if (best == k).any() else None for k in range(params.classes)]
    told = [
        {
            "seed": each.number, "folder": each.folder.name, "log_likelihood": each.log_likelihood,
            "agreement": each.agreement, "adjusted_rand": each.adjusted_rand, "classes": (each.named + 1).tolist(),
        }
        for each in seeds
    ]  # fmt: skip
    with replacing(params.o / FIGURES, "w") as stream:
        figures = {"together": float(together.mean()), "together_of_class": of_class, "seeds": told}
        json.dump(figures, stream, indent=2)
    write_particles(params.o / TABLE, table)
    write_particles(params.o / STABLE_TABLE, table, np.flatnonzero(together))


def _write_page(params: Classification3D, seeds: list[Seed], together: np.ndarray) -> Path:
    """report.html: the maps of all seeds, and how far they agree."""
    from polarice.project.params import command_line
    from polarice.report.index import Chapter, Picture, Rows, write_index

    best = seeds[0].class_of
    shares = [f"{together[best == k].mean():.1%}" if (best == k).any() else "-" for k in range(params.classes)]
    rows = [
        (f"{each.number}", ("n", f"{each.log_likelihood:.2f}"), ("n", f"{each.agreement:.1%}"),
         ("n", f"{each.adjusted_rand:.2f}"))
        for each in seeds
    ]  # fmt: skip
    heads = ("seed", ("n", "log likelihood"), ("n", "in the same class"), ("n", "adjusted Rand index"))
    of_class = ("class", ("n", "particles"), ("n", "of them with all seeds"))
    stable = [(f"{k}", ("n", f"{(best == k - 1).sum():,}"), ("n", share)) for k, share in enumerate(shares, 1)]
    chapters = [
        Chapter("Agreement", ("Classes of every seed are numbered as the likeliest seed's, so that as many particles "
                              "as can be agree.",),
                [("of the particles are in the same class with all seeds", f"{together.mean():.1%}")],
                tables=[Rows(heads, rows), Rows(of_class, stable)]),
        Chapter("Maps", ("Central slices along z: one row a seed, the likeliest above.",),
                pictures=[Picture(_sheet(params, seeds), "Classes 1, 2 and so on, from the left.")]),
        Chapter("Seeds", links=[(f"report of seed {each.number}", f"{each.folder.name}/report.html")
                                for each in seeds]),
        Chapter("Run again", commands=[("The same again:", command_line("class3d", params))]),
    ]  # fmt: skip
    subtitle = f"{params.particles} · {len(together):,} particles"
    return write_index(params.o / "report.html", f"class3d: {params.o}", subtitle, chapters)


def _sheet(params: Classification3D, seeds: list[Seed]) -> bytes:
    """Slices of the maps of all seeds, as one PNG."""
    from polarice.io.mrc import read_volume
    from polarice.report.classes3d import sheet_of

    rows = []
    for seed in seeds:
        own = np.argsort(seed.named)  # which of its own classes is each of the best one's
        maps = (read_volume(seed.folder / f"run_class{k + 1:03d}.mrc")[0] for k in own)
        rows.append(np.stack([each[len(each) // 2] for each in maps]))
    return sheet_of(rows)


def from_seeds(params: Classification3D) -> bool:
    """Whether several runs are asked for, or gone on with."""
    from polarice.project.provenance import read_job_json

    if params.continue_ is None or not params.continue_.is_dir():
        return params.seeds > 1
    given = read_job_json(params.continue_).get("params")
    return isinstance(given, dict) and given.get("seeds", 1) != 1

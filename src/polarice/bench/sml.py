"""`polarice bench sml`: how well a map parts states that are known, beside MAP, K-means, mixtures and RELION."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from polarice.bench import programs
from polarice.bench.folder import DATA, heading, make_folder, write_json, write_text
from polarice.bench.results import markdown, number
from polarice.project.params import Parameters, argument, as_dict, command_line, option, output
from polarice.types import InputError

SUMMARY = "score sml against states that are known, beside MAP, K-means, mixtures (scikit-learn) and RELION"
ARC_DEG = 60.0
MIXTURE_COMPONENTS = (10, 40)  # principal components that mixtures and K-means work on


@dataclass(frozen=True)
class Params(Parameters):
    """The states, and how they are looked at."""

    inputs: tuple[Path, ...] = argument("maps or models, one state each; several for discrete states")
    o: Path = output("bench_sml", "folder for sml.json and sml.md; particles and runs are kept in it")
    k: tuple[str, ...] = option(
        ("100", "10x10"), "maps, as sml's --k says them; the first one's number of nodes is the others' of classes",
        flags=("-k", "--K"),
    )  # fmt: skip
    views: int = option(3, "number of fixed views of each state", low=1, high=1000)
    snr: tuple[float, ...] = option((0.1, 0.05, 0.02, 0.01), "signal-to-noise ratios", low=1e-6)
    particles: int = option(3000, "number of simulated particles", low=30, high=10_000_000)
    box: int = option(72, "box", unit="px", low=16, high=1024)
    angpix: float = option(2.5, "pixel size", unit="A", low=0.01)
    resolution: float = option(6.0, "models are blurred to this resolution", unit="A", low=0)
    diameter: float = option(150.0, "diameter of the mask", unit="A", low=1)
    iter: int = option(30, "iterations of sml, MAP and RELION", low=1, high=999)
    map: bool = option(True, "run class2d (MAP) too, which searches for the poses by itself")
    relion: bool = option(True, "run relion_refine --skip_align too, where it is on PATH")
    arc: bool = option(True, "also views of the bundled ribosome along an arc: does the map keep their order?")
    threads: int | None = option(
        None, "CPU threads", derived="all cores", resource=True, low=1, high=1024, flags=("--j",)
    )
    seed: int = option(1, "seed of everything random; of the first of --seeds", low=0)
    seeds: int = option(1, "repeat everything with so many seeds, and state medians", low=1, high=100)


def run(params: Params) -> None:
    """Simulate, classify, score, write. Raises InputError for what cannot be used."""
    from polarice.bench.timing import cores, machine
    from polarice.runs.resources import Computing

    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise InputError("bench sml compares with scikit-learn; install it: pip install scikit-learn") from error
    make_folder(params.o, empty=False)
    where = machine(Computing(threads=params.threads or cores()))
    found: list[dict[str, Any]] = []
    for seed in range(params.seed, params.seed + params.seeds):
        once = replace(params, seed=seed, o=params.o / f"seed{seed}" if params.seeds > 1 else params.o)
        for row in _one_seed(once):
            found.append({"seed": seed, **row})
            print(f"seed {seed}  {_told(row)}", flush=True)
            _write(params, where, found)


def _one_seed(params: Params) -> Iterator[dict[str, Any]]:
    for snr in params.snr:
        yield from discrete(params, snr)
        if params.arc:
            yield arc(params, snr)


def medians(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method and SNR, in their order: the median over the seeds of every number."""
    rows: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for row in found:
        rows.setdefault((row["snr"], row["method"]), []).append(row)
    named = ("method", "snr", "seed")
    return [
        {"method": method, "snr": snr, "seeds": len(several)}
        | {name: median(row[name] for row in several) for name in several[0] if name not in named}
        for (snr, method), several in rows.items()
    ]


def discrete(params: Params, snr: float) -> Iterator[dict[str, Any]]:
    """Scores of every method on the states at one SNR."""
    from polarice.bench import partition
    from polarice.jobs import class2d, sml

    folder = params.o / f"states_snr{snr:g}"
    table = partition.simulate_states(_simulation(params, folder, snr, params.inputs), params.views, 0.0)
    state, _ = partition.truth_of(folder)
    shared: dict[str, Any] = {
        "particle_diameter": params.diameter,
        "seed": params.seed,
        "threads": params.threads,
        "iter": params.iter,
    }

    def job(name: str, module: Any, wanted: Any) -> dict[str, Any]:
        seconds = _timed(lambda: _once(module, wanted))
        rows, class_of, _ = partition.found_in(wanted.o / f"run_it{params.iter:03d}_data.star")
        return _row(name, snr, seconds, partition.scores(class_of, state[rows]))

    maps = [sml.Params(particles=table, o=folder / f"sml_{k}", k=k, **shared) for k in params.k]
    for mapped in maps:
        yield job(f"sml {mapped.k}", sml, mapped)
    mapped = maps[0]
    if params.map:
        wanted = class2d.Params(particles=folder / "particles.star", o=folder / "class2d", k=mapped.classes, **shared)
        yield job("class2d (MAP)", class2d, wanted)
    since = time.perf_counter()
    class_of = partition.untied(mapped)
    yield _row("MAP, poses held", snr, time.perf_counter() - since, partition.scores(class_of, state))
    if params.relion:
        yield from _relion(params, snr, mapped, state)
    vectors = partition.features(mapped)
    for name, cluster in _clusterings(mapped.classes, params.seed):
        since = time.perf_counter()
        class_of = cluster(vectors)
        yield _row(name, snr, time.perf_counter() - since, partition.scores(class_of, state))


def _relion(params: Params, snr: float, mapped: Any, state: Any) -> Iterator[dict[str, Any]]:
    """RELION's 2D classification of the same table at the poses that it holds; nothing where there is no RELION."""
    from polarice.bench import partition

    program = programs.relion(ctf=True)
    if program is None:
        return
    out = mapped.o.with_name("relion")
    task = programs.Task(
        mapped.particles, out, mapped.classes, params.iter, params.threads or 1, params.diameter, params.seed
    )
    found = out / f"run_it{params.iter:03d}_data.star"

    def work() -> None:
        if found.exists():
            return
        make_folder(out, empty=False)
        with open(out / "log.txt", "w") as log:
            done = subprocess.run([*program.command(task), "--skip_align"], stdout=log, stderr=log, check=False)
        if done.returncode or not found.exists():
            raise InputError(f"relion_refine ended with code {done.returncode}; see {out / 'log.txt'}, or --no-relion")

    seconds = _timed(work)
    rows, class_of, _ = partition.found_in(found)
    name = f"RELION {program.version or ''}".strip() + ", poses held"
    yield _row(name, snr, seconds, partition.scores(class_of, state[rows]))


def _clusterings(k: int, seed: int) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Those of scikit-learn: K-means on all numbers and on components, mixtures with one covariance for all."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    def components(vectors: Any, count: int) -> Any:
        return PCA(count, random_state=seed, svd_solver="randomized").fit_transform(vectors).astype(float)

    def means(vectors: Any, count: int) -> Any:
        return KMeans(k, n_init=3, random_state=seed).fit_predict(components(vectors, count))

    def mixture(vectors: Any, count: int) -> Any:
        found = components(vectors, count)
        shared = GaussianMixture(k, covariance_type="tied", random_state=seed, reg_covar=1e-3 * float(found.var()))
        return shared.fit_predict(found)

    yield "K-means", KMeans(k, n_init=1, random_state=seed).fit_predict
    for count in MIXTURE_COMPONENTS:
        yield f"PCA {count} + K-means", partial(means, count=count)
        yield f"PCA {count} + mixture", partial(mixture, count=count)


def arc(params: Params, snr: float) -> dict[str, Any]:
    """Rank correlation of the latent coordinate on a line with the place on an arc of views."""
    from polarice.bench import partition
    from polarice.jobs import sml

    folder = params.o / f"arc_snr{snr:g}"
    simulation = _simulation(params, folder, snr, (DATA / "ribosome70S.mrc",))
    table = partition.simulate_states(simulation, 1, ARC_DEG)
    _, place = partition.truth_of(folder)
    wanted = sml.Params(
        particles=table, o=folder / "sml", k="30", iter=params.iter, particle_diameter=330.0, seed=params.seed,
        threads=params.threads,
    )  # fmt: skip
    seconds = _timed(lambda: _once(sml, wanted))
    rows, class_of, latent = partition.found_in(wanted.o / f"run_it{params.iter:03d}_data.star")
    return {
        **_row("sml 30, views on an arc", snr, seconds, {"classes": len(set(class_of.tolist()))}),
        "rank_correlation": partition.order(latent, place[rows]),
    }


def _simulation(params: Params, folder: Path, snr: float, inputs: tuple[Path, ...]) -> Any:
    from polarice.jobs import simulate

    ribosome = inputs != params.inputs
    return simulate.Params(
        inputs=inputs, o=folder, particles=params.particles, box=params.box, snr=snr, seed=params.seed,
        angpix=448.0 / params.box if ribosome else params.angpix, model_resolution=params.resolution,
        shift_sigma=1.0, shift_limit=3.0, threads=params.threads,
    )  # fmt: skip


def _once(module: Any, wanted: Any) -> None:
    """Run a job unless it has been run."""
    if not (wanted.o / "report.html").exists():
        module.run(wanted)


def _timed(work: Callable[[], None]) -> float:
    since = time.perf_counter()
    work()
    return time.perf_counter() - since


def _row(method: str, snr: float, seconds: float, scored: dict[str, float]) -> dict[str, Any]:
    return {"method": method, "snr": snr, "seconds": round(seconds, 2), **scored}


HEAD = ("SNR", "method", "purity", "adjusted Rand index", "rank correlation", "classes in use", "seconds")


def cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['snr']:g}", row["method"], number(row.get("purity"), ".3f"), number(row.get("ari"), ".3f"),
        number(row.get("rank_correlation"), ".3f"), f"{row['classes']:g}", number(row["seconds"], ".1f"),
    ]  # fmt: skip


def _told(row: dict[str, Any]) -> str:
    return "  ".join(f"{name} {text}" for name, text in zip(HEAD, cells(row), strict=True))


def _write(params: Params, where: dict[str, Any], found: list[dict[str, Any]]) -> None:
    command = command_line("bench sml", params)
    middle = medians(found)
    table = markdown(HEAD, [cells(row) for row in middle])
    kept = {"command": command, "parameters": as_dict(params), "machine": where, "medians": middle, "rows": found}
    write_json(params.o / "sml.json", kept)
    title = f"States parted: {len(params.inputs)} from {params.views} views, {params.particles} particles"
    if params.seeds > 1:
        title += f", medians of {params.seeds} seeds"
    write_text(params.o / "sml.md", f"{heading(title, where)}\n{table}\n    {command}\n")

"""`polarice bench engine`: one expectation and maximization of all images, alone, over a grid of settings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from polarice.bench.folder import DIAMETER_A, heading, make_folder, simulated, write_json, write_text
from polarice.bench.results import markdown, number
from polarice.project.params import Parameters, as_dict, command_line, option, output
from polarice.types import InputError

SUMMARY = "time the engine alone: one expectation and maximization, over K, box, shifts and threads"
REFERENCES = (
    "class averages of the same simulated particles after {iterations} iterations of class2d with that K; every "
    "particle is searched around its centre of the last of them, at every angle"
)


@dataclass(frozen=True)
class Params(Parameters):
    """The grid, and the particles."""

    o: Path = output("bench_engine", "folder for engine.json and engine.md; particles and classes are kept in it")
    k: tuple[int, ...] = option((20, 100, 300), "numbers of references", low=1, high=100_000, flags=("-k", "--K"))
    box: tuple[int, ...] = option((128,), "boxes", unit="px", low=16, high=1024)
    shifts: tuple[int, ...] = option((21,), "numbers of shifts, in discs of 2 px steps; 21: up to 5 px", low=1)
    threads: tuple[int, ...] = option(
        (), "numbers of CPU threads", derived="all cores", low=1, high=1024, flags=("--j",)
    )
    precision: tuple[str, ...] = option(
        ("float32",), "numbers that images and references are multiplied in", choices=("float32", "tf32", "bfloat16")
    )
    kernel: tuple[str, ...] = option(
        ("auto",), "what compares images coarsely on a card", choices=("auto", "plain", "fused")
    )
    repeat: int = option(3, "passes of each kind; the best and the median are stated", low=1, high=1000)
    particles: int = option(2000, "number of simulated particles", low=30, high=10_000_000)
    snr: float = option(0.05, "signal-to-noise ratio of the simulated particles", low=1e-6)
    iter: int = option(12, "iterations of the run that the references come from", low=1, high=999)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute", resource=True)
    seed: int = option(1, "seed of everything random", low=0)


def run(params: Params) -> None:
    """Time every point of the grid and write the tables. Raises InputError for what cannot be used."""
    from polarice.bench.timing import cores, machine, shift_range_px, time_passes
    from polarice.runs.resources import Computing

    if max(params.k) > params.particles:
        raise InputError(f"--k {max(params.k)}: more references than particles ({params.particles}); ask for fewer")
    for shifts in params.shifts:
        shift_range_px(shifts)
    make_folder(params.o, empty=False)
    all_threads = params.threads or (cores(),)
    machines = {threads: machine(Computing(threads=threads, device=params.device)) for threads in all_threads}
    cases = []
    for box_px, k in itertools.product(params.box, params.k):
        finished = _finished_run(params, box_px, k, max(all_threads))
        grid = itertools.product(params.shifts, all_threads, params.precision, params.kernel)
        for shifts, threads, precision, kernel in grid:
            case: dict[str, Any] = {"k": k, "box_px": box_px, "shifts": shifts, "threads": threads}
            case |= {"precision": precision, "kernel": kernel}
            print(f"K {k}, {box_px} px, {shifts} shifts, {threads} threads, {precision}, {kernel} kernel", flush=True)
            wanted = replace(finished, threads=threads, precision=precision, kernel=kernel)
            times = time_passes(wanted, shifts, params.repeat)
            cases.append({**case, **times, **shares(times, machines[threads]["gemm_gflops"])})
    _write(params, machines[max(all_threads)], cases)


def shares(times: dict[str, Any], gemm_gflops: float) -> dict[str, float]:
    """The rate of the machine's matrix products, and the share of it that the expectation's reach."""
    rate = times["gflop_per_image"] / (1e-3 * times["kept"]["stages_ms"]["expectation"])
    return {"gemm_gflops": gemm_gflops, "share": rate / gemm_gflops}


def _finished_run(params: Params, box_px: int, k: int, threads: int) -> Any:
    """Parameters of a class2d run that has been made: its last checkpoint holds realistic references."""
    from polarice.jobs import class2d
    from polarice.runs.checkpoint import checkpoints

    folder = params.o / f"{params.particles}_of_{box_px}px_snr{params.snr:g}_seed{params.seed}"
    table = simulated(params, folder, box_px, threads)
    wanted = class2d.Params(
        particles=table,
        o=folder / f"k{k}_iter{params.iter}",
        k=k,
        iter=params.iter,
        particle_diameter=DIAMETER_A,
        seed=params.seed,
        device=params.device,
        threads=threads,
    )
    done = checkpoints(wanted.o)
    if params.iter not in done:
        print(f"references: {params.iter} iterations of class2d with {k} classes", flush=True)
        class2d.run(replace(wanted, continue_=wanted.o if done else None))
    return wanted


HEAD = (
    "K", "box", "shifts", "threads", "precision", "kernel", "rings", "ms fresh: best", "median", "ms kept: best",
    "median", "preparation", "expectation", "maximization", "images/s", "GFLOP per image", "GEMM GFLOP/s", "share",
    "error",
    "best class changed",
)  # fmt: skip
NOTE = (
    "Times are ms per image, of one expectation and maximization of all. Fresh: images are read and prepared; kept: "
    "they are at hand, prepared; stages and images/s are of the best of these. Share: of the machine's rate of float32 "
    "matrix products, reached by those of the expectation over all of its time. Error: the largest, of the log odds of "
    "any shift, class and angle that matters against the image's best, from those in float32; best class changed: the "
    "share of the images in which it is another one."
)


def cells(case: dict[str, Any]) -> list[str]:
    """A line of the table."""
    fresh, kept = case["fresh"], case["kept"]
    stages = kept["stages_ms"]
    return [
        *(f"{case[name]}" for name in ("k", "box_px", "shifts", "threads", "precision", "kernel", "rings")),
        *(number(each[name], ".3f") for each in (fresh, kept) for name in ("best_ms", "median_ms")),
        *(number(stages.get(name), ".3f") for name in ("preparation", "expectation", "maximization")),
        number(kept["images_per_s"], ".0f"),
        number(case["gflop_per_image"], ".4f"),
        number(case["gemm_gflops"], ".1f"),
        number(case["share"], ".2f"),
        number(case["largest_error"], ".2g"),
        number(case["changed_best"], ".3f"),
    ]


def _write(params: Params, where: dict[str, Any], cases: Sequence[dict[str, Any]]) -> None:
    references = REFERENCES.format(iterations=params.iter)
    command = command_line("bench engine", params)
    table = markdown(HEAD, [cells(case) for case in cases])
    title = f"The engine alone, {params.particles} images"
    told = {"command": command, "parameters": as_dict(params), "machine": where, "references": references}
    write_json(params.o / "engine.json", {**told, "cases": list(cases)})
    page = f"{heading(title, where)}\n{table}\n{NOTE}\n\nReferences: {references}.\n\n    {command}\n"
    write_text(params.o / "engine.md", page)
    print(f"\n{table}\n{NOTE}\n\n{params.o / 'engine.md'}")

"""`polarice bench class2d`: Polarice and other programs in turn on the same particles."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from polarice.bench import programs
from polarice.bench.folder import DIAMETER_A, heading, make_folder, simulated, write_json, write_text
from polarice.bench.measure import last_lines, measure
from polarice.bench.programs import Program, Task
from polarice.bench.results import HEAD, Result, cells, markdown, notes, reached, rows
from polarice.project.params import Parameters, argument, as_dict, command_line, option, output
from polarice.types import InputError

SHIFTS = 13  # of the expectation whose products are counted

SUMMARY = "time and score Polarice and other programs on the same particles"
DIAMETER_OF_BOX = 0.8  # of a given table


@dataclass(frozen=True)
class Params(Parameters):
    """The particles, and who takes part."""

    table: Path | None = argument("particles.star of RELION; without it, particles are simulated", flags=("--i",))
    o: Path = output("bench", "folder for bench.json, bench.md, bench.png and the runs")
    particles: int = option(2000, "number of simulated particles", low=30, high=10_000_000)
    box: int = option(128, "box of the simulated particles", unit="px", low=16, high=1024)
    snr: float = option(0.05, "signal-to-noise ratio of the simulated particles", low=1e-6)
    k: int = option(20, "number of classes", low=1, high=100_000, flags=("-k", "--K"))
    iter: int = option(25, "number of iterations", low=1, high=999)
    fewer: tuple[int, ...] = option(
        (), "further runs of Polarice, with so many iterations each, to find what the others' quality takes", low=1
    )
    particle_diameter: float | None = option(
        None, "particle diameter", derived="the ribosome's, or 80 % of the table's box", unit="A", low=1
    )
    ctf: bool = option(True, "correct for the contrast transfer function")
    peer_particles: int = option(400, "the other programs get the first of the particles, so many at most", low=1)
    peer_iter: int | None = option(None, "iterations of the other programs", derived="as --iter", low=1, high=999)
    relion: bool = option(True, "let relion_refine take part, if it is on PATH")
    peer: tuple[str, ...] = option(
        (), "command of another program, naming {particles} {out} {k} {iter} {threads} {diameter} {seed}"
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where Polarice computes")
    threads: int | None = option(
        None, "CPU threads of every program", derived="all cores", low=1, high=1024, flags=("--j",)
    )
    seed: int = option(1, "seed of everything random", low=0)


@dataclass(frozen=True)
class Data:
    """The particles: all of them for Polarice, and a part for the others."""

    table: Path
    part: Path
    particles: int
    part_particles: int
    box_px: int
    pixel_A: float
    diameter_A: float
    truth: Path | None


def run(params: Params) -> None:
    """Run every program, score, and write the tables. Raises InputError for what cannot be used."""
    from polarice.bench.timing import cores, machine
    from polarice.runs.resources import Computing

    others = programs.peers(params.peer)
    if params.relion:
        found = programs.relion(params.ctf)
        others = ([found] if found else []) + others
        if not found:
            print("relion_refine is not on PATH and does not take part (Debian, Ubuntu: apt-get install relion)")
    threads = params.threads or cores()
    if params.table is None:
        _require_enough(params, params.particles)
    make_folder(params.o, empty=True)
    where = machine(Computing(threads=threads, device=params.device))
    data = _data(params, threads)
    taking_part = programs.told_apart([*_ours(params, data, bool(others)), *others])
    results: list[Result] = []
    for place, program in enumerate(taking_part, 1):
        print(f"{place}/{len(taking_part)}  {program.name}", flush=True)
        results.append(_result(program, params, data, threads))
        if results[-1].usage.exit_code != 0:
            print(f"{program.name} failed ({results[-1].usage.exit_code}); the end of {results[-1].log}:")
            print(last_lines(Path(results[-1].log)), flush=True)
        elif place == 1:
            results[-1] = replace(results[-1], gemm_share=_gemm_share(params, data, where))
        told = _write(params, data, where, rows(results, data.particles, params.iter))
    print(f"\n{told}\n\n{params.o / 'bench.md'}")
    if results[0].usage.exit_code != 0:
        raise InputError(f"polarice itself failed; see {results[0].log}")


def _ours(params: Params, data: Data, compared: bool) -> list[Program]:
    """Our runs: the one that is asked for, shorter ones, and the same on the part of the particles that others get."""
    asked = programs.polarice(params.device, params.ctf)
    whole = [asked, *(programs.shorter(asked, iterations) for iterations in params.fewer)]
    if not compared or data.part_particles == data.particles:
        return whole
    return whole + [replace(each, name=f"{each.name}-part", part=True) for each in whole]


def _require_enough(params: Params, particles: int) -> None:
    """Raise InputError where some program would have fewer particles than classes."""
    least = min(particles, params.peer_particles)
    if params.k > least:
        raise InputError(
            f"--k {params.k}: more classes than particles ({particles}, of which other programs get {least}); ask for "
            "fewer, or for more particles with --particles and --peer-particles"
        )


def _data(params: Params, threads: int) -> Data:
    """The table, simulated where none is given, and the part of it that the other programs get.

    In the part, stacks are named from the root, so that they are found from any folder.
    """
    import numpy as np

    from polarice.io.particles import read_particles, write_particles

    given = params.table or simulated(params, params.o / "data", params.box, threads)
    table = read_particles(given, need_ctf=params.ctf)
    n = len(table.particles)
    _require_enough(params, n)
    part_n = min(n, params.peer_particles)
    part = params.o / "part.star"
    chosen = table.take(np.arange(part_n))
    stacks, sections = chosen.particles.stacks, chosen.particles.section
    names = [f"{i + 1:06d}@{stacks[j]}" for i, j in zip(sections, chosen.particles.stack_of, strict=True)]
    write_particles(part, chosen, columns={"rlnImageName": names})
    optics = table.particles.optics[int(table.particles.optics_of[0])]
    usual_A = DIAMETER_A if params.table is None else DIAMETER_OF_BOX * optics.box_px * optics.pixel_size_A
    return Data(
        table=given,
        part=part,
        particles=n,
        part_particles=part_n,
        box_px=optics.box_px,
        pixel_A=optics.pixel_size_A,
        diameter_A=params.particle_diameter or usual_A,
        truth=_truth(given, len(table.particles.stacks)),
    )


def _truth(table: Path, stacks: int) -> Path | None:
    """truth.npz beside the table, whose rows are the sections of one stack."""
    truth = table.with_name("truth.npz")
    if truth.exists() and stacks > 1:
        print(f"{truth} is left alone: {table} names {stacks} stacks, and a truth is of one")
        return None
    return truth if truth.exists() else None


def _result(program: Program, params: Params, data: Data, threads: int) -> Result:
    """Run one program to its end and read what it left."""
    kind = "run" if program.ours else "peer"
    out, log = (
        params.o / ("run" if program.name == "polarice" else f"{kind}_{program.name}"),
        params.o / f"{program.name}.log",
    )
    on_all = program.ours and not program.part
    task = Task(
        particles=data.table if on_all else data.part,
        out=out,
        k=params.k,
        iter=program.iterations or (params.iter if program.ours else params.peer_iter or params.iter),
        threads=threads,
        diameter=data.diameter_A,
        seed=params.seed,
    )
    out.mkdir(exist_ok=True)
    particles = data.particles if on_all else data.part_particles
    result = Result(
        program=program.name,
        version=program.version,
        command=shlex.join(program.command(task)),
        log=str(log),
        particles=particles,
        iterations=task.iter,
        usage=measure(program.started_as(task), log),
        compared=particles * task.iter,
        ours=program.ours,
    )
    if result.usage.exit_code != 0:
        return result
    result = replace(result, iterations_s=programs.iteration_seconds(out, task.iter))
    return _scored(_clocked(result, out) if program.ours else result, out, data.truth)


def _clocked(result: Result, out: Path) -> Result:
    """With what Polarice's own history tells: times by stage, images compared."""
    from polarice.report import read_history

    history = read_history(out)
    stages: dict[str, float] = {}
    for row in history:
        for stage, seconds in row["seconds"].items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    return replace(
        result,
        compared=sum(row["particles_used"] for row in history),
        iterations_s=tuple(sum(row["seconds"].values()) for row in history),
        stages_s=stages,
    )


def _gemm_share(params: Params, data: Data, where: dict[str, Any]) -> float:
    """Share of the machine's rate of matrix products, in one more expectation after the run."""
    from polarice.bench.engine import shares
    from polarice.bench.timing import time_passes
    from polarice.jobs import class2d

    finished = class2d.Params(
        particles=data.table,
        o=params.o / "run",
        k=params.k,
        iter=params.iter,
        particle_diameter=data.diameter_A,
        ctf=params.ctf,
        device=params.device,
        threads=where["threads"],
    )
    return shares(time_passes(finished, SHIFTS, repeat=1), where["gemm_gflops"])["share"]


def _scored(result: Result, out: Path, truth: Path | None) -> Result:
    if truth is None:
        return result
    try:
        return replace(result, score=programs.score(out, truth))
    except InputError as error:
        return replace(result, note=f"not scored: {error}")


def _write(params: Params, data: Data, where: dict[str, Any], found: list[dict[str, Any]]) -> str:
    """bench.json, bench.md and bench.png of the programs that have run so far; returns the table and its notes."""
    from polarice.bench.picture import write_picture

    command = command_line("bench class2d", params)
    title = f"{data.particles} particles of {data.box_px} px, K = {params.k}, threads: {where['threads']}"
    table = markdown(HEAD, [cells(row) for row in found])
    text = "\n\n".join([table.rstrip("\n"), *notes(found)])
    told = {
        "command": command,
        "parameters": as_dict(params),
        "machine": where,
        "data": {
            "table": str(data.table),
            "particles": data.particles,
            "box_px": data.box_px,
            "pixel_size_A": data.pixel_A,
            "diameter_A": data.diameter_A,
            "simulated": params.table is None,
            "truth": data.truth is not None,
        },
        "programs": found,
        "reached": reached(found),
    }
    write_json(params.o / "bench.json", told)
    write_text(params.o / "bench.md", f"{heading(title, where)}\n{text}\n\n    {command}\n")
    write_picture(params.o / "bench.png", found, title)
    return text

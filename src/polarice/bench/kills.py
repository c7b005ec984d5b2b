"""`polarice bench kills`: ranks of a job are killed at random moments; whether anything is lost by it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polarice.bench import job_kills
from polarice.bench.folder import DIAMETER_A, heading, make_folder, simulated, write_json, write_text
from polarice.bench.rank_processes import ranks_in
from polarice.bench.results import markdown
from polarice.bench.scaling_runs import launch_words
from polarice.project.params import Parameters, as_dict, command_line, option, output
from polarice.types import InputError

SUMMARY = "kill ranks of a job at random moments, go on each time, and compare with a run that was left alone"
OUT = "out"
SAME_AVERAGES = 1e-4  # of the largest value
FEWEST_RANKS = 2  # that a run goes on with
ENDED_S = 120.0  # after which a run that was killed hangs
LEFT_S = 5.0  # for processes to be gone after the launcher

Start = Callable[[Sequence[str], int], "subprocess.Popen[str]"]


@dataclass(frozen=True)
class Params(Parameters):
    """The job, and how often it is killed."""

    o: Path = output("bench_kills", "folder for kills.json, kills.md, particles and runs")
    kills: int = option(100, "how many times a rank is killed", low=1, high=100_000)
    jobs: tuple[str, ...] = option(
        (), "kill these jobs, each on all of --ranks", derived="class2d, again and again", choices=job_kills.JOBS
    )
    ranks: tuple[int, ...] = option(
        (4,), "ranks that a run begins with; without --jobs it goes on with two or more", low=1, high=1024
    )
    particles: int = option(1000, "number of simulated particles", low=30, high=10_000_000)
    box: int = option(64, "box of the simulated particles", unit="px", low=16, high=1024)
    snr: float = option(0.2, "signal-to-noise ratio of the simulated particles", low=1e-6)
    k: int = option(10, "number of classes", low=1, high=1000, flags=("-k", "--K"))
    iter: int = option(10, "number of iterations", low=1, high=999)
    launcher: str = option("mpirun -n {ranks}", "what starts the ranks")
    seed: int = option(1, "seed of everything random", low=0)


@dataclass(frozen=True)
class Kill:
    """One rank killed, and what came of it."""

    ranks: int
    rank: int
    after_s: float  # since the ranks were there
    together: bool  # whether the ranks had met, and not yet parted at the end; before, the launcher is to tell of it
    iteration: int  # the last that was done
    named: bool  # whether the message names the rank
    ended_s: float  # until the launcher had ended
    left: int  # processes that were still there then
    kept: bool  # whether no iteration was lost that had been done before
    said: str  # the message's end, where it does not name the rank


@dataclass(frozen=True)
class Campaign:
    """A job in `folder` that is started again and again; `start` starts its words on so many ranks."""

    folder: Path
    words: Sequence[str]  # of the command line, results to OUT
    start: Start
    ranks: int
    span_s: float  # kills come within this time, once the ranks are there
    seed: int

    def kills(self, count: int, compare: Callable[[Path], None]) -> list[Kill]:
        """Kill so often, going on each time; every run that comes to its end is handed to `compare`, and removed."""
        rng, found = random.Random(self.seed), list[Kill]()
        out, done, words, ranks, whole = self.folder / OUT, 0, self.words, self.ranks, False
        while len(found) < count or not whole:
            process = self.start(words, ranks)
            until = time.monotonic() + ENDED_S
            while len(ranks_in(self.folder)) < ranks and process.poll() is None:
                if time.monotonic() > until:
                    process.kill()
                    raise InputError(f"{ranks} ranks are not seen here after {ENDED_S:.0f} s; try another --launcher")
                time.sleep(0.005)
            victim, together = None, False
            if len(found) < count:
                after_s = rng.uniform(0, self.span_s)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(after_s)
                victim, met = _killed(self.folder, rng)
                together = met and not _reported(out)
            since = time.monotonic()
            try:
                _, said = process.communicate(timeout=ENDED_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise InputError(f"{self.folder}: a killed job was still there after {ENDED_S:.0f} s") from None
            ended_s, before, done = time.monotonic() - since, done, last_iteration(out)
            over = process.returncode == 0 or "iterations are done" in said
            if not over and victim is None:
                raise InputError(f"{self.folder}: a run failed that nobody killed: {said.strip()[-500:]}")
            whole = over
            if not over and victim is not None:
                named = f"error: rank {victim} on " in said
                left, words_said = _left(self.folder), "" if named else said.strip()[-300:]
                kept = done >= before
                found.append(Kill(ranks, victim, after_s, together, done, named, ended_s, left, kept, words_said))
                words, ranks = self.again(), rng.randint(min(FEWEST_RANKS, self.ranks), self.ranks)
            else:
                compare(out)
                shutil.rmtree(out)
                words, ranks, done = self.words, self.ranks, 0
        return found

    def again(self) -> Sequence[str]:
        """The command that goes on; the first one again where nothing had been begun."""
        return [self.words[0], "--continue", OUT] if (self.folder / OUT / "job.json").exists() else self.words


def _killed(folder: Path, rng: random.Random) -> tuple[int | None, bool]:
    """The rank that was killed (None where all had gone), and whether it had met the others: then it has PyTorch."""
    there = ranks_in(folder)
    if not there:
        return None, False
    rank, met = rng.choice(sorted(there)), False
    with suppress(OSError):
        met = "libtorch" in Path(f"/proc/{there[rank]}/maps").read_text()
        os.kill(there[rank], signal.SIGKILL)
    return rank, met


def _reported(out: Path) -> bool:
    """Whether the run has come to its end: the report of its last iteration is there."""
    from polarice.runs.resume import finished

    return finished(out, last_iteration(out))


def _left(folder: Path) -> int:
    """Ranks that outlive their launcher by more than LEFT_S."""
    until = time.monotonic() + LEFT_S
    while (there := ranks_in(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    return len(there)


def last_iteration(out: Path) -> int:
    """The last that has a checkpoint; 0 where none has."""
    from polarice.runs.checkpoint import checkpoints

    return max(checkpoints(out), default=0)


def differences(out: Path, other: Path) -> tuple[int, float]:
    """Particles in other classes after the last iteration, and the largest difference of averages over the largest
    value. InputError where the two have not done the same iterations."""
    import numpy as np

    number = last_iteration(out)
    if number != last_iteration(other):
        raise InputError(f"{out}: ended with iteration {number}, the run left alone with {last_iteration(other)}")
    name = f"run_it{number:03d}_polarice.npz"
    with np.load(out / name) as one, np.load(other / name) as two:
        moved = int((one["pose.class_of"] != two["pose.class_of"]).sum())
        return moved, float(np.abs(one["model.field"] - two["model.field"]).max() / np.abs(two["model.field"]).max())


def run(params: Params) -> None:
    """Kill, go on, compare, write. Raises InputError where mpirun is missing, and where a run fails by itself."""
    from polarice.bench.timing import machine
    from polarice.runs.resources import Computing

    if params.jobs:
        _run_jobs(params)
        return
    if len(params.ranks) != 1 or params.ranks[0] < FEWEST_RANKS:
        raise InputError(f"--ranks: {FEWEST_RANKS} or more, one number; several, and 1, go with --jobs")
    [ranks] = params.ranks
    launch_words(params.launcher, ranks)
    make_folder(params.o, empty=False)
    table = simulated(params, params.o / f"{params.particles}_of_{params.box}px", params.box, 1).absolute()
    words = ["class2d", str(table), "--o", OUT, "--k", str(params.k), "--iter", str(params.iter), "--threads", "1"]
    words += ["--particle-diameter", f"{DIAMETER_A:g}", "--seed", str(params.seed), "--device", "cpu"]
    where = machine(Computing(threads=1, device="cpu"))
    alone, several, killed = ((params.o / name).resolve() for name in ("alone", "several", "killed"))
    for folder in (alone, several, killed):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    _left_alone(_starter(params, alone), words, 1)
    since = time.monotonic()
    _left_alone(_starter(params, several), words, ranks)
    span_s = time.monotonic() - since
    compared = [differences(several / OUT, alone / OUT)]
    campaign = Campaign(killed, words, _starter(params, killed), ranks, span_s, params.seed)
    print(f"{params.kills} kills within {span_s:.1f} s each", flush=True)
    found = campaign.kills(params.kills, lambda out: compared.append(differences(out, alone / OUT)))
    told = {
        "command": command_line("bench kills", params), "parameters": as_dict(params), "machine": where,
        "span_s": span_s, "kills": [asdict(each) for each in found],
        "ends": [{"particles_in_other_classes": moved, "averages": off} for moved, off in compared],
    }  # fmt: skip
    _write(params, told, found, compared)


def _run_jobs(params: Params) -> None:
    """Kill each of the jobs on each number of ranks in turn, compare, write."""
    from polarice.bench.kill_inputs import make_inputs
    from polarice.bench.timing import machine
    from polarice.runs.resources import Computing

    for ranks in params.ranks:
        launch_words(params.launcher, ranks)
    make_folder(params.o, empty=False)
    table = simulated(params, params.o / f"{params.particles}_of_{params.box}px", params.box, 1)
    tasks = make_inputs(params.o / "inputs", table)
    bench = job_kills.Bench(params.o.absolute(), lambda ranks: launch_words(params.launcher, ranks))
    chosen = [tasks[job] for job in params.jobs]
    found = job_kills.campaign(bench, chosen, params.ranks, params.kills, params.seed)
    command, where = command_line("bench kills", params), machine(Computing(threads=1, device="cpu"))
    told = {"command": command, "parameters": as_dict(params), "machine": where}
    write_json(params.o / "kills.json", told | {"kills": [asdict(each) for each in found]})
    lost = "Nothing was lost." if job_kills.sound(found) else "Something was lost: see kills.json."
    page = f"{markdown(job_kills.HEAD, job_kills.rows_of(found))}\n{lost}\n"
    title = f"Jobs killed {len(found)} times"
    write_text(params.o / "kills.md", f"{heading(title, where)}\n{page}\n    {command}\n")
    print(f"\n{page}\n{params.o / 'kills.md'}")


def _starter(params: Params, folder: Path) -> Start:
    def start(words: Sequence[str], ranks: int) -> subprocess.Popen[str]:
        command = [*launch_words(params.launcher, ranks), sys.executable, "-m", "polarice", *words]
        return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    return start


def _left_alone(start: Start, words: Sequence[str], ranks: int) -> None:
    process = start(words, ranks)
    _, said = process.communicate()
    if process.returncode != 0:
        raise InputError(f"the run on {ranks} ranks failed: {said.strip()[-500:]}")


def _write(params: Params, told: dict[str, Any], found: Sequence[Kill], compared: Sequence[tuple[int, float]]) -> None:
    """kills.json, kills.md."""
    ended = sorted(each.ended_s for each in found)
    during = [sum(each.iteration == number for each in found) for number in range(params.iter + 1)]
    rows = [
        ("kills", str(len(found))),
        ("of them after 0, 1, ... iterations", ", ".join(map(str, during))),
        ("iterations lost that had been done", str(sum(not each.kept for each in found))),
        ("runs that came to their end, compared with one rank left alone", str(len(compared))),
        ("particles of them in another class", str(sum(moved for moved, _ in compared))),
        ("largest difference of averages, over the largest value", f"{max(off for _, off in compared):.1e}"),
        (
            "messages that name the rank, of kills while the ranks were together",
            f"{sum(each.named for each in found if each.together)} of {sum(each.together for each in found)}",
        ),
        ("seconds until all had ended: median, longest", f"{ended[len(ended) // 2]:.2f}, {ended[-1]:.2f}"),
        ("processes left behind", str(sum(each.left for each in found))),
    ]
    lost = any(not each.kept or each.left for each in found)
    lost |= any(moved or off > SAME_AVERAGES for moved, off in compared)
    verdict = "Something was lost: see kills.json." if lost else "Nothing was lost."
    page = f"{markdown(('what', 'found'), rows)}\n{verdict}\n"
    title = f"class2d on {params.ranks[0]} ranks, killed {len(found)} times"
    write_json(params.o / "kills.json", told)
    write_text(params.o / "kills.md", f"{heading(title, told['machine'])}\n{page}\n    {told['command']}\n")
    print(f"\n{page}\n{params.o / 'kills.md'}")

"""Any job killed at random moments, run again to its end, and compared with a run that was left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polarice.types import InputError

JOBS = (
    "motion", "ctf", "pick", "extract", "align2d", "class2d", "sml", "deep2d", "initial3d", "refine3d", "reconstruct",
    "run",
)  # fmt: skip
ONE_PROCESS = ("initial3d", "reconstruct", "run")  # of these, that no ranks share
OUT = "out"
ROUNDING = 1e-4  # of the largest value: what sums over ranks in another order may differ by
ENDED_S = 120.0
LEFT_S = 5.0  # for processes to be gone after the first of them
_OWN_TIMES = (
    "job.json",
    "report.html",
    "index.html",
    "usage.json",
    "state.json",
    "report_times.png",
)  # say when and how long, not what
_SAYS_WHEN = ("seconds", "mark", "date", "time", "started", "finished", "inputs", "files", "check")
_SHOWN = 200  # characters of a message

Launch = Callable[[int], list[str]]  # words that start so many ranks


@dataclass(frozen=True)
class Task:
    """A job's command line, its results to OUT of the working directory."""

    job: str
    words: tuple[str, ...]
    continues: bool  # goes on by --continue; else by the same command

    def again(self, place: Path) -> tuple[str, ...]:
        """The command that goes on with what lies in `place`; the first one again where nothing had been begun."""
        there = self.continues and (place / OUT / "job.json").exists()
        return (self.job, "--continue", OUT) if there else self.words


@dataclass(frozen=True)
class Blow:
    """When a run is killed, and which of its ranks; None: all of its processes at once."""

    after_s: float
    rank: int | None


@dataclass(frozen=True)
class Fell:
    """A kill, and what came of it."""

    job: str
    ranks: int
    blow: Blow
    stage: str  # what was there then
    failed: str  # what the run said that should have gone on; "" where it came to its end
    differing: tuple[str, ...]  # results that are not as those of the run left alone
    missing: tuple[str, ...]
    leftovers: tuple[str, ...]  # files that the run left alone does not leave
    processes: int  # that outlived the run


def blow_of(rng: random.Random, span_s: float, ranks: int) -> Blow:
    """A moment within the run, and one rank or, every other time, all."""
    return Blow(rng.uniform(0, span_s), rng.randrange(ranks) if rng.random() < 0.5 else None)


@dataclass(frozen=True)
class Bench:
    """Where runs are made, and how ranks are started."""

    folder: Path
    launch: Launch

    def start(self, words: Sequence[str], place: Path, ranks: int) -> subprocess.Popen[str]:
        """Start the command in `place`; its temporary files go to a folder of it."""
        (place / "tmp").mkdir(parents=True, exist_ok=True)
        told = os.environ | {"TMPDIR": str(place / "tmp"), "OMP_NUM_THREADS": "1"}
        command = [*self.launch(ranks), sys.executable, "-m", "polarice", *words]
        silent = subprocess.DEVNULL
        return subprocess.Popen(command, cwd=place, env=told, stdout=silent, stderr=subprocess.PIPE, text=True)

    def alone(self, task: Task, ranks: int) -> tuple[Path, float]:
        """A run that nobody kills: its folder, and the seconds it takes. InputError where it fails."""
        place = self._fresh(f"{task.job}{ranks}_alone", task)
        since = time.monotonic()
        process = self.start(task.words, place, ranks)
        _, said = process.communicate()
        if process.returncode:
            raise InputError(f"{task.job} on {ranks} ranks failed, and nobody killed it: {said.strip()[-_SHOWN:]}")
        return place, time.monotonic() - since

    def kill(self, task: Task, ranks: int, blow: Blow, alone: Path) -> Fell | None:
        """One run, killed, and run again to its end; None where it had ended before. Its folder stays where it went
        wrong."""
        place = self._fresh(f"{task.job}{ranks}_killed", task)
        process = self.start(task.words, place, ranks)
        with suppress(subprocess.TimeoutExpired):
            process.wait(blow.after_s)
        if process.poll() is not None:
            process.communicate()
            return None
        stage = stage_of(place / OUT)
        _strike(process, place, blow)
        processes = _ended(process, place)
        process = self.start(task.again(place), place, ranks)
        try:
            _, said = process.communicate(timeout=ENDED_S)
        except subprocess.TimeoutExpired:
            said = f"still there after {ENDED_S:.0f} s"
            _ended(process, place, 0.0)
        over = process.returncode == 0 or "iterations are done" in said  # killed behind its last line
        found = compared(place, alone, ROUNDING if ranks > 1 else 0.0)
        fell = Fell(task.job, ranks, blow, stage, "" if over else said.strip()[-_SHOWN:], *found, processes)
        if fell.failed or fell.differing or fell.missing or fell.leftovers:
            kept = self.folder / f"kept_{task.job}{ranks}_{blow.after_s:.3f}s"
            shutil.rmtree(kept, ignore_errors=True)
            place.rename(kept)
        return fell

    def _fresh(self, name: str, task: Task) -> Path:
        place = (self.folder / name).resolve()
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if task.job == "run":  # steps are done beside the workflow's file
            shutil.copy(self.folder / "inputs/flow.toml", place)
        return place


def processes_in(folder: Path) -> list[int]:
    """Numbers of the processes whose working directory is this one."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(each / "cwd") == str(folder) and "State:\tZ" not in (each / "status").read_text():
                found.append(int(each.name))
    return found


def _strike(process: subprocess.Popen[str], place: Path, blow: Blow) -> None:
    """Kill the rank, or all; the launched process itself where it is the only rank, or the ranks are not there yet."""
    from polarice.bench.rank_processes import ranks_in

    victims = processes_in(place) if blow.rank is None else [ranks_in(place).get(blow.rank, process.pid)]
    for victim in victims or [process.pid]:
        with suppress(OSError):
            os.kill(victim, signal.SIGKILL)


def _ended(process: subprocess.Popen[str], place: Path, patience_s: float = ENDED_S) -> int:
    """Wait for the end; how many processes outlive it by more than LEFT_S. They are killed then."""
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=patience_s)
    until = time.monotonic() + LEFT_S
    while (there := processes_in(place)) and time.monotonic() < until:
        time.sleep(0.02)
    for each in there:
        with suppress(OSError):
            os.kill(each, signal.SIGKILL)
    if there:
        process.communicate()
    return len(there)


def stage_of(out: Path) -> str:
    """What a run has left so far, in words."""
    if not out.exists():
        return "before its folder"
    records = len(list(out.rglob("*_polarice.json")))
    checkpoints = len(list(out.rglob("run_it*_polarice.npz")))
    if records or checkpoints:
        return f"{records} micrographs" if records else f"{checkpoints} iterations"
    return "before its first result"


# -- comparison --------------------------------------------------------------------------------------------------------


def compared(place: Path, alone: Path, rounding: float) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(differing, missing, left over) of the files in `place`, against those of the run left alone.

    Dates and times are not compared; numbers may differ by `rounding` of the largest, where it is not 0.
    """
    here, there = (_files(folder) for folder in (place, alone))
    both = sorted(here & there)
    differing = tuple(name for name in both if not same(place / name, alone / name, rounding))
    return differing, tuple(sorted(there - here)), tuple(sorted(here - there))


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def same(one: Path, two: Path, rounding: float) -> bool:
    """Whether two result files say the same, dates and times left out."""
    if one.name in _OWN_TIMES or one.name.endswith("_done.json") or one.suffix in (".html", ".log"):
        return True
    if one.suffix in (".mrc", ".mrcs"):
        return _same_sections(one, two, rounding)
    if one.suffix == ".npz":
        with np.load(one) as first, np.load(two) as second:
            return first.files == second.files and all(
                _same_numbers(first[name], second[name], rounding) for name in first.files
            )
    if one.suffix == ".star":
        return _same_words(_words(one), _words(two), rounding)
    if one.suffix in (".json", ".jsonl"):
        return _same_words(list(_facts(one)), list(_facts(two)), rounding)
    return one.read_bytes() == two.read_bytes() or bool(rounding and one.suffix in (".png", ".jpg", ".gif", ".mp4"))


def _same_sections(one: Path, two: Path, rounding: float) -> bool:
    from polarice.io.mrc import open_stack

    return _same_numbers(open_stack(one), open_stack(two), rounding)


def _same_numbers(one: np.ndarray, two: np.ndarray, rounding: float) -> bool:
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if one.tobytes() == two.tobytes():
        return True
    if not rounding or one.dtype.kind != "f":
        return False
    wide, other = one.astype(np.float64), two.astype(np.float64)
    return bool(np.abs(wide - other).max() <= rounding * max(float(np.abs(other).max()), 1e-30))


def _words(path: Path) -> list[str]:
    """Of a STAR file without its comments."""
    return [word for line in path.read_text().splitlines() if not line.startswith("#") for word in line.split()]


def _facts(path: Path) -> Iterator[str]:
    """Names and values of JSON, but those that say when and how long."""

    def walk(value: Any, name: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key in sorted(value):
                if not any(part in key for part in _SAYS_WHEN):
                    yield from walk(value[key], f"{name}.{key}")
        elif isinstance(value, list):
            for number, each in enumerate(value):
                yield from walk(each, f"{name}.{number}")
        else:
            yield from (name, str(value))

    texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    for text in texts:
        yield from walk(json.loads(text), "")


def _same_words(one: list[str], two: list[str], rounding: float) -> bool:
    if one == two or not rounding:
        return one == two
    return len(one) == len(two) and all(a == b or _near(a, b, rounding) for a, b in zip(one, two, strict=True))


def _near(one: str, two: str, rounding: float) -> bool:
    try:
        a, b = float(one), float(two)
    except ValueError:
        return False
    return abs(a - b) <= max(rounding * max(abs(a), abs(b)), 2e-6)  # tables have six decimals


# -- what is found -----------------------------------------------------------------------------------------------------


def campaign(bench: Bench, tasks: Sequence[Task], ranks: Sequence[int], kills: int, seed: int) -> list[Fell]:
    """So many kills, shared out over jobs and numbers of ranks in turn."""
    pairs = [(task, number) for task in tasks for number in ranks if task.job not in ONE_PROCESS or number == 1]
    if not pairs:
        raise InputError(f"{', '.join(ONE_PROCESS)} work in one process; give --ranks 1, or other --jobs")
    rng, found, alone = random.Random(seed), list[Fell](), dict[tuple[str, int], tuple[Path, float]]()
    for number in range(kills):
        task, count = pairs[number % len(pairs)]
        key = task.job, count
        if key not in alone:
            alone[key] = bench.alone(task, count)
        place, span_s = alone[key]
        while (fell := bench.kill(task, count, blow_of(rng, span_s, count), place)) is None:
            span_s *= 0.9  # it had ended before: this machine is faster now
        found.append(fell)
        print(f"{task.job} on {count}: {fell.blow.after_s:.2f} s, {fell.stage}: {verdict(fell)}", flush=True)
    return found


def verdict(fell: Fell) -> str:
    """What came of it in a few words."""
    told = [f"failed ({fell.failed})"] if fell.failed else []
    for what, names in (("missing", fell.missing), ("differing", fell.differing), ("left over", fell.leftovers)):
        told += [f"{what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"] if names else []
    told += [f"{fell.processes} processes left behind"] if fell.processes else []
    return "; ".join(told) or "as if nothing had been"


def rows_of(found: Sequence[Fell]) -> list[tuple[str, ...]]:
    """A row for each job and number of ranks: kills, where they fell, lost, differing, left over, processes."""
    rows = []
    for job, ranks in dict.fromkeys((each.job, each.ranks) for each in found):
        mine = [each for each in found if (each.job, each.ranks) == (job, ranks)]
        stages = [each.stage for each in mine]
        where = ", ".join(f"{stage} ({stages.count(stage)})" for stage in dict.fromkeys(stages))
        counts = [sum(bool(each.failed or each.missing) for each in mine)]
        counts += [sum(bool(getattr(each, name)) for each in mine) for name in ("differing", "leftovers")]
        counts.append(sum(each.processes for each in mine))
        rows.append((job, str(ranks), str(len(mine)), where, *map(str, counts)))
    return rows


HEAD = ("job", "ranks", "kills", "where they fell", "lost", "differing", "left over", "processes left")


def sound(found: Sequence[Fell]) -> bool:
    """Whether nothing was lost, differs or was left behind."""
    return not any(each.failed or each.missing or each.differing or each.leftovers or each.processes for each in found)

"""What `polarice bench scaling` runs: whole jobs, and sums alone, on several ranks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polarice.bench.folder import DIAMETER_A, FIELD_A
from polarice.bench.measure import last_lines, measure
from polarice.types import InputError

VOLUMES = (4_000, 64_000, 1_000_000, 4_000_000, 16_000_000)
COMPUTE = ("preparation", "expectation", "maximization", "communication")


def launch_words(launcher: str, ranks: int) -> list[str]:
    """Words that start so many ranks; mpirun is looked for beside this Python first. InputError where it is missing."""
    if ranks == 1:
        return []
    words = launcher.format(ranks=ranks).split()
    beside = Path(sys.executable).with_name(words[0])
    found = str(beside) if beside.exists() else shutil.which(words[0])
    if found is None:
        raise InputError(f"{words[0]} is not there; pip install 'polarice[mpi]', or name another --launcher")
    return [found, *words[1:]]


def fastest(params: Any, table: Path, ranks: int, device: str) -> dict[str, Any]:
    """The fastest of a few runs from a cold cache, and how the others did."""
    launch = launch_words(params.launcher, ranks)
    names = [f"{device}{ranks}_{attempt + 1}" for attempt in range(params.repeat)]
    found = [one_run(params, table, (launch, device), name) for name in names]
    best = min(found, key=lambda each: float(each["compute_s"]))
    total = min(float(each["total_s"]) for each in found)
    cpu = min(float(each["cpu_s"]) for each in found)
    print(
        f"{ranks} ranks, {device}: compute {best['compute_s']:.2f} s, in all {total:.2f} s, busiest {cpu:.2f} s",
        flush=True,
    )
    return {
        "ranks": ranks, "device": device, **best, "total_s": total, "cpu_s": cpu,
        "all_compute_s": [each["compute_s"] for each in found],
    }  # fmt: skip


def one_run(params: Any, table: Path, how: tuple[Sequence[str], str], name: str) -> dict[str, Any]:
    """One job from a cold cache; how = (words that start its ranks, device). InputError where it fails."""
    from polarice.bench.rank_times import forget_cached
    from polarice.report.history import read_history

    (launch, device), out = how, params.o / name
    shutil.rmtree(out, ignore_errors=True)
    forget_cached(table.with_name("particles.mrcs"))
    words = [params.job, str(table.absolute()), "--o", str(out.absolute()), "--k", str(params.k)]
    words += ["--iter", str(params.iter), "--particle-diameter", f"{DIAMETER_A:g}", "--threads", str(params.threads)]
    command = [*launch, sys.executable, "-m", "polarice", *words, "--seed", str(params.seed), "--device", device]
    log = params.o / f"{name}.log"
    log.unlink(missing_ok=True)
    usage = measure(command, log)
    if usage.exit_code != 0:
        raise InputError(f"the run {name} failed; the end of {log}:\n{last_lines(log)}")
    own = json.loads((out / "usage.json").read_text())
    stages: dict[str, float] = {}
    history = read_history(out)
    for row in history:
        for stage, seconds in row["seconds"].items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    return {
        "compute_s": sum(stages.get(stage, 0.0) for stage in COMPUTE),
        "total_s": usage.wall_s,
        "cpu_s": max(own["cpu_s"]),
        "each_cpu_s": own["cpu_s"],
        "steps_s": own["steps_s"] | {"report": usage.wall_s - _before_report(own["steps_s"])},
        "stages_s": stages,
        "rings": round(FIELD_A / history[-1]["resolution_limit_A"]),
        "waited_s": own["waited_s"],
        "images": own["images"],
        "joules": own["joules"],
        "images_per_joule": own["images_per_joule"],
        "estimated_energy": bool(own["estimated"]),
    }


def time_sums(launch: Sequence[str], volumes: Sequence[int] = VOLUMES) -> list[float]:
    """Seconds of sums of so many bytes over the ranks that these words start."""
    words = [*launch, sys.executable, "-m", "polarice.bench.rank_times", *map(str, volumes)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputError(f"sums over several ranks failed: {done.stderr.strip()[-500:]}")
    return [float(each) for each in json.loads(done.stdout)]


def _before_report(steps_s: dict[str, float]) -> float:
    return sum(seconds for name, seconds in steps_s.items() if name != "report")

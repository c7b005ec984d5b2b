"""Batch scripts for any job, and what is known of those that were submitted.

Each module of this folder knows one scheduler: `script` writes its text, `submit` hands it over, `state` asks about it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import string
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polarice.io.atomic import replacing
from polarice.project.params import Parameters, argument, option, options_of
from polarice.project.registry import JOBS, load
from polarice.types import InputError

MS_PER_IMAGE = 1.0  # of one core and iteration, at 128 px and 50 classes; K and box are scaled from there
MS_PER_NODE = 7e-4  # the same of a map: of one node
USUAL_NODES = 1000  # of a map whose particles are not counted yet
SECONDS_EACH = {"motion": 45.0, "ctf": 1.0, "pick": 3.0, "extract": 5.0}  # of a movie of 4k x 4k, a micrograph
ITERATIONS = {"align2d": 25, "class2d": 30, "sml": 30, "deep2d": 30}  # where nothing is said
MARGIN = 4.0  # a job that runs out of time is worse than one that waits a little longer
OTHER_HOURS = 24.0  # of jobs that nothing is known of
KEPT = 200  # submissions remembered


@dataclass(frozen=True)
class Batch(Parameters):
    """What is asked of a scheduler."""

    job: tuple[str, ...] = argument("what to run, after --: class2d particles.star --o Class2D/job001 ...")
    nodes: int = option(1, "number of nodes", low=1, high=100_000)
    ranks: int | None = option(None, "ranks on each node", derived="one for each GPU, or 2", low=1, high=1024)
    cores: int | None = option(None, "cores of a node to use", derived="64, or all of this machine", low=1, high=4096)
    gpus: int = option(0, "GPUs of a node to use", low=0, high=64)
    hours: float | None = option(
        None, "time to ask for", unit="h", derived="estimated from the particles, their box and the classes", low=0.01
    )
    queue: str = option("", "partition or queue", derived="the cluster's own")
    account: str = option("", "account or project to charge", derived="the user's own")
    name: str = option("", "name of the job in the queue", derived="command and folder, as class2d-job001")
    script: Path | None = option(None, "where to write the script", derived="NAME.sh")
    launcher: str = option("", "what starts the ranks", derived="srun --mpi=pmi2, or mpirun with their number")
    submit: bool = option(False, "submit it")

    @property
    def title(self) -> str:
        """What the job is called in the queue, and its script and log."""
        return self.name or "-".join(filter(None, [self.job[0], re.sub(r"\W+", "_", Path(out_of(self.job)).name)]))

    @property
    def per_node(self) -> int:
        """Ranks on each node."""
        return self.ranks or self.gpus or min(2, self.node_cores)

    @property
    def node_cores(self) -> int:
        """Cores of a node to use."""
        return self.cores or 64

    @property
    def total(self) -> int:
        """Ranks in all."""
        return self.nodes * self.per_node

    @property
    def cores_of_rank(self) -> int:
        return max(1, self.node_cores // self.per_node)


@dataclass(frozen=True)
class Submission:
    """A job that was submitted."""

    system: str  # slurm, pbs, local
    id: str
    command: str
    folder: str  # working directory
    out: str  # the job's own folder, "" where it has none
    when: str


PROGRAM = "-m polarice"  # which stands in every script
MOST_SCRIPT_BYTES = 1 << 16


def write(batch: Any, system: str, head: Sequence[str], launcher: str) -> Path:
    """Write the script: the scheduler's lines, the environment, and the job, which goes on if it had been begun."""
    _require_job(batch.job)
    if strange := set(batch.title) - set(string.ascii_letters + string.digits + "._-"):
        raise InputError(f"--name {batch.title!r}: letters, digits, ., _ and - only, not {min(strange)!r}")
    for flag, value in (("--queue", batch.queue), ("--account", batch.account)):
        if any(character.isspace() or not character.isprintable() for character in value):
            raise InputError(f"{flag} {value!r}: one word, without blanks and line ends")
    path = batch.script or Path(f"{batch.title}.sh")
    if path.exists() and PROGRAM.encode() not in path.read_bytes()[:MOST_SCRIPT_BYTES]:
        raise InputError(f"{path}: stands there, and is no script of polarice cluster; name another with --script")
    ranks = f"{batch.launcher or launcher} " if batch.total > 1 else ""
    program = f"{ranks}{shlex.quote(sys.executable)} {PROGRAM}"
    again = going_on(batch.job)
    lines = ["#!/bin/bash", *head, "", "set -eu", f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"]
    lines += ["export GOMP_SPINCOUNT=20000", ""]
    if again:
        out = shlex.quote(str(Path(out_of(batch.job)) / "job.json"))
        lines += [f"if [ -e {out} ]; then  # it was begun, and is queued again", f"  exec {program} {again}", "fi"]
    lines += [f"exec {program} {shlex.join(batch.job)}", ""]
    if path.exists() and (out_of(_job_of(path)) or _job_of(path)) != (out_of(batch.job) or list(batch.job)):
        raise InputError(f"{path}: is the script of another job; name this one with --name or --script")
    with replacing(path, "w") as stream:
        stream.write("\n".join(lines))
    path.chmod(0o755)
    print(f"{path}: {batch.total} ranks on {batch.nodes} node{'s' if batch.nodes > 1 else ''}, {hours(batch):.2g} h")
    if not batch.submit:
        print("not submitted; --submit does that")
    return path


def _require_job(words: Sequence[str]) -> None:
    if not words or words[0] not in JOBS:
        raise InputError(f"no such command: {' '.join(words[:1])}; name it after --, as in -- class2d particles.star")


def _job_of(script: Path) -> list[str]:
    """The command of the job that a script of this program ends with; [] where it cannot be read."""
    try:
        return shlex.split(script.read_text(errors="replace").rpartition(PROGRAM)[2])
    except ValueError:
        return []


def out_of(words: Sequence[str]) -> str:
    """The folder that a job's command names with --o; "" where it names none."""
    return _given(words, "--o")


def _given(words: Sequence[str], *flags: str) -> str:
    """What a command gives for an option, by any of its flags; "" where it does not."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, _, value = word.partition("=")
        if flag in flags:
            return value or following
    return ""


def going_on(words: Sequence[str]) -> str:
    """The command that goes on with a job; "" where it cannot be known."""
    out = out_of(words)
    able = any(each.field == "continue_" for each in options_of(load(words[0]).Params))
    return shlex.join([words[0], "--continue", out]) if out and able else ""


def hours(batch: Any) -> float:
    """Time to ask for: as said, or estimated."""
    return estimated_hours(batch.job, batch.nodes * batch.node_cores) if batch.hours is None else float(batch.hours)


def estimated_hours(words: Sequence[str], cores: int) -> float:
    """Of a job on so many cores, from its table of particles or micrographs, with a margin; at least a quarter of an
    hour. OTHER_HOURS where nothing is known, or the table of micrographs is still to be made."""
    job, table = words[0], _given(words, "--i") or next((word for word in words[1:] if word.endswith(".star")), "")
    if table and job in ITERATIONS:
        seconds = _of_particles(words, table)
    elif job in SECONDS_EACH and Path(table or "-").exists():
        seconds = _of_micrographs(job, table)
    else:
        return OTHER_HOURS
    return max(0.25, math.ceil(4 * MARGIN * seconds / cores / 3600) / 4)


def _of_micrographs(job: str, table: str) -> float:
    """Seconds on one core."""
    from polarice.io.micrographs import read_micrographs

    return SECONDS_EACH[job] * len(read_micrographs(table, "movies" if job == "motion" else "micrographs").names)


def _of_particles(words: Sequence[str], table: str) -> float:
    """Seconds on one core."""
    from polarice.io.particles import read_particles

    particles = read_particles(table, _given(words, "--image-dir") or None, need_ctf=False).particles
    size = (particles.optics[int(particles.optics_of[0])].box_px / 128) ** 2
    classes = _classes(words)
    iterations = int(_given(words, "--iter") or ITERATIONS[words[0]])
    if words[0] in ("align2d", "class2d"):
        return _compared_s(len(particles) * iterations, size, classes)
    seconds = MS_PER_NODE * size * classes * len(particles) * iterations / 1e3
    if words[0] == "deep2d":
        align_k, align_iter = (int(_given(words, f"--align-{name}") or 0) for name in ("k", "iter"))
        seconds += _compared_s(len(particles) * (align_iter or ITERATIONS["align2d"]), size, align_k or 50)
    return seconds


def _classes(words: Sequence[str]) -> int:
    """How many a command asks for with --k, or takes without. Raises InputError for a grid that is none."""
    usual = next(each.default for each in options_of(load(words[0]).Params) if each.field == "k")
    given = _given(words, "--k", "-k", "--K") or str(usual or USUAL_NODES)
    try:
        return math.prod(int(each) for each in given.lower().split("x"))
    except ValueError:
        raise InputError(f"--k {given}: give a number, or of a map a grid such as 32x32") from None


def _compared_s(images: int, size: float, classes: int) -> float:
    """Seconds to compare so many images of `size` times 128 px squared."""
    return images * MS_PER_IMAGE * size * max(0.5, (classes / 50) ** 0.7) / 1e3


def clock(hours: float) -> str:
    """HH:MM:SS."""
    seconds = round(3600 * hours)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def asked(words: Sequence[str]) -> str:
    """What a program of the scheduler prints; InputError where it is not there or fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError(f"{words[0]} is not on PATH; submit the script where it is") from None
    if done.returncode != 0:
        raise InputError(f"{shlex.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def remembered() -> list[Submission]:
    """What was submitted from this account, the oldest first."""
    try:
        lines = _memory().read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [known for line in lines if (known := _submission(line)) is not None]


def _submission(line: str) -> Submission | None:
    """What a line of the memory says; None where it is damaged."""
    try:
        known = Submission(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    return known if known.command and all(isinstance(value, str) for value in vars(known).values()) else None


def remember(system: str, id: str, batch: Any) -> None:
    """Keep what was submitted, for `polarice status`."""
    out, when = out_of(batch.job), time.strftime("%Y-%m-%d %H:%M")
    new = Submission(system, id, shlex.join(batch.job), os.getcwd(), out and str(Path(out).absolute()), when)
    path = _memory()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "w") as stream:
        for each in [*remembered(), new][-KEPT:]:
            stream.write(json.dumps(asdict(each)) + "\n")
    print(f"submitted: {system} {id}; polarice status tells how it stands")


def _memory() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "polarice" / "submitted.jsonl"

"""The programs that take turns: how each is called, and what is read from what it leaves."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from polarice import __version__
from polarice.types import InputError

POLARICE = (
    "polarice class2d {particles} --o {out} --k {k} --iter {iter} --particle-diameter {diameter} --threads {threads} "
    "--seed {seed}"
)
RELION = (
    "relion_refine --i {particles} --o {out}/run --K {k} --iter {iter} --j {threads} --particle_diameter {diameter} "
    "--random_seed {seed} --tau2_fudge 2 --zero_mask --oversampling 1 --psi_step 12 --offset_range 5 --offset_step 2 "
    "--norm --scale --flatten_solvent --pad 2"
)
_INTERPRETERS = re.compile(r"python[\d.]*|sh|bash|env|mpirun")


@dataclass(frozen=True)
class Task:
    """What a program is asked to do; its fields are what a command template may name."""

    particles: Path
    out: Path  # folder, for this program alone
    k: int
    iter: int
    threads: int
    diameter: float  # Angstrom
    seed: int


@dataclass(frozen=True)
class Program:
    """A program and the template of its command, word by word."""

    name: str
    version: str | None
    words: tuple[str, ...]
    ours: bool = False
    part: bool = False  # gets the others' part of the particles, though it is ours
    iterations: int | None = None  # None: as many as are asked for

    def command(self, task: Task) -> list[str]:
        """As it is stated."""
        values = {**vars(task), "diameter": f"{task.diameter:g}"}
        return [word.format_map(values) for word in self.words]

    def started_as(self, task: Task) -> list[str]:
        """The command, with the program where it lies."""
        words = self.command(task)
        return [sys.executable, "-m", *words] if self.ours else words


def polarice(device: str, ctf: bool) -> Program:
    """This program, in a process of its own."""
    more = ["--device", device, *([] if ctf else ["--no-ctf"])]
    return Program("polarice", __version__, (*POLARICE.split(), *more), ours=True)


def shorter(ours: Program, iterations: int) -> Program:
    """Ours, with another number of iterations."""
    return replace(ours, name=f"{ours.name}-{iterations}", iterations=iterations)


def relion(ctf: bool) -> Program | None:
    """RELION's 2D classification; None where it is not on PATH."""
    if shutil.which("relion_refine") is None:
        return None
    more = ["--ctf"] if ctf else []
    if "--center_classes" in _said("relion_refine", "--help"):  # RELION 4 and later
        more.append("--center_classes")
    version = re.search(r"version:?\s*(\S+)", _said("relion_refine", "--version"))
    return Program("relion_refine", version[1] if version else None, (*RELION.split(), *more))


def peers(templates: Sequence[str]) -> list[Program]:
    """The programs of command templates. Raises InputError where one is not there, or a template makes no sense."""
    return [_peer(template) for template in templates]


def told_apart(found: Sequence[Program]) -> list[Program]:
    """The programs, those after the first of the same name numbered."""
    names = [each.name for each in found]
    before = [names[:place].count(name) for place, name in enumerate(names)]
    return [replace(each, name=f"{each.name}-{n + 1}") if n else each for each, n in zip(found, before, strict=True)]


def _peer(template: str) -> Program:
    try:
        words = tuple(shlex.split(template))
    except ValueError as error:
        raise InputError(f"--peer {template!r}: cannot be split into words ({error}); correct the quotes") from error
    if not words:
        raise InputError("--peer: the command is empty; give a program and its options")
    program = Program(_name(words), None, words)
    try:
        program.command(Task(Path("x"), Path("x"), 1, 1, 1, 1.0, 1))
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        names = ", ".join(f"{{{name}}}" for name in Task.__dataclass_fields__)
        raise InputError(
            f"--peer {template!r}: not understood ({error}); it may name {names}; other braces are written twice"
        ) from error
    if shutil.which(words[0]) is None:
        raise InputError(f"--peer {template!r}: no program {words[0]} is on PATH; install it, or leave this peer out")
    return program


def _name(words: tuple[str, ...]) -> str:
    """The program's file name; behind an interpreter, its script's. It names files, too."""
    names = [Path(word).stem for word in words if not word.startswith("-")]
    name = next((name for name in names if not _INTERPRETERS.fullmatch(name)), names[0])
    return re.sub(r"[^\w.+-]+", "_", name)[:40]


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def iteration_seconds(out: Path, iterations: int) -> list[float] | None:
    """Seconds of each iteration, by the times at which run_itNNN_ files were written last.

    None where those of an iteration, or of the state before the first (000), are not there.
    """
    written: dict[int, int] = {}
    for path in out.glob("run_it*"):
        if match := re.match(r"run_it(\d{3,})_", path.name):
            written[int(match[1])] = max(written.get(int(match[1]), 0), path.stat().st_mtime_ns)
    if not written.keys() >= set(range(iterations + 1)):
        return None
    return [1e-9 * (written[later] - written[before]) for before, later in pairwise(range(iterations + 1))]


def score(out: Path, truth_npz: Path) -> dict[str, Any]:
    """The scores of the *data.star that was written last in the folder `out`; InputError where none can be had."""
    from polarice.jobs.demo import score_of

    tables = sorted(out.rglob("*data.star"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    if not tables:
        raise InputError(f"{out}: no *data.star")
    try:
        return asdict(score_of(tables[-1], truth_npz))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{tables[-1]}: does not fit {truth_npz} ({error})") from error

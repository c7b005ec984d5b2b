"""Files that a step of a workflow names: patterns with * or ?, folders of steps before, tables that these end with."""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polarice.types import InputError

SETTLED_S = 10.0  # files that changed more recently may still be written
SHOWN = 3  # names of files that a message holds
TABLES = {  # the table that a job ends with, of jobs that end with one
    "align2d": "run_it*_data.star",
    "class2d": "run_it*_data.star",
    "sml": "run_it*_data.star",
    "deep2d": "sml/run_it*_data.star",
    "initial3d": "run_data.star",
    "refine3d": "run_data.star",
    "class3d": "run_data.star",
    "motion": "micrographs.star",
    "ctf": "micrographs.star",
    "pick": "micrographs.star",
    "extract": "particles.star",
    "select": "[mp]*s.star",  # of particles, micrographs or movies
    "star": "[mp]*s.star",
    "simulate": "particles.star",
    "import": "*s.star",  # movies, micrographs or particles
}
_NAMED = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def filled(value: Any, steps: Mapping[str, str]) -> Any:
    """`value` with, in every text of it, {NAME} as the folder of a step and {NAME.data} as the table it ends with.

    steps: {name: job} of the steps before. {{ and }} stand for single braces. Raises InputError for any other name.
    """
    if isinstance(value, Mapping):
        return {key: filled(item, steps) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, steps) for item in value]
    if not isinstance(value, str):
        return value

    def folder_or_table(found: re.Match[str]) -> str:
        if found[0] in ("{{", "}}"):
            return found[0][0]
        name, dot, what = (found[1] or "").partition(".")
        if name in steps and not dot:
            return name
        if name in steps and what == "data" and steps[name] in TABLES:
            return f"{name}/{TABLES[steps[name]]}"
        known = ", ".join(f"{each}, {each}.data" if job in TABLES else each for each, job in steps.items())
        raise InputError(
            f"{value[:200]}: {found[0][:80]} is not the name of a step before this one; there are: {known or 'none'}"
        )

    return _NAMED.sub(folder_or_table, value)


def is_pattern(value: Any) -> bool:
    """Whether it is a pattern, and not the name of a file that is there."""
    return isinstance(value, str) and glob.has_magic(value) and not os.path.lexists(value)


def matches(pattern: str, steps: Sequence[str], patient: bool) -> list[str]:
    """Files that match, numbers in their names in order of size, without those that may still be written.

    Files in the folder of one of the `steps` are what an ended job wrote: all of them count. Of others those that
    changed within SETTLED_S are left out where there are others. Raises InputError where no file matches, and where
    `patient`, none that is at rest.
    """
    paths = _found(pattern)
    if not paths:
        raise InputError(f"{pattern}: no file is called so")
    rested = [path for path in paths if _is_step(path, steps) or _rests(path)]
    if patient and not rested:
        raise InputError(f"{pattern}: what is there may still be written (changed within {SETTLED_S:g} s)")
    return rested or paths


def remarks(pattern: str, steps: Sequence[str]) -> list[str]:
    """What a user should know of the files that match: which of them are left out for now, which have odd times."""
    paths = [path for path in _found(pattern) if not _is_step(path, steps)]
    young = [path for path in paths if not _rests(path)]
    early = [path for path in paths if _age_s(path) < -SETTLED_S]
    told = []
    if young and len(young) < len(paths):
        told.append(f"{listed(young)}: changed within {SETTLED_S:g} s, so left out for now; run again to take them")
    if early:
        told.append(f"{listed(early)}: changed in the future, says the file system; taken as complete, check its clock")
    return told


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _found(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern, recursive=True), key=_natural)


def _natural(path: str) -> list[tuple[int, str]]:
    """Iteration 1000 comes after 999."""
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", path)]


def _is_step(path: str, steps: Sequence[str]) -> bool:
    return Path(path).parts[0] in steps


def _rests(path: str) -> bool:
    """Whether it has not changed of late; a time in the future is no age, and would else never pass."""
    return abs(_age_s(path)) > SETTLED_S


def _age_s(path: str) -> float:
    """Seconds since it changed, many where it cannot be looked at: what reads it will say so."""
    try:
        return time.time() - os.stat(path).st_mtime
    except OSError:
        return float("inf")

"""`polarice status`: what runs where."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from polarice.project.params import Parameters, option
from polarice.project.provenance import NAME
from polarice.project.state import read_state
from polarice.types import InputError

SUMMARY = "show what runs where, and how far it is: jobs below this folder, and those submitted"
EXAMPLE = "polarice status"
MOST_FOLDERS = 20_000  # that are looked into


@dataclass(frozen=True)
class Params(Parameters):
    """How much to show."""

    last: int = option(20, "how many submissions, the newest last", low=1, high=1000)
    folder: tuple[Path, ...] = option((), "folders whose jobs to show, with all below them", derived="this one")


def run(params: Params) -> None:
    """Print one line for each."""
    from polarice.jobs.batch import remembered

    rows = [("where", "state", "job", "progress")]
    for each in remembered()[-params.last :]:
        job = f"{each.command.split()[0]} {Path(each.out).name if each.out else ''}".strip()
        rows.append(
            (
                f"{each.system} {each.id}",
                _state(each.system, each.id),
                job,
                progress(Path(each.out or "-")) or _begun(each.out),
            )
        )
    for root in params.folder or (Path(),):
        rows += [("", *told(folder), progress(folder)) for folder in jobs_below(root)]
    if len(rows) == 1:
        print("no job below this folder, and none submitted; polarice cluster --help tells how to submit one")
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def jobs_below(root: Path) -> list[Path]:
    """Folders of jobs, by name; `root` itself among them."""
    found = []
    for folder, inner, files in islice(os.walk(root), MOST_FOLDERS):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if NAME in files:
            found.append(Path(folder))
    return found


def told(folder: Path) -> tuple[str, str]:
    """(state in words, job and folder)."""
    state = read_state(folder)
    return (state.told() if state else "", f"{state.job} {folder}" if state else str(folder))


def _state(system: str, id: str) -> str:
    if system not in ("slurm", "pbs", "local"):
        return "not known here"
    try:
        return str(importlib.import_module(f"polarice.jobs.batch.{system}").state(id))
    except InputError:
        return "not known here"


def progress(folder: Path) -> str:
    """How far the job of a folder is; "" before its first iteration."""
    from polarice.report.history import read_history

    history = read_history(folder)
    if not history:
        return ""
    done = (folder / "report.html").exists() and history[-1]["number"] >= history[-1]["total"]
    return f"iteration {history[-1]['number']} of {history[-1]['total']}{', done' if done else ''}"


def _begun(folder: str) -> str:
    """What is to be said of a submitted job that has made no iteration."""
    return "begun" if folder and (Path(folder) / "job.json").exists() else ""

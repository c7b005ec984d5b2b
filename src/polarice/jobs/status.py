"""`polarice status`: what runs where."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from polarice.jobs.params import option
from polarice.types import InputError

SUMMARY = "show the jobs that `polarice cluster` submitted: where they run, and how far they are"


@dataclass(frozen=True)
class Params:
    """How much to show."""

    last: int = option(20, "how many submissions, the newest last", low=1, high=1000)
    folder: tuple[Path, ...] = option((), "folders of other jobs to show")


def run(params: Params) -> None:
    """Print one line for each."""
    from polarice.jobs.batch import remembered

    rows = [("where", "state", "job", "progress")]
    for each in remembered()[-params.last :]:
        job = f"{each.command.split()[0]} {Path(each.out).name if each.out else ''}".strip()
        rows.append((f"{each.system} {each.id}", _state(each.system, each.id), job, progress(Path(each.out or "-"))))
    rows += [("", "", str(folder), progress(folder)) for folder in params.folder]
    if len(rows) == 1:
        print("nothing has been submitted; polarice cluster --help tells how")
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _state(system: str, id: str) -> str:
    if system not in ("slurm", "pbs", "local"):
        return "not known here"
    try:
        return str(importlib.import_module(f"polarice.jobs.batch.{system}").state(id))
    except InputError:
        return "not known here"


def progress(folder: Path) -> str:
    """How far the job of a folder is."""
    from polarice.jobs.report.history import read_history

    history = read_history(folder)
    if not history:
        return "begun" if (folder / "job.json").exists() else ""
    done = (folder / "report.html").exists() and history[-1]["number"] >= history[-1]["total"]
    return f"iteration {history[-1]['number']} of {history[-1]['total']}{', done' if done else ''}"

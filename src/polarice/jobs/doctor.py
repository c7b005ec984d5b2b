"""`polarice doctor`: whether this machine and this installation can do the work, and what to mend."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polarice.project.params import Parameters, PathRole, option

if TYPE_CHECKING:
    from polarice.runs.machine import Finding

SUMMARY = "look at this machine and this installation, and say what to mend"
EXAMPLE = "polarice doctor"
COLOURS = {"OK": "32", "note": "33", "problem": "31"}
WIDEST = 110


@dataclass(frozen=True)
class Params(Parameters):
    """What jobs are to be given, and what to leave out."""

    threads: int | None = option(
        None, "CPU threads that jobs are to be given", derived="all cores", low=1, high=1024, resource=True,
        flags=("--j",),
    )  # fmt: skip
    folder: Path = option(Path(), "folder that jobs are to write into", path=PathRole("input", "folder"))
    scratch: Path | None = option(
        None, "fast disk that jobs are to be given", derived="TMPDIR, or /tmp", resource=True,
        path=PathRole("output", "folder", "scratch"),
    )  # fmt: skip
    ranks: bool = option(True, "start two ranks by mpirun, to see whether they meet")
    json: bool = option(False, "print JSON: a list of findings, each with subject, verdict, text and remedy")


def run(params: Params) -> None:
    """Print every finding. Leaves by SystemExit with code 1 where one of them is a problem."""
    from polarice.runs.installation import look_at_installation
    from polarice.runs.machine import look_at_machine

    found = []
    for looks in (
        look_at_machine(params.threads, params.folder, params.scratch),
        look_at_installation(params.ranks),
    ):
        for finding in looks:
            found.append(finding)
            if not params.json:
                print(shown(finding, *_terminal()), flush=True)
    problems = sum(each.verdict == "problem" for each in found)
    if params.json:
        content = {"ok": not problems, "findings": [asdict(each) for each in found]}
        print(json.dumps(content, indent=2))
    else:
        print(f"\n{summed_up(found)}")
    if problems:
        raise SystemExit(1)


def _terminal() -> tuple[int, bool]:
    """(columns, whether colours are shown)."""
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return min(shutil.get_terminal_size().columns, WIDEST), coloured


def shown(finding: Finding, columns: int = 80, coloured: bool = False) -> str:
    """A finding as lines of text, its remedy on lines of its own."""
    verdict = f"{finding.verdict:8}"
    head = f"\033[{COLOURS[finding.verdict]}m{verdict}\033[0m" if coloured else verdict
    indent = " " * 24
    lines = textwrap.wrap(finding.text, max(30, columns - len(indent)), break_on_hyphens=False) or [""]
    lines += textwrap.wrap(
        finding.remedy, max(30, columns - len(indent)), initial_indent="-> ", subsequent_indent="   ",
        break_on_hyphens=False,
    )  # fmt: skip
    return f"{head}{finding.subject:15} " + f"\n{indent}".join(lines)


def summed_up(found: Iterable[Finding]) -> str:
    """The last line."""
    verdicts = [each.verdict for each in found]
    problems, notes = verdicts.count("problem"), verdicts.count("note")
    if problems:
        return f"{problems} of {len(verdicts)} need mending; -> says how"
    return f"ready{f'; {notes} to know of' if notes else ''}: polarice example puts a first workflow into a folder"

"""The report of a chain of jobs: what each step did, a few of its pictures, and the way to its own report."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polarice.project.outputs import RECORD
from polarice.report.index import Chapter, Picture, write_index
from polarice.report.micrographs import small_jpeg

MOST_PICTURES, SIDE_PX = 12, 290  # of each step


@dataclass(frozen=True)
class Link:
    """One step of the chain."""

    name: str  # of its folder, beside the page
    job: str
    command: str


def write_chain_report(path: Path, title: str, links: Sequence[Link], to_reports: bool = True) -> Path:
    """Write the page, one file that fetches nothing. Without `to_reports`, it can be carried away by itself."""
    chapters = [_chapter(path.parent, each, to_reports) for each in links]
    return write_index(path, title, " → ".join(each.name for each in links), chapters, cell_px=240)


def _chapter(root: Path, link: Link, to_reports: bool) -> Chapter:
    records = [record for path in sorted((root / link.name).rglob("*" + RECORD)) if (record := _read(path))]
    left_out = sum(bool(record.get("reason")) for record in records)
    numbers = [("done", f"{len(records) - left_out:,}"), ("left out", f"{left_out:,}")] if records else []
    report = root / link.name / "report.html"
    return Chapter(
        link.name,
        numbers=numbers,
        pictures=_sheet(root / link.name),
        gallery=_gallery(root, records, to_reports),
        commands=[("The command of this step:", link.command)],
        links=[(f"report of {link.name}", f"{link.name}/report.html")] if to_reports and report.exists() else [],
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _gallery(root: Path, records: Sequence[dict[str, Any]], to_reports: bool) -> list[Picture]:
    """Thumbnails of some micrographs from everywhere, small; links to the whole pictures."""
    files = [Path(root, name) for record in records if (name := record.get("thumbnail"))]
    files = [file for file in files if file.is_file()]
    places = np.unique(np.linspace(0, len(files) - 1, min(len(files), MOST_PICTURES)).astype(int))
    return [
        Picture(small_jpeg(files[k], SIDE_PX), files[k].stem, os.path.relpath(files[k], root) if to_reports else "")
        for k in places
    ]


def _sheet(folder: Path) -> list[Picture]:
    """The class averages of the last iteration."""
    sheets = sorted(folder.glob("run_it*_classes.png"))
    return [Picture(sheets[-1].read_bytes(), f"Class averages, {sheets[-1].name}.")] if sheets else []

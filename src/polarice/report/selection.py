"""report.html of `polarice select`: what is chosen and what is not, with the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polarice.project.fault import spared
from polarice.selection.choice import Choice

if TYPE_CHECKING:
    from polarice.io.class_files import KnownClasses
    from polarice.io.rows import RowTable
    from polarice.report.index import Chapter, Picture
    from polarice.selection.classes import ClassSet
    from polarice.selection.quality import Judgement

REPORT = "report.html"
SIDE_PX = 112
SHOWN = 600  # classes in each gallery


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes of a table, which of them are chosen, and what is thought of them."""

    set: ClassSet
    of: np.ndarray  # (n,) each particle's, from 0; -1 for none
    choice: Choice
    known: KnownClasses | None = None
    judged: Judgement | None = None

    @property
    def numbers(self) -> np.ndarray:
        """The chosen ones, from 1."""
        return np.flatnonzero(self.choice.kept) + 1


@dataclass(frozen=True, eq=False)
class Selection:
    """A table and what is chosen of it."""

    rows: RowTable
    choice: Choice
    classes: Classes | None = None  # None where the table has none
    views: tuple[str, ...] = ()  # what is to be said of views that are lost

    @property
    def count(self) -> int:
        return int(self.choice.kept.sum())


def write_page(folder: Path, command: str, found: Selection, lines: Sequence[str]) -> Path:
    """Write the page; what goes wrong in it is told and ends nothing."""
    from polarice.report.index import write_index

    page = folder / REPORT
    title = f"select: {found.rows.path.name}"
    return spared(lambda: write_index(page, title, str(folder), _chapters(command, found, lines), SIDE_PX), page)


def _chapters(command: str, found: Selection, lines: Sequence[str]) -> list[Chapter]:
    from polarice.report.index import Chapter, Rows

    counts = found.choice.counts()
    rules = Rows(
        ("rule", "break it", "by it first"),
        [(("v", said), ("n", f"{broken:,}"), ("n", f"{first:,}")) for said, broken, first in counts],
    )
    kind = found.rows.kind
    numbers = [(f"{kind} chosen", f"{found.count:,}"), ("left out", f"{len(found.rows) - found.count:,}")]
    chapters = [Chapter("Selection", text=lines, numbers=numbers, tables=[rules], commands=[("Run again", command)])]
    if found.classes is not None and found.classes.set.averages is not None:
        out = ~found.classes.choice.kept
        chapters.append(Chapter("Classes left out", gallery=_gallery(found.classes, out), text=_none(out)))
        chapters.append(Chapter("Classes chosen", gallery=_gallery(found.classes, ~out), text=_none(~out)))
    return chapters


def _none(rows: np.ndarray) -> tuple[str, ...]:
    more = int(rows.sum()) - SHOWN
    return ("None.",) if not rows.any() else (f"{more:,} more are in classes.star.",) if more > 0 else ()


def _gallery(classes: Classes, rows: np.ndarray) -> list[Picture]:
    """The fullest first."""
    from polarice.report.index import Picture
    from polarice.report.montage import circle_px, png_bytes, thumbnail

    of, judged = classes.set, classes.judged
    assert of.averages is not None
    radius = circle_px(of.averages.shape[-1], of.pixel_size_A or 1.0, of.diameter_A or None)
    shown = np.flatnonzero(rows)
    pictures = []
    for k in shown[np.argsort(-of.counts[shown], kind="stable")][:SHOWN].tolist():
        words = [f"{k + 1}", f"{of.counts[k]:,} particles"]
        if of.resolution_A is not None and np.isfinite(of.resolution_A[k]):
            words.append(f"{of.resolution_A[k]:.1f} A")
        if judged is not None:
            words += [f"score {judged.scores[k]:.2f}"] + ([judged.reasons[k]] if judged.reasons[k] else [])
        pictures.append(Picture(png_bytes(thumbnail(of.averages[k], radius, SIDE_PX)), " · ".join(words)))
    return pictures

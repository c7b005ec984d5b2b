"""The report of a job that treats one micrograph after another: thumbnails, figures, what was left out and why."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polarice.project.items import Item, Outcome
from polarice.project.params import Parameters, command_line
from polarice.project.provenance import versions
from polarice.report import parameters_of
from polarice.report.html import Cell, duration
from polarice.report.index import Chapter, Picture, Rows, write_index

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST_THUMBNAILS, MOST_ROWS = 60, 2000  # the page stays below 3 MB; every picture is linked from the table
GALLERY_PX, GALLERY_QUALITY = 360, 60  # longest side, and JPEG quality, of a picture in the gallery
THUMBNAIL_PX = 256


@dataclass(frozen=True)
class MicrographReport:
    """What the page is made of; `items` and `outcomes` go in step."""

    job: str
    folder: Path
    params: Parameters
    items: Sequence[Item]
    outcomes: Sequence[Outcome]
    what: str = "micrographs"
    text: Sequence[str] = ()  # what the thumbnails and figures show, a paragraph each
    numbers: Sequence[tuple[str, str]] = ()  # (what, value), beside those that every job has
    pictures: Sequence[Picture] = ()  # the job's own charts
    usage: Sequence[tuple[str, str]] = ()  # (what, figure): what the run took


def write_micrograph_report(folder: str | os.PathLike[str], report: MicrographReport) -> Path:
    """Write report.html into the job's folder, one file that fetches nothing; InputError where that cannot be."""
    done = [(i, o) for i, o in zip(report.items, report.outcomes, strict=True) if not o.reason]
    left_out = [(i, o) for i, o in zip(report.items, report.outcomes, strict=True) if o.reason]
    gallery, table = _gallery(done, Path(folder)), _table(done, Path(folder))
    chapters = [
        Chapter(f"{report.what.capitalize()}", report.text, _numbers(report, len(done)), gallery=gallery),
        Chapter("Figures", pictures=[*report.pictures, *_charts(done)], tables=[table] if done else []),
        _left_out(report, left_out),
        _remarks(done),
        Chapter("What it took", tables=[_pairs(report.usage)] if report.usage else []),
        Chapter("Parameters", tables=[_parameters(report.params)]),
        Chapter("Run again", commands=[("The same again does what is missing or has changed:", _command(report))]),
        Chapter("Versions", tables=[_pairs(list(versions().items()))]),
    ]
    chapters = [each for each in chapters if each.text or each.numbers or each.tables or each.commands]
    subtitle = f"{len(done):,} of {len(report.items):,} {report.what}"
    return write_index(Path(folder, "report.html"), f"{report.job}: {folder}", subtitle, chapters, cell_px=180)


def thumbnail_png(image: np.ndarray, side_px: int = THUMBNAIL_PX) -> bytes:
    """A micrograph (y, x) as a small grey PNG, averaged over blocks and stretched between robust percentiles."""
    from PIL import Image

    from polarice.report.montage import png_bytes

    step = max(1, max(image.shape) // side_px)
    rows, columns = (length // step for length in image.shape)
    small = image[: rows * step, : columns * step].astype(np.float32)
    small = small.reshape(rows, step, columns, step).mean((1, 3))
    low, high = np.percentile(small[np.isfinite(small)], (0.5, 99.5)) if np.isfinite(small).any() else (0, 0)
    stretched = np.clip((np.nan_to_num(small, nan=low) - low) / max(high - low, 1e-30), 0, 1)
    return png_bytes(Image.fromarray(np.rint(255 * stretched).astype(np.uint8)))


def figure_png(figure: Figure) -> bytes:
    """A matplotlib figure as PNG on white."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, facecolor="white")
    return stream.getvalue()


Pairs = Sequence[tuple[Item, Outcome]]


def _pairs(pairs: Sequence[tuple[str, str]]) -> Rows:
    """A table of names and what they stand for."""
    return Rows(("", ""), [(name, ("v", text)) for name, text in pairs])


def _numbers(report: MicrographReport, done: int) -> list[tuple[str, str]]:
    seconds = [outcome.seconds for outcome in report.outcomes if not outcome.reason]
    return [
        (f"{report.what} done", f"{done:,}"),
        ("left out", f"{len(report.items) - done:,}"),
        ("with a remark", f"{sum(bool(each.remarks) for each in report.outcomes):,}"),
        (f"each of the {report.what}", duration(float(np.mean(seconds))) if seconds else "–"),
        *report.numbers,
    ]


def _gallery(done: Pairs, folder: Path) -> list[Picture]:
    """Thumbnails with names, made smaller, each a link to its file; of very many, some from everywhere."""
    shown = [pair for pair in done if pair[1].thumbnail]
    pictures = []
    for place in np.unique(np.linspace(0, len(shown) - 1, min(len(shown), MOST_THUMBNAILS)).astype(int)):
        item, outcome = shown[place]
        try:
            link = os.path.relpath(outcome.thumbnail, folder)
            pictures.append(Picture(small_jpeg(outcome.thumbnail), Path(item.name).name, link))
        except OSError:  # it was removed: the page can do without
            continue
    return pictures


def small_jpeg(path: str | os.PathLike[str], side_px: int = GALLERY_PX) -> bytes:
    """A picture's file as a small JPEG: micrographs are noise, which PNG cannot pack."""
    from PIL import Image

    picture = Image.open(path).convert("RGB")
    picture.thumbnail((side_px, side_px))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=GALLERY_QUALITY, optimize=True)
    return stream.getvalue()


def _charts(done: Pairs) -> list[Picture]:
    """Every figure over the micrographs in their order, three beside each other."""
    from polarice.report import charts

    names = list(dict.fromkeys(name for _, outcome in done for name in outcome.figures))
    if len(done) < 2 or not names:
        return []
    high = -(-len(names) // 3)
    figure, axes = charts.panels(high, min(3, len(names)), height=2.4 * high, titled=True)
    for axis, name in zip(axes, names, strict=False):
        rows = [item.row + 1 for item, outcome in done if name in outcome.figures]
        values = [outcome.figures[name] for _, outcome in done if name in outcome.figures]
        axis.plot(rows, values, ".", color=charts.COLOURS[0], markersize=5)
        axis.set_ylabel(name)
        axis.set_xlabel("row of the table")
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    return [Picture(figure_png(figure), "Every figure over the rows of the table.")]


def _table(done: Pairs, folder: Path) -> Rows:
    names = list(dict.fromkeys(name for _, outcome in done for name in outcome.figures))
    heads: list[Cell] = ["row", "name", *(("n", name) for name in names), ("n", "seconds")]
    rows: list[list[Cell]] = []
    for item, outcome in done[:MOST_ROWS]:
        numbers = [f"{outcome.figures[name]:.4g}" if name in outcome.figures else "" for name in names]
        numbers.append(f"{outcome.seconds:.1f}")
        name = ("v", item.name, os.path.relpath(outcome.thumbnail, folder)) if outcome.thumbnail else ("v", item.name)
        rows.append([str(item.row + 1), name, *(("n", number) for number in numbers)])
    return Rows(heads, rows)


def _left_out(report: MicrographReport, left_out: Pairs) -> Chapter:
    if not left_out:
        return Chapter("Left out", [f"None: all {report.what} were used."])
    rows = [(str(item.row + 1), ("v", item.name), outcome.reason) for item, outcome in left_out[:MOST_ROWS]]
    note = f"{len(left_out):,} of {len(report.items):,} {report.what} could not be used. The next run tries them again."
    return Chapter("Left out", [note], tables=[Rows(("row", "name", "reason"), rows)])


def _remarks(done: Pairs) -> Chapter:
    rows = [(str(item.row + 1), ("v", item.name), text) for item, outcome in done for text in outcome.remarks]
    return Chapter("Remarks", tables=[Rows(("row", "name", "remark"), rows[:MOST_ROWS])] if rows else [])


def _parameters(params: Parameters) -> Rows:
    rows = [(each.name, ("v", each.value), each.unit, ("h", each.help)) for each in parameters_of(params)]
    return Rows(("parameter", "value", "unit", ""), rows)


def _command(report: MicrographReport) -> str:
    return command_line(report.job, report.params)

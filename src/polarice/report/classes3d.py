"""The report of a 3D classification: slices of the maps side by side, their shares, resolution and views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.report import charts, read_history
from polarice.report.index import Chapter, Picture, Rows, write_index
from polarice.report.montage import png_bytes
from polarice.report.refinement import AXES, VIEW_BINS, MapPage, closing, stretched

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from polarice.project.usage import Usage
    from polarice.references.classes3d import ClassState

MOST_SIDE_PX, SHEET_PX, GAP_PX = 200, 1200, 6
MOST_COLUMNS = 4  # of charts of views
BINS_TOGETHER = 3  # of a chart of all particles


def write_page(page: MapPage, tau2_fudge: float, state: ClassState, usage: Usage) -> Path:
    """Write report.html and its pictures into the job's folder; InputError where that cannot be."""
    from polarice.io.atomic import replacing

    folder, model = page.folder, state.model
    box_A = model.box_px * page.pixel_size_A
    found = state.assignment.take(page.rows)
    class_of, directions = found.pose.class_of, state.carried.direction[page.rows]
    pictures = {
        "map": map_sheet(model.maps.cpu().numpy()),
        "views": charts.png(views_chart(directions, class_of, len(model.weights))),
        "classes": charts.png(course_chart(course_of(state), read_history(folder), box_A)),
        "ssnr": charts.png(ssnr_chart(tau2_fudge * model.ssnr.cpu().numpy(), box_A)),
    }
    for name, content in pictures.items():
        with replacing(folder / f"report_{name}.png") as stream:
            stream.write(content)
    numbers = [
        ("classes", f"{len(model.weights)}"),
        ("particles", f"{len(page.rows):,}"),
        ("changed their class last", f"{state.changed_class:.1%}"),
        ("mean largest probability", f"{found.max_probability.mean():.2f}"),
        ("iterations", f"{state.number}"),
    ]
    heads = ("class", ("n", "particles"), ("n", "share"), ("n", "resolution (Å)"), "map")
    chapters = [
        Chapter("Classes", (f"Central slices along {AXES}, one column a class, all in one grey scale. Look at the "
                            "slices: a class of junk is a blur, or holds streaks.",), numbers,
                [Picture(pictures["map"], "Classes 1, 2 and so on, from the left.")],
                tables=[Rows(heads, _rows(state, class_of, box_A))]),
        Chapter("Views", ("Directions that the particles of each class are seen from.",),
                pictures=[Picture(pictures["views"], "Particles by rot and tilt, areas true to the sphere.")]),
        Chapter("Resolution", ("Spectral signal-to-noise ratio of each map, times tau2_fudge; resolution is read "
                               "where it falls below 1. There are no half maps: refine a class for a gold standard.",),
                pictures=[Picture(pictures["ssnr"], "Signal-to-noise ratio by spatial frequency.")]),
        Chapter("Course", pictures=[Picture(pictures["classes"], "Shares, resolution and changes by iteration.")]),
        *closing("class3d", page, usage),
    ]  # fmt: skip
    subtitle = f"{page.table} · {len(page.rows):,} particles"
    return write_index(folder / "report.html", f"class3d: {folder}", subtitle, chapters)


def _rows(state: ClassState, class_of: np.ndarray, box_A: float) -> list[Any]:
    """A line of the table for each class."""
    counts = np.bincount(class_of, minlength=len(state.model.weights))
    known = zip(counts, state.model.weights.tolist(), state.model.shells.tolist(), strict=True)
    return [
        (f"{k}", ("n", f"{count:,}"), ("n", f"{share:.1%}"), ("n", f"{box_A / shell:.1f}" if share else "-"),
         ("v", f"run_class{k:03d}.mrc"))
        for k, (count, share, shell) in enumerate(known, 1)
    ]  # fmt: skip


def course_of(state: ClassState) -> np.ndarray:
    """(iterations, K, 2): share and shell of every class."""
    from polarice.references.classes3d import ClassProgress

    assert isinstance(state.carried, ClassProgress)
    return state.carried.told(state.number, state.model, state.changed_class).course


def map_sheet(densities: np.ndarray) -> bytes:
    """Central slices of densities (K, N, N, N), one column each, as one PNG."""
    middle = densities.shape[1] // 2
    return sheet_of([np.stack([each.take(middle, axis=axis) for each in densities]) for axis in range(3)])


def sheet_of(rows: Sequence[np.ndarray]) -> bytes:
    """Rows of images (K, N, N) as one PNG; grey values are the same along a row."""
    from PIL import Image

    k = len(rows[0])
    side = min(MOST_SIDE_PX, max(48, SHEET_PX // k - GAP_PX))
    width, height = (count * (side + GAP_PX) - GAP_PX for count in (k, len(rows)))
    sheet = Image.new("L", (width, height), 255)
    for row, images in enumerate(map(stretched, rows)):
        for column, image in enumerate(images):
            picture = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(picture, (column * (side + GAP_PX), row * (side + GAP_PX)))
    return png_bytes(sheet)


def views_chart(directions: np.ndarray, class_of: np.ndarray, classes: int) -> Figure:
    """How many particles of each class are seen from where; directions (n, 3)."""
    columns = min(classes, MOST_COLUMNS)
    high = -(-classes // columns)
    figure, axes = charts.panels(high, columns, height=2.6 * high, titled=True)
    rot = np.degrees(np.arctan2(directions[:, 1], directions[:, 0]))
    for k, axis in enumerate(axes[:classes]):
        mine = class_of == k
        bins, limits = tuple(each // BINS_TOGETHER for each in VIEW_BINS), ((-180, 180), (-1, 1))
        axis.hist2d(rot[mine], directions[mine, 2], bins=bins, range=limits, cmap="viridis")
        axis.set(xlabel="rot (°)", ylabel="cosine of tilt")
        axis.set_title(f"class {k + 1}: {mine.sum():,}", fontsize=9)
    for axis in axes[classes:]:
        axis.set_axis_off()
    return figure


def course_chart(course: np.ndarray, history: Any, box_A: float) -> Figure:
    """Share and resolution of every class, and how many particles changed theirs, by iteration."""
    figure, axes = charts.panels(1, 3, height=2.7)
    number = np.arange(1, len(course) + 1)
    for k in range(course.shape[1]):
        colour = charts.COLOURS[k % len(charts.COLOURS)]
        axes[0].plot(number, course[:, k, 0], "o-", markersize=3, color=colour, label=f"{k + 1}")
        axes[1].plot(number, box_A / course[:, k, 1], "o-", markersize=3, color=colour)
    axes[0].set(xlabel="iteration", ylabel="share of the particles", ylim=(0, 1.02))
    if course.shape[1] <= len(charts.COLOURS):
        axes[0].legend(fontsize=8, frameon=False, title="class")
    axes[1].set(xlabel="iteration", ylabel="resolution (Å)")
    axes[1].set_ylim(bottom=0)
    told = [row for row in history if row["number"] > 1]
    changed = [row["changed_class"] for row in told]
    axes[2].plot([row["number"] for row in told], changed, "o-", markersize=3, color=charts.COLOURS[0])
    axes[2].set(xlabel="iteration", ylabel="changed their class", ylim=(0, 1.02))
    return figure


def ssnr_chart(ssnr: np.ndarray, box_A: float) -> Figure:
    """SSNR (K, S) over spatial frequency."""
    figure, (axis,) = charts.panels(1, 1, height=3.0)
    frequency = np.arange(ssnr.shape[1]) / box_A
    for k, curve in enumerate(ssnr):
        colour = charts.COLOURS[k % len(charts.COLOURS)]
        axis.semilogy(frequency[1:], np.maximum(curve[1:], 1e-3), color=colour, linewidth=1.5, label=f"class {k + 1}")
    axis.axhline(1, color=charts.COLOURS[charts.LIMIT], linewidth=1, linestyle="--")
    axis.set(xlabel="spatial frequency (1/Å)", ylabel="SSNR", xlim=(0, frequency[-1]))
    axis.legend(fontsize=8, frameon=False)
    return figure

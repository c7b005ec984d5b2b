"""The report of a refinement: slices and projections of the map, FSC, views on the sphere, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.project.params import command_line
from polarice.project.provenance import versions
from polarice.report import charts, parameters_of, read_history
from polarice.report.index import Chapter, Picture, Rows, write_index
from polarice.report.montage import png_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarice.project.params import Parameters
    from polarice.project.usage import Usage
    from polarice.references.refinement import RefineState

SIDE_PX, GAP_PX = 260, 6
MOST_LEFT_OUT = 1000  # rows
AXES = "z, y, x"
VIEW_BINS = (72, 36)  # of rot and of the cosine of tilt


@dataclass(frozen=True)
class MapPage:
    """What the page is about."""

    folder: Path
    params: Parameters
    go_on: str  # the command
    table: Path
    rows: np.ndarray  # of the particles used
    left_out: Mapping[int, str]  # row -> reason
    pixel_size_A: float


def write_page(page: MapPage, state: RefineState, usage: Usage) -> Path:
    """Write report.html and its pictures into the job's folder; InputError where that cannot be."""
    from polarice.io.atomic import replacing
    from polarice.postprocessing.surface import contour
    from polarice.references.fsc import THRESHOLD
    from polarice.references.halfmaps import HALVES_ARE_ONE
    from polarice.report.surface import surface_png

    folder, model = page.folder, state.model
    box_A = model.box_px * page.pixel_size_A
    pictures = {
        "map": map_sheet(model.joined.cpu().numpy()),
        "fsc": charts.png(fsc_chart(model.fsc.cpu().numpy(), box_A)),
        "views": charts.png(views_chart(state.carried.direction[page.rows])),
        "refinement": charts.png(course_chart(read_history(folder))),
    }
    for name, content in pictures.items():
        with replacing(folder / f"report_{name}.png") as stream:
            stream.write(content)
    level = contour(model.joined, page.pixel_size_A)
    shown = surface_png(model.joined, level.level)
    found = state.assignment.take(page.rows)
    halves = [int((state.carried.set_of == half).sum()) for half in (0, 1)]
    one = model.halves_are_one
    resolution = ("resolution: not known", "none") if one else (
        f"Å, halves agree up to here (FSC {THRESHOLD})", f"{box_A / model.shell:.1f}"
    )  # fmt: skip
    numbers = [
        resolution,
        ("particles", f"{len(page.rows):,}"),
        ("mean largest probability", f"{found.max_probability.mean():.2f}"),
        ("iterations", f"{state.number}"),
    ]
    chapters = [
        Chapter("Map", ("Above: central slices. Below: projections along the same axes. Look at the slices: streaks "
                        "and noise that the particle does not have are over-fitting.",), numbers,
                [Picture(pictures["map"], f"Both halves together, along {AXES}."),
                 Picture(shown, f"The surface at {level.level:.4g}, which {level.rule}.")]),
        Chapter("Resolution", (f"Half sets of {halves[0]:,} and {halves[1]:,} particles, inside a soft sphere of the "
                               "particle's diameter, without a correction for the mask.",
                               *((f"Beware: {HALVES_ARE_ONE}.",) if one else ())),
                pictures=[Picture(pictures["fsc"], "Fourier shell correlation of the two half maps.")]),
        Chapter("Views", ("Directions that particles are seen from. Gaps are resolution lost along them.",),
                pictures=[Picture(pictures["views"], "Particles by rot and tilt, areas true to the sphere.")]),
        Chapter("Course", pictures=[Picture(pictures["refinement"], "Resolution and certainty by iteration.")]),
        *closing("refine3d", page, usage),
    ]  # fmt: skip
    subtitle = f"{page.table} · {len(page.rows):,} particles"
    return write_index(folder / "report.html", f"refine3d: {folder}", subtitle, chapters)


def closing(job: str, page: MapPage, usage: Usage) -> list[Chapter]:
    """What every page about maps ends with."""
    left_out = [(str(row + 1), reason) for row, reason in sorted(page.left_out.items())[:MOST_LEFT_OUT]]
    plain = [(each.name, ("v", each.value), each.unit, ("h", each.help)) for each in parameters_of(page.params)]
    return [
        *([Chapter("Left out", tables=[Rows(("row", "reason"), left_out)])] if left_out else []),
        Chapter("What it took", tables=[Rows(("", ""), [(name, ("v", value)) for name, value in usage.lines()])]),
        Chapter("Parameters", tables=[Rows(("parameter", "value", "unit", ""), plain)]),
        Chapter(
            "Run again",
            commands=[("The same again:", command_line(job, page.params)), ("To go on:", page.go_on)],
        ),
        Chapter("Versions", tables=[Rows(("", ""), [(name, ("v", value)) for name, value in versions().items()])]),
    ]


def map_sheet(density: np.ndarray) -> bytes:
    """Central slices of a density (N, N, N), and under them its projections, as one PNG."""
    from PIL import Image

    middle = len(density) // 2
    sheet = Image.new("L", (3 * SIDE_PX + 2 * GAP_PX, 2 * SIDE_PX + GAP_PX), 255)
    for axis in range(3):
        for row, image in enumerate((density.take(middle, axis=axis), density.sum(axis=axis))):
            picture = Image.fromarray(stretched(image)).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
            sheet.paste(picture, (axis * (SIDE_PX + GAP_PX), row * (SIDE_PX + GAP_PX)))
    return png_bytes(sheet)


def stretched(image: np.ndarray) -> np.ndarray:
    """Bytes (N, N) between robust percentiles of an image."""
    low, high = np.percentile(image, (0.5, 99.8))
    return np.rint(255 * np.clip((image - low) / max(high - low, 1e-30), 0, 1)).astype(np.uint8)


def fsc_chart(fsc: np.ndarray, box_A: float) -> Figure:
    """FSC over spatial frequency, and where it is read."""
    figure, (axis,) = charts.panels(1, 1, height=3.0)
    frequency = np.arange(len(fsc)) / box_A
    axis.plot(frequency[1:], fsc[1:], color=charts.COLOURS[0], linewidth=1.5)
    axis.axhline(0.143, color=charts.COLOURS[charts.LIMIT], linewidth=1, linestyle="--")
    axis.axhline(0, color=charts.FAINT, linewidth=0.8)
    axis.set(xlabel="spatial frequency (1/Å)", ylabel="FSC", ylim=(-0.1, 1.02), xlim=(0, frequency[-1]))
    return figure


def views_chart(directions: np.ndarray) -> Figure:
    """How many particles are seen from where; directions (n, 3)."""
    figure, (axis,) = charts.panels(1, 1, height=3.0)
    rot = np.degrees(np.arctan2(directions[:, 1], directions[:, 0]))
    drawn = axis.hist2d(rot, directions[:, 2], bins=VIEW_BINS, range=((-180, 180), (-1, 1)), cmap="viridis")
    figure.colorbar(drawn[3], ax=axis, label="particles")
    axis.set(xlabel="rot (°)", ylabel="cosine of tilt")
    return figure


def course_chart(history: Any) -> Figure:
    """Resolution and mean largest probability by iteration."""
    figure, axes = charts.panels(1, 2, height=2.7)
    number = [row["number"] for row in history]
    axes[0].plot(number, [row["resolution_A"] for row in history], "o-", color=charts.COLOURS[0], label="halves agree")
    limits = [row["resolution_limit_A"] for row in history]
    axes[0].plot(number, limits, "o-", color=charts.COLOURS[charts.LIMIT], label="compared up to")
    axes[0].set(xlabel="iteration", ylabel="resolution (Å)")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(fontsize=8, frameon=False)
    axes[1].plot(number, [row["max_probability"] for row in history], "o-", color=charts.COLOURS[0])
    axes[1].set(xlabel="iteration", ylabel="mean largest probability", ylim=(0, 1.02))
    return figure

"""Pictures of maps and masks, the chapters that every page of a map ends with, and the page of a mask."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.project.params import command_line
from polarice.project.provenance import versions
from polarice.report import parameters_of
from polarice.report.index import Chapter, Picture, Rows, write_index

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarice.postprocessing.result import Comparison, Map

AXES = "zyx"
INCHES = 3.4  # of a slice
OUTLINE = "#e07b39"


def closing(job: str, params: Any) -> list[Chapter]:
    """Parameters, the command and the versions."""
    plain = [(each.name, ("v", each.value), each.unit, ("h", each.help)) for each in parameters_of(params)]
    return [
        Chapter("Parameters", tables=[Rows(("parameter", "value", "unit", ""), plain)]),
        Chapter("Run again", commands=[("The same again:", command_line(job, params))]),
        Chapter("Versions", tables=[Rows(("", ""), [(name, ("v", value)) for name, value in versions().items()])]),
    ]


def slices_figure(density: np.ndarray, outline: np.ndarray | None = None) -> Figure:
    """Central slices along z, y and x, with the one-half line of a mask (N, N, N) where there is one."""
    figure, axes = _three()
    middle = len(density) // 2
    for place, axis in enumerate(axes):
        image = density.take(middle, axis=place)
        low, high = np.percentile(image, (0.5, 99.8))
        axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-12), origin="lower", interpolation="bicubic")
        if outline is not None:
            line = outline.take(middle, axis=place)
            if line.min() < 0.5 < line.max():
                axis.contour(line, (0.5,), colors=OUTLINE, linewidths=1.2)
        axis.set_title(f"along {AXES[place]}", fontsize=9)
    return figure


def coloured_figure(
    density: np.ndarray, values: np.ndarray, mask: np.ndarray, limits: tuple[float, float], label: str
) -> Figure:
    """Central slices of a density, values (N, N, N) over them in colour where the mask is above one half."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, axes = _three(bar=True)
    middle, scale = len(density) // 2, Normalize(*limits)
    for place, axis in enumerate(axes):
        image, inside = density.take(middle, axis=place), mask.take(middle, axis=place) > 0.5
        low, high = np.percentile(image, (0.5, 99.8))
        axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-12), origin="lower", interpolation="bicubic")
        over = np.ma.masked_where(~inside, values.take(middle, axis=place))
        axis.imshow(over, cmap="turbo", norm=scale, origin="lower", alpha=0.75)
        axis.set_title(f"along {AXES[place]}", fontsize=9)
    bar = figure.add_axes((0.93, 0.12, 0.012, 0.74))
    figure.colorbar(ScalarMappable(scale, "turbo"), cax=bar, label=label)
    return figure


def _three(bar: bool = False) -> tuple[Figure, Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * INCHES, INCHES + 0.3))
    axes = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.01, right=0.91 if bar else 0.99, bottom=0.01, top=0.92, wspace=0.03)
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def png(figure: Figure, dpi: int = 130) -> bytes:
    """A figure as a PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi)
    return stream.getvalue()


def write_picture(path: Path, content: bytes) -> None:
    """A picture beside the page; InputError where that cannot be."""
    from polarice.io.atomic import replacing

    with replacing(path) as stream:
        stream.write(content)


def write_mask_page(params: Any, given: Map, mask: np.ndarray, words: str) -> Path:
    """mask.png and report.html of a mask; InputError where these cannot be."""
    picture = png(slices_figure(given.density, mask))
    write_picture(params.o / "mask.png", picture)
    caption = "Central slices of the map; the line is where the mask is one half."
    chapters = [Chapter("Mask", (f"{words[0].upper()}{words[1:]}.",), pictures=[Picture(picture, caption)])]
    title = f"mask: {params.o}"
    return write_index(params.o / "report.html", title, str(given.path), [*chapters, *closing("mask", params)])


def write_map_page(params: Any, changed: Map, compared: Comparison | None, said: Sequence[str]) -> Path:
    """report.html of a changed map, and compared.png; InputError where these cannot be."""
    import torch

    from polarice.postprocessing.surface import contour
    from polarice.report.surface import surface_png

    density = torch.from_numpy(changed.density)
    level = contour(density, changed.pixel_A)
    shown = [
        Picture(surface_png(density, level.level), f"Surface at {level.level:.4g}, which {level.rule}."),
        Picture(png(slices_figure(changed.density)), "Central slices."),
    ]
    chapters = [Chapter("Map", [f"{each[0].upper()}{each[1:]}." for each in said], pictures=shown)]
    if compared is not None:
        picture = png(compared_figure(compared))
        write_picture(params.o / "compared.png", picture)
        numbers = [("Å, FSC 0.5", f"{compared.at_half_A:.2f}"), ("Å, FSC 0.143", f"{compared.at_143_A:.2f}")]
        beside = Picture(png(slices_figure(compared.fitted)), "The map, fitted.")
        fixed = Picture(png(slices_figure(compared.other.density)), f"{compared.other.path}")
        caption = "Fourier shell correlation of the two maps."
        chapters.append(Chapter("Comparison", (), numbers, [Picture(picture, caption), beside, fixed]))
    title = f"map: {params.o}"
    return write_index(params.o / "report.html", title, str(changed.path), [*chapters, *closing("map", params)])


def compared_figure(compared: Comparison) -> Figure:
    """FSC over spatial frequency."""
    from polarice.report import charts

    figure, (axis,) = charts.panels(1, 1, height=3.0)
    frequency = np.arange(len(compared.fsc)) / compared.other.box_A
    axis.plot(frequency[1:], compared.fsc[1:], color=charts.COLOURS[0], linewidth=1.5)
    for level in (0.143, 0.5):
        axis.axhline(level, color=charts.FAINT, linewidth=1, linestyle="--")
    axis.set(xlabel="spatial frequency (1/Å)", ylabel="FSC", ylim=(-0.1, 1.02), xlim=(0, frequency[-1]))
    return figure

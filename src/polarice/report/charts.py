"""The report's charts, each a function from numbers to a matplotlib Figure; matplotlib is imported when one is made.

`svg` gives inline SVG whose ink follows the page (light or dark), `png` a picture for people without a browser.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polarice.report.history import Row
from polarice.report.montage import Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

INK = "#2a2f36"  # text and axes; becomes the page's own ink in SVG
FAINT = "#c9ced6"  # grid and frame; likewise
COLOURS = ("#3b82c4", "#e07b39", "#3fa37a", "#a768c2", "#c9a227", "#5b6b7d")
LIMIT = 1  # colour of a line that others are held against
STEPS = ("reading", "preparation", "expectation", "maximization", "writing")
WIDTH = 10.6  # inches, of a full-width chart
LEFT, RIGHT, BOTTOM, TOP, TITLED, BETWEEN = 0.78, 0.2, 0.48, 0.1, 0.28, 0.34  # inches about panels


def convergence(history: Sequence[Row]) -> Figure:
    """Six curves over the iterations: likelihood, certainty, changes of class, resolution, angle and shift."""
    figure, axes = panels(2, 3, height=5.2)
    _curve(axes[0], history, "log_likelihood", "log likelihood per particle")
    _curve(axes[1], history, "max_probability", "mean largest probability")
    _curve(axes[2], history, "changed_class", "changed class (%)", scale=100)
    _curve(axes[3], history, "resolution_A", "resolution (Å)", label="best class")
    _curve(axes[3], history, "median_resolution_A", "", label="median class", colour=2)
    _curve(axes[3], history, "resolution_limit_A", "", label="compared up to", colour=LIMIT)
    _curve(axes[4], history, "changed_psi_deg", "in-plane angle (°)", label="median change")
    _curve(axes[4], history, "psi_step_deg", "", label="search step", colour=LIMIT)
    _curve(axes[5], history, "changed_shift_px", "shift (px)", label="median change")
    _curve(axes[5], history, "shift_step_px", "", label="search step", colour=LIMIT)
    for axis in axes[3:]:
        _legend(axis)
        axis.set_xlabel("iteration")
    _from_zero(*axes[1:])
    return figure


def classes_in_use(history: Sequence[Row]) -> Figure:
    """Classes with particles, their effective number, and how many particles each iteration looked at."""
    figure, axes = panels(1, 2, height=2.7)
    _curve(axes[0], history, "classes_in_use", "classes", label="with particles")
    _curve(axes[0], history, "effective_classes", "", label="effective number", colour=2)
    _curve(axes[0], history, "classes", "", label="grown so far", colour=LIMIT)
    _legend(axes[0], "lower right")
    _curve(axes[1], history, "particles_used", "particles in the iteration")
    axes[0].yaxis.set_major_locator(_whole_ticks())
    for axis in axes:
        axis.set_xlabel("iteration")
    _from_zero(*axes)
    return figure


def occupancy(entries: Sequence[Entry]) -> Figure:
    """Particles per class, the fullest first; bars named by class number while there is room for names."""
    figure, (axis,) = panels(1, 1, height=2.8)
    counts = [entry.count for entry in entries]
    places = np.arange(1, len(counts) + 1)
    if len(counts) <= 60:
        axis.bar(places, counts, color=COLOURS[0], width=0.8)
        axis.set_xticks(places, [str(entry.number) for entry in entries], fontsize=7)
        axis.set_xlabel("class number, the fullest first")
        axis.set_xlim(0.2, max(len(counts), 8) + 0.8)
    else:
        axis.stairs(counts, np.arange(0.5, len(counts) + 1), fill=True, color=COLOURS[0])
        axis.set_xlabel("classes, the fullest first")
        axis.set_xlim(0.5, len(counts) + 0.5)
    even = sum(counts) / max(len(counts), 1)
    axis.axhline(even, color=COLOURS[1], linestyle="--", linewidth=1, label="if all were equal")
    axis.set_ylim(bottom=0)
    axis.set_ylabel("particles")
    _legend(axis)
    return figure


def poses(psi_deg: np.ndarray, origin_A: np.ndarray) -> Figure:
    """Histograms of rlnAnglePsi in degrees, and of the two shifts and their length in Angstrom."""
    figure, axes = panels(1, 3, height=2.7)
    wrapped = (np.asarray(psi_deg) + 180) % 360 - 180
    axes[0].hist(wrapped, bins=72, range=(-180, 180), color=COLOURS[0])
    axes[0].set_xlabel("in-plane angle rlnAnglePsi (°)")
    axes[0].set_xticks(np.arange(-180, 181, 90))
    axes[0].set_ylabel("particles")
    reach = max(float(np.abs(origin_A).max(initial=0)), 1e-3)
    for column, name, colour in ((0, "x", COLOURS[0]), (1, "y", COLOURS[1])):
        kind: dict[str, Any] = {"histtype": "step", "color": colour, "linewidth": 1.4, "label": name}
        axes[1].hist(origin_A[:, column], bins=60, range=(-reach, reach), **kind)
    axes[1].set_xlabel("origin rlnOriginX/YAngst (Å)")
    _legend(axes[1])
    axes[2].hist(np.hypot(origin_A[:, 0], origin_A[:, 1]), bins=60, color=COLOURS[2])
    axes[2].set_xlim(left=0)
    axes[2].set_xlabel("length of the shift (Å)")
    return figure


def spectra(
    noise_power: np.ndarray, names: Sequence[str], ssnr: np.ndarray, entries: Sequence[Entry], box_A: float
) -> Figure:
    """Noise power of each optics group and signal-to-noise of the classes over spatial frequency.

    noise_power is (G, S) and ssnr (K, S) over Fourier shells, `box_A` the box's width in Angstrom.
    """
    figure, axes = panels(1, 2, height=3.1)
    frequency = np.arange(noise_power.shape[1]) / box_A
    for place, (power, name) in enumerate(zip(noise_power, names, strict=True)):
        axes[0].plot(frequency[1:], _positive(power)[1:], color=COLOURS[place % 6], linewidth=1.4, label=name)
    axes[0].set_ylabel("noise power per Fourier pixel")
    if len(names) <= 8:
        _legend(axes[0])
    _ssnr(axes[1], frequency, ssnr, [entry.index for entry in entries if entry.count])
    for axis in axes:
        axis.set_yscale("log")
        axis.set_xlabel("spatial frequency (1/Å)")
        axis.set_xlim(0, frequency[-1])
        _plain_ticks(axis)
    return figure


def _ssnr(axis: Axes, frequency: np.ndarray, ssnr: np.ndarray, used: list[int]) -> None:
    """Up to 200 classes in grey, their median and best in colour, and the line where signal equals noise."""
    from matplotlib.collections import LineCollection

    rows = _positive(ssnr[used]) if used else np.full((1, len(frequency)), np.nan)
    shown = rows[:: max(1, len(rows) // 200)]
    axis.add_collection(
        LineCollection([np.column_stack([frequency, row])[1:] for row in shown], colors=FAINT, linewidths=0.7)
    )
    axis.plot(
        frequency[1:], _over_classes(np.nanmedian, rows)[1:], color=COLOURS[0], linewidth=1.6, label="median class"
    )
    axis.plot(frequency[1:], _over_classes(np.nanmax, rows)[1:], color=COLOURS[2], linewidth=1.6, label="best class")
    axis.axhline(1, color=COLOURS[1], linestyle="--", linewidth=1, label="signal = noise")
    top = np.nanmax(rows, initial=10.0)
    axis.set_ylim(1e-2, 3 * float(top))
    axis.set_ylabel("signal-to-noise of the average")
    _legend(axis)


def _positive(values: np.ndarray) -> np.ndarray:
    """What a logarithmic axis can show; the rest is left out of the line."""
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _over_classes(statistic: Callable[..., Any], rows: np.ndarray) -> np.ndarray:
    """The statistic of every shell over the classes that have a value there, NaN where none has."""
    result = np.full(rows.shape[1], np.nan)
    some = np.isfinite(rows).any(axis=0)
    result[some] = statistic(rows[:, some], axis=0)
    return result


def times(history: Sequence[Row]) -> Figure:
    """Seconds of every iteration, stacked by step, and the share of each step in the whole."""
    figure, axes = panels(1, 2, height=2.8, widths=(2.6, 1), gap=1.05)
    numbers = np.array([row["number"] for row in history], np.float64)
    below = np.zeros(len(history))
    totals = {}
    for colour, step in zip(COLOURS, steps_of(history), strict=False):
        seconds = np.array([row["seconds"].get(step, 0.0) for row in history])
        axes[0].bar(numbers, seconds, bottom=below, color=colour, width=0.8, label=step)
        below += seconds
        totals[step] = (seconds.sum(), colour)
    axes[0].set_xlabel("iteration")
    axes[0].set_ylabel("seconds")
    _whole_numbers(axes[0], numbers)
    names = list(totals)[::-1]
    axes[1].barh(names, [totals[name][0] for name in names], color=[totals[name][1] for name in names])
    axes[1].set_xlabel("seconds in all")
    axes[1].grid(False, axis="y")
    axes[1].margins(y=0.08)
    return figure


def steps_of(history: Sequence[Row]) -> list[str]:
    """The steps that were timed, in their order; beyond the usual five at most one more: 'other'."""
    found = {step for row in history for step in row["seconds"]}
    return [step for step in STEPS if step in found] + sorted(found - set(STEPS))


def svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element for the page; its ids are made from `name`, so that two charts never share one."""
    import matplotlib
    from matplotlib.text import Text

    stream = io.StringIO()
    for text_in_it in figure.findobj(Text):
        text_in_it.set_parse_math(False)  # a $ in a name begins no formula
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' width="[^"]*" height="[^"]*"', "", text, count=1)  # the page sets the size
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    text = re.sub(r'<g id="[A-Za-z_.]+_\d+"', "<g", text)  # numbered anew in every chart
    return text.replace(INK, "currentColor").replace(FAINT, "var(--faint)")


def png(figure: Figure) -> bytes:
    """The figure on white, 130 dots per inch."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, facecolor="white")
    return stream.getvalue()


@dataclass(frozen=True)
class Chart:
    """A figure as it goes into files."""

    svg: str
    png: bytes

    @staticmethod
    def of(figure: Figure, name: str) -> Chart:
        """The figure in every format; `name` tells it from the page's others."""
        return Chart(svg(figure, name), png(figure))


def panels(
    rows: int,
    columns: int,
    *,
    height: float,
    widths: tuple[float, ...] | None = None,
    gap: float = 0.72,
    titled: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width and its panels in reading order, `gap` inches apart.

    Margins are given, not found: to look for those that all labels fit into takes as long as to draw.
    """
    from matplotlib.figure import Figure

    top, below = (TITLED if titled else TOP), (BOTTOM if titled else BETWEEN)
    wide = (WIDTH - LEFT - RIGHT - (columns - 1) * gap) / columns
    high = (height - BOTTOM - top - (rows - 1) * below) / rows
    figure = Figure(figsize=(WIDTH, height))
    figure.subplots_adjust(
        left=LEFT / WIDTH, right=1 - RIGHT / WIDTH, bottom=BOTTOM / height, top=1 - top / height,
        wspace=gap / wide, hspace=below / high,
    )  # fmt: skip
    panels = figure.subplots(rows, columns, squeeze=False, width_ratios=widths)
    for axis in panels.flat:
        axis.tick_params(which="both", labelcolor=INK, color=FAINT, labelsize=8)
        axis.grid(True, color=FAINT, linewidth=0.5, alpha=0.6)
        axis.set_axisbelow(True)
        axis.patch.set_alpha(0)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set(color=INK, fontsize=9)
        for side, spine in axis.spines.items():
            spine.set(visible=side in ("left", "bottom"), color=FAINT)
    return figure, list(panels.flat)


def _curve(
    axis: Axes,
    history: Sequence[Row],
    field: str,
    ylabel: str,
    *,
    scale: float = 1,
    label: str | None = None,
    colour: int = 0,
) -> None:
    """One figure of the history over the iterations, a limit dashed; what is not known leaves a gap."""
    style = "--" if colour == LIMIT else "-"
    numbers = np.array([row["number"] for row in history], np.float64)
    values = np.array([np.nan if row.get(field) is None else scale * row[field] for row in history], np.float64)
    marker = "o" if style == "-" and len(values) < 60 else ""
    axis.plot(numbers, values, style, color=COLOURS[colour], linewidth=1.5, marker=marker, markersize=3, label=label)
    if ylabel:
        axis.set_ylabel(ylabel)
    _whole_numbers(axis, numbers)


def _whole_numbers(axis: Axes, numbers: np.ndarray) -> None:
    """Ticks at whole iterations; a single one stands in the middle."""
    axis.xaxis.set_major_locator(_whole_ticks())
    if len(numbers):
        axis.set_xlim(numbers.min() - 0.6, numbers.max() + 0.6)


def _whole_ticks() -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True, min_n_ticks=1)


def _plain_ticks(axis: Axes) -> None:
    """0.5 and not 5 x 10^-1 on a logarithmic axis; between powers of ten, too, where it spans little."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    low, high = axis.get_ylim()
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}") if high < 20 * low else NullFormatter())


def _from_zero(*axes: Axes) -> None:
    for axis in axes:
        axis.set_ylim(bottom=0)


def _legend(axis: Axes, corner: Literal["upper right", "lower right"] = "upper right") -> None:
    """Beside the lines, which leave it some room where the axis finds its own limits."""
    if corner == "upper right":
        axis.margins(y=0.25)
    legend = axis.legend(fontsize=7.5, frameon=False, loc=corner)  # "best" looks at every point of every line
    for text in legend.get_texts():
        text.set_color(INK)

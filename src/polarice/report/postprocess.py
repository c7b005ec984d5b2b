"""The report of a postprocessing: FSC, slices, surface, Guinier plot, resolution by direction and place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.report import charts
from polarice.report.density import closing, coloured_figure, png, slices_figure, write_picture
from polarice.report.index import Chapter, Picture, write_index
from polarice.report.surface import surface_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarice.postprocessing.result import Result

LOCAL = ("locres", "locres_surface")
CURVES = (
    ("unmasked", "without a mask", 2, "-"),
    ("masked", "within the mask", 0, "-"),
    ("randomised", "phases randomised", 1, "--"),
    ("corrected", "corrected", None, "-"),
)


def write_page(params: Any, found: Result) -> Path:
    """report.html and its pictures; InputError where these cannot be written."""
    from polarice.postprocessing.result import figures

    numbers = figures(found)
    pictures = {
        "fsc": png(fsc_figure(found)),
        "slices": png(slices_figure(found.surface.numpy(), found.mask)),
        "guinier": png(guinier_figure(found)),
        "directions": png(directions_figure(found)),
        "surface": surface_png(found.surface, found.contour.level),
    }
    if found.local is not None:
        pictures |= _local_pictures(found)
    for name in LOCAL:
        (params.o / f"report_{name}.png").unlink(missing_ok=True)  # of a run before
    for name, content in pictures.items():
        write_picture(params.o / f"report_{name}.png", content)
    chapters = [*_chapters(found, numbers, pictures), *closing("postprocess", params)]
    subtitle = f"{found.halves.one.path} · {found.map.box_px} px · {found.map.pixel_A:.4g} Å"
    return write_index(params.o / "report.html", f"postprocess: {params.o}", subtitle, chapters)


def _chapters(found: Result, numbers: dict[str, Any], pictures: dict[str, bytes]) -> list[Chapter]:
    line = found.guinier.line
    glance = [
        ("Å, corrected FSC 0.143", f"{found.resolution_A:.2f}"),
        ("Å without a mask", f"{numbers['resolution_unmasked_A']:.2f}"),
        ("Å², B-factor", f"{found.bfactor_A2:.0f}"),
        ("Å, best and worst direction", f"{numbers['best_direction_A']:.1f} – {numbers['worst_direction_A']:.1f}"),
        ("level for ChimeraX", f"{found.contour.level:.4g}"),
    ]
    slope = f"line: correlation {line.correlation:.2f}, B-factor {line.bfactor_A2:.0f} Å²" if line else "no line fitted"
    chapters = [
        Chapter("Map", (*(f"Warning: {each}." for each in found.said), f"The level {found.contour.rule}."), glance,
                [Picture(pictures["surface"], "The sharpened map within the mask, low-passed at its resolution."),
                 Picture(pictures["slices"], "Central slices of it; the line is where the mask is one half.")]),
        Chapter("Resolution", (f"Mask: {found.mask_from}. Where the curve of randomised phases is above 0, the mask "
                               "makes correlation of its own; the corrected curve is without it.",),
                pictures=[Picture(pictures["fsc"], "Fourier shell correlation of the half maps.")]),
        Chapter("Sharpening", (slope + ".",), pictures=[Picture(pictures["guinier"], "Guinier plot.")]),
        Chapter("Directions", (_views_text(found),),
                pictures=[Picture(pictures["directions"], "Left: resolution by direction, each a cone of 20°. "
                                                          "Right: how often views sample the transform there.")]),
    ]  # fmt: skip
    if found.local is not None:
        low, middle, high = numbers["local_resolution_A"]
        spread = f"Nine tenths of the particle lie between {low:.1f} and {high:.1f} Å; the median is {middle:.1f} Å."
        window = "Windows have standard deviations of {:.0f} to {:.0f} Å.".format(*found.local.window_A)
        shown = [
            Picture(
                pictures["locres_surface"], f"Local resolution on the surface: blue {low:.1f} Å, red {high:.1f} Å."
            ),
            Picture(pictures["locres"], "The same over slices of the map."),
        ]
        chapters.insert(2, Chapter("Local resolution", (spread, window), pictures=shown))
    return chapters


def _views_text(found: Result) -> str:
    cone = f"The FSC area of the worst direction is {found.cones.ratio:.2f} of the best one's."
    if found.sampling is None:
        return f"{cone} No table of angles was found beside the half maps, so that the views are not known (--data)."
    return (
        f"{cone} The sampling figure SCF is {found.sampling.scf:.2f}: 1 for even views, 0.81 for side views alone, "
        f"towards 0 where directions are never seen; {found.sampling.empty:.0%} of all directions are not sampled."
    )


def fsc_figure(found: Result) -> Figure:
    """All curves, and where 0.143 is passed."""
    figure, (axis,) = charts.panels(1, 1, height=3.4)
    box_A = found.map.box_A
    for name, label, colour, style in CURVES:
        values = getattr(found.curves, name)
        if values is None or (name == "corrected" and found.mask is None):
            continue
        drawn = charts.INK if colour is None else charts.COLOURS[colour]
        fsc = values.cpu().numpy()
        axis.plot(np.arange(1, len(fsc)) / box_A, fsc[1:], style, color=drawn, linewidth=1.6, label=label)
    axis.axhline(0.143, color=charts.FAINT, linewidth=1, linestyle="--")
    axis.axhline(0, color=charts.FAINT, linewidth=0.8)
    axis.axvline(1 / found.resolution_A, color=charts.FAINT, linewidth=1, linestyle=":")
    axis.annotate(f"{found.resolution_A:.2f} Å", (1 / found.resolution_A, 0.2), fontsize=9, color=charts.INK)
    axis.set(xlabel="spatial frequency (1/Å)", ylabel="FSC", ylim=(-0.1, 1.02), xlim=(0, 0.5 / found.map.pixel_A))
    axis.legend(fontsize=8, frameon=False, loc="upper right")
    return figure


def guinier_figure(found: Result) -> Figure:
    """ln amplitudes over 1 / d^2, and the fitted line."""
    figure, (axis,) = charts.panels(1, 1, height=3.0)
    guinier = found.guinier
    for name, label, colour in (("original", "map", 5), ("weighted", "weighted", 0), ("sharpened", "sharpened", 2)):
        values = np.array(getattr(guinier, name))
        values[values < -90] = np.nan
        axis.plot(guinier.squared[1:], values[1:], color=charts.COLOURS[colour], linewidth=1.4, label=label)
    if guinier.line is not None:
        x = guinier.squared[guinier.squared >= 1 / found.asked.fit_from_A**2]
        axis.plot(x, guinier.line.intercept + guinier.line.slope * x, "--", color=charts.COLOURS[1], label="line")
    axis.set(xlabel="1/d² (1/Å²)", ylabel="ln amplitude")
    axis.legend(fontsize=8, frameon=False)
    return figure


def directions_figure(found: Result) -> Figure:
    """Resolution by direction, and the sampling by views, both on half a sphere seen from its pole."""
    figure, axes = charts.panels(1, 2, height=3.8)
    _disc(figure, axes[0], found.cones.directions, found.map.box_A / found.cones.shell, "resolution (Å)")
    if found.sampling is None:
        axes[1].set_axis_off()
    else:
        _disc(figure, axes[1], found.sampling.directions, found.sampling.density, "sampling (mean 1)")
    return figure


def _disc(figure: Figure, axis: Any, directions: np.ndarray, values: np.ndarray, label: str) -> None:
    """Values on half a sphere, areas true: the pole z in the middle."""
    r = np.sqrt(2) * np.sin(np.arccos(np.clip(directions[:, 2], -1, 1)) / 2)
    phi = np.arctan2(directions[:, 1], directions[:, 0])
    size = 14000 / len(values)
    drawn = axis.scatter(r * np.cos(phi), r * np.sin(phi), c=values, s=size, cmap="viridis", linewidths=0)
    figure.colorbar(drawn, ax=axis, label=label)
    axis.set_aspect("equal")
    axis.grid(False)
    axis.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xticks=(), yticks=(), xlabel="x", ylabel="y")


def _local_pictures(found: Result) -> dict[str, bytes]:
    """Slices and surface in colour."""
    from polarice.postprocessing.result import local_quantiles

    assert found.local is not None
    low, _, high = local_quantiles(found)
    limits = (low, max(high, low + 0.1))
    values = found.local.resolution_A.cpu()
    mask = found.mask if found.mask is not None else np.ones(values.shape, np.float32)
    slices = coloured_figure(found.surface.numpy(), values.numpy(), mask, limits, "Å")
    coloured = surface_png(found.surface, found.contour.level, values, limits)
    return {"locres": png(slices), "locres_surface": coloured}

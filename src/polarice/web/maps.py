"""Maps: slices along each axis, the pictures of the report, and FSC curves from the job's STAR files."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from html import escape
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polarice.io.mrc import open_stack, read_header
from polarice.io.star import read_star
from polarice.types import InputError
from polarice.web import layout
from polarice.web.classes import CACHED
from polarice.web.found import is_text, natural
from polarice.web.guard import Refused
from polarice.web.server import Answer, Request

if TYPE_CHECKING:
    from polarice.io.table import Table
    from polarice.web.site import Site

AXES = {"z": 0, "y": 1, "x": 2}
MOST_PX = 512  # of a slice in the browser; larger ones are thinned
MOST_MAPS = 100
PICTURES = ("report_surface.png", "report_locres_surface.png", "report_map.png", "report_slices.png", "compared.png")
FSC_FILES = ("run_fsc.star", "postprocess.star", "compared.star")
CURVES = {
    "rlnFourierShellCorrelationCorrected": "corrected",
    "rlnFourierShellCorrelationUnmaskedMaps": "unmasked",
    "rlnFourierShellCorrelationMaskedMaps": "masked",
    "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": "phases randomised",
    "rlnGoldStandardFsc": "half maps",
    "rlnFourierShellCorrelation": "half maps",
}
LEVELS = (0.143, 0.5)


def volumes_of(folder: Path) -> list[str]:
    """Names of the maps in a folder, the last ones first."""
    try:
        there = [each for each in os.listdir(folder) if each.endswith((".mrc", ".map")) and is_text(each)]
    except OSError:
        return []
    names = sorted(there, key=natural, reverse=True)
    return [name for name in islice(names, MOST_MAPS) if _is_volume(folder / name)]


def _is_volume(path: Path) -> bool:
    try:
        header = read_header(path)
    except (InputError, OSError):
        return False
    return header.n > 1 and header.nx == header.ny


def preferred(names: list[str]) -> str:
    """The map that is the job's result."""
    order = ("postprocess_masked.mrc", "postprocess.mrc", "run_class001.mrc", "map.mrc", "initial_model.mrc")
    return next((each for each in order if each in names), names[0])


def show(site: Site, request: Request, rest: str) -> Answer:
    """Three slices that sliders move, the surface, the FSC."""
    job = site.job(rest)
    names = [each for each in volumes_of(job.folder) if site.fence.holds(job.folder / each)]
    if not names:
        raise InputError(f"{job.name}: no map in it yet")
    name = request.query.get("file") or preferred(names)
    if name not in names:
        raise Refused(HTTPStatus.NOT_FOUND, f"no such map: {name[:80]!r}")
    header = read_header(job.folder / name)
    mark = (job.folder / name).stat().st_mtime_ns
    options = "".join(f"<option{' selected' if each == name else ''}>{escape(each)}</option>" for each in names)
    slices = "".join(_slider(job.name, name, axis, size, mark) for axis, size in _sizes(header.n, header.ny, header.nx))
    body = (
        f"<h1>Maps of {escape(job.name)}</h1>"
        f'<form method="get" class="tools"><label>Map <select name="file" id="file">{options}</select></label> '
        f"<button>Show</button></form><p class=soft>{header.nx} x {header.ny} x {header.n} voxels of "
        f"{header.pixel_size_A:.4g} Å; grey from the 0.5th to the 99.5th percentile</p>"
        f'<div class="slices">{slices}</div>{_fsc(site, job.folder)}{_pictures(job.folder, job.name)}'
    )
    return site.page(f"Maps of {job.name}", body, ["map.js"], layout.link(job.name, "job", job.name))


def _sizes(nz: int, ny: int, nx: int) -> list[tuple[str, int]]:
    return [("z", nz), ("y", ny), ("x", nx)]


def _slider(job: str, name: str, axis: str, size: int, mark: int) -> str:
    where = layout.address("slice", job, name)
    first = f"{where}?axis={axis}&amp;at={size // 2}&amp;v={mark}"
    return (
        f'<figure><img alt="slice along {axis}" src="{first}" data-slice="{where}?axis={axis}&amp;v={mark}&amp;at=">'
        f'<figcaption><label>{axis} <input type="range" min="0" max="{size - 1}" value="{size // 2}" '
        f'aria-label="slice along {axis}"></label><output>{size // 2}</output></figcaption></figure>'
    )


def slice_picture(site: Site, request: Request, rest: str) -> Answer:
    """One slice as PNG, x to the right and y upwards. Raises InputError for a file that is no map."""
    from PIL import Image

    from polarice.report.montage import png_bytes

    path = site.fence.inside(rest)
    axis = AXES.get(request.query.get("axis", "z"))
    if axis is None or path.suffix not in (".mrc", ".map"):
        raise Refused(HTTPStatus.BAD_REQUEST, "no such slice")
    density = open_stack(path.resolve())
    at = request.number("at", 0, density.shape[axis] - 1, density.shape[axis] // 2)
    every = max(1, math.ceil(max(density.shape) / MOST_PX))
    image = np.take(density, at, axis).astype(np.float32)[::every, ::every]
    thin = max(1, max(density.shape) // 48)
    low, high = np.nanpercentile(np.asarray(density[::thin, ::thin, ::thin], np.float32), (0.5, 99.5))
    share = (np.nan_to_num(image, nan=low) - low) / max(float(high - low), 1e-30)
    grey = np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)[::-1]
    return Answer(png_bytes(Image.fromarray(grey)), "image/png", headers=CACHED)


def _pictures(folder: Path, name: str) -> str:
    there = [each for each in PICTURES if (folder / each).is_file()]
    shown = "".join(
        f'<img class="wide" loading="lazy" alt="{escape(each)}" src="{layout.address("file", name, each)}">'
        for each in there
    )
    return f"<h2>Surface and views</h2>{shown}" if there else ""


def _fsc(site: Site, folder: Path) -> str:
    parts = []
    for file in FSC_FILES:
        with suppress(InputError, OSError, ValueError):
            if (folder / file).is_file() and site.fence.holds(folder / file):
                parts.append(_plotted(file, read_star(folder / file).table("fsc")))
    return "".join(parts)


def _plotted(file: str, table: Table) -> str:
    resolution = table.numbers("rlnAngstromResolution")
    frequency = np.where(np.isfinite(resolution) & (resolution > 0) & (resolution < 900), 1 / resolution, 0.0)
    named = {title: label for label, title in CURVES.items() if label in table}  # of two half maps' columns, one
    lines = [layout.Line(title, frequency, table.numbers(label)) for title, label in named.items()]
    if not lines:
        return ""
    most = float(frequency.max()) or 1.0
    ticks = [(most * share, f"{1 / (most * share):.3g}") for share in (0.2, 0.4, 0.6, 0.8, 1.0)]
    where = "".join(f"<p class=soft>{escape(text)}</p>" for text in _crossings(lines))
    return f"<h2>FSC ({escape(file)})</h2>{layout.plot(lines, 'resolution (Å)', ticks, LEVELS)}{where}"


def _crossings(lines: list[layout.Line]) -> list[str]:
    """Where each curve first falls below 0.143."""
    said = []
    for line in lines:
        below = np.flatnonzero((line.y < LEVELS[0]) & (line.x > 0))
        if len(below) and below[0]:
            said.append(f"{line.name}: below 0.143 from {1 / line.x[below[0]]:.2f} Å on")
    return said

"""The latent map as pictures: node averages at their places, how full they are, and a movie of a way through them."""

from __future__ import annotations

import io
import math
import os
from typing import TYPE_CHECKING

import numpy as np

from polarice.io.atomic import replacing
from polarice.report.charts import COLOURS, INK, panels
from polarice.report.montage import MAX_SHEET_PX, PERCENTILES, thumbnail

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

GAP_PX = 2
LINE_GAP_PX, LINE_MARGIN_PX = 16, 44  # between the lines that one axis is broken into, and before them
SIDE_PX = (24, 128)  # least and largest width of a node's average
FAINT = 0.25  # strength in which a node without particles is drawn
MOVIE_SIDE_PX = 192
FRAME_MS = 80


def layout(shape: tuple[int, ...]) -> np.ndarray:
    """(K, 2) row and column at which each node is drawn; the last axis of the grid runs to the right.

    One axis is broken into lines, read as a page is; the slices of three stand side by side, a column apart.
    """
    if len(shape) == 1:
        columns = math.ceil(math.sqrt(1.5 * shape[0]))
        return np.stack(np.divmod(np.arange(shape[0]), columns), axis=1)
    slices, rows, columns = (1, *shape)[-3:]
    across = math.ceil(math.sqrt(slices * rows / columns)) if slices > 1 else 1
    z, y, x = np.unravel_index(np.arange(math.prod(shape)), (slices, rows, columns))
    return np.stack([z // across * (rows + 1) + y, z % across * (columns + 1) + x], axis=1)


def map_sheet(averages: np.ndarray, shape: tuple[int, ...], counts: np.ndarray, radius_px: float) -> Image:
    """Node averages (K, N, N) at their places; those without particles (counts (K,)) faint.

    The lines that one axis is broken into stand apart, and each begins with the number of its first node.
    """
    from PIL import Image, ImageDraw

    places, line = layout(shape), len(shape) == 1
    margin, gap = (LINE_MARGIN_PX, LINE_GAP_PX) if line else (0, GAP_PX)
    rows, columns = places.max(axis=0) + 1
    side = int(
        np.clip(MAX_SHEET_PX // max(rows, columns) - GAP_PX, SIDE_PX[0], min(SIDE_PX[1], max(64, len(averages[0]))))
    )
    page = Image.new("L", (margin + columns * (side + GAP_PX) - GAP_PX, rows * (side + gap) - gap), 255)
    draw = ImageDraw.Draw(page)
    blank = Image.new("L", (side, side), 255)
    for node, (average, count, (row, column)) in enumerate(zip(averages, counts, places.tolist(), strict=True)):
        picture = thumbnail(average, radius_px, side)
        if not count:
            picture = Image.blend(blank, picture, FAINT)
        page.paste(picture, (margin + column * (side + GAP_PX), row * (side + gap)))
        if line and column == 0:
            draw.text((margin - 6, row * (side + gap) + side // 2), f"{node + 1}", 0, anchor="rm")
    return page


def occupancy(shape: tuple[int, ...], counts: np.ndarray, latent: np.ndarray) -> Figure:
    """Particles per node, in the order of `map_sheet`, and the particles' latent coordinates (n, axis)."""
    figure, axes = panels(1, 2, height=4.2, gap=1.25, titled=True)
    _fullness(figure, axes[0], shape, counts)
    _coordinates(axes[1], shape, latent[np.isfinite(latent).all(axis=1)])
    return figure


def _fullness(figure: Figure, axis: Axes, shape: tuple[int, ...], counts: np.ndarray) -> None:
    """Particles of each node: along a line, or as a picture of the sheet."""
    axis.set_title("particles of each node", fontsize=9, color=INK)
    if len(shape) == 1:
        axis.stairs(counts, np.arange(len(counts) + 1) + 0.5, fill=True, color=COLOURS[0])
        axis.set_xlabel("node (rlnClassNumber), along the line")
        axis.set_ylabel("particles")
        return
    places = layout(shape)
    picture = np.full(places.max(axis=0) + 1, np.nan)
    picture[tuple(places.T)] = counts
    shown = axis.imshow(picture, cmap="viridis", interpolation="nearest", aspect="auto")
    axis.grid(False)
    axis.set_xlabel("column of the sheet")
    axis.set_ylabel("row of the sheet")
    bar = figure.colorbar(shown, ax=axis, fraction=0.05)
    bar.ax.tick_params(labelsize=8, labelcolor=INK)


def _coordinates(axis: Axes, shape: tuple[int, ...], latent: np.ndarray) -> None:
    """A histogram along the longest axis, or of the two longest."""
    longest = sorted(np.argsort([-n for n in shape], kind="stable")[:2].tolist())
    axis.set_title("latent coordinates of the particles", fontsize=9, color=INK)
    if len(shape) == 1:
        axis.hist(latent[:, 0], bins=80, range=(-1, 1), color=COLOURS[0])
        axis.set_xlabel("polariceLatent1")
        axis.set_ylabel("particles")
        return
    down, right = longest
    axis.hist2d(latent[:, right], latent[:, down], bins=80, range=((-1, 1), (-1, 1)), cmap="viridis", cmin=1)
    axis.invert_yaxis()  # the first axis runs down the sheet
    axis.set_xlabel(f"polariceLatent{right + 1}")
    axis.set_ylabel(f"polariceLatent{down + 1}")


def write_movie(path: str | os.PathLike[str], frames: np.ndarray, radius_px: float) -> None:
    """A GIF of images (frame, N, N), there and back for ever, all in one scale of grey."""
    from PIL import Image

    n = frames.shape[-1]
    x = np.arange(n) - n // 2
    low, high = np.percentile(frames[:, np.hypot(x[:, None], x) <= radius_px], PERCENTILES)
    grey = np.rint(255 * np.clip((frames - low) / max(high - low, 1e-30), 0, 1)).astype(np.uint8)
    side = max(n, MOVIE_SIDE_PX)
    pictures = [Image.fromarray(each).resize((side, side), Image.Resampling.LANCZOS) for each in grey]
    pictures += pictures[-2:0:-1]
    stream = io.BytesIO()
    pictures[0].save(stream, "GIF", save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=0)
    with replacing(path) as target:
        target.write(stream.getvalue())

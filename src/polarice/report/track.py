"""The picture of a movie's motion, drawn on its micrograph."""

from __future__ import annotations

import io

import numpy as np

from polarice.report.micrographs import thumbnail_png
from polarice.types import Motion

SIDE_PX, MAGNIFIED, PLACES = 512, 20, 5
WHOLE, LOCAL = (255, 200, 40), (90, 190, 255)


def track_png(micrograph: np.ndarray, motion: Motion) -> bytes:
    """The micrograph (ny, nx), small, with the whole-frame track at its middle and local tracks on a grid, x20."""
    from PIL import Image, ImageDraw

    from polarice.report.montage import png_bytes

    page = Image.open(io.BytesIO(thumbnail_png(micrograph, SIDE_PX))).convert("RGB")
    scale = page.width / motion.shape[1]
    draw = ImageDraw.Draw(page)
    frames = np.arange(len(motion.shifts_px))
    for j in range(PLACES):
        for i in range(PLACES):
            x, y = (i + 0.5) / PLACES * motion.shape[1], (j + 0.5) / PLACES * motion.shape[0]
            local = motion.at(frames, x, y) - motion.shifts_px
            _line(draw, np.array([x, y]) * scale, local * scale * MAGNIFIED, LOCAL)
    middle = np.array([page.width, page.height]) / 2
    whole = motion.shifts_px * scale * MAGNIFIED
    _line(draw, middle - (whole.max(0) + whole.min(0)) / 2, whole, WHOLE)
    return png_bytes(page)


def _line(draw: object, start: np.ndarray, way: np.ndarray, colour: tuple[int, int, int]) -> None:
    points = [tuple(point) for point in (start + way).tolist()]
    draw.line(points, fill=colour, width=2)  # type: ignore[attr-defined]
    x, y = points[0]
    draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)  # type: ignore[attr-defined]

"""Pictures for a notebook: small, inline, made when they are looked at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 10
SPREAD = 3.0  # standard deviations that grey values span, either way
THUMBNAIL_PX = 96


def grid_of(images: np.ndarray, titles: Sequence[str]) -> Figure:
    """Images (n, N, N) side by side, each with its title."""
    from matplotlib.figure import Figure

    columns = max(1, min(COLUMNS, len(images)))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.7 * rows), layout="constrained")
    for place, (image, title) in enumerate(zip(images, titles, strict=True)):
        axis = figure.add_subplot(rows, columns, place + 1)
        axis.imshow(image, cmap="gray")
        axis.set_title(title, fontsize=7)
        axis.set_axis_off()
    return figure


def slices_of(density: np.ndarray, pixel_size_A: float) -> Figure:
    """Central slices (above) and projections (below) of a density (z, y, x) along z, y and x."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    middle = len(density) // 2
    width_A = len(density) * pixel_size_A
    for column, (axis_name, along) in enumerate((("z", 0), ("y", 1), ("x", 2))):
        for row, (what, image) in enumerate(
            (("slice", np.take(density, middle, along)), ("projection", density.sum(along)))
        ):
            axis = figure.add_subplot(2, 3, 3 * row + column + 1)
            axis.imshow(image, cmap="gray", origin="lower", extent=(0, width_A, 0, width_A))
            axis.set_title(f"{what} along {axis_name} (Å)", fontsize=8)
            axis.tick_params(labelsize=6)
    return figure


def figure_html(figure: Figure) -> str:
    """An <img> of a figure."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return _image(content.getvalue(), "figure")


def strip_html(images: np.ndarray, names: Sequence[str]) -> str:
    """An <img> of each of some images (n, N, N), their grey values spread about the mean."""
    from PIL import Image

    shown = []
    for image, name in zip(images, names, strict=False):
        spread = SPREAD * float(image.std()) or 1.0
        grey = np.clip((image - image.mean()) / spread * 127.5 + 127.5, 0, 255).astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(grey).resize((THUMBNAIL_PX, THUMBNAIL_PX)).save(content, "PNG")
        shown.append(_image(content.getvalue(), name))
    return "".join(shown)


def _image(png: bytes, name: str) -> str:
    content = base64.b64encode(png).decode()
    return f'<img alt="{escape(name)}" title="{escape(name)}" src="data:image/png;base64,{content}">'

"""Class averages as pictures: single thumbnails, and one sheet sorted by occupancy."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from polarice.io.atomic import replacing
from polarice.report.history import class_counts
from polarice.types import Iteration

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SHEET_PX = 4200  # longest side of the montage
PERCENTILES = (0.3, 99.7)  # black and white, of the pixels inside the particle's circle


@dataclass(frozen=True)
class Entry:
    """One class as it is shown: what stands under its picture."""

    index: int  # from 0
    count: int  # particles
    share: float  # of the particles that have a class
    resolution_A: float  # inf where the average has none

    @property
    def number(self) -> int:
        """As in rlnClassNumber, from 1."""
        return self.index + 1

    @property
    def share_text(self) -> str:
        """In per cent, to two figures where it is small."""
        return f"{100 * self.share:.{2 if 0 < self.share < 0.00995 else 1}f} %"

    @property
    def resolution_text(self) -> str:
        return f"{self.resolution_A:.1f} A" if math.isfinite(self.resolution_A) else "- A"


def entries(iteration: Iteration) -> list[Entry]:
    """Every class of the iteration, the fullest first; equal ones in the order of their weights, then numbers."""
    counts = class_counts(iteration)
    total = max(int(counts.sum()), 1)
    weights, resolution = iteration.model.weights, iteration.model.resolution_A
    order = sorted(range(len(counts)), key=lambda c: (-counts[c], -weights[c], c))
    return [Entry(c, int(counts[c]), float(counts[c] / total), float(resolution[c])) for c in order]


def grey(average: np.ndarray, radius_px: float) -> np.ndarray:
    """An average (N, N) as bytes (N, N), stretched between robust percentiles of the pixels within `radius_px`.

    A constant image, or one with no finite pixel inside the circle, is mid-grey.
    """
    size = average.shape[0]
    x = np.arange(size) - size // 2
    inside = average[(np.hypot(x[:, None], x) <= radius_px) & np.isfinite(average)]
    if not len(inside):
        return np.full(average.shape, 128, np.uint8)
    low, high = np.percentile(inside, PERCENTILES)
    if not high > low:
        return np.full(average.shape, 128, np.uint8)
    stretched = (np.nan_to_num(average, nan=low, posinf=high, neginf=low) - low) / (high - low)
    return np.rint(255 * np.clip(stretched, 0, 1)).astype(np.uint8)


def circle_px(box_px: int, pixel_size_A: float, particle_diameter_A: float | None) -> float:
    """Radius of the particle's circle in pixels, at most half the box; half the box where no diameter is given."""
    half = box_px / 2
    return min(particle_diameter_A / pixel_size_A / 2, half) if particle_diameter_A else half


def thumbnail(average: np.ndarray, radius_px: float, side_px: int) -> Image:
    """The average as a grey picture, `side_px` wide."""
    from PIL import Image

    picture = Image.fromarray(grey(average, radius_px))
    if picture.width == side_px:
        return picture
    return picture.resize((side_px, side_px), Image.Resampling.LANCZOS)


def strip(images: np.ndarray, side_px: int, gap_px: int = 4) -> Image:
    """Images (n, N, N) side by side on white, each `side_px` wide and stretched for itself."""
    from PIL import Image

    page = Image.new("L", (len(images) * (side_px + gap_px) - gap_px, side_px), 255)
    for place, image in enumerate(images):
        page.paste(thumbnail(image, image.shape[-1] / 2, side_px), (place * (side_px + gap_px), 0))
    return page


def png_bytes(picture: Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")  # at its usual level: the highest takes three times as long to save a hundredth
    return stream.getvalue()


def montage(iteration: Iteration, particle_diameter_A: float | None = None) -> Image:
    """One sheet of all class averages, the fullest first, row by row.

    Under each: its number (as in rlnClassNumber), its share of the particles, how many they are, its resolution.
    """
    from PIL import Image, ImageDraw, ImageFont

    shown = entries(iteration)
    model = iteration.model
    sheet = Sheet.of(len(shown), model.averages.shape[-1])
    radius = circle_px(model.averages.shape[-1], model.pixel_size_A, particle_diameter_A)
    page = Image.new("L", (sheet.width, sheet.height), 255)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=sheet.font_px)
    for place, entry in enumerate(shown):
        x, y = sheet.corner(place)
        page.paste(thumbnail(model.averages[entry.index], radius, sheet.side), (x, y))
        top, below = y + sheet.side + 2, y + sheet.side + 2 + sheet.line
        right = x + sheet.side
        draw.text((x, top), f"{entry.number}", 0, font)
        draw.text((right, top), entry.share_text, 0, font, anchor="ra")
        draw.text((x, below), f"{entry.count:,}", 90, font)
        draw.text((right, below), entry.resolution_text, 90, font, anchor="ra")
    return page


def write_montage(path: str | os.PathLike[str], iteration: Iteration, particle_diameter_A: float | None = None) -> None:
    """Write the sheet as PNG; InputError where the disk is full or the folder may not be written."""
    content = png_bytes(montage(iteration, particle_diameter_A))
    with replacing(path) as stream:
        stream.write(content)


@dataclass(frozen=True)
class Sheet:
    """Where each of `n` pictures stands; all in pixels."""

    columns: int
    rows: int
    side: int
    font_px: int
    gap: int = 8

    @staticmethod
    def of(n: int, box_px: int) -> Sheet:
        columns = max(1, min(n, math.ceil(math.sqrt(1.5 * n))))
        rows = max(1, math.ceil(n / columns))
        room = min(MAX_SHEET_PX // columns - 8, MAX_SHEET_PX // rows - 46)
        side = min(160, max(112, box_px), max(room, 48))
        return Sheet(columns, rows, side, 12 if side >= 96 else 10)

    @property
    def line(self) -> int:
        return self.font_px + 3

    @property
    def cell(self) -> tuple[int, int]:
        return self.side + self.gap, self.side + 2 * self.line + self.gap + 4

    @property
    def width(self) -> int:
        return self.columns * self.cell[0] + self.gap

    @property
    def height(self) -> int:
        return self.rows * self.cell[1] + self.gap

    def corner(self, place: int) -> tuple[int, int]:
        row, column = divmod(place, self.columns)
        return self.gap + column * self.cell[0], self.gap + row * self.cell[1]

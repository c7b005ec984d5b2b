"""Boxes made into particle images, in the order in which RELION does it: scale, normalise, invert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polarice.extraction.background import Background, default_radius_px, normalise
from polarice.extraction.boxes import cut
from polarice.fourier import rescale


@dataclass(frozen=True)
class Recipe:
    """What becomes of a box; `background` None leaves the grey values."""

    box_px: int  # in the micrograph
    image_px: int  # of the images: Fourier cropped (or padded)
    invert: bool
    background: Background | None

    @staticmethod
    def usual(box_px: int, image_px: int | None = None, invert: bool = True) -> Recipe:
        """RELION's usual background circle, ramp off, dust left."""
        image_px = image_px or box_px
        return Recipe(box_px, image_px, invert, Background(default_radius_px(image_px)))


def images_of(
    micrograph: np.ndarray, xy_px: np.ndarray, recipe: Recipe, seeds: Sequence[int] | None = None
) -> np.ndarray:
    """Particle images (n, image_px, image_px) float32 about coordinates (n, 2), x then y; seeds as in `normalise`."""
    images = cut(micrograph, xy_px, recipe.box_px)
    if recipe.image_px != recipe.box_px:
        images = rescale(images.astype(np.float64), recipe.image_px)
    if recipe.background is not None:
        images = normalise(images, recipe.background, seeds)
    return np.float32(-1) * images.astype(np.float32) if recipe.invert else images.astype(np.float32)

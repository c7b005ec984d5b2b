"""The micrograph as pickers look at it: coarse, flat, of known spread, particles white."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

DIAMETER_PX = 22.0  # of a particle in the working copy, about
FLATTEN = 2.8  # standard deviation of the smooth background that is taken off, in diameters
CLIP = 5.0  # robust standard deviations; what is brighter or darker is dirt


@dataclass(frozen=True)
class Working:
    """A working copy and the way back to the micrograph's own pixels."""

    pixels: np.ndarray  # (y, x) float32, particles white, median about 0, robust standard deviation 1
    step: int  # micrograph pixels in one
    pixel_size_A: float
    diameter_px: float  # the particle's

    def in_micrograph(self, xy: np.ndarray) -> np.ndarray:
        """Coordinates (n, 2) of the working copy as coordinates of the micrograph; the first pixel's centre is 0."""
        return xy * self.step + (self.step - 1) / 2


def working_copy(micrograph: np.ndarray, pixel_size_A: float, diameter_A: float, dark: bool = True) -> Working:
    """Averages over blocks, background flattened, outliers clipped; `dark` particles are turned white."""
    step = max(1, round(diameter_A / pixel_size_A / DIAMETER_PX))
    rows, columns = (length // step for length in micrograph.shape)
    coarse = micrograph[: rows * step, : columns * step].astype(np.float32)
    coarse = coarse.reshape(rows, step, columns, step).mean((1, 3)) * (-1 if dark else 1)
    diameter_px = diameter_A / pixel_size_A / step
    coarse = np.clip(coarse, *_limits(coarse))  # dirt casts no halo
    flat = coarse - gaussian_filter(coarse, FLATTEN * diameter_px)
    middle, spread = robust(flat)
    flat = np.clip((flat - middle) / max(spread, 1e-30), -CLIP, CLIP)
    return Working(flat.astype(np.float32), step, pixel_size_A * step, diameter_px)


def robust(values: np.ndarray) -> tuple[float, float]:
    """Median, and the median deviation from it as a standard deviation."""
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle)))


def _limits(values: np.ndarray) -> tuple[float, float]:
    middle, spread = robust(values)
    return middle - 2 * CLIP * spread, middle + 2 * CLIP * spread

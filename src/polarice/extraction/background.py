"""The background of particle images: what lies outside of a circle about the origin.

As RELION's extraction: a plane fitted to the background is taken off, dust is replaced by noise of the background's
mean and deviation, and the background is brought to mean 0 and standard deviation 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polarice.fourier import centred_grid

FLAT = 1e-10  # standard deviation of a background without contrast


@dataclass(frozen=True)
class Background:
    """How images are normalised; deviations of the background, None where dust stays."""

    radius_px: float  # background lies further than this from the origin
    ramp: bool = True
    white_dust: float | None = None
    black_dust: float | None = None


def default_radius_px(box_px: int) -> int:
    """RELION's: a circle of 75 % of the box."""
    return round(0.375 * box_px)


def normalise(images: np.ndarray, how: Background, seeds: Sequence[int] | None = None) -> np.ndarray:
    """Images (n, N, N) with a background of mean 0 and standard deviation 1, float32.

    seeds: (n,) one for each image's dust, so that the same image gives the same noise in whatever batch; 0 .. n - 1
    unless given. An image whose background is flat keeps its grey values. Raises ValueError where nothing of the box is
    background.
    """
    y, x = centred_grid(images.shape[-1])
    outside = y * y + x * x > how.radius_px**2
    if not outside.any():
        raise ValueError(
            f"a circle of radius {how.radius_px} px leaves no background in a box of {images.shape[-1]} px"
        )
    work = images.astype(np.float64)
    if how.ramp:
        work -= ramp(work, outside)
    mean, deviation = _statistics(work, outside)
    if how.white_dust or how.black_dust:
        work = _without_dust(work, mean, deviation, how, range(len(work)) if seeds is None else seeds)
        mean, deviation = _statistics(work, outside)
    flat = deviation < FLAT
    scaled = (work - mean[:, None, None]) / np.where(flat, 1, deviation)[:, None, None]
    return np.where(flat[:, None, None], work, scaled).astype(np.float32)


def ramp(images: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """The plane a x + b y + c of least squares through the background pixels of each image: (n, N, N)."""
    y, x = centred_grid(images.shape[-1])
    plane = np.stack([x, y, np.ones_like(x)], axis=-1)
    slopes = np.linalg.lstsq(plane[outside], images[:, outside].T, rcond=None)[0]
    return np.moveaxis(plane @ slopes, -1, 0)


def _statistics(images: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pixels = images[:, outside]
    return pixels.mean(axis=1), pixels.std(axis=1)


def _without_dust(
    images: np.ndarray, mean: np.ndarray, deviation: np.ndarray, how: Background, seeds: Sequence[int]
) -> np.ndarray:
    """Pixels beyond the limits replaced by Gaussian noise of the background's mean and deviation."""
    away = (images - mean[:, None, None]) / np.maximum(deviation, FLAT)[:, None, None]
    dust = np.zeros(images.shape, bool)
    if how.white_dust:
        dust |= away > how.white_dust
    if how.black_dust:
        dust |= away < -how.black_dust
    clean = images.copy()
    for i, seed in enumerate(seeds):
        if dust[i].any():
            noise = np.random.default_rng(seed).standard_normal(int(dust[i].sum()))
            clean[i][dust[i]] = mean[i] + deviation[i] * noise
    return clean

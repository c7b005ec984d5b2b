"""Power spectra of micrographs, with the Thon rings in them: from tiles of the picture, or from a movie's summed ones.

A tile's power is divided by its own median before tiles are averaged: a bead or the edge of the carbon is one tile's
matter. Spectra are kept as logarithms: the noise of an averaged periodogram is proportional to it, so that of the
logarithm is even, and a background that multiplies becomes one that is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from polarice.contrast_transfer import frequency_grid
from polarice.fourier import centred_fft2
from polarice.types import InputError

LEAST_PX = 64  # of a micrograph, along each side


@dataclass(frozen=True)
class Spectrum:
    """Logarithm of a mean power spectrum, (N, N) float64, centred, `[ky, kx]`."""

    log_power: np.ndarray
    pixel_size_A: float

    @property
    def box_px(self) -> int:
        return self.log_power.shape[-1]

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Frequencies (fx, fy), each (N, N), in 1/Angstrom."""
        return frequency_grid(self.box_px, self.pixel_size_A)


def spectrum_of(micrograph: np.ndarray, pixel_size_A: float, tile_px: int = 512) -> Spectrum:
    """The spectrum of a micrograph (ny, nx) from half-overlapping tiles under a Hann window.

    A micrograph smaller than a tile takes tiles of its own shorter side. Raises InputError where that is less than
    LEAST_PX, where pixels are not finite, or where no tile has any contrast.
    """
    if min(micrograph.shape) < LEAST_PX:
        ny, nx = micrograph.shape
        raise InputError(f"{nx} x {ny} pixels are too few for Thon rings; at least {LEAST_PX} along each side")
    tile_px = min(tile_px, *micrograph.shape) // 2 * 2
    window = np.hanning(tile_px + 1)[:-1, None] * np.hanning(tile_px + 1)[:-1]
    total, count = np.zeros((tile_px, tile_px)), 0
    for tile in tiles(micrograph, tile_px):
        values = tile.astype(np.float64)
        power = np.abs(centred_fft2((values - values.mean()) * window)) ** 2
        middle = np.median(power)
        if not np.isfinite(middle):
            raise InputError("pixels that are not numbers")
        if middle > 0:
            total += power / middle
            count += 1
    if not count:
        raise InputError("all pixels are equal")
    return of_power(total / count, pixel_size_A)


def of_power(power: np.ndarray, pixel_size_A: float) -> Spectrum:
    """The spectrum of a mean power spectrum (N, N), centred; frequencies without power take the least there is."""
    if not np.isfinite(power).all() or not power.max() > 0:
        raise InputError("a power spectrum that is empty or holds what is no number")
    return Spectrum(np.log(np.maximum(power, power[power > 0].min())), pixel_size_A)


def tiles(micrograph: np.ndarray, tile_px: int) -> Iterator[np.ndarray]:
    """Views (tile_px, tile_px) of the micrograph, evenly spread, overlapping by half or a little more."""
    starts = [
        np.linspace(0, size - tile_px, max(1, -(-2 * size // tile_px) - 1), dtype=int) for size in micrograph.shape
    ]
    for y in starts[0]:
        for x in starts[1]:
            yield micrograph[y : y + tile_px, x : x + tile_px]

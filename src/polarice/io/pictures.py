"""Single pictures from MRC files: micrographs and their power spectra."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from polarice.io.mrc import open_stack, read_header
from polarice.types import InputError


@dataclass(frozen=True)
class Picture:
    """One image of a file."""

    pixels: np.ndarray  # (ny, nx) float32
    pixel_size_A: float  # as the header has it; 0.0 where it does not say


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """The one image of an MRC file.

    Raises InputError where it cannot be read, holds several images (a movie), pixels that are not numbers, or the
    same grey everywhere.
    """
    header = read_header(path)
    if header.n != 1:
        raise InputError(f"{path}: {header.n} images; one micrograph is wanted (a movie? polarice motion sums it)")
    pixels = open_stack(path)[0].astype(np.float32)
    if not np.isfinite(pixels).all():
        raise InputError(f"{path}: {np.count_nonzero(~np.isfinite(pixels))} pixels are not numbers; make it again")
    if pixels.min() == pixels.max():
        raise InputError(f"{path}: all pixels are {pixels.min():g}; make it again")
    return Picture(pixels, header.pixel_size_A)


def read_power_spectrum(path: str | os.PathLike[str]) -> Picture:
    """A summed power spectrum as RELION's motion correction writes it: centred amplitudes (N, N); here as power."""
    picture = read_picture(path)
    ny, nx = picture.pixels.shape
    if ny != nx:
        raise InputError(f"{path}: {nx} x {ny} pixels; a power spectrum is square")
    return Picture(picture.pixels.astype(np.float32) ** 2, picture.pixel_size_A)

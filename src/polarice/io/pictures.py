"""Single pictures: micrographs, of every kind that is imported, and power spectra."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from polarice.io.movies import EER_ENDING, TIFF_ENDINGS, Events, open_movie
from polarice.io.mrc import open_sections, read_header
from polarice.types import InputError


@dataclass(frozen=True)
class Picture:
    """One image of a file."""

    pixels: np.ndarray  # (ny, nx) float32
    pixel_size_A: float  # as the header has it; 0.0 where it does not say


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """The one image of an MRC, TIFF or EER file.

    Raises InputError where it cannot be read, holds several images (a movie), pixels that are not numbers, or the
    same grey everywhere.
    """
    count, pixels, pixel_size_A = _first_image(path)
    if pixels is None:
        raise InputError(f"{path}: {count} images; one micrograph is wanted (a movie? polarice motion sums it)")
    if not np.isfinite(pixels).all():
        raise InputError(f"{path}: {np.count_nonzero(~np.isfinite(pixels))} pixels are not numbers; make it again")
    if pixels.min() == pixels.max():
        raise InputError(f"{path}: all pixels are {pixels.min():g}; make it again")
    return Picture(pixels, pixel_size_A)


def _first_image(path: str | os.PathLike[str]) -> tuple[int, np.ndarray | None, float]:
    """How many images there are, the image where it is the only one, and its pixel size (0.0: not said)."""
    if str(path).lower().endswith((*TIFF_ENDINGS, EER_ENDING)):
        with open_movie(path, Events(1)) as file:
            return file.frames, file.read(0).astype(np.float32) if file.frames == 1 else None, file.pixel_size_A
    header = read_header(path)
    pixels = open_sections(path)[0].astype(np.float32) if header.n == 1 else None
    return header.n, pixels, header.pixel_size_A


def read_power_spectrum(path: str | os.PathLike[str]) -> Picture:
    """A summed power spectrum as RELION's motion correction writes it: centred amplitudes (N, N); here as power."""
    picture = read_picture(path)
    ny, nx = picture.pixels.shape
    if ny != nx:
        raise InputError(f"{path}: {nx} x {ny} pixels; a power spectrum is square")
    return Picture(picture.pixels.astype(np.float32) ** 2, picture.pixel_size_A)

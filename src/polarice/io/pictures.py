"""Single pictures: micrographs, of every kind that is imported, and power spectra."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from polarice.io.movies import EER_ENDING, TIFF_ENDINGS, Events, open_movie
from polarice.io.mrc import PACKED, Sections, nibbles, read_header
from polarice.io.optics import TOLD, UNSET_PIXEL_A
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


HEADER_SAYS = "its header says"


def other_size(picture: Picture, used_A: float) -> tuple[str, ...]:
    """What to tell where a micrograph's header states a pixel size more than 1 % from the one that is used."""
    stated_A = picture.pixel_size_A
    if stated_A in (0.0, UNSET_PIXEL_A) or not used_A or abs(stated_A / used_A - 1) <= TOLD:
        return ()
    return (f"{HEADER_SAYS} {stated_A:.4g} Å per pixel; {used_A:.4g} was used",)


def _first_image(path: str | os.PathLike[str]) -> tuple[int, np.ndarray | None, float]:
    """How many images there are, the image where it is the only one, and its pixel size (0.0: not said)."""
    if str(path).lower().endswith((*TIFF_ENDINGS, EER_ENDING)):
        with open_movie(path, Events(1)) as file:
            return file.frames, file.read(0).astype(np.float32) if file.frames == 1 else None, file.pixel_size_A
    header = read_header(path)
    if header.n != 1:
        return header.n, None, header.pixel_size_A
    section = Sections(path, header, packed=True)[0]
    pixels = nibbles(section, header.nx) if header.mode == PACKED else section
    return 1, pixels.astype(np.float32), header.pixel_size_A


def read_power_spectrum(path: str | os.PathLike[str]) -> Picture:
    """A summed power spectrum as RELION's motion correction writes it: centred amplitudes (N, N); here as power."""
    picture = read_picture(path)
    ny, nx = picture.pixels.shape
    if ny != nx:
        raise InputError(f"{path}: {nx} x {ny} pixels; a power spectrum is square")
    return Picture(picture.pixels.astype(np.float32) ** 2, picture.pixel_size_A)

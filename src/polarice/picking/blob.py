"""Particles of a known diameter, without templates: the micrograph says itself what its particles look like.

The best maxima of a first kernel are averaged all around their centres, and this profile, defocus fringes included, is
the kernel of the next round. First kernels are a Laplacian of a Gaussian of the particle's size (Lindeberg 1998, Int J
Comput Vis 30, 79), which takes every particle for a disc and mistakes the place between two hollow ones for one, and
the projections of spheres, solid and hollow. Of what they lead to, that is taken whose peaks rise most above chance.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import gaussian_laplace, map_coordinates

from polarice.picking.correlate import Correlator
from polarice.picking.peaks import Peaks, peaks_of
from polarice.picking.working import Working

ROUNDS = 3
REACH = 0.6  # radius of the kernel, in diameters
APART = 0.6  # least distance of two particles, in diameters
LEAST_TAKEN = 20  # peaks that are averaged, if so many are there
HOLLOW = (0.0, 0.6, 0.8)  # inner over outer radius of the spheres
CHANCE = 0.1  # of what is picked, the share that chance alone would make


def learn_kernel(working: Working, device: str = "cpu") -> np.ndarray:
    """The kernel (k, k), k odd: what a particle of this micrograph looks like, averaged around its centre."""
    picture, diameter = working.pixels, working.diameter_px
    blobs = peaks_of(-gaussian_laplace(picture, diameter / (2 * math.sqrt(2)), mode="reflect"), APART * diameter)
    kernel = averaged(picture, blobs.xy[: max(LEAST_TAKEN, len(blobs.xy) // 2)], REACH * diameter)
    disc = disc_of(kernel, REACH * diameter)
    seen, chance = Correlator(picture, disc, device), Correlator(scrambled(picture), disc, device)
    best, most = kernel, -1.0
    for start in (kernel, *(sphere(len(kernel), diameter / 2, hollow) for hollow in HOLLOW)):
        learned, rise = start, -1.0
        for _ in range(ROUNDS):
            found = peaks_of(seen.scores(learned[None])[0], APART * diameter)
            level = chance_level(found, peaks_of(chance.scores(learned[None])[0], APART * diameter))
            above = int((found.scores >= level).sum())
            rise = float(np.square(found.scores[:above] - level).sum())
            learned = averaged(picture, found.xy[: max(LEAST_TAKEN, above)], REACH * diameter)
        if rise > most:
            best, most = learned, rise
    return best


def chance_level(found: Peaks, chance: Peaks) -> float:
    """The least score above which the peaks of chance are no more than CHANCE of those found.

    The false discovery rate of Benjamini & Hochberg (1995, J R Stat Soc B 57, 289), chance being a picture of the same
    spectrum without particles.
    """
    false = len(chance.scores) - np.searchsorted(np.sort(chance.scores), found.scores, side="right")
    good = np.flatnonzero(false <= CHANCE * (1 + np.arange(len(found.scores))))
    return float(found.scores[good[-1]]) if len(good) else 1.0


def scrambled(pixels: np.ndarray, seed: int = 0) -> np.ndarray:
    """A picture of the same power spectrum whose phases are those of noise: nothing is in it but chance."""
    noise = np.fft.rfft2(np.random.default_rng(seed).standard_normal(pixels.shape))
    turned = np.abs(np.fft.rfft2(pixels)) * noise / np.maximum(np.abs(noise), 1e-30)
    return np.fft.irfft2(turned, pixels.shape).astype(np.float32)


def sphere(side: int, radius_px: float, hollow: float) -> np.ndarray:
    """The projection (side, side) of a sphere whose inside is empty up to `hollow` of its radius."""
    squared = _radius(side) ** 2
    outer = np.sqrt(np.maximum(radius_px**2 - squared, 0))
    return (outer - np.sqrt(np.maximum((hollow * radius_px) ** 2 - squared, 0))).astype(np.float32)


def disc_of(kernel: np.ndarray, radius_px: float) -> np.ndarray:
    """1 within `radius_px` of the kernel's centre, else 0: (k, k)."""
    return (_radius(kernel.shape[0]) <= radius_px).astype(np.float32)


def averaged(picture: np.ndarray, xy: np.ndarray, radius_px: float) -> np.ndarray:
    """The mean of the picture about each of (n, 2) places, then around the centre: (k, k), k odd.

    Places too near to the edge are left out; if all are, a disc is what is left.
    """
    reach = math.ceil(radius_px)
    radius = _radius(2 * reach + 1)
    size = np.array(picture.shape[::-1])
    whole = ((xy >= reach) & (xy <= size - 1 - reach)).all(axis=1)
    if not whole.any():
        return (radius <= radius_px * 0.8).astype(np.float32)
    steps = np.arange(-reach, reach + 1)
    where = np.broadcast_arrays(
        xy[whole, 1][:, None, None] + steps[:, None], xy[whole, 0][:, None, None] + steps[None, :]
    )
    mean = map_coordinates(picture, where, order=1).mean(axis=0)
    ring = np.rint(radius).astype(int)
    profile = np.bincount(ring.ravel(), mean.ravel()) / np.bincount(ring.ravel())
    return np.interp(radius, np.arange(len(profile)), profile).astype(np.float32)


def _radius(side: int) -> np.ndarray:
    return np.hypot(*np.mgrid[-(side // 2) : side // 2 + 1, -(side // 2) : side // 2 + 1])

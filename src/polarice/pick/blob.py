"""Particles of a known diameter, without templates.

First, maxima of the Laplacian of a Gaussian of the particle's size (Lindeberg 1998, Int J Comput Vis 30, 79). It takes
every particle for a disc, and mistakes the place between two hollow ones for one. So the best of them are averaged all
around their centres, and this profile is the kernel of the next round: the micrograph says itself what its particles
look like, defocus fringes included.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import gaussian_laplace, map_coordinates

from polarice.pick.correlate import Correlator
from polarice.pick.peaks import Peaks, peaks_of
from polarice.pick.working import Working

ROUNDS = 3
REACH = 0.6  # radius of the kernel, in diameters
APART = 0.6  # least distance of two particles, in diameters
TAKEN, LEAST_TAKEN = 0.5, 20  # the share of the peaks that is averaged


def learn_kernel(working: Working) -> np.ndarray:
    """The kernel (k, k), k odd: what a particle of this micrograph looks like, averaged around its centre."""
    picture, diameter = working.pixels, working.diameter_px
    blobs = -gaussian_laplace(picture, diameter / (2 * math.sqrt(2)), mode="reflect")
    found = peaks_of(blobs, APART * diameter)
    kernel = averaged(picture, _best(found), REACH * diameter)
    correlator = Correlator(picture, disc_of(kernel, REACH * diameter))
    for _ in range(ROUNDS - 1):
        found = peaks_of(correlator.scores(kernel[None])[0], APART * diameter)
        kernel = averaged(picture, _best(found), REACH * diameter)
    return kernel


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


def _best(found: Peaks) -> np.ndarray:
    return found.xy[: max(LEAST_TAKEN, round(TAKEN * len(found.scores)))]

"""Carbon, ice crystals and other dirt: regions much darker or brighter than the micrograph's particles are."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, binary_opening, gaussian_filter, maximum_filter

from polarice.picking.working import Working, robust

SIGMA = 0.15  # of the smoothing, in diameters
ODD = 6.0  # robust standard deviations from the median
STRONGER = 1.6  # times as far from the median as particles are
LEAST = 0.25  # width of a region that counts, in diameters
MARGIN = 0.35  # grown by so much, in diameters: a particle's centre has to lie so far away


def dirt_of(working: Working, xy: np.ndarray) -> np.ndarray:
    """(y, x) bool of the working copy: a particle's centre may not lie here.

    xy: (n, 2) places of particles, among which some on dirt may be; their median tells how dark a particle is.
    """
    diameter = working.diameter_px
    smooth = gaussian_filter(working.pixels, SIGMA * diameter)
    middle, spread = robust(smooth)
    away, limit = np.abs(smooth - middle), ODD * spread
    if len(xy):
        column, row = np.rint(xy).astype(int).clip(0, np.array(smooth.shape[::-1]) - 1).T
        strongest = maximum_filter(away, max(3, round(diameter)))[row, column]
        limit = max(limit, STRONGER * float(np.median(strongest)))
    odd = binary_opening(away > limit, _disc(LEAST / 2 * diameter))
    return binary_dilation(odd, _disc(MARGIN * diameter)) if odd.any() else odd


def _disc(radius_px: float) -> np.ndarray:
    reach = max(1, round(radius_px))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return x * x + y * y <= max(radius_px, 1.0) ** 2

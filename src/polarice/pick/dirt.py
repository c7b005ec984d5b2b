"""Carbon, ice crystals and other dirt: regions much darker, brighter or rougher than the rest of the micrograph."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, binary_opening, gaussian_filter

from polarice.pick.working import CLIP, Working, robust

SIGMA = 0.15  # of the smoothing, in diameters
ODD = 6.0  # robust standard deviations from the median
LEAST = 0.25  # width of a region that counts, in diameters
MARGIN = 0.35  # grown by so much, in diameters: a particle's centre has to lie so far away


def dirt_of(working: Working) -> np.ndarray:
    """(y, x) bool of the working copy: a particle's centre may not lie here."""
    diameter = working.diameter_px
    odd = np.zeros(working.pixels.shape, bool)
    smooth = gaussian_filter(working.pixels, SIGMA * diameter)
    middle, spread = robust(smooth)
    odd |= np.abs(smooth - middle) > min(ODD * spread, 0.8 * CLIP)
    odd = binary_opening(odd, _disc(LEAST / 2 * diameter))
    return binary_dilation(odd, _disc(MARGIN * diameter)) if odd.any() else odd


def _disc(radius_px: float) -> np.ndarray:
    reach = max(1, round(radius_px))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return x * x + y * y <= max(radius_px, 1.0) ** 2

"""All particles of a micrograph, with scores, and the score that chance reaches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polarice.picking.blob import APART, REACH, chance_level, disc_of, learn_kernel, scrambled
from polarice.picking.correlate import Correlator
from polarice.picking.dirt import dirt_of
from polarice.picking.peaks import Peaks, peaks_of
from polarice.picking.working import Working

BATCH = 16  # kernels at a time


@dataclass(frozen=True)
class Found:
    """Candidates of one micrograph, in its own pixels; thresholds come afterwards."""

    xy_px: np.ndarray  # (n, 2)
    scores: np.ndarray  # (n,)
    in_dirt: np.ndarray  # (n,) bool: on carbon, ice or other dirt
    chance: float  # score from which on no more than one in ten is made by chance


def find(working: Working, kernels: np.ndarray | None = None, device: str = "cpu") -> Found:
    """Candidates of a working copy: by kernels (m, k, k), or by one that is learned from the picture itself."""
    if kernels is None:
        kernels = learn_kernel(working, device)[None]
    disc = disc_of(kernels[0], REACH * working.diameter_px)
    found = _search(working.pixels, kernels, disc, working.diameter_px, device)
    level = chance_level(found, _search(scrambled(working.pixels), kernels, disc, working.diameter_px, device))
    dirt = dirt_of(working, found.xy[found.scores >= level])
    column, row = (np.rint(found.xy).astype(int).clip(0, np.array(dirt.shape[::-1]) - 1)).T
    return Found(working.in_micrograph(found.xy), found.scores, dirt[row, column], level)


def _search(pixels: np.ndarray, kernels: np.ndarray, disc: np.ndarray, diameter_px: float, device: str) -> Peaks:
    correlator = Correlator(pixels, disc, device)
    best = np.full(pixels.shape, -1.0, np.float32)
    for start in range(0, len(kernels), BATCH):
        best = np.maximum(best, correlator.scores(kernels[start : start + BATCH]).max(axis=0))
    return peaks_of(best, APART * diameter_px)

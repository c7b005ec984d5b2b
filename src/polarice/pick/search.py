"""All particles of a micrograph, with scores, and the score that chance reaches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polarice.pick.blob import APART, REACH, disc_of, learn_kernel
from polarice.pick.correlate import Correlator
from polarice.pick.dirt import dirt_of
from polarice.pick.peaks import Peaks, peaks_of
from polarice.pick.working import Working

BATCH = 16  # kernels at a time
CHANCE = 0.95  # quantile of the peaks that chance makes


@dataclass(frozen=True)
class Found:
    """Candidates of one micrograph, in its own pixels; thresholds come afterwards."""

    xy_px: np.ndarray  # (n, 2)
    scores: np.ndarray  # (n,)
    in_dirt: np.ndarray  # (n,) bool: on carbon, ice or other dirt
    chance: float  # score that one in twenty peaks of a picture without particles surpasses


def find(working: Working, kernels: np.ndarray | None = None, device: str = "cpu") -> Found:
    """Candidates of a working copy: by kernels (m, k, k), or by one that is learned from the picture itself."""
    if kernels is None:
        kernels = learn_kernel(working)[None]
    disc = disc_of(kernels[0], REACH * working.diameter_px)
    found = _search(working.pixels, kernels, disc, working.diameter_px, device)
    dirt = dirt_of(working)
    column, row = (np.rint(found.xy).astype(int).clip(0, np.array(dirt.shape[::-1]) - 1)).T
    chance = _search(scrambled(working.pixels), kernels, disc, working.diameter_px, device).scores
    level = float(np.quantile(chance, CHANCE)) if len(chance) else 1.0
    return Found(working.in_micrograph(found.xy), found.scores, dirt[row, column], level)


def _search(pixels: np.ndarray, kernels: np.ndarray, disc: np.ndarray, diameter_px: float, device: str) -> Peaks:
    correlator = Correlator(pixels, disc, device)
    best = np.full(pixels.shape, -1.0, np.float32)
    for start in range(0, len(kernels), BATCH):
        best = np.maximum(best, correlator.scores(kernels[start : start + BATCH]).max(axis=0))
    return peaks_of(best, APART * diameter_px)


def scrambled(pixels: np.ndarray, seed: int = 0) -> np.ndarray:
    """A picture of the same power spectrum whose phases are those of noise: nothing is in it but chance."""
    noise = np.fft.rfft2(np.random.default_rng(seed).standard_normal(pixels.shape))
    turned = np.abs(np.fft.rfft2(pixels)) * noise / np.maximum(np.abs(noise), 1e-30)
    return np.fft.irfft2(turned, pixels.shape).astype(np.float32)

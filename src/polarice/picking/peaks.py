"""Peaks of a score map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter
from scipy.spatial import cKDTree


@dataclass(frozen=True)
class Peaks:
    """Local maxima, the highest first."""

    xy: np.ndarray  # (n, 2) float64, x then y, from the first pixel's centre
    scores: np.ndarray  # (n,) float64

    def take(self, rows: np.ndarray) -> Peaks:
        return Peaks(self.xy[rows], self.scores[rows])


def peaks_of(scores: np.ndarray, apart_px: float) -> Peaks:
    """Local maxima, the highest first, none within `apart_px` of a higher one that is kept.

    Their places are refined by a parabola along x and y.
    """
    side = 2 * max(1, int(apart_px / 2)) + 1
    y, x = np.nonzero(scores == maximum_filter(scores, side, mode="constant", cval=-np.inf))
    order = np.argsort(-scores[y, x], kind="stable")
    y, x = y[order], x[order]
    kept = _apart(np.stack([x, y], axis=1).astype(float), apart_px)
    y, x = y[kept], x[kept]
    padded = np.pad(scores.astype(np.float64), 1, mode="edge")
    middle = padded[y + 1, x + 1]
    dx = _vertex(padded[y + 1, x], middle, padded[y + 1, x + 2])
    dy = _vertex(padded[y, x + 1], middle, padded[y + 2, x + 1])
    return Peaks(np.stack([x + dx, y + dy], axis=1), middle)


def _apart(xy: np.ndarray, apart_px: float) -> np.ndarray:
    """(n,) bool: going through (n, 2) places in their order, those not within `apart_px` of one kept before."""
    kept = np.ones(len(xy), bool)
    to_device: dict[int, list[int]] = {}
    for first, second in cKDTree(xy).query_pairs(apart_px) if len(xy) else ():
        to_device.setdefault(min(first, second), []).append(max(first, second))
    for i in sorted(to_device):
        if kept[i]:
            kept[to_device[i]] = False
    return kept


def _vertex(before: np.ndarray, middle: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where the parabola through three values at -1, 0 and 1 has its top, within half a pixel."""
    bend = np.maximum(2 * middle - before - after, 1e-12)
    return np.clip((after - before) / (2 * bend), -0.5, 0.5)

"""Peaks of a score map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter


@dataclass(frozen=True)
class Peaks:
    """Local maxima, the highest first."""

    xy: np.ndarray  # (n, 2) float64, x then y, from the first pixel's centre
    scores: np.ndarray  # (n,) float64

    def take(self, rows: np.ndarray) -> Peaks:
        return Peaks(self.xy[rows], self.scores[rows])


def peaks_of(scores: np.ndarray, apart_px: float) -> Peaks:
    """Pixels that are the highest within `apart_px`, their places refined by a parabola along x and y."""
    reach = max(1, int(apart_px))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    near = x * x + y * y <= max(apart_px, 1.0) ** 2
    y, x = np.nonzero(scores == maximum_filter(scores, footprint=near, mode="constant", cval=-np.inf))
    padded = np.pad(scores.astype(np.float64), 1, mode="edge")
    middle = padded[y + 1, x + 1]
    dx = _vertex(padded[y + 1, x], middle, padded[y + 1, x + 2])
    dy = _vertex(padded[y, x + 1], middle, padded[y + 2, x + 1])
    order = np.argsort(-middle, kind="stable")
    return Peaks(np.stack([x + dx, y + dy], axis=1)[order], middle[order])


def _vertex(before: np.ndarray, middle: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where the parabola through three values at -1, 0 and 1 has its top, within half a pixel."""
    bend = np.maximum(2 * middle - before - after, 1e-12)
    return np.clip((after - before) / (2 * bend), -0.5, 0.5)

"""Boxes about coordinates.

A coordinate is a place in the micrograph's array, the first pixel (0, 0); RELION cuts its fraction off, and so do we.
The pixel it names becomes the origin of the box, N // 2.
"""

from __future__ import annotations

import numpy as np


def inside(xy_px: np.ndarray, shape: tuple[int, int], box_px: int) -> np.ndarray:
    """(n,) bool: the whole box about each of the (n, 2) coordinates, x then y, lies within a micrograph (ny, nx)."""
    first = _first(xy_px, box_px)
    return np.all((first >= 0) & (first + box_px <= np.array(shape[::-1])), axis=1)


def touching(xy_px: np.ndarray, shape: tuple[int, int], box_px: int) -> np.ndarray:
    """(n,) bool: at least one pixel of the box lies within the micrograph."""
    first = _first(xy_px, box_px)
    return np.all((first + box_px > 0) & (first < np.array(shape[::-1])), axis=1)


def cut(micrograph: np.ndarray, xy_px: np.ndarray, box_px: int) -> np.ndarray:
    """Boxes (n, box_px, box_px) float32; what lies outside of the micrograph repeats its nearest pixel."""
    first = _first(xy_px, box_px)
    steps = np.arange(box_px)
    columns = np.clip(first[:, :1] + steps, 0, micrograph.shape[1] - 1)
    rows = np.clip(first[:, 1:] + steps, 0, micrograph.shape[0] - 1)
    return micrograph[rows[:, :, None], columns[:, None, :]].astype(np.float32)


def _first(xy_px: np.ndarray, box_px: int) -> np.ndarray:
    """(n, 2) column and row of each box's first pixel."""
    return np.trunc(xy_px).astype(np.int64) - box_px // 2

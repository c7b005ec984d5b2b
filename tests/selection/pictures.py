"""Class averages with known faults, for the tests of what is chosen."""

from __future__ import annotations

import numpy as np

BOX_PX, PIXEL_A, DIAMETER_A = 64, 4.0, 180.0
RADIUS_PX = DIAMETER_A / PIXEL_A / 2


def grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.meshgrid(*[np.arange(BOX_PX) - BOX_PX // 2] * 2, indexing="ij")
    return y, x


def masked(image: np.ndarray) -> np.ndarray:
    y, x = grid()
    return (image * (np.hypot(y, x) <= RADIUS_PX)).astype(np.float32)


def particle(seed: int, dx: float = 0.0, dy: float = 0.0) -> np.ndarray:
    """Five blobs about a centre, and a little noise."""
    rng = np.random.default_rng(seed)
    y, x = grid()
    image = 0.03 * rng.standard_normal((BOX_PX, BOX_PX))
    for cx, cy in rng.normal(0, 5, (5, 2)):
        image += np.exp(-((x - cx - dx) ** 2 + (y - cy - dy) ** 2) / 40)
    return image


def cut(seed: int) -> np.ndarray:
    """A particle cut by the micrograph's left edge: the column there is repeated."""
    image = particle(seed) + 0.3 * np.random.default_rng(seed).standard_normal((BOX_PX, BOX_PX))
    image[:, :26] = image[:, 26:27]
    return image


def edge(angle_deg: float, from_px: float = 6.0) -> np.ndarray:
    """Bright on one side of a line so far from the origin."""
    y, x = grid()
    angle = np.deg2rad(angle_deg)
    return 1.5 / (1 + np.exp(-(x * np.cos(angle) + y * np.sin(angle) - from_px)))


def turned(image: np.ndarray, angle_deg: float) -> np.ndarray:
    from scipy.ndimage import map_coordinates

    y, x = grid()
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    places = np.stack([c * y - s * x, s * y + c * x]) + BOX_PX // 2
    return map_coordinates(image, places, order=3)

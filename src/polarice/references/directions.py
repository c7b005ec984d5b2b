"""Directions on the sphere: HEALPix pixels (Gorski et al. 2005, ApJ 622, 759; nested order), and views along them.

A view is the matrix A(rot, tilt, 0) of RELION, of which the first two rows span the image: a point r of the object lies
at (a1 r, a2 r) in it. The third row is the direction. An image at psi shows the same, turned in its plane.
"""

from __future__ import annotations

import math

import numpy as np

_RING_OF_FACE = np.array([2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4])
_PLACE_OF_FACE = np.array([1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7])
NEAREST_BLOCK = 4096  # directions that are compared at once
MOST_ORDER = 12


def healpix(order: int) -> np.ndarray:
    """(12 * 4^order, 3) float64 unit vectors to the pixels' centres; ValueError where the order is out of range."""
    if not 0 <= order <= MOST_ORDER:
        raise ValueError(f"HEALPix order {order}: from 0 to {MOST_ORDER}")
    side = 1 << order
    pixel = np.arange(12 * side * side)
    face, within = np.divmod(pixel, side * side)
    x, y = _every_second_bit(within), _every_second_bit(within >> 1)
    ring = _RING_OF_FACE[face] * side - x - y - 1
    north, south = ring < side, ring > 3 * side
    length = np.where(north, ring, np.where(south, 4 * side - ring, side))  # a quarter of the pixels on the ring
    cap = length**2 / (3.0 * side * side)
    z = np.where(north, 1 - cap, np.where(south, cap - 1, (2 * side - ring) * 2 / (3.0 * side)))
    shifted = np.where(north | south, 0, (ring - side) & 1)
    place = (_PLACE_OF_FACE[face] * length + x - y + 1 + shifted) // 2
    place = (place - 1) % (4 * length) + 1
    phi = (place - (shifted + 1) / 2) * math.pi / (2 * length)
    flat = np.sqrt(np.maximum(0, 1 - z * z))
    return np.stack([flat * np.cos(phi), flat * np.sin(phi), z], axis=1)


def _every_second_bit(values: np.ndarray) -> np.ndarray:
    """Bits 0, 2, 4, ... pushed together."""
    found = np.zeros_like(values)
    for bit in range(MOST_ORDER + 1):
        found |= ((values >> (2 * bit)) & 1) << bit
    return found


def step_deg(order: int) -> float:
    """Distance between neighbouring directions: the side of a square as large as a pixel."""
    return math.degrees(math.sqrt(4 * math.pi / (12 * 4**order)))


def angles_of(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """rot and tilt, each (n,) degrees, of unit vectors (n, 3)."""
    rot = np.degrees(np.arctan2(directions[:, 1], directions[:, 0]))
    return rot, np.degrees(np.arccos(np.clip(directions[:, 2], -1, 1)))


def directions_of(rot_deg: np.ndarray, tilt_deg: np.ndarray) -> np.ndarray:
    """(n, 3) unit vectors."""
    return views(rot_deg, tilt_deg)[:, 2]


def views(rot_deg: np.ndarray, tilt_deg: np.ndarray) -> np.ndarray:
    """(n, 3, 3) float64 matrices A(rot, tilt, 0)."""
    a, b = np.radians(rot_deg), np.radians(tilt_deg)
    ca, sa, cb, sb = np.cos(a), np.sin(a), np.cos(b), np.sin(b)
    rows = [[cb * ca, cb * sa, -sb], [-sa, ca, np.zeros_like(a)], [sb * ca, sb * sa, cb]]
    return np.moveaxis(np.array(rows), 2, 0)


def posed_views(rot_deg: np.ndarray, tilt_deg: np.ndarray, psi_deg: np.ndarray) -> np.ndarray:
    """(n, 3, 3) float64 matrices A(rot, tilt, psi) of RELION's angles."""
    c, s = np.cos(np.radians(psi_deg)), np.sin(np.radians(psi_deg))
    nothing, one = np.zeros_like(c), np.ones_like(c)
    plane = np.moveaxis(np.array([[c, s, nothing], [-s, c, nothing], [nothing, nothing, one]]), 2, 0)
    return plane @ views(rot_deg, tilt_deg)


def moved_poses(
    angles_deg: np.ndarray, shift_px: np.ndarray, rotation: np.ndarray, by_px: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Poses in a density that has been rotated (3, 3) and then shifted (3,): the same images, seen in its new frame.

    angles_deg: (n, 3) RELION's rot, tilt and psi; shift_px: (n, 2) of the images. A point x of the density lies at
    A x + shift in the image; it is now at R x + t, so A' = A R^T and shift' = shift - A' t.
    """
    frames = posed_views(*angles_deg.T) @ rotation.T
    rot_deg, tilt_deg = angles_of(frames[:, 2])
    plane = frames @ np.swapaxes(views(rot_deg, tilt_deg), 1, 2)
    psi_deg = np.degrees(np.arctan2(plane[:, 0, 1], plane[:, 0, 0]))
    return np.stack([rot_deg, tilt_deg, psi_deg], axis=1), shift_px - frames[:, :2] @ by_px


def nearest(points: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """(n,) which of the directions (m, 3) lies nearest to each of the points (n, 3)."""
    found = [
        (points[start : start + NEAREST_BLOCK] @ directions.T).argmax(axis=1)
        for start in range(0, len(points), NEAREST_BLOCK)
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def around(directions: np.ndarray, step_deg: float) -> np.ndarray:
    """(9 n, 3) each of the directions (n, 3) and eight around it, a step apart along two tangents: first all of one."""
    frames = views_along(directions)
    steps = np.tan(np.radians(step_deg)) * np.array([-1.0, 0.0, 1.0])
    u, v = (each.ravel() for each in np.meshgrid(steps, steps))
    found = directions[:, None] + u[:, None] * frames[:, None, 0] + v[:, None] * frames[:, None, 1]
    return (found / np.linalg.norm(found, axis=2, keepdims=True)).reshape(-1, 3)


def turned_at_random(directions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same grid under a rotation drawn evenly from all there are."""
    from scipy.spatial.transform import Rotation

    return directions @ Rotation.random(rng=rng).as_matrix().T


def views_along(directions: np.ndarray) -> np.ndarray:
    """(n, 3, 3) matrices A(rot, tilt, 0) of views along unit vectors (n, 3)."""
    return views(*angles_of(directions))

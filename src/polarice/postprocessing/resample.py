"""Densities turned, shifted, mirrored, symmetrised and brought to other voxels.

    new(r) = old(R^T (r - t))      r = (x, y, z) in voxels from N // 2, t the shift, R the rotation

Between voxels, densities are interpolated by cubic splines on a grid that the Fourier transform makes twice as fine, so
that shells up to Nyquist keep 0.99 of their amplitude and more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from polarice.postprocessing.mask import threshold
from polarice.postprocessing.spectrum import resampled

FINE = 2
MOST_FINE_PX = 800  # beyond, the grid is not made finer
SLAB = 1 << 21  # voxels interpolated at once
MOST_PADDING = 48  # voxels, to find a box that a pixel size divides
PIXELS_AGREE = 1e-4


@dataclass(frozen=True)
class Move:
    """A density's rotation, then its shift; mirrored in x before both."""

    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))  # (3, 3), of points x, y, z
    shift_px: np.ndarray = field(default_factory=lambda: np.zeros(3))  # x, y, z
    mirrored: bool = False


class Interpolated:
    """A density (N, N, N), ready to be read between its voxels; zero outside."""

    def __init__(self, density: Tensor) -> None:
        from scipy import ndimage

        self.box_px = len(density)
        self.fine = FINE if self.box_px * FINE <= MOST_FINE_PX else 1
        values = resampled(density.float(), self.fine * self.box_px).cpu().numpy()
        self.coefficients = ndimage.spline_filter(values, order=3, output=np.float32, mode="grid-wrap")

    def moved(self, move: Move, box_px: int | None = None, scale: float = 1.0) -> Tensor:
        """(M, M, M) the density as moved, in a box of M voxels that are each `scale` of the density's wide; the shift
        is in new voxels."""
        from scipy import ndimage

        m, n = box_px or self.box_px, self.box_px * self.fine
        x = np.arange(m) - m // 2
        turned = scale * self.fine * move.rotation.T
        found = np.empty((m, m, m), np.float32)
        depth = max(1, SLAB // m**2)
        for start in range(0, m, depth):
            z, y, x_ = np.meshgrid(x[start : start + depth], x, x, indexing="ij")
            points = np.stack([each.ravel() for each in (x_, y, z)]) - move.shift_px[:, None]
            source = (turned @ points)[::-1] + n // 2
            if move.mirrored:
                source[2] = n - source[2] if n % 2 == 0 else n - 1 - source[2]
            read = ndimage.map_coordinates(
                self.coefficients, source, order=3, prefilter=False, mode="constant", output=np.float32
            )
            found[start : start + depth] = read.reshape(-1, m, m)
        return torch.from_numpy(found)


def mirrored(density: Tensor) -> Tensor:
    """The other hand: x becomes -x about N // 2; in an even box the first plane stays where it is."""
    flipped = density.flip(2)
    return flipped.roll(1, 2) if len(density) % 2 == 0 else flipped


def symmetrised(density: Tensor, group: np.ndarray) -> Tensor:
    """The mean of a density over the rotations (g, 3, 3) of a group."""
    if len(group) == 1:
        return density
    given = Interpolated(density)
    total = density.cpu().double()
    for rotation in group[1:]:
        total += given.moved(Move(rotation))
    return (total / len(group)).float()


def centre_of_mass(density: Tensor) -> np.ndarray:
    """(3,) x, y, z in voxels from N // 2, of what is above Otsu's level."""
    values = density.cpu().numpy().astype(np.float64)
    values = np.clip(values - threshold(values), 0, None)
    x = np.arange(len(values)) - len(values) // 2
    total = max(values.sum(), 1e-300)
    return np.array([(values.sum(axis=axes) * x).sum() / total for axes in ((0, 1), (0, 2), (1, 2))])


def centred(density: Tensor) -> tuple[Tensor, np.ndarray]:
    """The density shifted by whole voxels so that its mass is about N // 2, and the shift (3,; x, y, z)."""
    shift = -np.rint(centre_of_mass(density)).astype(int)
    return density.roll(tuple(int(each) for each in shift[::-1]), (0, 1, 2)), shift


def rescaled(density: Tensor, pixel_A: float, wanted_A: float) -> tuple[Tensor, float]:
    """The density at another pixel size, in a box as wide as before or a little less, and the size that it came to.

    The box is padded until its width is a whole, even number of new pixels, to 1e-4.
    """
    from polarice.postprocessing.spectrum import boxed

    n = len(density)
    best = (np.inf, n, n)
    for padded in range(n, n + MOST_PADDING + 1):
        m = 2 * round(padded * pixel_A / wanted_A / 2)
        if m < 2:
            continue
        off = abs(padded * pixel_A / m / wanted_A - 1)
        if off < best[0] * 0.5:
            best = (off, padded, m)
        if best[0] < PIXELS_AGREE:
            break
    _, padded, m = best
    new = resampled(boxed(density, padded), m)
    box = 2 * int(n * pixel_A / wanted_A / 2 + 1e-3)
    return boxed(new, max(2, min(m, box))), padded * pixel_A / m

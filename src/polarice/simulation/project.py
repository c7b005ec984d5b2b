"""Projections of a density, by central slices of its Fourier transform.

The density is padded twofold and transformed once; a projection reads the plane through the origin that is normal to
the view by quadratic B-splines, whose falling-off in real space (sinc^3 along each axis) the density is divided by
beforehand. The volume is kept as its Hartley transform H = Re F - Im F: real, so half the memory, and
Re F(k) = (H(k) + H(-k)) / 2, Im F(k) = (H(-k) - H(k)) / 2.
"""

from __future__ import annotations

import numpy as np
from scipy import fft
from scipy.ndimage import map_coordinates

SPLINE_ORDER = 2


class Slice:
    """The frequencies of an image that are simulated: the half plane kx >= 0 inside the last shell below Nyquist."""

    def __init__(self, box_px: int, pixel_size_A: float) -> None:
        self.box_px, self.pixel_size_A = box_px, pixel_size_A
        ky, kx = np.meshgrid(np.rint(np.fft.fftfreq(box_px, 1 / box_px)), np.arange(box_px // 2 + 1), indexing="ij")
        self.inside = np.hypot(ky, kx) < box_px / 2
        self.kx, self.ky = kx[self.inside].astype(np.float64), ky[self.inside]
        self.fx, self.fy = self.kx / (box_px * pixel_size_A), self.ky / (box_px * pixel_size_A)  # 1/A

    def shift(self, shift_px: np.ndarray) -> np.ndarray:
        """Phases that move an image by (x, y) pixels."""
        return np.exp(-2j * np.pi / self.box_px * (self.kx * shift_px[0] + self.ky * shift_px[1]))

    def image(self, values: np.ndarray) -> np.ndarray:
        """The real image (N, N) float32 whose (unscaled) transform holds `values`, its origin at pixel N // 2."""
        half = np.zeros(self.inside.shape, np.complex64)
        half[self.inside] = values
        image = fft.irfft2(half, s=(self.box_px, self.box_px))
        return np.roll(image, (self.box_px // 2, self.box_px // 2), (0, 1))


class Projector:
    """Projects one density onto images of a given frequency set.

    density: (D, D, D) [z, y, x], origin at voxel D // 2. The image's value is the integral of the density along the
    view, in density * Angstrom. Frequencies beyond the density's own Nyquist sphere are 0.
    """

    def __init__(self, density: np.ndarray, voxel_size_A: float, plane: Slice) -> None:
        self.voxel_size_A, self.plane = voxel_size_A, plane
        self.padded_px = fft.next_fast_len(2 * len(density), real=True)
        self.padded_px += self.padded_px % 2
        self.hartley = hartley_volume(density, self.padded_px)

    def project(self, rotation: np.ndarray) -> np.ndarray:
        """The transform of the projection along the third row of `rotation` (3, 3), at the frequencies of the plane."""
        step = self.padded_px * self.voxel_size_A
        image_axes = rotation[:2, ::-1].T * step  # z, y, x of the object along the image's x and y
        point = image_axes @ np.stack([self.plane.fx, self.plane.fy])  # (3, frequencies)
        ahead, back = self._read(point), self._read(-point)
        known = np.hypot(self.plane.fx, self.plane.fy) * 2 * self.voxel_size_A < 1
        scale = np.where(known, self.voxel_size_A**3 / self.plane.pixel_size_A**2 / 2, 0)
        return scale * ((ahead + back) + 1j * (back - ahead))

    def _read(self, point: np.ndarray) -> np.ndarray:
        return map_coordinates(
            self.hartley, point, output=np.float32, order=SPLINE_ORDER, mode="grid-wrap", prefilter=False
        )


def hartley_volume(density: np.ndarray, padded_px: int) -> np.ndarray:
    """Hartley transform (P, P, P) float32, frequency 0 first, of a density padded and corrected for the spline."""
    size = len(density)
    axis = (np.arange(size) - size // 2) / padded_px
    correction = (1 / np.sinc(axis) ** (SPLINE_ORDER + 1)).astype(np.float32)
    corrected = density.astype(np.float32)
    for shape in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)):
        corrected *= correction.reshape(shape)
    volume = np.zeros((padded_px,) * 3, np.float32)
    place = (np.arange(size) - size // 2) % padded_px
    volume[np.ix_(place, place, place)] = corrected
    half, width, mirrored = fft.rfftn(volume), padded_px // 2 + 1, -np.arange(padded_px) % padded_px
    for z in range(padded_px):  # F(-k) = conj F(k) fills the other half
        volume[z, :, :width] = half[z].real - half[z].imag
        back = half[mirrored[z], mirrored, width - 2 : 0 : -1]
        volume[z, :, width:] = back.real + back.imag
    return volume

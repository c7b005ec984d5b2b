"""The polar basis: images sampled on Fourier rings, where rotation is a phase and the CTF a product.

One real field holds a real image's transform F(r, theta), because F(r, theta + pi) = conj F(r, theta):

    g(r, theta) = Re F + Im F        full circle, float32, [..., ring, angle]

Re<F1, F2> over the circle is sum_theta g1 g2; its discrete transform over theta, g_q(r), is what the posterior engine
multiplies. Rings lie at r = 1 .. r_max Fourier pixels (1 / (N * pixel size) each).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

KERNEL_WIDTH = 6  # taps of the interpolation kernel on the twofold oversampled grid: relative error below 1e-5
ADJOINT_BATCH = 64  # fields that are turned into images at once
ANGLES_MULTIPLE = 16  # of the angular sampling: what vectorised FFTs run fast on


def next_fast(n: int) -> int:
    """Smallest multiple of 16 that is >= n and has no prime factor beyond 5."""
    n = ANGLES_MULTIPLE * math.ceil(n / ANGLES_MULTIPLE)
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += ANGLES_MULTIPLE


@dataclass(frozen=True)
class PolarBasis:
    """The plan for one box, particle radius and resolution: everything that depends on nothing else.

    box_px     N, the side of the images
    radius_px  radius of the particle (its mask); sets how many angular harmonics a ring can carry
    r_max      last ring, in Fourier pixels
    slack_px   how far images will be shifted in this basis; widens the angular sampling accordingly
    """

    box_px: int
    radius_px: float
    r_max: int
    slack_px: float = 0.0
    device: torch.device = torch.device("cpu")

    @cached_property
    def n_theta(self) -> int:
        """Angles on the circle: enough for products of two band-limited rings, one of them shifted."""
        return next_fast(math.ceil(self._angles_needed[-1]))

    @cached_property
    def _angles_needed(self) -> np.ndarray:
        """(ring,) angles that hold the product of two bands of harmonics, one of them widened by a shift."""
        shift_band = 2 * math.pi * np.arange(1, self.r_max + 1) * self.slack_px / self.box_px
        return 2 * self.harmonics_of_ring + shift_band + 2

    def rings_within(self, n_theta: int) -> int:
        """How many rings `n_theta` angles are enough for."""
        return int(np.searchsorted(self._angles_needed, n_theta, side="right"))

    @cached_property
    def harmonics_of_ring(self) -> np.ndarray:
        """(ring,) int: the last angular harmonic q that a particle of this radius carries on each ring.

        J_q(x) falls off beyond q = x over a width that grows as x^(1/3); x = 2 pi r P / N.
        """
        x = 2 * math.pi * np.arange(1, self.r_max + 1) * self.radius_px / self.box_px
        return np.ceil(x + 1.5 * np.cbrt(x) + 2).astype(int)

    @property
    def n_q(self) -> int:
        """Harmonics kept on the outermost ring, q = 0 .. n_q - 1."""
        return int(self.harmonics_of_ring[-1]) + 1

    @cached_property
    def first_ring(self) -> np.ndarray:
        """(n_q,) index of the first ring that carries harmonic q (rings below hold nothing of it)."""
        return np.searchsorted(self.harmonics_of_ring, np.arange(self.n_q))

    @cached_property
    def rings(self) -> Tensor:
        """(ring,) radii in Fourier pixels."""
        return torch.arange(1, self.r_max + 1, dtype=torch.float32, device=self.device)

    @cached_property
    def weight(self) -> Tensor:
        """(ring,) w_r: sum over Cartesian k = sum_r w_r sum_theta."""
        return self.rings * (2 * math.pi / self.n_theta)

    @cached_property
    def frequency(self) -> tuple[Tensor, Tensor]:
        """kx, ky of every sample, each (ring, n_theta), in Fourier pixels."""
        theta = torch.arange(self.n_theta, dtype=torch.float64, device=self.device) * (2 * math.pi / self.n_theta)
        r = self.rings.double()[:, None]
        return r * torch.cos(theta), r * torch.sin(theta)

    @cached_property
    def _grid_px(self) -> int:
        return 2 * self.box_px

    @property
    def _reach(self) -> int:
        """How many grid points the rings and the kernel reach along each half axis."""
        return min(self.box_px, 2 * self.r_max + KERNEL_WIDTH // 2 + 1)

    @property
    def _columns(self) -> int:
        """Columns of the oversampled half plane that are needed; the last may be Nyquist's."""
        return min(self.box_px + 1, self._reach + 1)

    @cached_property
    def _interpolator(self) -> tuple[Tensor, Tensor]:
        """Sparse (half-circle sample, half-plane grid point) matrices for the real and the imaginary part."""
        half = self.n_theta // 2
        kx, ky = (k[:, :half].reshape(-1).cpu().numpy() * 2.0 for k in self.frequency)
        columns, values = _taps(kx, ky, self._grid_px)
        flipped = columns[..., 2] != 0
        row = np.where(
            columns[..., 0] < self._reach, columns[..., 0], columns[..., 0] - self._grid_px + 2 * self._reach
        )
        column = columns[..., 1] * 2 * self._reach + row
        row_start = np.arange(0, column.size + 1, KERNEL_WIDTH**2)
        shape = (kx.size, 2 * self._reach * self._columns)

        def matrix(sign: np.ndarray) -> Tensor:
            parts = (torch.from_numpy(row_start), torch.from_numpy(column.ravel()))
            weights = torch.from_numpy((sign * values).astype(np.float32).ravel())
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sparse (CSR tensor support is in beta|invariant checks)")
                return torch.sparse_csr_tensor(*parts, weights, shape, check_invariants=False).to(self.device)

        return matrix(np.ones_like(values)), matrix(np.where(flipped, -1.0, 1.0))

    @cached_property
    def _spreader(self) -> tuple[Tensor, Tensor]:
        """Sparse (half-plane grid point, half-circle sample) matrices: those of `_interpolator`, transposed."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            real, imaginary = (matrix.to_sparse_csc().mT for matrix in self._interpolator)
        return real, imaginary

    @cached_property
    def _once(self) -> Tensor:
        """(column,) what a half plane's inverse transform counts twice, halved: all columns but 0 and Nyquist's."""
        column = torch.arange(self._columns, device=self.device)
        return torch.where((column == 0) | (column == self.box_px), 1.0, 0.5)

    @cached_property
    def _deapodisation(self) -> Tensor:
        """(N, N) what undoes the kernel's envelope, and the 1/N of the transform."""
        x = np.arange(self.box_px) - self.box_px // 2
        envelope = _kernel_transform(x / self._grid_px)
        return torch.from_numpy(1.0 / (np.outer(envelope, envelope) * self.box_px)).float().to(self.device)

    def sample(self, images: Tensor) -> Tensor:
        """Polar field of images: (batch, N, N) float32 -> (batch, ring, n_theta) float32.

        A type-2 non-uniform transform (Fourier series of the image at ring points, scaled by 1/N, origin at N // 2):
        twofold oversampled FFT and a six-tap Kaiser-Bessel kernel (Fessler and Sutton 2003). Rows are transformed
        first, and of columns only those that the rings reach. Each image is transformed alone; what else is in the
        batch changes the order of a sum (the last bit), nothing more.
        """
        n, c, batch, columns, reach = self.box_px, self.box_px // 2, len(images), self._columns, self._reach
        taper = self._deapodisation
        padded = images.new_empty(batch, n, self._grid_px)
        torch.mul(images[:, :, c:], taper[:, c:], out=padded[:, :, : n - c])
        padded[:, :, n - c : -c] = 0
        torch.mul(images[:, :, :c], taper[:, :c], out=padded[:, :, -c:])
        rows = torch.fft.rfft(padded)[..., :columns].transpose(1, 2)  # (batch, column, row)
        tall = rows.new_empty(batch, columns, self._grid_px)
        tall[..., : n - c] = rows[..., c:]
        tall[..., n - c : -c] = 0
        tall[..., -c:] = rows[..., :c]
        parts = torch.view_as_real(torch.fft.fft(tall)).permute(3, 1, 2, 0)  # (re and im, column, row, batch)
        grid = images.new_empty(2, columns, 2 * reach, batch)
        grid[:, :, :reach] = parts[:, :, :reach]
        grid[:, :, reach:] = parts[:, :, -reach:]
        real, imaginary = self._interpolator
        re = (real @ grid[0].flatten(0, 1)).T.reshape(batch, self.r_max, -1)
        im = (imaginary @ grid[1].flatten(0, 1)).T.reshape(batch, self.r_max, -1)
        field = images.new_empty(batch, self.r_max, 2, self.n_theta // 2)
        torch.add(re, im, out=field[:, :, 0])
        torch.sub(re, im, out=field[:, :, 1])  # theta + pi holds the conjugate
        return field.flatten(2)

    def prepare(self) -> None:
        """Make what is made once now, before threads ask for it at the same time."""
        self.sample(torch.zeros(1, self.box_px, self.box_px, device=self.device))
        _ = self.weight, self.first_ring

    def to_images(self, field: Tensor) -> Tensor:
        """Images of a polar field, the quadrature of the inverse transform: (batch, ring, n_theta) -> (batch, N, N).

        f(x) = 1/N sum_r w_r sum_theta Re[F exp(2 pi i k.x / N)]: the adjoint of `sample`, by the same grid and kernel.
        """
        return torch.cat([self._adjoint(block * self.weight[:, None]) for block in field.split(ADJOINT_BATCH)])

    def _adjoint(self, field: Tensor) -> Tensor:
        """The steps of `sample` backwards, each of them transposed: (batch, ring, n_theta) -> (batch, N, N)."""
        n, c, batch, columns, reach = self.box_px, self.box_px // 2, len(field), self._columns, self._reach
        to_device, far = field.unflatten(2, (2, -1)).unbind(dim=2)
        real, imaginary = self._spreader
        grid = torch.stack(
            [real @ (to_device + far).reshape(batch, -1).T, imaginary @ (to_device - far).reshape(batch, -1).T], dim=-1
        )
        parts = torch.view_as_complex(grid.view(columns, 2 * reach, batch, 2)).permute(2, 0, 1)
        tall = parts.new_zeros(batch, columns, self._grid_px)
        tall[..., :reach] += parts[..., :reach]
        tall[..., -reach:] += parts[..., reach:]
        columns_of = torch.fft.ifft(tall, norm="forward")  # (batch, column, row)
        rows = torch.cat([columns_of[..., -c:], columns_of[..., : n - c]], dim=2).transpose(1, 2)
        rows = rows * self._once
        padded = torch.fft.irfft(rows, n=self._grid_px, norm="forward")
        return torch.cat([padded[..., -c:], padded[..., : n - c]], dim=2) * self._deapodisation

    def harmonics(self, field: Tensor) -> Tensor:
        """Angular harmonics of a real field: (..., n_theta) float32 -> (..., n_q) complex64."""
        return torch.fft.rfft(field)[..., : self.n_q]

    def field(self, harmonics: Tensor) -> Tensor:
        """The inverse of `harmonics`: (..., n_q) -> (..., n_theta)."""
        return torch.fft.irfft(harmonics, n=self.n_theta)

    def turned(self, conjugate: Tensor, which: Tensor, psi_rad: Tensor) -> Tensor:
        """Fields (image, ring, n_theta) of the references which (image,), each turned by psi_rad (image,).

        conjugate (q, ring, reference): conjugates of their harmonics.
        """
        angle = torch.arange(len(conjugate), device=self.device)[:, None, None] * psi_rad
        harmonics = conjugate.index_select(2, which) * torch.polar(torch.ones_like(angle), angle)
        return self.field(harmonics.conj().permute(2, 1, 0))

    def shift_phases(self, shifts_px: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of 2 pi k.t / N for shifts (shift, 2) x then y: each (shift, ring, n_theta) float32."""
        kx, ky = self.frequency
        t = shifts_px.to(device=self.device, dtype=torch.float64)
        phase = (2 * math.pi / self.box_px) * (t[:, 0, None, None] * kx + t[:, 1, None, None] * ky)
        return torch.cos(phase).float(), torch.sin(phase).float()

    def opposite(self, field: Tensor) -> Tensor:
        """The field at theta + pi, which is Re F - Im F."""
        return torch.roll(field, self.n_theta // 2, dims=-1)

    def unshift(self, field: Tensor, phases: tuple[Tensor, Tensor]) -> Tensor:
        """The field of the image moved by -t, for matching leading dimensions: F exp(+2 pi i k.t / N)."""
        cos, sin = phases
        return cos * field + sin * self.opposite(field)

    def unshifted(self, field: Tensor, shifts_px: Tensor) -> Tensor:
        """Fields (batch, ring, n_theta) of images each moved by its own -t; shifts_px (batch, 2; x, y)."""
        half = self.n_theta // 2
        kx, ky = (k[:, :half].float() * (2 * math.pi / self.box_px) for k in self.frequency)
        phase = shifts_px[:, 0, None, None] * kx
        phase += shifts_px[:, 1, None, None] * ky
        cos, sin = phase.cos(), phase.sin_()
        to_device, far = field[..., :half], field[..., half:]
        moved = torch.empty_like(field)
        torch.mul(to_device, cos, out=moved[..., :half]).addcmul_(far, sin)
        torch.mul(far, cos, out=moved[..., half:]).addcmul_(to_device, sin, value=-1)
        return moved


def _beta() -> float:
    """Kaiser-Bessel shape for twofold oversampling (Beatty, Nishimura and Pauly 2005)."""
    return math.pi * math.sqrt((KERNEL_WIDTH / 2) ** 2 * 1.5**2 - 0.8)


def _kernel(u: np.ndarray) -> np.ndarray:
    """Kaiser-Bessel window on |u| <= KERNEL_WIDTH / 2 grid points."""
    inside = np.clip(1 - (2 * u / KERNEL_WIDTH) ** 2, 0, None)
    return np.i0(_beta() * np.sqrt(inside)) / np.i0(_beta())


def _kernel_transform(x: np.ndarray) -> np.ndarray:
    """Fourier transform of the window at x cycles per grid point: sinh(z) / z, z^2 = beta^2 - (pi W x)^2."""
    z = np.sqrt((_beta() ** 2 - (math.pi * KERNEL_WIDTH * x) ** 2).astype(complex))
    return (KERNEL_WIDTH * np.sinh(z) / z).real / np.i0(_beta())


def _taps(gx: np.ndarray, gy: np.ndarray, grid_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Grid points and weights around (gx, gy): ((sample, tap, [row, column, is conjugate]) int64, (sample, tap))."""

    def along(g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        index = np.ceil(g - KERNEL_WIDTH / 2).astype(np.int64)[:, None] + np.arange(KERNEL_WIDTH)
        return index, _kernel(g[:, None] - index)

    (ix, wx), (iy, wy) = along(gx), along(gy)
    rows = np.repeat(iy, KERNEL_WIDTH, axis=1)
    columns = np.tile(ix, (1, KERNEL_WIDTH))
    columns %= grid_px
    conjugate = columns > grid_px // 2  # not stored: F(-k) = conj F(k)
    rows = np.where(conjugate, -rows, rows) % grid_px
    columns = np.where(conjugate, grid_px - columns, columns)
    return (
        np.stack([rows, columns, conjugate], axis=-1),
        (wy[:, :, None] * wx[:, None, :]).reshape(len(gx), -1),
    )

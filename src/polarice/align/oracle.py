"""The slow oracle: posterior and averages by direct float64 sums on Cartesian pixels, without rings and without FFT.

    log weight(i, t, c, psi) = - sum_k [|X_i - C_i S_t A_c(R_-psi k)|^2 - |X_i|^2](k) / (2 sigma^2(|k|)),  |k| <= r_max

with S_t = exp(-2 pi i k.t / N) and every transform a direct Fourier sum over pixels, scaled by 1/N, the origin at
N // 2; a reference is compact, so its transform at a rotated frequency is the same sum, taken there. This is the image
model of the engine written down word by word: what `expect` gives must agree with it.

The two are the same integral over the disc |k| <= r_max, by different quadratures. The engine's is
sum_r w_r sum_theta: it has a smooth edge but leaves out k = 0 (an error of about pi / 6 times the integrand there). The
sum here has k = 0 and a ragged edge. They can only agree to a part in a thousand where the integrand fades at both
ends, so compare them with a noise spectrum that grows towards k = 0 and towards r_max (`fading_noise`), given as a
function of |k|: the engine takes it at its rings, the oracle at |k|. The images may then be anything that a mask has
made compact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NoiseSpectrum = Callable[[np.ndarray], np.ndarray]  # |k| in Fourier pixels -> variance


@dataclass(frozen=True)
class Disc:
    """The Fourier pixels of a box of N with |k| <= r_max."""

    box_px: int
    r_max: int

    @property
    def inside(self) -> np.ndarray:
        """(N, N) bool on the centred grid, `[ky, kx]`."""
        axis = np.arange(self.box_px) - self.box_px // 2
        return np.hypot(axis[:, None], axis) <= self.r_max + 1e-9

    @property
    def frequency(self) -> np.ndarray:
        """(k, 2) float64, kx then ky, in Fourier pixels."""
        row, column = np.nonzero(self.inside)
        return np.stack([column, row], axis=1).astype(float) - self.box_px // 2

    @property
    def radius(self) -> np.ndarray:
        """(k,) |k|."""
        return np.hypot(*self.frequency.T)

    def shift_phase(self, shift_px: np.ndarray) -> np.ndarray:
        """(k,) complex128: what a shift by (x, y) pixels multiplies transforms with."""
        return np.exp(-2j * math.pi / self.box_px * (self.frequency @ np.asarray(shift_px, float)))


def fading_noise(r_max: int, sharpness: float = 5.0) -> NoiseSpectrum:
    """Noise variance 1 at r_max / 2, growing as a Gaussian to exp(sharpness^2 / 2) at k = 0 and at r_max."""
    return lambda radius: np.exp(0.5 * (sharpness * (2 * radius / r_max - 1)) ** 2)


def transform_at(images: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Transforms of images (n, N, N) at any frequencies (k, 2; x, y; Fourier pixels): (n, k) complex128."""
    box = images.shape[-1]
    x = np.arange(box) - box // 2
    along_x, along_y = (np.exp(-2j * math.pi / box * np.outer(k, x)) for k in frequency.T)
    rows = np.asarray(images, float) @ along_x.T  # (n, y, k)
    return np.einsum("nyk,ky->nk", rows, along_y) / box


def rotated(frequency: np.ndarray, psi_rad: float) -> np.ndarray:
    """R(psi) k: frequencies (k, 2) turned by psi, from x towards y."""
    cos, sin = math.cos(psi_rad), math.sin(psi_rad)
    return frequency @ np.array([[cos, sin], [-sin, cos]])


def log_weights(
    disc: Disc,
    images: np.ndarray,
    ctf: np.ndarray,
    references: np.ndarray,
    poses: tuple[np.ndarray, np.ndarray],
    noise: NoiseSpectrum,
) -> np.ndarray:
    """Log weights of every pose, priors left out: (n, shift, K, psi) float64.

    images (n, N, N) masked and centred; ctf (n, N, N) on the centred grid; references (K, N, N);
    poses = (shifts (shift, 2) px, x and y; psi (psi,) radians).
    """
    shifts_px, psi_rad = poses
    data = transform_at(images, disc.frequency)
    ctf = ctf[:, disc.inside]
    out = np.empty((len(images), len(shifts_px), len(references), len(psi_rad)))
    for p, psi in enumerate(psi_rad):
        turned = transform_at(references, rotated(disc.frequency, -psi))
        for s, shift in enumerate(shifts_px):
            moved = turned * disc.shift_phase(shift)
            for c, model in enumerate(moved):
                misfit = np.abs(data - ctf * model) ** 2 - np.abs(data) ** 2
                out[:, s, c, p] = -(misfit / (2 * noise(disc.radius))).sum(axis=1)
    return out


def posterior(weights: np.ndarray, log_prior: np.ndarray) -> np.ndarray:
    """Posterior (n, shift, K, psi), sum 1 for each image; log_prior broadcasts against the log weights."""
    total = weights + log_prior
    total = np.exp(total - total.max(axis=(1, 2, 3), keepdims=True))
    return total / total.sum(axis=(1, 2, 3), keepdims=True)


def shift_log_prior(whole_shift_px: np.ndarray, sigma_px: float) -> np.ndarray:
    """Log of the Gaussian prior on shifts (..., 2), up to a constant: (...)."""
    return -(np.asarray(whole_shift_px, float) ** 2).sum(axis=-1) / (2 * sigma_px**2)


def averages(
    disc: Disc,
    images: np.ndarray,
    ctf: Callable[[np.ndarray], np.ndarray],
    gamma: np.ndarray,
    poses: tuple[np.ndarray, np.ndarray],
    noise: NoiseSpectrum,
) -> tuple[np.ndarray, np.ndarray]:
    """Numerator (K, k) complex128 and denominator (K, k) of the maximization, at the Fourier pixels of the disc.

        num_c(k) = sum_i,t,psi gamma C_i X_i(R_psi k) conj S_t(R_psi k) / sigma^2,    den_c(k) likewise with C_i^2

    gamma (n, shift, K, psi) posterior; ctf: frequencies (k, 2) in Fourier pixels -> (n, k), for it is asked in between
    the pixels; the other arguments as in `log_weights`. The average's transform is num / (den + 1 / tau^2).
    """
    shifts_px, psi_rad = poses
    numerator = np.zeros((gamma.shape[2], len(disc.frequency)), complex)
    denominator = np.zeros(numerator.shape)
    for p, psi in enumerate(psi_rad):
        there = rotated(disc.frequency, psi)
        phase = np.exp(2j * math.pi / disc.box_px * (np.asarray(shifts_px, float) @ there.T))  # (shift, k)
        seen = ctf(there) / noise(disc.radius)
        data = transform_at(images, there) * seen
        numerator += np.einsum("isc,sk,ik->ck", gamma[..., p], phase, data, optimize=True)
        denominator += np.einsum("isc,ik->ck", gamma[..., p], seen * ctf(there), optimize=True)
    return numerator, denominator


def to_images(disc: Disc, transforms: np.ndarray) -> np.ndarray:
    """Images of transforms (K, k) on the disc, by the direct inverse sum: (K, N, N) float64."""
    x = np.arange(disc.box_px) - disc.box_px // 2
    along_x, along_y = (np.exp(2j * math.pi / disc.box_px * np.outer(k, x)) for k in disc.frequency.T)
    return np.einsum("ck,ky,kx->cyx", transforms, along_y, along_x, optimize=True).real / disc.box_px

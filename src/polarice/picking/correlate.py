"""Normalised cross-correlation of a picture with kernels, by FFT, on any device; and a plain one to hold it against."""

from __future__ import annotations

import numpy as np
import torch
from scipy.fft import next_fast_len

LEAST_VARIANCE = 1e-3  # of the picture within the disc, in units of its own: there is nothing to be found


class Correlator:
    """One picture, prepared once, correlated with any kernels on one disc.

    pixels: (y, x); disc: (k, k) of 0 and 1, k odd. Beyond its edges the picture is mirrored.
    """

    def __init__(self, pixels: np.ndarray, disc: np.ndarray, device: str = "cpu") -> None:
        self._shape, self._reach = pixels.shape, disc.shape[0] // 2
        reach = self._reach
        padded = np.pad(pixels.astype(np.float32), reach, mode="symmetric")
        picture = torch.from_numpy(padded).to(device)
        self._size = tuple(next_fast_len(length, real=True) for length in padded.shape)
        self._transform = torch.fft.rfft2(picture, s=self._size)
        self._disc = torch.from_numpy(disc.astype(np.float32)).to(device)
        count = float(self._disc.sum())
        mean = self._correlate(self._transform, self._disc[None])[0] / count
        square = self._correlate(torch.fft.rfft2(picture * picture, s=self._size), self._disc[None])[0] / count
        self._deviation = torch.clamp(square - mean * mean, min=LEAST_VARIANCE).sqrt() * count**0.5

    def scores(self, kernels: np.ndarray) -> np.ndarray:
        """Pearson's correlation within the disc about every pixel, of kernels (n, k, k): (n, y, x) float32."""
        own = torch.from_numpy(kernels.astype(np.float32)).to(self._disc.device)
        own = (own - (own * self._disc).sum((1, 2), keepdim=True) / self._disc.sum()) * self._disc
        own = own / own.square().sum((1, 2), keepdim=True).sqrt().clamp(min=1e-12)
        return (self._correlate(self._transform, own) / self._deviation).cpu().numpy()

    def _correlate(self, transform: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
        rows, columns = self._shape
        product = transform * torch.fft.rfft2(kernels, s=self._size).conj()
        return torch.fft.irfft2(product, s=self._size)[:, :rows, :columns]


def plain_scores(pixels: np.ndarray, kernel: np.ndarray, disc: np.ndarray) -> np.ndarray:
    """What `Correlator` computes, pixel by pixel in float64: (y, x). The oracle of its test."""
    reach, inside = disc.shape[0] // 2, disc > 0
    padded = np.pad(pixels.astype(np.float64), reach, mode="symmetric")
    own = kernel[inside] - kernel[inside].mean()
    own /= np.linalg.norm(own)
    scores = np.zeros(pixels.shape)
    for y, x in np.ndindex(*pixels.shape):
        part = padded[y : y + disc.shape[0], x : x + disc.shape[1]][inside]
        part = part - part.mean()
        scores[y, x] = own @ part / np.sqrt(max(part @ part, LEAST_VARIANCE * inside.sum()))
    return scores

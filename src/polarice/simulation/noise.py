"""Noise of a stated spectrum, and images that are no particles."""

from __future__ import annotations

import numpy as np
from scipy import fft

from polarice.fourier import centred_grid
from polarice.simulation.settings import NoiseModel


def noise_amplitude(noise: NoiseModel, box_px: int) -> np.ndarray | None:
    """Amplitude on the half plane of `rfft2` (N, N // 2 + 1) that colours white noise, or None where it stays white.

    The mean power over the whole plane is 1, so that a pixel's variance stays what it was. A power law has no power at
    frequency 0.
    """
    if noise.spectrum is None and noise.exponent == 0:
        return None
    k = np.hypot(np.fft.fftfreq(box_px)[:, None], np.fft.fftfreq(box_px)[None, :]) * box_px
    if noise.spectrum is None:
        power = np.where(k > 0, np.maximum(k, 1) ** -float(noise.exponent), 0)
    else:
        spectrum = np.asarray(noise.spectrum, np.float64)
        power = np.interp(k, np.linspace(0, box_px / 2, len(spectrum)), spectrum)
    return np.sqrt(power / power.mean())[:, : box_px // 2 + 1]


def draw_noise(rng: np.random.Generator, box_px: int, amplitude: np.ndarray | None) -> np.ndarray:
    """Noise (N, N) float32 of variance 1 per pixel, white or coloured by `amplitude` (see `noise_amplitude`)."""
    white = rng.standard_normal((box_px, box_px), np.float32)
    if amplitude is None:
        return white
    return fft.irfft2(fft.rfft2(white) * amplitude.astype(np.float32), s=white.shape)


def draw_junk(kind: str, rng: np.random.Generator, box_px: int) -> np.ndarray:
    """What lies in the image beside noise, (N, N) float32, in units of the noise's standard deviation."""
    if kind == "edge":
        return _carbon_edge(rng, box_px)
    if kind == "contamination":
        return _contamination(rng, box_px)
    return np.zeros((box_px, box_px), np.float32)


def _carbon_edge(rng: np.random.Generator, box_px: int) -> np.ndarray:
    """A straight edge, one side brighter than the other, with a fringe along it."""
    y, x = centred_grid(box_px)
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3) * box_px
    away = x * np.cos(angle) + y * np.sin(angle) - offset
    height, fringe, width = rng.uniform(1, 3), rng.uniform(0.5, 2), rng.uniform(1, 3)
    step = height * 0.5 * (1 + np.tanh(away / width))
    return (step + fringe * np.exp(-((away / (2 * width)) ** 2) / 2)).astype(np.float32)


def _contamination(rng: np.random.Generator, box_px: int) -> np.ndarray:
    """One to three big blobs (ice, ethane), bright or dark, some of them cut by the frame."""
    y, x = centred_grid(box_px)
    sign = rng.choice([-1.0, 1.0], p=[0.2, 0.8])
    image = np.zeros((box_px, box_px))
    for _ in range(rng.integers(1, 4)):
        cx, cy = rng.uniform(-0.4, 0.4, 2) * box_px
        radius, softness = rng.uniform(0.1, 0.25) * box_px, rng.uniform(1, 4)
        away = np.hypot(x - cx, (y - cy) * rng.uniform(0.7, 1.4))
        image += rng.uniform(2, 6) * 0.5 * (1 - np.tanh((away - radius) / softness))
    return (sign * image).astype(np.float32)

"""Images that have been multiplied by their CTF, X' = C X, as the plain images X that they come of.

The CTF is divided out of the whole image before anything else is done to it, and the engine goes on as with any other:
its data come in as C X, which is X' again, the references' power with C^2, and noise is white, or whatever it was, in
X. The quotient is the plain image but for frequencies next to the zeros of the CTF, where nothing is left to divide:
there it fades to 0, and the weight C^2 of what is missing is below LEAST_SINE^2. Noise as strong as on the rest of the
ring is put in the place of what has faded: without it, images are normalised to a background that lacks some 2.5 % of
its power, and averages come out 1.3 % too strong. An image always gets the same noise.
"""

from __future__ import annotations

import zlib

import numpy as np

from polarice.contrast_transfer import ctf, envelope
from polarice.types import CTFParameters, Optics

LEAST_SINE = 0.05  # of the CTF's sine: what has leaked to its zeros (from windowing, rounding) grows 20-fold at most
LEAST_SINE_AT_NYQUIST = 0.25
LEAST_SEEN = 0.1  # of a ring, for its noise to be known
LEAST_ENVELOPE = 1e-3  # single precision has nothing left below


def divided(images: np.ndarray, optics: Optics, parameters: CTFParameters) -> np.ndarray:
    """Images (n, N, N) of one optics group with their CTF divided out."""
    box = images.shape[-1]
    fx = np.fft.rfftfreq(box, optics.pixel_size_A).astype(np.float32)
    fy = np.fft.fftfreq(box, optics.pixel_size_A).astype(np.float32)
    fx, fy = (np.ascontiguousarray(each) for each in np.broadcast_arrays(fx, fy[:, None]))
    values = ctf(optics, parameters, fx, fy)
    damping = envelope(parameters, fx, fy)
    damping = np.float32(1) if damping is None else np.maximum(damping, np.float32(LEAST_ENVELOPE))
    sine = values / damping
    kx, ky = (np.abs(np.rint(k * box)) for k in (np.fft.rfftfreq(box), np.fft.fftfreq(box)[:, None]))
    at_nyquist = (2 * kx >= box) | (2 * ky >= box)  # of both signs, and of two CTFs
    least = np.where(at_nyquist, LEAST_SINE_AT_NYQUIST, LEAST_SINE).astype(np.float32)
    most = np.maximum(np.square(sine), np.square(least))
    transform = np.fft.rfft2(images) * (sine / most / damping)
    kept = np.square(sine) / most  # of the plain image's amplitude
    for image, spectrum, share in zip(images, transform, kept, strict=True):
        spectrum += _noise_of(image, spectrum, share)
    return np.fft.irfft2(transform, s=(box, box)).astype(np.float32)


def _noise_of(image: np.ndarray, spectrum: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """What noise lacks, (N, N // 2 + 1), in the spectrum of an image (N, N) that keeps a share of its amplitude."""
    box = image.shape[-1]
    kx, ky = np.arange(box // 2 + 1), np.rint(np.fft.fftfreq(box, 1 / box))[:, None]
    ring = np.rint(np.hypot(kx, ky)).astype(np.int64)
    power = np.bincount(ring.ravel(), np.square(np.abs(spectrum)).ravel())
    seen = np.bincount(ring.ravel(), np.square(kept).ravel())
    whole = np.where(seen > LEAST_SEEN * np.bincount(ring.ravel()), power / np.maximum(seen, 1e-30), 0.0)[ring]
    drawn = np.random.default_rng(zlib.crc32(image.tobytes())).standard_normal((box, box), np.float32)
    return np.asarray(np.fft.rfft2(drawn) / box * np.sqrt(whole * (1 - np.square(kept))))

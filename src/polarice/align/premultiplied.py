"""Images that have been multiplied by their CTF, X' = C X, as the plain images X that they come of.

The CTF is divided out of the whole image before anything else is done to it, and the engine goes on as with any other:
its data come in as C X, which is X' again, the references' power with C^2, and noise is white, or whatever it was, in
X. The quotient is the plain image but for frequencies next to the zeros of the CTF, where nothing is left to divide:
there it fades to 0, and the weight C^2 of what is missing is below LEAST_SINE^2.
"""

from __future__ import annotations

import numpy as np

from polarice.contrast_transfer import ctf, envelope
from polarice.types import CTFParameters, Optics

LEAST_SINE = 0.05  # of the CTF's sine: what has leaked to its zeros (from windowing, rounding) grows 20-fold at most
LEAST_SINE_AT_NYQUIST = 0.25
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
    factor = sine / np.maximum(np.square(sine), np.square(least)) / damping
    return np.fft.irfft2(np.fft.rfft2(images) * factor, s=(box, box)).astype(np.float32)

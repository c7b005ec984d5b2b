"""Micrographs whose CTF is known: an amorphous object seen through it, and noise."""

from __future__ import annotations

import numpy as np

from polarice.contrast_transfer import ctf
from polarice.types import CTFParameters, Optics

OPTICS = Optics("opticsGroup1", 1.5, 300.0, 2.7, 0.1, 0)


def micrograph(defocus, side=1024, snr=1.0, phase_deg=0.0, seed=0, drift_px=0.0, ice=0.0) -> np.ndarray:
    """(side, side) float32 of defocus (U, V, angle); snr: power of the object over the noise's, at low resolution.

    drift_px: a steady drift along x during the exposure; ice: power of a ring at 3.67 A over the noise's.
    """
    rng = np.random.default_rng(seed)
    terms = (*defocus, phase_deg, 100.0, 1.0)
    parameters = CTFParameters(*(np.array([term], float) for term in terms))
    fy, fx = np.meshgrid(np.fft.fftfreq(side, 1.5), np.fft.rfftfreq(side, 1.5), indexing="ij")
    s = np.hypot(fx, fy)
    signal = np.fft.rfft2(rng.standard_normal((side, side))) * (1 + 2 * np.exp(-((s / 0.03) ** 2)))
    signal *= ctf(OPTICS, parameters, fx, fy)[0] * np.sinc(drift_px * 1.5 * fx)
    noise = np.fft.rfft2(rng.standard_normal((side, side)))
    noise *= np.sqrt((1 - 1.5 * s**2) + ice * np.exp(-(((s - 1 / 3.67) / 0.003) ** 2)))
    return np.fft.irfft2(np.sqrt(snr) * signal + noise, (side, side)).astype(np.float32)

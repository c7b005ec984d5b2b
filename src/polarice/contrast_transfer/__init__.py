"""The contrast transfer function (CTF), in RELION's sign: particles white, positive at low resolution.

    CTF(s) = scale exp(-B s^2 / 4) [sqrt(1 - A^2) sin(chi) + A cos(chi)]
    chi(s) = pi lambda d(theta) s^2 - pi/2 Cs lambda^3 s^4 + phase shift
    d(theta) = (dU + dV) / 2 + (dU - dV) / 2 cos 2(theta - theta_U)

with A the amplitude contrast, underfocus positive, theta counted from the x axis towards the y axis (rows, as they
increase) (Rohou & Grigorieff 2015, J Struct Biol 192, 216; Zhang 2016 for the phase shift).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polarice.fourier import centred_grid, namespace_of
from polarice.types import CTFParameters, Optics


def wavelength_A(voltage_kV: float) -> float:
    """Relativistic wavelength of the electrons, in Angstrom (0.019687 at 300 kV)."""
    volts = voltage_kV * 1e3
    return 12.2643247 / math.sqrt(volts * (1 + volts * 0.978466e-6))


def ctf(optics: Optics, parameters: CTFParameters, fx: Any, fy: Any, intact_first_peak: bool = False) -> Any:
    """CTF of n particles of one optics group at the frequencies (fx, fy).

    fx, fy: arrays of one shape and one floating type, in 1/Angstrom, x along columns and y along rows; NumPy or torch.
    intact_first_peak: 1 (before B-factor and scale) from the origin to the first peak, as RELION's
    `--ctf_intact_first_peak`. Returns (n, *fx.shape) of the type and on the device of fx.
    """
    chi, damping = phase(optics, parameters, fx, fy), envelope(parameters, fx, fy)
    xp = namespace_of(fx)
    wave = xp.sin(chi)
    if intact_first_peak:
        wave = xp.where(xp.abs(chi) < math.pi / 2, xp.ones_like(wave), wave)
    return wave if damping is None else wave * damping


def ctf_image(
    optics: Optics, parameters: CTFParameters, box_px: int, intact_first_peak: bool = False, dtype: Any = np.float64
) -> np.ndarray:
    """CTF of n particles on the centred grid of a box of N pixels: (n, N, N), `[particle, ky, kx]`."""
    fx, fy = frequency_grid(box_px, optics.pixel_size_A)
    return ctf(optics, parameters, fx.astype(dtype), fy.astype(dtype), intact_first_peak)


def frequency_grid(box_px: int, pixel_size_A: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (fx, fy) of the centred grid, each (N, N) float64, in 1/Angstrom, indexed `[ky, kx]`."""
    ky, kx = centred_grid(box_px)
    return kx / (box_px * pixel_size_A), ky / (box_px * pixel_size_A)


def _column(values: np.ndarray, fx: Any) -> Any:
    """A fresh copy of (n,) values as (n, 1, ...), of the kind and type of fx."""
    column = np.array(values, np.float64).reshape(-1, *(1,) * fx.ndim)
    xp = namespace_of(fx)
    if xp is np:
        return column.astype(fx.dtype)
    return xp.from_numpy(column).to(fx.device, fx.dtype, non_blocking=True)  # without waiting for a card


def phase(optics: Optics, parameters: CTFParameters, fx: Any, fy: Any) -> Any:
    """chi + arcsin(A) of n particles at (fx, fy), radians, as in `ctf`: the sine of it is the undamped CTF."""
    wavelength = wavelength_A(optics.voltage_kV)
    mean = (parameters.defocus_u_A + parameters.defocus_v_A) * (math.pi * wavelength / 2)
    difference = (parameters.defocus_u_A - parameters.defocus_v_A) * (math.pi * wavelength / 2)
    twice = np.deg2rad(2 * parameters.defocus_angle_deg)
    constant = np.deg2rad(parameters.phase_shift_deg) + math.asin(optics.amplitude_contrast)
    squared = fx * fx + fy * fy
    spherical = (math.pi / 2 * optics.cs_mm * 1e7 * wavelength**3) * squared * squared
    chi = _column(mean, fx) * squared - spherical + _column(constant, fx)
    if np.any(difference):  # cos 2(theta - theta_U) s^2, without an arc tangent
        chi = chi + _column(difference * np.cos(twice), fx) * (fx * fx - fy * fy)
        chi = chi + _column(difference * np.sin(twice), fx) * (2 * fx * fy)
    return chi


def envelope(parameters: CTFParameters, fx: Any, fy: Any) -> Any:
    """scale exp(-B s^2 / 4), or None where it is 1 for every particle."""
    if not np.any(parameters.bfactor_A2) and np.all(parameters.scale == 1):
        return None
    damping = _column(-parameters.bfactor_A2 / 4, fx) * (fx * fx + fy * fy)
    return _column(parameters.scale, fx) * namespace_of(fx).exp(damping)

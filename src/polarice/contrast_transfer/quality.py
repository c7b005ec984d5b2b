"""How far a fitted CTF can be trusted: fit resolution, ice rings, drift; and the curves that show it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from polarice.contrast_transfer import phase, wavelength_A
from polarice.contrast_transfer.estimate import AXES_1_A, SECTORS, Fit, splines, without
from polarice.contrast_transfer.spectrum import Spectrum
from polarice.types import Optics

MATCHED = 0.5  # correlation of rings and spectrum within a window, above which they match
WINDOW_RINGS = 1.5  # half of the window, in rings (periods of CTF^2)
LEAST_BINS = 4  # half of the window
ICE_A = (3.95, 3.55)  # the strongest ring of cubic and hexagonal ice, 3.66 A, and hexagonal's 3.90 A
BESIDE_ICE = 1.8  # how many times as wide the surroundings are
ICE_EXCESS = 0.25  # power above its surroundings, relative, that counts as ice
DRIFT_A = (12.0, 5.0)  # rings that drift takes first
DRIFTED = 0.75  # the loss in the weakest direction that counts as drift
SMEAR_A = (100.0, 30.0)  # slow waves, which rings leave alone and a long drift takes
SMEARED = 0.2  # their power's wave over the directions, of its logarithm, that counts as drift
SURE = 5.0  # times its standard deviation
HANN_PIXELS = 3.8  # pixels of a Hann-windowed power spectrum that are worth one independent one
FAINT = 0.6  # agreement of the whole curve below which there are no rings worth the name: noise alone reaches 0.5


@dataclass(frozen=True)
class Curve:
    """Averages along lines of equal phase, against the frequency at which a round CTF has that phase."""

    s: np.ndarray  # (b,) 1/Angstrom
    measured: np.ndarray  # (b,) of the spectrum's logarithm, background taken off
    model: np.ndarray  # (b,) CTF^2
    agreement: np.ndarray  # (b,) correlation of the two within the window


@dataclass(frozen=True)
class Quality:
    """What stands beside the fit in a table."""

    resolution_A: float  # rings and spectrum match down to here
    ice: float  # power in the rings of ice above their surroundings, relative; 0 where pixels are too coarse
    drift: float  # 1 - amplitude of the rings in their weakest direction over the strongest; 0 without drift
    smear: float  # wave of slow waves' power over the directions, of its logarithm; 0 where noise may be all of it
    agreement: float  # correlation of the whole curve, over the fitted range, with its rings
    curve: Curve

    @property
    def faint(self) -> bool:
        """Whether there are no rings worth the name."""
        return self.agreement < FAINT

    @property
    def drifted(self) -> float:
        """Drift, in units of what counts as drift: by slow waves where there are no rings (a long drift takes them)."""
        return self.smear / SMEARED if self.faint else self.drift / DRIFTED

    @property
    def flags(self) -> tuple[str, ...]:
        """What is wrong: "no rings", "drift", "ice"; empty where nothing is."""
        found = (("no rings", self.faint), ("drift", self.drifted > 1), ("ice", self.ice > ICE_EXCESS))
        return tuple(word for word, there in found if there)


def judge(spectrum: Spectrum, optics: Optics, fit: Fit, range_A: tuple[float, float] = (30.0, 5.0)) -> Quality:
    """The quality of a fit that was made on rings of `range_A`, coarsest and finest."""
    curve = curve_of(spectrum, optics, fit, range_A[0])
    fitted = curve.s <= 1 / range_A[1]
    s = curve.s[fitted]
    smooth = np.linalg.qr(splines(s, s[0], s[-1]))[0]
    rings = without(np.exp(-fit.bfactor_A2 / 2 * s * s) * curve.model[fitted], smooth)
    measured = without(curve.measured[fitted], smooth)
    agreement = rings @ measured / max(float(np.linalg.norm(rings) * np.linalg.norm(measured)), 1e-30)
    weakness = drift(spectrum, optics, fit)
    return Quality(resolution_A(curve), ice_excess(spectrum), weakness, smear(spectrum), float(agreement), curve)


def curve_of(spectrum: Spectrum, optics: Optics, fit: Fit, coarsest_A: float = 30.0) -> Curve:
    """Equiphase averages (Zhang 2016, J Struct Biol 193, 1) over the whole plane."""
    fx, fy = spectrum.grid()
    step = 1 / (spectrum.box_px * spectrum.pixel_size_A)
    s = np.hypot(fx, fy)
    used = (s > 0.5 / coarsest_A) & (s < 0.5 / spectrum.pixel_size_A) & (fx >= AXES_1_A) & (np.abs(fy) >= AXES_1_A)
    bins = np.rint(_round_frequency(optics, fit, fx[used], fy[used]) / step).astype(int)
    count = np.bincount(bins)
    total = np.bincount(bins, spectrum.log_power[used])
    low, high = math.ceil(1 / coarsest_A / step), int(0.5 / spectrum.pixel_size_A / step)
    inside = np.arange(low, min(high, len(count)))
    inside = inside[count[inside] > 0]
    s = inside * step
    measured = total[inside] / count[inside]
    smooth = np.linalg.qr(splines(s, s[0], s[-1], pieces=12))[0]
    model = np.sin(_round_phase(optics, fit, s)) ** 2
    measured = without(measured, smooth)
    return Curve(s, measured, model, _agreement(s, measured, model, _ring_width(optics, fit, s)))


def _round_phase(optics: Optics, fit: Fit, s: np.ndarray) -> np.ndarray:
    mean = Fit(fit.defocus_A, fit.defocus_A, 0.0, fit.phase_shift_deg, 0.0, 0.0)
    return phase(optics, mean.parameters(), s, np.zeros_like(s))[0]


def _round_frequency(optics: Optics, fit: Fit, fx: np.ndarray, fy: np.ndarray) -> np.ndarray:
    """Where a CTF of the mean defocus has the phase that the fit has at (fx, fy): the root of a quadratic in s^2."""
    wavelength = wavelength_A(optics.voltage_kV)
    constant = math.radians(fit.phase_shift_deg) + math.asin(optics.amplitude_contrast)
    chi = phase(optics, fit.parameters(), fx, fy)[0] - constant
    a, b = math.pi / 2 * optics.cs_mm * 1e7 * wavelength**3, math.pi * wavelength * fit.defocus_A
    root = np.sqrt(np.maximum(b * b - 4 * a * chi, 0.0))
    return np.sqrt(np.maximum(2 * chi / (b + root), 0.0))  # (b - root) / 2a, without its cancellation


def _ring_width(optics: Optics, fit: Fit, s: np.ndarray) -> np.ndarray:
    """Width of a ring of CTF^2 at s, 1/Angstrom: pi over the slope of the phase."""
    slope = np.abs(np.gradient(_round_phase(optics, fit, s), s))
    return np.pi / np.maximum(slope, 1e-9)


def _agreement(s: np.ndarray, measured: np.ndarray, model: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Correlation within a window about each s, a line taken off both."""
    step = s[1] - s[0]
    half = np.maximum(np.rint(WINDOW_RINGS * width / step).astype(int), LEAST_BINS)
    values = np.zeros(len(s))
    for i in range(len(s)):
        low, high = max(0, i - half[i]), min(len(s), i + half[i] + 1)
        line = np.linalg.qr(np.stack([np.ones(high - low), s[low:high]], axis=1))[0]
        a, b = without(measured[low:high], line), without(model[low:high], line)
        values[i] = a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30)
    return values


def resolution_A(curve: Curve) -> float:
    """Where rings and spectrum cease to match; the coarsest of the curve where they match nowhere.

    Up to there, and no further, the windows that match outnumber most the ones that do not.
    """
    good = curve.agreement >= MATCHED
    if not good.any():
        return float(1 / curve.s[0])
    balance = np.cumsum(np.where(good, 1, -1)[np.argmax(good) :])
    return float(1 / curve.s[int(np.argmax(good)) + int(np.argmax(balance))])


def ice_excess(spectrum: Spectrum) -> float:
    """Mean power in the band of ice's rings over what its surroundings lead one to expect, less 1."""
    fx, fy = spectrum.grid()
    s = np.hypot(fx, fy)
    low, high = 1 / ICE_A[0], 1 / ICE_A[1]
    reach = (high - low) * BESIDE_ICE / 2
    if high + reach > 0.5 / spectrum.pixel_size_A:
        return 0.0
    to_device = (s > low - reach) & (s < high + reach)
    radius, value = s[to_device], spectrum.log_power[to_device]
    inside = (radius > low) & (radius < high)
    slope, level = np.polyfit(radius[~inside], value[~inside], 1)
    return float(
        np.exp((value - slope * radius - level)[inside]).mean()
        / np.exp((value - slope * radius - level)[~inside]).mean()
        - 1
    )


def drift(spectrum: Spectrum, optics: Optics, fit: Fit) -> float:
    """1 - (weakest direction's rings) / (strongest's), of a wave of twice the angle through the sectors' amplitudes."""
    fx, fy = spectrum.grid()
    s = np.hypot(fx, fy)
    used = (s >= 1 / DRIFT_A[0]) & (s <= 1 / DRIFT_A[1]) & (fx >= AXES_1_A) & (np.abs(fy) >= AXES_1_A)
    used &= s < 0.5 / spectrum.pixel_size_A
    fx, fy, s, value = fx[used], fy[used], s[used], spectrum.log_power[used]
    model = np.exp(-fit.bfactor_A2 / 2 * s * s) * np.sin(phase(optics, fit.parameters(), fx, fy)[0]) ** 2
    sector = (np.arctan2(fy, fx) % np.pi * (SECTORS / np.pi)).astype(int) % SECTORS
    amplitude = np.zeros(SECTORS)
    for j in range(SECTORS):
        rows = sector == j
        smooth = np.linalg.qr(s[rows, None] ** np.arange(4))[0]
        a, b = without(value[rows], smooth), without(model[rows], smooth)
        amplitude[j] = a @ b / max(float(b @ b), 1e-30)
    twice = np.exp(2j * np.pi * (np.arange(SECTORS) + 0.5) / SECTORS)
    wave, mean = 2 * abs((amplitude * twice).mean()), amplitude.mean()
    return float(np.clip(2 * wave / (mean + wave), 0, 1)) if mean > 0 else 1.0


def smear(spectrum: Spectrum) -> float:
    """Amplitude of the wave of twice the angle in the logarithm of slow waves' power, against its mean on each ring.

    A specimen that moves along a line during the exposure loses these waves in one direction, whatever its CTF.
    """
    fx, fy = spectrum.grid()
    s = np.hypot(fx, fy)
    used = (s > 1 / SMEAR_A[0]) & (s < 1 / SMEAR_A[1]) & (fx >= AXES_1_A) & (np.abs(fy) >= AXES_1_A)
    fx, fy, value = fx[used], fy[used], spectrum.log_power[used]
    if len(value) < 2 * HANN_PIXELS:
        return 0.0
    ring = np.rint(s[used] * spectrum.box_px * spectrum.pixel_size_A).astype(int)
    value = value - (np.bincount(ring, value) / np.maximum(np.bincount(ring), 1))[ring]
    turn = np.stack([fx * fx - fy * fy, 2 * fx * fy], axis=1) / (fx * fx + fy * fy)[:, None]
    wave = np.linalg.lstsq(turn, value, rcond=None)[0]
    sd = math.sqrt(2 * HANN_PIXELS / len(value)) * float((value - turn @ wave).std())
    amplitude = float(np.hypot(*wave))
    return amplitude if amplitude > SURE * sd else 0.0

"""Defocus, astigmatism and phase shift from the Thon rings of a power spectrum.

    log P(s, theta) = background(s, theta) - amplitude exp(-B s^2 / 2) cos 2 chi(s, theta) + noise

since CTF^2 = (1 - cos 2 chi) / 2, chi with the amplitude contrast's phase in it. The background is a cubic spline
along s and, to take what drift and a detector's grain do, a slow part that turns with cos and sin of 2 theta. What the
background can explain is projected out of rings and spectrum; the fit is the CTF whose rings correlate best with what
is left (variable projection: Golub & Pereyra 1973, SIAM J Numer Anal 10, 413; rings against spectrum: Mindell &
Grigorieff 2003, J Struct Biol 142, 334).

First, the correlation of every round defocus with the rotational average of each sector of 15 degrees; a defocus that
turns with the angle is then a sum of table entries, so that all means, astigmatisms and angles are tried (no start can
be missed). Then a simplex on the pixels of the plane refines all parameters from the best of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.interpolate import BSpline
from scipy.optimize import minimize

from polarice.contrast_transfer import phase
from polarice.contrast_transfer.spectrum import Spectrum
from polarice.types import CTFParameters, InputError, Optics

SECTORS = 12  # over 180 degrees
BFACTORS_A2 = (0.0, 50.0, 150.0)  # tried in the table, of the rings' amplitude
SPLINE_PIECES = 7
AXES_1_A = 2e-3  # frequencies this near to an axis are left out: a detector's rows and columns
STARTS = 3  # of the table's best, refined
THIN = 5  # one pixel in so many is looked at first
ASTIGMATISM_STEP_A = 100.0


@dataclass(frozen=True)
class Search:
    """What is tried."""

    resolution_A: tuple[float, float] = (30.0, 5.0)  # of the rings: coarsest, finest
    defocus_A: tuple[float, float] = (5_000.0, 50_000.0)
    defocus_step_A: float = 50.0
    astigmatism_A: float = 2_000.0  # largest difference of the two defoci in the table
    phase_shift_deg: tuple[float, float] = (0.0, 0.0)
    phase_step_deg: float = 10.0

    @property
    def fits_phase(self) -> bool:
        return self.phase_shift_deg[1] > self.phase_shift_deg[0]


@dataclass(frozen=True)
class Fit:
    """The CTF of one micrograph; RELION's rlnDefocusU is the larger defocus, rlnDefocusAngle its direction."""

    defocus_u_A: float
    defocus_v_A: float
    defocus_angle_deg: float  # -90 to 90, from the x axis towards the y axis
    phase_shift_deg: float
    bfactor_A2: float  # of the rings' fall-off beside the background
    correlation: float  # of rings and spectrum, background taken off both: 1 for rings without noise

    @property
    def defocus_A(self) -> float:
        return (self.defocus_u_A + self.defocus_v_A) / 2

    @property
    def astigmatism_A(self) -> float:
        return self.defocus_u_A - self.defocus_v_A

    def parameters(self) -> CTFParameters:
        """As one particle's."""
        terms = (self.defocus_u_A, self.defocus_v_A, self.defocus_angle_deg, self.phase_shift_deg, 0.0, 1.0)
        return CTFParameters(*(np.array([term]) for term in terms))


def estimate(spectrum: Spectrum, optics: Optics, search: Search = Search()) -> Fit:
    """The CTF that explains the rings of a spectrum best. Raises InputError where the range holds no rings to fit."""
    rings, thin = (Rings.of(spectrum, optics, search.resolution_A, every) for every in (1, THIN))
    rough = [_refine(thin, start, search, tolerance_A=20.0) for start in _table(spectrum, optics, search)]
    return _refine(rings, max(rough, key=rings.correlation), search, tolerance_A=2.0)


# --------------------------------------------------------------------------------------------- rings in the plane


@dataclass(frozen=True)
class Rings:
    """The pixels of the plane that are compared, and what is left of them without the background."""

    optics: Optics
    fx: np.ndarray  # (p,) 1/Angstrom; half of the plane
    fy: np.ndarray
    background: np.ndarray  # (p, m), orthonormal columns
    measured: np.ndarray  # (p,) of length 1

    @staticmethod
    def of(spectrum: Spectrum, optics: Optics, resolution_A: tuple[float, float], every: int = 1) -> Rings:
        """Of pixels between two resolutions, one in `every`."""
        fx, fy = spectrum.grid()
        s = np.hypot(fx, fy)
        low, high = _limits(resolution_A, spectrum.pixel_size_A)
        used = (s >= low) & (s <= high) & (fx >= AXES_1_A) & (np.abs(fy) >= AXES_1_A)
        if used.sum() < 20 * SPLINE_PIECES:
            raise InputError(f"spectrum of {spectrum.box_px} px: no rings between {1 / low:.1f} and {1 / high:.1f} A")
        used[used] = np.arange(used.sum()) % every == 0
        fx, fy, s = fx[used], fy[used], s[used]
        smooth, turn = splines(s, low, high), ((fx * fx - fy * fy) / s**2, 2 * fx * fy / s**2)
        slow = np.stack([np.ones_like(s), s, s * s], axis=1)
        columns = np.concatenate([smooth, *(slow * part[:, None] for part in turn)], axis=1)
        background = np.linalg.qr(columns)[0]
        return Rings(optics, fx, fy, background, _unit(without(spectrum.log_power[used], background)))

    def correlation(self, fit: Fit) -> float:
        """Of the fit's rings with the spectrum."""
        chi = phase(self.optics, fit.parameters(), self.fx, self.fy)[0]
        model = -np.exp(-fit.bfactor_A2 / 2 * (self.fx**2 + self.fy**2)) * np.cos(2 * chi)
        return float(self.measured @ _unit(without(model, self.background)))


def splines(s: np.ndarray, low: float, high: float, pieces: int = SPLINE_PIECES) -> np.ndarray:
    """Cubic B-splines on even knots from `low` to `high` at `s` (p,): (p, pieces + 3)."""
    inner = np.linspace(low, high, pieces + 1)
    knots = np.concatenate([[low] * 3, inner, [high] * 3])
    return BSpline.design_matrix(np.clip(s, low, high), knots, 3).toarray()


def without(values: np.ndarray, background: np.ndarray) -> np.ndarray:
    """`values` (p,) less what orthonormal columns (p, m) explain of them."""
    return values - background @ (values @ background)


def _unit(values: np.ndarray) -> np.ndarray:
    return values / max(float(np.linalg.norm(values)), 1e-30)


def _limits(resolution_A: tuple[float, float], pixel_size_A: float) -> tuple[float, float]:
    """Frequencies, 1/Angstrom, no finer than 95 % of Nyquist."""
    low, high = 1 / resolution_A[0], min(1 / resolution_A[1], 0.95 / (2 * pixel_size_A))
    if not low < high:
        raise InputError(f"pixels of {pixel_size_A:g} A hold nothing between {resolution_A[0]:g} and {1 / high:.3g} A")
    return low, high


def _refine(rings: Rings, start: Fit, search: Search, tolerance_A: float) -> Fit:
    """The simplex of Nelder and Mead over mean, astigmatism (a vector of twice the angle), B-factor and phase shift."""
    scale = np.array([100.0, 100.0, 100.0, 50.0, 10.0][: 5 if search.fits_phase else 4])
    twice = math.radians(2 * start.defocus_angle_deg)
    half = start.astigmatism_A / 2
    origin = np.array(
        [start.defocus_A, half * math.cos(twice), half * math.sin(twice), start.bfactor_A2, start.phase_shift_deg]
    )[: len(scale)]

    def fit_at(step: np.ndarray) -> Fit:
        mean, along, across, bfactor, *rest = origin + step * scale
        return _fit(
            mean,
            math.hypot(along, across),
            math.atan2(across, along) / 2,
            (rest or [start.phase_shift_deg])[0],
            max(bfactor, 0.0),
        )

    def cost(step: np.ndarray) -> float:
        fit = fit_at(step)
        low, high = search.phase_shift_deg
        beyond = max(low - fit.phase_shift_deg, fit.phase_shift_deg - high, 0.0) if search.fits_phase else 0.0
        return -rings.correlation(fit) + beyond

    options = {"xatol": tolerance_A / scale[0], "fatol": 1e-7, "maxiter": 600}
    found = minimize(
        cost, np.zeros(len(scale)), method="Nelder-Mead", options={**options, "initial_simplex": _simplex(len(scale))}
    )
    return replace(fit_at(found.x), correlation=-float(found.fun))


def _simplex(n: int) -> np.ndarray:
    return np.concatenate([np.zeros((1, n)), np.eye(n)])


def _fit(mean_A: float, half_A: float, angle_rad: float, phase_shift_deg: float, bfactor_A2: float) -> Fit:
    angle_deg = (math.degrees(angle_rad) + 90) % 180 - 90
    return Fit(
        float(mean_A + half_A), float(mean_A - half_A), angle_deg, float(phase_shift_deg), float(bfactor_A2), 0.0
    )


# ------------------------------------------------------------------------------------------- the table of sectors


class _Sectors(NamedTuple):
    """Rotational averages of sectors; sector j is centred on (j + 1/2) * 180 / SECTORS degrees."""

    s: np.ndarray  # (b,) 1/Angstrom
    profiles: np.ndarray  # (SECTORS, b)
    weights: np.ndarray  # (b,) square root of the number of pixels


def _sectors(spectrum: Spectrum, resolution_A: tuple[float, float]) -> _Sectors:
    fx, fy = spectrum.grid()
    s = np.hypot(fx, fy)
    step = 1 / (spectrum.box_px * spectrum.pixel_size_A)
    low, high = (round(limit / step) for limit in _limits(resolution_A, spectrum.pixel_size_A))
    shell = np.rint(s / step).astype(int)
    used = (shell >= low) & (shell <= high) & (np.abs(fx) >= AXES_1_A) & (np.abs(fy) >= AXES_1_A)
    sector = (np.arctan2(fy, fx) % np.pi * (SECTORS / np.pi)).astype(int) % SECTORS
    cell = (sector * (high - low + 1) + shell - low)[used]
    size = SECTORS * (high - low + 1)
    count = np.bincount(cell, minlength=size).reshape(SECTORS, -1)
    total = np.bincount(cell, spectrum.log_power[used], size).reshape(SECTORS, -1)
    full = (count > 0).all(axis=0)
    return _Sectors(
        np.arange(low, high + 1)[full] * step,
        (total / np.maximum(count, 1))[:, full],
        np.sqrt(count.mean(axis=0)[full]),
    )


def _table(spectrum: Spectrum, optics: Optics, search: Search) -> list[Fit]:
    """The best fits of the table, unlike in their mean defocus, the best first."""
    sectors = _sectors(spectrum, search.resolution_A)
    basis = splines(sectors.s, sectors.s[0], sectors.s[-1]) * sectors.weights[:, None]
    background = np.linalg.qr(basis)[0]
    measured = sectors.profiles * sectors.weights
    measured = measured - (measured @ background) @ background.T
    defocus = np.arange(search.defocus_A[0], search.defocus_A[1] + search.defocus_step_A, search.defocus_step_A)
    phases = np.arange(search.phase_shift_deg[0], search.phase_shift_deg[1] + 1e-6, search.phase_step_deg)
    found: list[Fit] = []
    for phase_deg in phases:
        chi = phase(optics, _round(defocus, phase_deg), sectors.s, np.zeros_like(sectors.s))
        for bfactor in BFACTORS_A2:
            model = -np.exp(-bfactor / 2 * sectors.s**2) * np.cos(2 * chi) * sectors.weights
            model -= (model @ background) @ background.T
            scores = measured @ (model / np.linalg.norm(model, axis=1, keepdims=True)).T  # (sector, defocus)
            found += _best_of(scores / np.linalg.norm(measured), defocus, phase_deg, bfactor, search)
    return _unlike(found)


def _best_of(scores: np.ndarray, defocus: np.ndarray, phase_deg: float, bfactor: float, search: Search) -> list[Fit]:
    """For each astigmatism of the table, the means that score best."""
    centres = (np.arange(SECTORS) + 0.5) * np.pi / SECTORS
    rows, found = np.arange(SECTORS)[:, None], []
    for half in np.arange(0, search.astigmatism_A / 2 + 1, ASTIGMATISM_STEP_A / 2 * 2):
        for angle in np.arange(8 if half else 1) * np.pi / 8 - np.pi / 2:
            shift = np.rint(half * np.cos(2 * (centres - angle)) / search.defocus_step_A).astype(int)
            index = np.clip(np.arange(len(defocus)) + shift[:, None], 0, len(defocus) - 1)
            total = scores[rows, index].sum(axis=0) / math.sqrt(SECTORS)
            for best in np.argsort(total)[: -3 * STARTS - 1 : -1]:
                fit = _fit(float(defocus[best]), float(half), float(angle), float(phase_deg), bfactor)
                found.append(replace(fit, correlation=float(total[best])))
    return found


def _unlike(found: list[Fit], apart_A: float = 400.0) -> list[Fit]:
    kept: list[Fit] = []
    for fit in sorted(found, key=lambda fit: -fit.correlation):
        if all(abs(fit.defocus_A - other.defocus_A) > apart_A for other in kept):
            kept.append(fit)
        if len(kept) == STARTS:
            break
    return kept


def _round(defocus_A: np.ndarray, phase_shift_deg: float) -> CTFParameters:
    n = len(defocus_A)
    return CTFParameters(defocus_A, defocus_A, np.zeros(n), np.full(n, phase_shift_deg), np.zeros(n), np.ones(n))

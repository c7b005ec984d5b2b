"""The joined map made fit to look at: camera's MTF divided out, weighted by FSC, sharpened by a B-factor, low-passed.

weight      sqrt(2 F / (1 + F)) up to the first shell with F < 0.0001, 0 beyond       (Rosenthal and Henderson 2003)
B           4 x slope of the line through ln(mean amplitude) over 1 / d^2             (the same: Guinier plot)
sharpened   F(k) exp(-B k^2 / 4)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polarice.postprocessing.spectrum import low_pass_curve, mean_amplitude, multiplied, over_shells

LEAST_FSC = 1e-4  # the weight is 0 from the first shell below it
LEAST_SHELLS = 5  # of a line
LEAST_TRANSFER = 1e-3  # a camera that passes less is not corrected further
NOTHING = -99.0  # where a logarithm has none


@dataclass(frozen=True)
class Transfer:
    """A camera's MTF: values (m,) at frequencies (m,) in 1 / pixel of the camera, and its pixel size."""

    frequency: np.ndarray
    value: np.ndarray
    pixel_A: float

    def at(self, frequency_A: np.ndarray) -> np.ndarray:
        """Values at frequencies in 1 / A; as at the ends beyond them."""
        return np.interp(frequency_A * self.pixel_A, self.frequency, self.value)


@dataclass(frozen=True)
class Line:
    """A straight line through ln(amplitude) over 1 / d^2; slope in A^2."""

    slope: float
    intercept: float
    correlation: float

    @property
    def bfactor_A2(self) -> float:
        return 4 * self.slope


@dataclass(frozen=True)
class Guinier:
    """ln(mean amplitude) by shell (S,), -99 where there is nothing; 1 / d^2 in 1 / A^2."""

    squared: np.ndarray
    original: np.ndarray
    weighted: np.ndarray
    sharpened: np.ndarray
    line: Line | None


@dataclass(frozen=True)
class Sharpening:
    """What is asked for; resolutions in A."""

    fsc: Tensor | None  # (S,) to weight by; None: not
    transfer: Transfer | None = None
    auto: bool = True  # B from the Guinier plot
    bfactor_A2: float = 0.0  # where not
    fit_from_A: float = 10.0
    fit_to_A: float = 0.0  # 0: up to Nyquist
    low_pass_A: float = 0.0  # 0: none
    edge: float = 2.0  # shells, of the low-pass


def fsc_weight(fsc: Tensor) -> Tensor:
    """(S,) sqrt(2 F / (1 + F)), 0 from the first shell on which F falls below 0.0001."""
    below = (fsc < LEAST_FSC).nonzero()
    end = int(below[0]) if len(below) else len(fsc)
    weight = (2 * fsc.clamp(0, 1) / (1 + fsc.clamp(0, 1))).sqrt()
    weight[end:] = 0
    return weight


def fitted_line(squared: np.ndarray, logarithm: np.ndarray, use: np.ndarray) -> Line | None:
    """Least squares through the points in use; None where these are too few."""
    if use.sum() < LEAST_SHELLS:
        return None
    x, y = squared[use], logarithm[use]
    slope, intercept = np.polyfit(x, y, 1)
    spread = x.std() * y.std()
    correlation = float(((x - x.mean()) * (y - y.mean())).mean() / spread) if spread > 0 else 0.0
    return Line(float(slope), float(intercept), correlation)


def sharpen(density: Tensor, pixel_A: float, asked: Sharpening) -> tuple[Tensor, Guinier, float]:
    """The sharpened density of a joined one (N, N, N), its Guinier plot and the B-factor taken (A^2; 0: none).

    Where a line is asked for and cannot be fitted, the B-factor is 0 and the plot's line None.
    """
    n = len(density)
    frequency = np.arange(n // 2 + 1) / (n * pixel_A)
    original = _logarithm(density)
    weight = np.ones(len(frequency))
    if asked.transfer is not None:
        weight /= np.maximum(asked.transfer.at(frequency), LEAST_TRANSFER)
    if asked.fsc is not None:
        weight *= fsc_weight(asked.fsc).cpu().numpy()
    there = (weight > 0) & (original > NOTHING)
    logarithm = np.where(there, original + np.log(np.maximum(weight, 1e-30)), NOTHING)
    line, bfactor = None, asked.bfactor_A2
    if asked.auto:
        far = frequency <= (1 / asked.fit_to_A if asked.fit_to_A > 0 else math.inf)
        line = fitted_line(frequency**2, logarithm, there & far & (frequency >= 1 / asked.fit_from_A))
        bfactor = line.bfactor_A2 if line else 0.0
    passed = torch.from_numpy(weight).to(density.device)

    def curve(r: Tensor) -> Tensor:
        raised = torch.exp(-bfactor / 4 * (r / (n * pixel_A)).clamp_(max=0.5 / pixel_A) ** 2)
        low = low_pass_curve(n * pixel_A / asked.low_pass_A, asked.edge)(r) if asked.low_pass_A > 0 else 1.0
        return over_shells(passed, r) * raised * low

    found = multiplied(density, curve)
    sharpened = np.where(there, _logarithm(found), NOTHING)
    return found, Guinier(frequency**2, original, logarithm, sharpened, line), bfactor


def _logarithm(density: Tensor) -> np.ndarray:
    """(S,) ln of the mean amplitude of each shell, -99 where that is nothing."""
    amplitude = mean_amplitude(density).cpu().numpy()
    there = amplitude > 1e-9 * amplitude.max(initial=1e-300)
    return np.where(there, np.log(np.maximum(amplitude, 1e-300)), NOTHING)

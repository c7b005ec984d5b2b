"""How fast radiation destroys what an image shows (Grant & Grigorieff 2015, eLife 4, e06980)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polarice.types import InputError

_A, _B, _C = 0.24499, -1.6649, 2.8141  # critical exposure at 300 kV, in e/A^2, of frequencies in 1/A
SHARE_OF_300 = {300: 1.0, 200: 0.8, 100: 0.5}  # by voltage in kV: slower electrons damage more


@dataclass(frozen=True)
class Dose:
    """What the specimen has taken, in electrons per square Angstrom."""

    per_frame: float
    before: float = 0.0  # the first frame
    voltage_kV: float = 300.0

    def at(self, number: int | np.ndarray) -> np.ndarray:
        """Up to the end of frame `number`, from 0."""
        return self.before + self.per_frame * (np.asarray(number) + 1.0)


def critical_exposure(frequency_per_A: np.ndarray, voltage_kV: float) -> np.ndarray:
    """The exposure in e/A^2 after which the amplitude at a frequency has fallen to exp(-1/2); infinite at 0.

    Raises InputError for a voltage that nobody has measured.
    """
    nearest = min(SHARE_OF_300, key=lambda each: abs(each - voltage_kV))
    if abs(nearest - voltage_kV) > 20:
        raise InputError(f"dose weighting is known for 100, 200 and 300 kV, not for {voltage_kV:g} kV; leave it out")
    k = np.asarray(frequency_per_A, np.float64)
    with np.errstate(divide="ignore"):
        return SHARE_OF_300[nearest] * (_A * k**_B + _C)


def dose_weights(frequency_per_A: np.ndarray, dose: Dose, numbers: np.ndarray) -> np.ndarray:
    """Weight of each of the frames `numbers` (n,) at each frequency (...): (n, ...) float32.

    q = exp(-N / (2 Ne)) over sqrt(sum q^2): the noise of the weighted sum is that of one frame at every frequency.
    """
    taken = dose.at(numbers).reshape(-1, *(1,) * np.ndim(frequency_per_A))
    q = np.exp(-taken / (2 * critical_exposure(frequency_per_A, dose.voltage_kV)))
    return (q / np.sqrt((q**2).sum(0))).astype(np.float32)

"""What each iteration does: how many references, which particles, up to which resolution, over which poses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.align.model import Prior

if TYPE_CHECKING:
    from polarice.align.fit import State

GROWTH_SHARE = 0.6  # of the iterations, in which the number of references doubles stage by stage
FIRST_REFERENCES = 5
PARTICLES_PER_REFERENCE = 50  # of a mini-batch, at the least
SMALLEST_BATCH = 1000
LARGEST_SHARE = 0.3  # of the particles, that mini-batches grow to
MOMENTUM = 0.8  # of what the particles that are not looked at again have told before; none while classes grow
BETWEEN_STEPS = 0.75  # of the shift grid's step: how far beside it the best shift is looked for
GROWTH_SHIFT_SIGMA_PX = 2.0  # while averages are vague, images would all seem centred
MIN_SSNR = 0.5  # granted to every ring while classes grow: an average that is zero on a ring aligns nothing there
OCCUPANCY_PENALTY = 0.5  # strength of the pull to equal occupancy, per iteration
SETTLED = 0.02  # share of the particles that changed their class in an iteration
RING_STEP = 4  # the number of rings grows by
RESOLUTION_MARGIN_RINGS = 10  # images are compared this far beyond where the averages still hold signal


@dataclass(frozen=True)
class Step:
    """One iteration."""

    number: int  # from 1
    total: int
    references: int
    batch: int  # particles compared
    ramp_px: int  # last ring that the ramp allows, in Fourier pixels
    shift_range_px: float
    shift_step_px: float
    psi_step_deg: float | None  # None: the ring's own sampling
    between_px: float  # the best shift is looked for so far beside the grid's points, 0: only on them
    momentum: float  # share of the sums of earlier iterations that stays
    occupancy_penalty: float  # strength of the pull towards equal occupancy, 0 for none
    settling: bool  # averages are centred; not in the last three iterations
    min_ssnr: float  # signal that the prior grants every ring
    min_shift_sigma_px: float  # the shift prior stays at least so wide
    limit_px: int  # no ring lies beyond

    def prior(self, tau2_fudge: float) -> Prior:
        """What holds the references down in its maximization."""
        return Prior(tau2_fudge, self.occupancy_penalty, self.min_ssnr, self.momentum, self.min_shift_sigma_px)

    def whole_rings(self, rings: int) -> int:
        """So many rings or a few more: what is prepared for a basis then serves several iterations."""
        return min(self.limit_px, RING_STEP * math.ceil(rings / RING_STEP))


@dataclass(frozen=True)
class Schedule:
    """The plan of a run; `steps` spells it out."""

    k: int
    iterations: int
    particles: int
    start_px: int  # resolution of the first iteration, in Fourier pixels
    limit_px: int  # never beyond (Nyquist, or --strict-highres-exp)
    offset_range_px: float
    offset_step_px: float
    psi_step_deg: float | None = None
    growing_batches: bool = False
    grown: bool = False  # all the references are there from the start, and hold signal

    def step(self, number: int) -> Step:
        """Iteration `number`, from 1."""
        growth = self._growth
        last = number == self.iterations
        shift_range_px, shift_step_px = self._shifts(number, growth)
        references = self._references(number, growth)
        batch = self._batch(number, references)
        return Step(
            number=number,
            total=self.iterations,
            references=references,
            batch=batch,
            ramp_px=self._ramp(number, growth),
            shift_range_px=shift_range_px,
            shift_step_px=shift_step_px,
            psi_step_deg=self.psi_step_deg,
            between_px=min(self.offset_range_px, BETWEEN_STEPS * shift_step_px) if number >= self._fine else 0.0,
            momentum=MOMENTUM * (1 - batch / self.particles) if number > growth else 0.0,
            occupancy_penalty=0.0 if last else OCCUPANCY_PENALTY,
            settling=number <= self.iterations - 3,
            min_ssnr=MIN_SSNR if number <= growth else 0.0,
            min_shift_sigma_px=GROWTH_SHIFT_SIGMA_PX if number <= growth else 0.5,
            limit_px=self.limit_px,
        )

    def next(self, state: State[Any, Any]) -> Step | None:
        """The step after a state; None when all iterations are done."""
        number = self.after(state.number, state.changed_class)
        return self.step(number) if number <= self.iterations else None

    def after(self, number: int, changed_class: float) -> int:
        """The iteration that follows: the next, or, once assignments have settled, the last but one."""
        settled = changed_class < SETTLED and self._fine < number < self.iterations - 2
        return self.iterations - 1 if settled else number + 1

    @property
    def _growth(self) -> int:
        """The last iteration of growth; 0 where there is none."""
        return 0 if self.grown else max(1, round(GROWTH_SHARE * self.iterations))

    @property
    def _fine(self) -> int:
        """The first iteration with fine shifts."""
        return self._growth + (self.iterations - self._growth) // 3 + 1

    def _shifts(self, number: int, growth: int) -> tuple[float, float]:
        """Range and step of the shift search: coarse and wide, then finer and nearer, in the last two nearest."""
        coarse = max(self.offset_step_px, min(2 * self.offset_step_px, self.offset_range_px))
        if number > max(growth, self.iterations - 2):
            return min(self.offset_range_px, self.offset_step_px), self.offset_step_px
        if number >= self._fine:
            return min(self.offset_range_px, 2 * self.offset_step_px), self.offset_step_px
        return self.offset_range_px, coarse

    def _references(self, number: int, growth: int) -> int:
        stages = [self.k]
        while stages[0] >= 2 * FIRST_REFERENCES:
            stages.insert(0, math.ceil(stages[0] / 2))
        if number > growth or number == self.iterations:
            return self.k
        return stages[min(len(stages) - 1, (number - 1) * len(stages) // growth)]

    def _batch(self, number: int, references: int) -> int:
        """All the particles, or mini-batches that grow with the references and on, and all in the last two."""
        first = max(SMALLEST_BATCH, PARTICLES_PER_REFERENCE * references)
        if not self.growing_batches or number > self.iterations - 2:
            return self.particles
        share = (number - 1) / (self.iterations - 2)
        return min(self.particles, round(first * max(1.0, LARGEST_SHARE * self.particles / first) ** share))

    def _ramp(self, number: int, growth: int) -> int:
        share = 1.0 if growth == 0 else min(1.0, (number - 1) / growth)
        return round(self.start_px + share * (self.limit_px - self.start_px))


def shift_grid(range_px: float, step_px: float, perturbation: np.ndarray) -> np.ndarray:
    """(shift, 2) x, y float64: a square grid inside a disc, moved by `perturbation` (2,) in units of the step."""
    reach = int(range_px / step_px + 1e-6)
    if reach == 0:  # nothing is searched: the centre stays where it is
        return np.zeros((1, 2))
    index = np.arange(-reach, reach + 1) * step_px
    y, x = np.meshgrid(index, index, indexing="ij")
    inside = np.hypot(x, y) <= range_px + 1e-6
    return np.stack([x[inside], y[inside]], axis=1) + step_px * perturbation

"""3D classification: what comes next, and the expectation as the driver asks for it.

From one map it goes in three parts, from several the last is all:

    together  one map for all particles, as in a refinement, until nothing is gained: poses become known
    forming   poses are kept; each particle is of a class that is drawn at first (RELION begins so, too), and maps of
              few rings, more and more, tell them apart
    joint     every particle meets the slices of all maps at once: its class is found with its pose

Maps of drawn classes differ by their particles' noise, which grows with the rings compared faster than what true
classes differ by: each particle is then most like the map that holds its own noise, and nothing changes any more. So
few rings are compared until classes have formed on them, and the noise is exaggerated at first (deterministic
annealing, Rose 1998, Proc IEEE 86, 2210). Where poses are not known either, classes form on few rings too slowly.
The first joint search is among all directions; later ones are around each particle's last, as poses are known by then.
It ends when hardly any particle changes its class any more and no map gains in resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch

from polarice.align.fit import State
from polarice.align.search import Search
from polarice.references.halfmaps import HALVES, VolumeSums
from polarice.references.posed_views import PosedPass
from polarice.references.refinement import (
    FIRST_ORDER,
    FIRST_RINGS,
    MORE_RINGS,
    RING_SHARE,
    AnyPass,
    MapSchedule,
    Progress,
    RefineStep,
    ViewExpectation,
)
from polarice.references.slices import FourierGrid
from polarice.references.volumes import Volumes

HOTTEST, COOLING = 10.0, 0.6  # times the noise that classes begin to form at, and how much less in each iteration
MORE_RINGS_AT_ONCE, FORMING = 2, 2  # and after so many iterations in which no fewer changed their class
SETTLED = 0.005  # share of the particles that change their class, below which classes have been found
QUIET, STILL = 0.1, 4  # and where fewer than so many change it, and that share has not fallen for so many iterations
FALLEN = 0.9  # times the least so far is less
IDLE = 2  # iterations without gain in resolution
MOST_TOGETHER, MOST_FORMING = 5, 20  # iterations of these parts


@dataclass(frozen=True)
class ClassProgress(Progress):
    """What classification carries on beside the poses that every job has."""

    course: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 2)))  # (iterations before, K, 2): share, shell
    least_changed: float = 1.0  # share of the particles that changed their class, before the last iteration
    still: int = 0  # iterations in a row before it that had not lowered that
    part: int = 0  # iterations before it of its part
    was_posed: bool = False  # the iteration before it kept poses

    def told(self, number: int, model: Volumes, changed: float) -> Self:
        """With the outcome of iteration `number`; of 0, nothing."""
        if number == 0:
            return self
        found = torch.stack([model.weights, model.shells.double()], dim=1).cpu().numpy()
        course = np.concatenate([self.course.reshape(-1, *found.shape), found[None]])
        step = self.step
        posed = step is not None and step.posed
        if step is not None and ((step.apart and not step.pooled) or (self.was_posed and not posed)):  # a part begins
            anew = replace(self, best_shell=0, idle=0, least_changed=1.0, still=0, part=1)
            return replace(anew, course=course, was_posed=posed)
        less = changed < FALLEN * self.least_changed
        return replace(
            self.gained(model.shell),
            course=course,
            least_changed=min(changed, self.least_changed),
            still=0 if less else self.still + 1,
            part=self.part + 1,
            was_posed=posed,
        )


ClassState = State[Volumes, Progress]


@dataclass(frozen=True)
class ClassSchedule(MapSchedule):
    """What is done when."""

    order: int = 3  # HEALPix, the finest
    local: bool = False  # particles are searched around where they were from the first iteration on
    posed: bool = False  # they keep their poses
    drawn: bool = True  # all maps are one at first

    def next(self, state: ClassState) -> RefineStep | None:
        """The step that follows; None after the last."""
        before, number = state.carried.step, state.number + 1
        if number > self.iterations or (before is not None and self.settled(state)):
            return None
        if before is None:
            return self._first(number)
        outcome = self._outcome(state)
        if before.pooled:
            known = outcome.part >= MOST_TOGETHER or (before.order >= self.order and outcome.idle > 0)
            return self._forming(number, self.first_shell, before) if known else self._searching(state, before)
        if before.posed and self.drawn and not self._formed(state):
            if before.apart or before.temperature > 1:
                hotter = HOTTEST if before.apart else max(1.0, COOLING * before.temperature)
                return replace(self._forming(number, before.r_max, before, apart=False), temperature=hotter)
            changing = state.changed_class > QUIET and outcome.still < FORMING
            rings = min(self._wanted(state.model.shell), before.r_max + (0 if changing else MORE_RINGS_AT_ONCE))
            return self._forming(number, rings, before, apart=False)
        if self.posed:
            wanted = self._wanted(state.model.shell)
            rings = min(wanted, before.r_max + MORE_RINGS_AT_ONCE) if self.drawn else wanted
            return self._forming(number, rings, before, apart=False)
        return self._searching(state, before)

    def _first(self, number: int) -> RefineStep:
        order = self.order if self.local else min(FIRST_ORDER, self.order)
        rings = min(self.limit_shell, self.first_shell + FIRST_RINGS)
        first = RefineStep(number, self.iterations, order, self.local, rings, *self.shifts(order, 1))
        if self.posed:
            rings = self.first_shell if self.drawn else rings
            return self._forming(number, rings, first, apart=self.drawn)
        return replace(first, best_alone=self.first_best_alone, apart=self.drawn, pooled=self.drawn)

    def _forming(self, number: int, rings: int, before: RefineStep, apart: bool = True) -> RefineStep:
        return RefineStep(
            number, self.iterations, before.order, self.local, rings, 0.0, 1.0, apart=apart, posed=True
        )  # fmt: skip

    def _formed(self, state: ClassState) -> bool:
        """Whether classes have formed on all rings that they hold signal on."""
        outcome, step = self._outcome(state), state.carried.step
        assert step is not None, "an iteration has been made"
        if step.apart or step.temperature > 1:
            return False
        whole = step.r_max >= self._wanted(state.model.shell)
        return (whole and (state.changed_class < QUIET or outcome.still >= FORMING)) or outcome.part >= MOST_FORMING

    def _searching(self, state: ClassState, before: RefineStep) -> RefineStep:
        """The next step of a search, together or jointly."""
        shell, idle = state.model.shell, self._outcome(state).idle
        order = min(self.order, self.order_after(before.order, shell, idle)[0])
        number = state.number + 1
        shifts = self.shifts(order, number if order == before.order else 0)
        rings = self._wanted(shell)
        local = self.local or (self.drawn and not before.pooled and not before.posed)
        return RefineStep(
            number, self.iterations, order, local, rings, *shifts, apart=before.pooled, pooled=before.pooled
        )  # fmt: skip

    def _wanted(self, shell: int) -> int:
        """Rings to compare where maps hold signal up to a shell."""
        return min(self.limit_shell, int(RING_SHARE * shell) + MORE_RINGS)

    def settled(self, state: ClassState) -> bool:
        """Whether classes have been found."""
        outcome, step = self._outcome(state), state.carried.step
        if step is None or step.apart or (step.posed and not (self.posed and self._formed(state))):
            return False
        if step.order < self.order and not self.posed:
            return False
        changed = state.changed_class
        return outcome.idle >= IDLE and (changed < SETTLED or (changed < QUIET and outcome.still >= STILL))

    def _outcome(self, state: ClassState) -> ClassProgress:
        carried = state.carried
        assert isinstance(carried, ClassProgress)
        return carried.told(state.number, state.model, state.changed_class)


class ClassExpectation(ViewExpectation[Volumes]):
    """Every particle meets slices of all maps."""

    def parts(
        self, model: Volumes, progress: Progress, step: RefineStep
    ) -> tuple[tuple[np.ndarray, ...], tuple[tuple[int, ...], ...]]:
        k = len(model.maps)
        sets = [self.own_of_set(progress, number) for number in range(HALVES * k)]
        if step.apart:
            return tuple(sets), tuple((number,) for number in range(len(sets)))
        halves = [half * k + np.arange(k) for half in range(HALVES)]
        rows = tuple(self._in_order(np.concatenate([sets[number] for number in half])) for half in halves)
        return rows, tuple(tuple(half.tolist()) for half in halves)

    def _in_order(self, rows: np.ndarray) -> np.ndarray:
        """Rows in the order of the disk."""
        return self.own[np.isin(self.own, rows)]

    def gained(self, state: ClassState) -> Progress:
        assert isinstance(state.carried, ClassProgress)
        return state.carried.told(state.number, state.model, state.changed_class)

    def work(self, step: RefineStep, search: Search) -> AnyPass[Volumes]:
        if step.posed:
            return PosedPass(self.images, self._basis(step), self.settings.batch_bytes, self.settings.group)
        return super().work(step, search)

    def maximized(self, model: Volumes, sums: VolumeSums, grid: FourierGrid, step: RefineStep) -> Volumes:
        if step.pooled:
            sums = model.pooled(sums)
        return model.maximize(sums, grid, self.settings.tau2_fudge)

"""The driver: step, expect, maximize, yield.

What is particular to a model stands in what `fit` is given: a schedule says what comes next, an expectation goes over
the images, a policy does what is neither, splitting and centring of classes say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from polarice.align.images import Clock
from polarice.types import Assignment, Pose2D

M = TypeVar("M")  # the model
C = TypeVar("C")  # what is carried on
S = TypeVar("S", bound="AnyStep")


class AnyStep(Protocol):
    """What any schedule says of an iteration."""

    @property
    def number(self) -> int:
        """From 1."""
        ...


@dataclass(frozen=True)
class State(Generic[M, C]):
    """All that the next iteration needs, and what the last one found."""

    number: int  # iterations done
    model: M
    assignment: Assignment
    carried: C  # what the expectation keeps of the particles from one iteration to the next
    changed_class: float = 1.0  # share of the particles compared that changed their class in the last iteration

    @property
    def pose(self) -> Pose2D:
        return self.assignment.pose


@dataclass(frozen=True)
class Expected(Generic[M, C]):
    """What a pass over the images found."""

    model: M  # that they met
    assignment: Assignment
    carried: C
    used: np.ndarray  # rows of the particles compared
    sums: Any  # over them; log_likelihood and max_probability are their sums, count says how many they are
    maximize: Callable[[], M]  # gives the model that the sums speak for

    @property
    def log_likelihood(self) -> float:
        """Mean over the particles compared."""
        return float(self.sums.log_likelihood) / self.sums.count

    @property
    def max_probability(self) -> float:
        """Mean over the particles compared."""
        return float(self.sums.max_probability) / self.sums.count


E = TypeVar("E", bound="Expected[Any, Any]")
StepOut = TypeVar("StepOut", bound=AnyStep, covariant=True)
StepIn = TypeVar("StepIn", bound=AnyStep, contravariant=True)
FoundOut = TypeVar("FoundOut", bound="Expected[Any, Any]", covariant=True)


class Schedule(Protocol[M, C, StepOut]):
    """What is done when."""

    def next(self, state: State[M, C]) -> StepOut | None:
        """The step that follows; None at the end."""
        ...


class Expectation(Protocol[M, C, StepIn, FoundOut]):
    """A pass over the images; every rank goes over its part, and knows what all have found."""

    def __call__(
        self, state: State[M, C], model: M, step: StepIn, rng: np.random.Generator, clock: Clock
    ) -> FoundOut: ...


class Policy(Protocol[M, C, StepIn]):
    """What is done to a model beside maximization."""

    def before(self, state: State[M, C], step: StepIn, rng: np.random.Generator) -> M:
        """The model that images meet in this step."""
        ...

    def after(
        self, model: M, found: Expected[M, C], step: StepIn, rng: np.random.Generator
    ) -> tuple[M, Assignment, tuple[int, ...]]:
        """The new model and assignment, and which classes were reseeded."""
        ...


@dataclass(frozen=True)
class IterationResult(Generic[M, C, S, E]):
    """One iteration's outcome."""

    state: State[M, C]
    step: S
    found: E
    changed: tuple[float, float, float]  # share of changed classes, median change of psi (deg) and of the shift (px)
    reseeded: tuple[int, ...]  # classes
    clock: Clock


def fit(
    state: State[M, C],
    schedule: Schedule[M, C, S],
    expect: Expectation[M, C, S, E],
    policy: Policy[M, C, S],
    seed: int = 0,
) -> Iterator[IterationResult[M, C, S, E]]:
    """Go on from `state` to the end of the schedule.

    What is random in an iteration depends on the seed and its number alone, so that a run that goes on repeats the bits
    of one that was not stopped.
    """
    while (step := schedule.next(state)) is not None:
        clock, rng = Clock(), np.random.default_rng([seed, 2, step.number])
        model = policy.before(state, step, rng)
        found = expect(state, model, step, rng, clock)
        since, counted = time.perf_counter(), clock.total
        fitted = found.maximize()
        changed = changes(state.pose, found.assignment.pose, found.used)
        fitted, assignment, reseeded = policy.after(fitted, found, step, rng)
        clock.add("maximization", since + clock.total - counted)  # less what maximize has counted as something else
        state = State(step.number, fitted, assignment, found.carried, changed[0])
        yield IterationResult(state, step, found, changed, reseeded, clock)


def changes(before: Pose2D, after: Pose2D, used: np.ndarray) -> tuple[float, float, float]:
    """Share of changed classes, median change of psi (deg) and of the shift (px), of the rows `used`."""
    rows = used[before.class_of[used] >= 0]
    if not len(rows):
        return 1.0, 180.0, 0.0
    rotation = np.abs((after.psi_deg[rows] - before.psi_deg[rows] + 180) % 360 - 180)
    shift = np.linalg.norm(after.shift_px[rows] - before.shift_px[rows], axis=1)
    switched = float((after.class_of[rows] != before.class_of[rows]).mean())
    return switched, float(np.median(rotation)), float(np.median(shift))

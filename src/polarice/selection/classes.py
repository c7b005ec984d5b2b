"""Rules about classes: by number, occupancy, resolution and score."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from polarice.selection.choice import Rule
from polarice.types import InputError

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
SHOWN = 12  # numbers that a line holds


@dataclass(frozen=True, eq=False)
class ClassSet:
    """The classes of a run, as far as files tell."""

    counts: np.ndarray  # (K,) particles whose best class it is
    resolution_A: np.ndarray | None = None  # (K,)
    averages: np.ndarray | None = None  # (K, N, N)
    pixel_size_A: float = 0.0
    diameter_A: float = 0.0  # of the particle; 0: not known

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def shares(self) -> np.ndarray:
        """(K,) of the particles that have a class."""
        return self.counts / max(int(self.counts.sum()), 1)


@dataclass(frozen=True)
class ClassWishes:
    """What is wanted of classes; None or "": no condition."""

    classes: str = ""  # "1,2,5-9"
    exclude: str = ""
    particles: int | None = None  # at least
    share: float | None = None  # at least
    resolution_A: float | None = None  # or finer
    score: float | None = None  # at least; of `quality.judge`

    def __bool__(self) -> bool:
        return self != ClassWishes()


def numbers_of(text: str, flag: str = "--classes") -> list[tuple[int, int]]:
    """The ranges, from 1, of "1,2,5-9". Raises InputError for anything else."""
    found = []
    for word in re.split(r"[,\s]+", text.strip().strip(",")):
        match = _RANGE.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last:
            raise InputError(f"{flag} {text}: {word!r} is no class number or range; write 1,2,5-9")
        found.append((first, last))
    return found


def is_among(numbers: np.ndarray, text: str, flag: str = "--classes") -> np.ndarray:
    """Which of the class numbers, from 1, the text names."""
    among = np.zeros(numbers.shape, bool)
    for first, last in numbers_of(text, flag):
        among |= (numbers >= first) & (numbers <= last)
    return among


def rules_of_classes(classes: ClassSet, wishes: ClassWishes, scores: np.ndarray | None = None) -> list[Rule]:
    """A rule over the K classes for each wish. Raises InputError for a class that is not there.

    scores: (K,), where a score is asked for.
    """
    numbers, rules = np.arange(1, len(classes) + 1), []
    for text, flag in ((wishes.classes, "--classes"), (wishes.exclude, "--exclude")):
        if text and (beyond := max(last for _, last in numbers_of(text, flag))) > len(classes):
            raise InputError(f"{flag} {text}: there is no class {beyond}; they go from 1 to {len(classes)}")
    if wishes.classes:
        rules.append(Rule(f"class {wishes.classes}", is_among(numbers, wishes.classes)))
    if wishes.exclude:
        rules.append(Rule(f"class other than {wishes.exclude}", ~is_among(numbers, wishes.exclude, "--exclude")))
    if wishes.particles is not None:
        rules.append(Rule(f"classes of at least {wishes.particles} particles", classes.counts >= wishes.particles))
    if wishes.share is not None:
        rules.append(Rule(f"classes of at least {100 * wishes.share:g} %", classes.shares >= wishes.share))
    if wishes.resolution_A is not None:
        if classes.resolution_A is None:
            raise InputError("--resolution: the classes' resolutions are in the run's model file, which is not there")
        rules.append(
            Rule(f"classes of {wishes.resolution_A:g} A or finer", classes.resolution_A <= wishes.resolution_A)
        )
    if wishes.score is not None:
        assert scores is not None, "a score is asked for"
        rules.append(Rule(f"classes that score at least {wishes.score:g}", scores >= wishes.score))
    return rules


def of_particles(rule: Rule, class_of: np.ndarray) -> Rule:
    """A rule about classes as one about the particles whose class, from 0, is `class_of` (n,); -1: of no class."""
    return Rule(rule.said, np.where(class_of >= 0, rule.kept[class_of], False))


def listed(numbers: np.ndarray, most: int = SHOWN) -> str:
    """Numbers as text, runs of them joined: 1-3, 7, 9."""
    values = np.unique(numbers)
    if not len(values):
        return "none"
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    words = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    more = f" and {sum(len(run) for run in runs[most:])} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more

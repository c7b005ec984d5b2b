"""Rules over the rows of a table, and the choice that they make together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Rule:
    """One condition: the words that say it, and the rows that meet it."""

    said: str  # "rlnCtfMaxResolution at most 8 A"
    kept: np.ndarray  # (n,) bool


@dataclass(frozen=True, eq=False)
class Choice:
    """Which of n rows are chosen: those that meet every rule. Rules stand in the order in which they were applied."""

    n: int
    rules: tuple[Rule, ...] = ()

    @property
    def kept(self) -> np.ndarray:
        """(n,) bool."""
        kept = np.ones(self.n, bool)
        for rule in self.rules:
            kept &= rule.kept
        return kept

    @property
    def said(self) -> str:
        """The choice in one line; all rows where there is no rule."""
        return "; ".join(rule.said for rule in self.rules) or "all"

    def also(self, rules: Iterable[Rule]) -> Choice:
        """The same with further rules. Raises ValueError for a rule about another number of rows."""
        rules = tuple(rules)
        for rule in rules:
            if rule.kept.shape != (self.n,):
                raise ValueError(f"a rule about {rule.kept.shape} rows for a table of {self.n}")
        return Choice(self.n, (*self.rules, *rules))

    def broken(self) -> np.ndarray:
        """(n,) the place of the first rule that each row breaks; -1 where it breaks none."""
        first = np.full(self.n, -1)
        for place in reversed(range(len(self.rules))):
            first[~self.rules[place].kept] = place
        return first

    def counts(self) -> list[tuple[str, int, int]]:
        """Of every rule its words, how many rows break it, and how many break it and none before it."""
        first = self.broken()
        return [
            (rule.said, int((~rule.kept).sum()), int((first == place).sum())) for place, rule in enumerate(self.rules)
        ]

    def reasons(self) -> list[str]:
        """Of every row the words of all rules that it breaks, "" where it is chosen."""
        words = [""] * self.n
        for rule in self.rules:
            for row in np.flatnonzero(~rule.kept).tolist():
                words[row] += ("; " if words[row] else "") + f"not {rule.said}"
        return words

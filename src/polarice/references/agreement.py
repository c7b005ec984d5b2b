"""How far two sortings of the same particles agree, whatever the names of their classes."""

from __future__ import annotations

import numpy as np


def contingency(one: np.ndarray, other: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) int64: how many particles are of class i in one (n,) and of class j in the other (n,)."""
    return np.bincount(one * classes + other, minlength=classes * classes).reshape(classes, classes)


def matched(one: np.ndarray, other: np.ndarray, classes: int) -> np.ndarray:
    """(classes,) which class of `one` each class of `other` is, so that as many particles as can be agree (Kuhn 1955,
    Naval Res Logist Q 2, 83)."""
    from scipy.optimize import linear_sum_assignment

    mine, its = linear_sum_assignment(contingency(one, other, classes), maximize=True)
    found = np.empty(classes, np.int64)
    found[its] = mine
    return found


def adjusted_rand(one: np.ndarray, other: np.ndarray, classes: int) -> float:
    """Agreement of two sortings (n,): 1 where they are the same, 0 as far as chance goes (Hubert and Arabie 1985,
    J Classif 2, 193)."""

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    table = contingency(one, other, classes).astype(float)
    both, mine, its = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    by_chance = mine * its / max(pairs(np.array([len(one)])), 1.0)
    most = (mine + its) / 2
    return 1.0 if most == by_chance else (both - by_chance) / (most - by_chance)

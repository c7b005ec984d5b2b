"""Rules over rows and classes, and the choice that they make together."""

from __future__ import annotations

import numpy as np
import pytest

from polarice.io.table import Table
from polarice.selection.choice import Choice, Rule
from polarice.selection.classes import ClassSet, ClassWishes, is_among, listed, of_particles, rules_of_classes
from polarice.selection.rows import Places, RowWishes, apart, rules_of_rows, within
from polarice.types import InputError


def test_a_choice_counts_who_breaks_what_first():
    rules = [Rule("a", np.array([True, False, False, True])), Rule("b", np.array([True, False, True, False]))]
    choice = Choice(4).also(rules[:1]).also(rules[1:])
    assert choice.kept.tolist() == [True, False, False, False]
    assert choice.broken().tolist() == [-1, 0, 0, 1]
    assert choice.counts() == [("a", 2, 2), ("b", 2, 1)]
    assert choice.reasons() == ["", "not a; not b", "not a", "not b"]
    assert choice.said == "a; b" and Choice(4).said == "all" and Choice(4).kept.all()
    with pytest.raises(ValueError, match="a table of 4"):
        choice.also([Rule("c", np.ones(3, bool))])


@pytest.mark.parametrize(
    ("wishes", "kept"),
    [
        (RowWishes(fit_resolution_A=5.0), [1, 0, 1, 0]),
        (RowWishes(figure_of_merit=0.2), [1, 1, 0, 0]),
        (RowWishes(defocus_A=(10_000.0, 15_000.0)), [1, 1, 0, 0]),
        (RowWishes(astigmatism_A=400.0), [1, 0, 1, 1]),
        (RowWishes(names=("m1*",)), [1, 0, 1, 0]),
        (RowWishes(not_names=("Mic/m1?.mrc",)), [0, 1, 0, 1]),
        (RowWishes(shift_A=5.0), [1, 0, 1, 1]),
        (RowWishes(probability=0.5), [0, 0, 1, 1]),
        (RowWishes(conditions=("rlnDefocusU<20000", "_rlnMicrographName != Mic/m10.mrc")), [0, 1, 0, 0]),
        (RowWishes(conditions=("rlnCtfFigureOfMerit >= 0.2",)), [1, 1, 0, 0]),
    ],
)
def test_rules_of_rows(wishes, kept):
    table = Table.of(
        {
            "rlnMicrographName": ["Mic/m10.mrc", "Mic/n1.mrc", "Mic/m10.mrc", "Mic/n2.mrc"],
            "rlnCtfMaxResolution": [4.0, 5.5, 5.0, 9.0],
            "rlnCtfFigureOfMerit": [0.3, 0.2, 0.1, 0.05],
            "rlnDefocusU": [12_000.0, 15_000.0, 20_000.0, 30_000.0],
            "rlnDefocusV": [11_700.0, 14_500.0, 20_100.0, 30_400.0],
            "rlnOriginXAngst": [3.0, -4.0, 0.0, -3.0],
            "rlnOriginYAngst": [4.0, 4.0, 0.0, 3.0],
            "rlnMaxValueProbDistribution": [0.1, 0.49, 0.5, 0.9],
        }
    )
    found = Choice(4).also(rules_of_rows(table, wishes)).kept
    assert found.tolist() == [bool(each) for each in kept]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (RowWishes(motion_A=3.0), "no column _rlnAccumMotionTotal"),
        (RowWishes(defocus_A=(3.0,)), "give the least and the largest"),
        (RowWishes(conditions=("rlnA",)), "give LABEL, one of"),
        (RowWishes(conditions=("rlnA<x",)), "'x' is not a number"),
        (RowWishes(conditions=("rlnB<1",)), "no column _rlnB"),
    ],
)
def test_a_rule_that_cannot_be_applied_is_refused(wishes, message):
    with pytest.raises(InputError, match=message):
        rules_of_rows(Table.of({"rlnA": [1.0]}), wishes)


def test_duplicates_go_and_the_better_one_stays():
    """Against the definition: from the best down, one stays where none that stays lies nearer."""
    rng = np.random.default_rng(1)
    places = Places(rng.integers(0, 4, 300), rng.uniform(0, 400, (300, 2)), rng.uniform(0, 1, 300))
    among = rng.uniform(size=300) < 0.9
    kept, stays = apart(places, 40.0, among).kept, list[int]()
    for row in np.argsort(-places.merit):
        if among[row]:
            to_device = [
                other
                for other in stays
                if places.micrograph[other] == places.micrograph[row]
                and np.hypot(*(places.xy_A[other] - places.xy_A[row])) < 40.0
            ]
            assert kept[row] == (not to_device)
            stays += [] if to_device else [int(row)]
    assert kept[~among].all() and 60 < len(stays) < 270
    exact = Places(np.zeros(2, int), np.array([[0.0, 0.0], [40.0, 0.0]]), np.zeros(2))
    assert apart(exact, 40.0, np.ones(2, bool)).kept.all()
    assert apart(exact, 40.1, np.ones(2, bool)).kept.tolist() == [True, False]


def test_places_on_a_manifold():
    latent = np.array([[0.0, 0.0], [0.5, 0.5], [0.0, 0.9], [0.9, -0.2]])
    assert within(latent, (-0.1, 0.6, 0.6, -0.1)).kept.tolist() == [True, True, False, False]
    hollow = (-1.0, -1.0, 1.0, -1.0, 1.0, 1.0, 0.3, 0.0, -1.0, 1.0)  # an arrow's tail, open to the top
    assert within(latent, hollow).kept.tolist() == [True, False, False, True]
    assert within(latent[:, :1], (0.4, 1.0)).kept.tolist() == [False, True, False, True]
    with pytest.raises(InputError, match=r"give 2 numbers, from and to along each axis$"):
        within(latent[:, :1], (0.4, 1.0, 0.0))
    with pytest.raises(InputError, match="three corners or more"):
        within(latent, (0.4, 1.0, 0.0, 1.0, 2.0))


CLASSES = ClassSet(np.array([10, 0, 70, 20]), np.array([12.0, np.inf, 8.0, 20.0]))


@pytest.mark.parametrize(
    ("wishes", "kept"),
    [
        (ClassWishes(classes="1, 3-4"), [1, 0, 1, 1]),
        (ClassWishes(exclude="2,4"), [1, 0, 1, 0]),
        (ClassWishes(particles=20), [0, 0, 1, 1]),
        (ClassWishes(share=0.1), [1, 0, 1, 1]),
        (ClassWishes(resolution_A=12.0), [1, 0, 1, 0]),
        (ClassWishes(score=0.5), [1, 0, 0, 1]),
        (ClassWishes(classes="1-3", particles=20), [0, 0, 1, 0]),
    ],
)
def test_rules_of_classes(wishes, kept):
    rules = rules_of_classes(CLASSES, wishes, np.array([0.5, 0.4, 0.0, 1.0]))
    choice = Choice(4).also(rules)
    assert choice.kept.tolist() == [bool(each) for each in kept]
    of = np.array([3, -1, 0, 2])
    expected = [bool(kept[k]) if k >= 0 else False for k in of]
    assert Choice(4).also(of_particles(rule, of) for rule in rules).kept.tolist() == expected


@pytest.mark.parametrize("text", ["1,a", "0", "3-1", "-2", "1.5", "1;2"])
def test_numbers_that_are_none(text):
    with pytest.raises(InputError, match="is no class number or range; write 1,2,5-9"):
        is_among(np.arange(3), text)


def test_classes_that_are_not_there():
    with pytest.raises(InputError, match="there is no class 5; they go from 1 to 4"):
        rules_of_classes(CLASSES, ClassWishes(exclude="2-5"))
    assert listed(np.array([9, 1, 2, 3, 7])) == "1-3, 7, 9" and listed(np.array([], int)) == "none"
    assert listed(np.arange(0, 60, 2)) == "0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22 and 18 more"

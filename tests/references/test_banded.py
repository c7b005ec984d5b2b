"""Bordered, block tridiagonal systems: solved as numpy solves the whole of them."""

import itertools

import numpy as np
import pytest
import torch

from polarice.references.manifold.banded import Systems


def whole(systems: Systems) -> torch.Tensor:
    """(system, M, M) with every number in its place."""
    count, m = systems.border.shape
    found = systems.border.new_zeros(count, m, m)
    found[:, 0] = found[:, :, 0] = systems.border
    start = before = 1
    for i, block in enumerate(systems.diagonal):
        rows = slice(start, start + block.shape[1])
        found[:, rows, rows] = block
        if i:
            found[:, rows, before:start] = systems.below[i - 1]
            found[:, before:start, rows] = systems.below[i - 1].mT
        before, start = start, rows.stop
    assert start == m
    return found


def some_systems(sizes: list[int]) -> Systems:
    """Three, positive definite."""
    rng = np.random.default_rng(0)
    return Systems(
        border=torch.from_numpy(rng.uniform(0, 1, (3, 1 + sum(sizes)))),
        diagonal=[torch.from_numpy(a @ a.mT) for a in (rng.standard_normal((3, n, 2 * n)) for n in sizes)],
        below=[torch.from_numpy(rng.standard_normal((3, b, a))) for a, b in itertools.pairwise(sizes)],
    ).shifted(torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64), 5.0)


@pytest.mark.parametrize("sizes", [[7], [4, 4, 4], [5, 5, 5, 2], [3, 1]])
def test_solutions_are_those_of_the_whole_system(sizes):
    systems = some_systems(sizes)
    truth = whole(systems).numpy()
    right = np.random.default_rng(1).standard_normal((*truth.shape[:2], 6))
    factors, given = systems.factors(), torch.from_numpy(right.copy())
    np.testing.assert_allclose(factors.solve(given).numpy(), np.linalg.solve(truth, right), rtol=0, atol=1e-13)
    half = factors.half(given).numpy()
    np.testing.assert_allclose(half.mT @ half, right.mT @ np.linalg.solve(truth, right), rtol=0, atol=1e-12)
    np.testing.assert_allclose(systems.trace().numpy(), np.trace(truth, axis1=1, axis2=2))
    assert np.array_equal(given.numpy(), right)


def test_shifts_go_to_the_diagonal():
    """One for all unknowns but the first, one for all."""
    plain = some_systems([4, 3])
    added = whole(plain.shifted(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), 0.5)) - whole(plain)
    truth = torch.diag_embed(torch.tensor([[0.5] + 7 * [s + 0.5] for s in (1.0, 2.0, 3.0)], dtype=torch.float64))
    torch.testing.assert_close(added, truth)


def test_a_system_that_is_not_positive_definite_is_refused():
    with pytest.raises(torch.linalg.LinAlgError):
        some_systems([4, 4]).shifted(torch.full((3,), -100.0, dtype=torch.float64), 0.0).factors()

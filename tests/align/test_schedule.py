"""The plan of a run: how classes, batches, rings and shifts go from first to last iteration."""

import itertools

import numpy as np
import pytest
import torch

from polarice.align.polar import PolarBasis
from polarice.align.policy import reseed, split_largest
from polarice.align.schedule import Schedule, Step, shift_grid
from polarice.references.averages import Averages


def schedule(k: int = 100, iterations: int = 30, particles: int = 100_000, growing: bool = True) -> Schedule:
    return Schedule(k, iterations, particles, 8, 60, 5.0, 1.0, growing_batches=growing)


def steps(plan: Schedule) -> list[Step]:
    return [plan.step(number) for number in range(1, plan.iterations + 1)]


@pytest.mark.parametrize("k", [1, 3, 9, 10, 20, 50, 100, 300])
@pytest.mark.parametrize("iterations", [1, 2, 5, 25])
def test_references_grow_to_all_of_them(k, iterations):
    counts = [step.references for step in steps(schedule(k, iterations))]
    assert counts == sorted(counts)
    assert counts[-1] == k
    assert all(later <= 2 * earlier for earlier, later in itertools.pairwise(counts)) or iterations < 10
    assert counts[0] >= min(k, 5)
    assert counts[0] < 10 or iterations < 5


def test_mini_batches_grow_and_the_last_two_take_every_particle():
    batches = [step.batch for step in steps(schedule())]
    assert batches[0] == 1000  # the fewest; the seven first classes would do with 350
    assert all(step.batch >= 50 * step.references for step in steps(schedule()))
    assert batches == sorted(batches)
    assert batches[-3] < 0.3 * 100_000
    assert batches[-2:] == [100_000] * 2
    assert sum(batches) < 5.2 * 100_000  # thirty iterations
    assert {step.batch for step in steps(schedule(growing=False))} == {100_000}
    assert {step.batch for step in steps(schedule(particles=900))} == {900}


def test_what_is_remembered_is_of_particles_not_looked_at_again():
    """Nothing while classes grow; then 0.8 of their share; of none where all are looked at."""
    plan = steps(schedule())
    assert {step.momentum for step in plan[:18]} == {0.0}
    assert [step.momentum for step in plan[18:]] == pytest.approx([0.8 * (1 - s.batch / 100_000) for s in plan[18:]])
    assert plan[-2].momentum == plan[-1].momentum == 0
    assert {step.momentum for step in steps(schedule(growing=False))} == {0.0}


def test_fine_poses_are_looked_for_beside_the_grid():
    between = [step.between_px for step in steps(schedule())]
    assert between == [0.0] * 22 + [0.75] * 8
    still = Schedule(100, 30, 1000, 8, 60, offset_range_px=0.0, offset_step_px=1.0)
    assert {step.between_px for step in steps(still)} == {0.0}


def test_resolution_and_shifts_end_at_their_limits():
    plan = steps(schedule())
    assert plan[0].ramp_px == 8
    assert plan[18].ramp_px == plan[-1].ramp_px == 60
    assert (plan[0].shift_range_px, plan[0].shift_step_px) == (5.0, 2.0)
    assert (plan[-1].shift_range_px, plan[-1].shift_step_px) == (1.0, 1.0)
    assert plan[-1].occupancy_penalty == 0
    assert not plan[-1].settling


def test_shift_grid_is_a_disc_moved_by_part_of_a_step():
    grid = shift_grid(5.0, 2.0, np.zeros(2))
    assert len(grid) == 21
    assert np.linalg.norm(grid, axis=1).max() <= 5
    moved = shift_grid(5.0, 2.0, np.array([0.25, -0.5]))
    np.testing.assert_allclose(moved - grid, np.broadcast_to([0.5, -1.0], grid.shape))
    np.testing.assert_array_equal(shift_grid(0.0, 1.0, np.zeros(2)), np.zeros((1, 2)))


def model(weights: list[float]) -> Averages:
    """A model whose class j is j + 1 everywhere."""
    basis = PolarBasis(32, 12.0, 8)
    empty = Averages.empty(basis, len(weights), torch.ones(1, 17, dtype=torch.float64), 3.0, 0.5)
    values = torch.arange(1.0, len(weights) + 1)[:, None, None]
    rings = torch.ones(len(weights), 8, dtype=torch.float64)
    return Averages(
        **{
            **vars(empty),
            "field": values.expand(-1, 8, basis.n_theta).contiguous(),
            "weights": torch.tensor(weights, dtype=torch.float64),
            "error": 1e-4 * rings,
            "ssnr": rings,
        }
    )


def test_growth_splits_the_fullest():
    step = schedule(k=6, iterations=20).step(10)
    grown = split_largest(model([0.6, 0.3, 0.1]), step, np.random.default_rng(0))
    assert step.references == 6
    parents = grown.field.mean(dim=(1, 2)).round().tolist()
    assert sorted(parents) == [1, 1, 1, 2, 2, 3] or sorted(parents) == [1, 1, 1, 1, 2, 3]
    assert float(grown.weights.sum()) == pytest.approx(1)
    twins = [j for j, parent in enumerate(parents) if parent == 1]
    assert not torch.equal(grown.field[twins[0]], grown.field[twins[1]])


def test_starved_class_takes_half_of_the_fullest():
    step = schedule(k=4, iterations=20).step(10)
    weights = [0.5, 0.29, 0.2, 0.01]
    revived, which = reseed(model(weights), np.array(weights), step, np.random.default_rng(0))
    assert which == (3,)
    assert revived.field[3].mean() == pytest.approx(1, abs=0.05)  # the first class's
    assert revived.weights.tolist() == pytest.approx([0.25, 0.29, 0.2, 0.25], abs=0.02)
    torch.testing.assert_close(revived.field[1:3], model([0.25] * 4).field[1:3])


def test_class_that_is_nobodys_best_is_started_anew():
    step = schedule(k=4, iterations=20).step(10)
    _, which = reseed(model([0.4, 0.25, 0.2, 0.15]), np.array([0.5, 0.3, 0.2, 0.0]), step, np.random.default_rng(0))
    assert which == (3,)
    last = schedule(k=4, iterations=20).step(20)
    _, which = reseed(model([0.4, 0.25, 0.2, 0.15]), np.array([0.5, 0.3, 0.2, 0.0]), last, np.random.default_rng(0))
    assert which == ()


def test_once_settled_the_last_two_iterations_follow():
    plan = schedule()  # growth to 18, wide shifts to 22, fine ones from 23
    assert [plan.after(number, changed_class=0.01) for number in (10, 20, 23)] == [11, 21, 24]
    assert plan.after(24, changed_class=0.01) == 29
    assert plan.after(24, changed_class=0.03) == 25
    assert [plan.after(number, changed_class=0.0) for number in (28, 29, 30)] == [29, 30, 31]
    assert [schedule(iterations=total).after(24, 0.0) for total in (25, 26, 27, 40)] == [
        25,
        25,
        26,
        25,
    ]  # another total

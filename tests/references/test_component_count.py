"""In how many ways maps should vary, as images say that they have not seen; the states are known."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from polarice.references.manifold.aligned import power_vectors
from polarice.references.manifold.component_count import _first_enough, _mean_alone, pca_start, unseen_rank
from polarice.references.manifold.model import ManifoldPrior
from polarice.references.manifold.nodes import Nodes, log_weights
from references.maps import PosedSet, species_set

PRIOR = ManifoldPrior(equal_shares=1.5)


def told(where: PosedSet, many: int = 400) -> int:
    return unseen_rank(where.empty, many, where.aligned, where.even, PRIOR, 0)


@pytest.mark.parametrize("shape", [(60,), (7, 8)])
def test_as_many_ways_as_part_the_states(shape):
    """Of two dozen species more than a coarser map of twenty nodes holds, where they can be seen; else the fewest."""
    assert told(species_set(24, 0.5, shape)) in (27, 34)  # half as many again as 18 or 23
    assert told(species_set(24, 4.0, shape)) == 12


def test_more_images_may_show_more_and_too_few_judge_nothing():
    """Three species vary in two ways: the lowest number that is tried."""
    where = species_set(3, 1.5, (5, 6))
    assert told(where) == 12
    assert told(where, 1000) == 19
    assert told(where, 40_000) == 0  # as many as the map has functions, or more
    assert unseen_rank(where.empty, 400, where.aligned.take(slice(0, 100)), where.even, PRIOR, 0) == 0


def test_what_is_told_is_told_beyond_the_mean_alone():
    where = species_set(3, 1.5, (30,))
    model = pca_start(where.empty, where.aligned, where.even, PRIOR, 0)
    mean = (model.weights @ model.vectors.double()).float()[None]
    square = torch.fft.rfft(model.packed.field(mean).square())[..., : 2 * where.even : 2]
    one = Nodes(
        vector=mean,
        power=power_vectors(square, model.basis.n_theta),
        log_weight=torch.zeros(1),
        scale=model.scale.float(),
        place=model.grid.nodes[:1],
    )
    truth = log_weights(model.packed, one, where.aligned)[:, 0].double()
    found = log_weights(model.packed, _mean_alone(model).nodes(where.even), where.aligned).double().logsumexp(dim=1)
    assert_close(found, truth, rtol=0, atol=1e-3 * float(truth.std()))


@pytest.mark.parametrize(
    ("gains", "first"), [([50.0, 94.0, 96.0, 100.0], 2), ([99.0, 100.0], 0), ([90.0, 100.0], 1), ([-3.0, -2.0], 0)]
)
def test_the_fewest_ways_that_tell_nearly_as_much_as_the_best(gains, first):
    assert _first_enough(torch.tensor(gains)) == first

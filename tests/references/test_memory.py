"""What a model remembers of the sums that it was made of, when the next ones are of other images."""

from dataclasses import replace

import pytest
import torch

from polarice.align.model import Prior
from polarice.align.polar import PolarBasis
from polarice.align.sums import Sums
from polarice.references.averages import Averages

BASIS = PolarBasis(32, 10.0, 8)
K = 3


def empty() -> Averages:
    return Averages.empty(BASIS, K, torch.ones(1, 17, dtype=torch.float64), 2.0, 0.4)


def sums(seed: int, images: float = 50.0) -> Sums:
    """Of round CTFs: signal and noise drawn at random, the denominator the same all around."""
    draw = torch.Generator().manual_seed(seed)
    weight = images * (0.5 + torch.rand(BASIS.r_max, K, generator=draw, dtype=torch.float64)) * BASIS.weight[:, None]
    denominator = (weight * BASIS.n_theta)[None].to(torch.complex128)
    average = BASIS.harmonics(torch.randn(K, BASIS.r_max, BASIS.n_theta, generator=draw)).permute(2, 1, 0)
    rings = torch.ones(1, BASIS.r_max, dtype=torch.float64)
    return replace(
        Sums.of_none((BASIS.n_q, 1, BASIS.r_max, K), 1, BASIS.device),
        numerator=average.to(torch.complex128) * weight,
        denominator=denominator,
        class_weight=images * torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        image_power=2 * images * rings,
        ctf_power=images * rings,
        group_count=torch.full((1,), images, dtype=torch.float64),
    )


@pytest.mark.parametrize("share", [0.25, 0.8])
def test_averages_are_those_of_both_sums(share):
    """A share of the first and all of the second, to single precision, in which the first average was kept."""
    first, second = sums(1), sums(2, images=20)
    found = empty().maximize(first, Prior()).maximize(second, Prior(momentum=share))
    both = empty().maximize(replace(second + first * share, image_power=second.image_power), Prior())
    torch.testing.assert_close(found.error, both.error)
    torch.testing.assert_close(found.ssnr, both.ssnr, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.field, both.field, rtol=1e-4, atol=1e-5)
    assert (found.field - empty().maximize(second, Prior()).field).abs().max() > 0.1  # the first did count


def test_no_memory_is_no_memory():
    first, second = sums(1), sums(2)
    found = empty().maximize(first, Prior()).maximize(second, Prior())
    torch.testing.assert_close(found.field, empty().maximize(second, Prior()).field, rtol=0, atol=0)


def test_nothing_is_remembered_of_a_ring_that_was_not_there():
    """Rings that the basis has gained come from the new sums alone; those that it had, from both."""
    small = replace(BASIS, r_max=4)
    cut = empty().maximize(sums(1), Prior()).on(small).on(BASIS)
    found = cut.maximize(sums(2), Prior(momentum=0.5))
    alone = empty().maximize(sums(2), Prior())
    torch.testing.assert_close(found.error[:, 4:], alone.error[:, 4:])
    assert (found.error[:, :4] < alone.error[:, :4]).all()
    assert torch.isfinite(found.field).all()


def test_copies_share_what_their_parent_knew():
    """Two copies remember half of the images each, so that the noise in each is twice as strong."""
    model = empty().maximize(sums(1), Prior())
    noise = torch.zeros(4, BASIS.r_max, BASIS.n_theta)
    split = model.split(torch.tensor([0, 1, 2, 0]), noise)
    torch.testing.assert_close(split.error, model.error[[0, 1, 2, 0]] * torch.tensor([2.0, 1, 1, 2])[:, None].double())


def test_weights_are_a_mean_of_both():
    first, second = sums(1), replace(sums(2), class_weight=torch.tensor([10.0, 10.0, 30.0], dtype=torch.float64))
    found = empty().maximize(first, Prior()).maximize(second, Prior(momentum=0.5))
    expected = (torch.tensor([0.2, 0.2, 0.6]) + 0.5 * torch.tensor([0.5, 0.3, 0.2])) / 1.5
    torch.testing.assert_close(found.weights, expected.double())

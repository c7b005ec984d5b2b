"""Where a map starts: on images whose ways of differing are known, seen through CTFs that differ more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from polarice.align.polar import PolarBasis
from polarice.references.manifold.aligned import AlignedImages
from polarice.references.manifold.latent import LatentGrid
from polarice.references.manifold.model import Manifold
from polarice.references.starts import from_averages, from_pca

BASIS = PolarBasis(32, 10.0, 8)
ENDS_SD = 2.0  # the first and last node lie so many standard deviations from the mean


def empty(shape: tuple[int, ...]) -> Manifold:
    return Manifold.empty(BASIS, LatentGrid.of(shape), torch.ones(1, 17, dtype=torch.float64), 0.3)


def structure(axes: int, seed: int) -> tuple[Tensor, Tensor]:
    """A mean (d,) and orthogonal directions (axis, d), the first the longest; all much shorter than the mean."""
    rng, d = np.random.default_rng(seed), empty((3,)).packed.d
    directions = np.linalg.qr(rng.standard_normal((d, axes)))[0].T * [[0.5 / 2**a] for a in range(axes)]
    return torch.from_numpy(10 * rng.standard_normal(d) / d**0.5), torch.from_numpy(directions)


def seen(model: Manifold, images: Tensor, seed: int) -> AlignedImages:
    """Images (n, d) behind round CTFs, each ring of each image with its own mean C^2, from 0.1 to 1; no noise."""
    ctf_power = np.random.default_rng(seed).uniform(0.1, 1, (len(images), BASIS.r_max))
    powers = torch.from_numpy(ctf_power).float()
    return AlignedImages(
        vector=images.float() * powers[:, model.packed.ring_of],
        ctf_power=(powers * BASIS.n_theta**0.5)[..., None],
        image_power=torch.ones_like(powers),
        optics_of=torch.zeros(len(images), dtype=torch.int64),
    )


def assert_near(found: Tensor, expected: Tensor, share: float) -> None:
    assert (found.double() - expected).norm() < share * expected.norm(), (found, expected)


@pytest.mark.parametrize("axes", [1, 2])
def test_principal_components_of_images_behind_their_ctfs(axes):
    """Images differ by their CTFs far more than in themselves: the map shows the latter alone, its mean undisturbed."""
    model, (mean, directions) = empty((9,) * axes), structure(axes, 1)
    scores = torch.from_numpy(np.random.default_rng(2).standard_normal((1500, axes)))
    scores = (scores - scores.mean(dim=0)) / scores.std(dim=0)
    start = from_pca(model, seen(model, mean + scores @ directions, 3), BASIS.r_max)
    nodes, shown = start.grid.nodes, start.vectors.double()
    assert_near(shown.mean(dim=0), mean, 0.01)
    for axis in range(axes):
        along = torch.nn.functional.one_hot(torch.tensor(axis), axes)
        first, last = (shown[(nodes == end * along).all(dim=1)][0] for end in (-1, 1))
        sign = torch.sign((last - first) @ directions[axis])
        assert_near((last - first) / 2, sign * ENDS_SD * directions[axis], 0.1)


def test_averages_along_a_line():
    """Of averages on a line, those one standard deviation from the mean are shown half way to the outermost nodes."""
    model, (mean, directions) = empty((9,)), structure(1, 4)
    place = torch.linspace(-1, 1, 41, dtype=torch.float64)
    weights = torch.exp(-0.5 * (ENDS_SD * place) ** 2)
    weights /= weights.sum()
    sd = float((weights @ place.square()).sqrt())
    field = model.packed.field((mean + place[:, None] * directions).float())
    start = from_averages(model, field, weights)
    assert start.grid.nodes[2].item() == -0.5 and start.grid.nodes[6].item() == 0.5
    first, last = start.vectors[2].double(), start.vectors[6].double()
    sign = torch.sign((last - first) @ directions[0])
    assert_near((first + last) / 2, mean, 0.01)
    assert_near((last - first) / 2, sign * ENDS_SD / 2 * sd * directions[0], 0.1)

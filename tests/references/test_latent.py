"""The latent grid: its shape, its functions, and the shortcuts that products of Gaussians allow."""

import numpy as np
import pytest
import torch

from polarice.references.manifold.latent import MAX_FUNCTIONS, LatentGrid, grid_shape
from references import manifold_oracle
from references.test_banded import whole

SHAPES = [(17,), (5, 7), (3, 4, 5), (1, 9), (2, 2)]


@pytest.mark.parametrize(
    ("asked", "shape"), [(1000, (31, 33)), (100, (10, 10)), (2, (1, 2)), ((1000,), (1000,)), ((10, 3, 4), (10, 3, 4))]
)
def test_shape(asked, shape):
    assert grid_shape(asked) == shape


@pytest.mark.parametrize("asked", [0, 1, -3, (), (1,), (0, 5), (2, 2, 2, 2)])
def test_a_grid_that_is_none_is_refused(asked):
    with pytest.raises(ValueError, match="at least two nodes"):
        grid_shape(asked)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [0.7, 1.0, 1.5])
def test_functions_are_those_of_the_oracle(shape, width):
    grid = LatentGrid.of(shape, width)
    truth = manifold_oracle.phi(shape, grid.functions, width)
    np.testing.assert_allclose(grid.phi.numpy(), truth, atol=1e-14)
    assert grid.phi.shape == (grid.k, grid.m)


@pytest.mark.parametrize(("shape", "count"), [((1000,), 800), ((32, 32), 841), ((10, 10, 10), 729)])
def test_there_are_four_functions_for_five_nodes(shape, count):
    assert LatentGrid.of(shape).m == 1 + count
    assert LatentGrid.of(10_000).m <= 1.05 * MAX_FUNCTIONS


@pytest.mark.parametrize("shape", SHAPES)
def test_products_by_axes_are_those_of_the_matrix(shape):
    rng, grid = np.random.default_rng(0), LatentGrid.of(shape, 1.2)
    phi = grid.phi
    coefficients = torch.from_numpy(rng.standard_normal((grid.m, 6, 2)))
    values = torch.from_numpy(rng.standard_normal((grid.k, 6)))
    weights = torch.from_numpy(rng.uniform(0, 1, (grid.k, 3)))
    torch.testing.assert_close(grid.images(coefficients), torch.einsum("km,mab->kab", phi, coefficients))
    torch.testing.assert_close(grid.project(values), phi.T @ values)
    torch.testing.assert_close(whole(grid.gram(weights)), torch.einsum("ka,kr,kb->rab", phi, weights, phi))


@pytest.mark.parametrize(("shape", "count"), [((200,), 5), ((100, 2), 6), ((26, 20), 1), ((40,), 1), ((6, 6, 6), 1)])
def test_functions_of_a_block_overlap_with_none_beyond_the_next(shape, count):
    grid = LatentGrid.of(shape)
    system = torch.einsum("ka,kb->ab", grid.phi[:, 1:], grid.phi[:, 1:])
    assert len(grid.blocks) == count and grid.blocks[-1].stop == grid.m - 1
    for i, rows in enumerate(grid.blocks[:-2]):
        beyond = system[rows, grid.blocks[i + 2].start :]
        assert beyond.max() < 1e-16 * system.max()


def test_fit_goes_through_smooth_values():
    grid = LatentGrid.of((12, 9))
    values = torch.stack([torch.sin(grid.nodes.sum(dim=1)), grid.nodes[:, 0]], dim=1)
    found = grid.images(grid.fit(grid.nodes, values, torch.ones(grid.k, dtype=torch.float64), 1e-6))
    assert (found - values).abs().max() < 0.02


@pytest.mark.parametrize("shape", [(400,), (3, 150)])
def test_long_axes_are_multiplied_as_the_matrix_is(shape):
    """Block by block, leaving out what is far: the same as the whole matrix of functions."""
    grid, rng = LatentGrid.of(shape), np.random.default_rng(0)
    coefficients = torch.from_numpy(rng.standard_normal((grid.m, 5)))
    torch.testing.assert_close(grid.images(coefficients), grid.phi @ coefficients, rtol=0, atol=1e-12)
    values = torch.from_numpy(rng.standard_normal((grid.k, 5)))
    torch.testing.assert_close(grid.project(values), grid.phi.T @ values, rtol=0, atol=1e-12)
    weights = torch.from_numpy(rng.uniform(0, 2, (grid.k, 2)))
    system = torch.einsum("ka,kr,kb->rab", grid.phi, weights, grid.phi)
    torch.testing.assert_close(whole(grid.gram(weights)), system, rtol=0, atol=1e-10)

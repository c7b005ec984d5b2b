"""Directions, slices and what is put back: against analytic transforms and against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polarice.align.polar import PolarBasis
from polarice.references.directions import (
    angles_of,
    directions_of,
    healpix,
    nearest,
    step_deg,
    turned_at_random,
    views,
    views_along,
)
from polarice.references.fsc import correlation, low_passed, resolved_shell, soft_sphere, ssnr_of
from polarice.references.slices import FourierGrid

CPU = torch.device("cpu")


def blobs(box: int, sharp: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Centres (blob, 3; x, y, z from the box's centre) and widths of Gaussian blobs that lie well inside."""
    rng = np.random.default_rng(0)
    return rng.uniform(-0.18, 0.18, (7, 3)) * box, rng.uniform(1.5, 2.5, 7) * (0.4 if sharp else 1)


def density_of(box: int, sharp: bool = False) -> torch.Tensor:
    centres, widths = blobs(box, sharp)
    axis = np.arange(box) - box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    found = np.zeros((box,) * 3)
    for (a, b, c), width in zip(centres, widths, strict=True):
        found += np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / (2 * width**2))
    return torch.from_numpy(found).float()


def transform_at(box: int, k: np.ndarray) -> np.ndarray:
    """The analytic transform of the blobs, over N, at frequencies k (.., 3) in Fourier pixels."""
    centres, widths = blobs(box)
    found = np.zeros(k.shape[:-1], complex)
    for centre, width in zip(centres, widths, strict=True):
        size = (2 * np.pi) ** 1.5 * width**3 * np.exp(-2 * np.pi**2 * width**2 * (k**2).sum(-1) / box**2)
        found += size * np.exp(-2j * np.pi * (k @ centre) / box)
    return found / box


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_healpix_pixels_share_the_sphere(order):
    """Unit vectors, none twice, balanced, and each among its parent's four children."""
    found = healpix(order)
    assert found.shape == (12 * 4**order, 3)
    assert np.allclose(np.linalg.norm(found, axis=1), 1)
    assert np.allclose(found.mean(axis=0), 0, atol=1e-12)
    assert np.allclose(found.T @ found / len(found), np.eye(3) / 3, atol=(0.1, 0.02, 2e-3, 2e-3, 2e-3)[order])
    if order:
        assert (nearest(found, healpix(order - 1)) == np.arange(len(found)) // 4).mean() > 0.9
    gap = np.degrees(np.arccos(np.clip(np.sort(found @ found.T, axis=1)[:, -2], -1, 1)))
    assert 0.7 * step_deg(order) < gap.min() and gap.max() < 1.3 * step_deg(order)


def test_healpix_agrees_with_published_pixels():
    """Order 1, nested: pixels 0 to 3 of the first face (Gorski et al. 2005, equations 4 to 9)."""
    z = healpix(1)[:4, 2]
    assert np.allclose(z, [1 / 3, 2 / 3, 2 / 3, 11 / 12])
    with pytest.raises(ValueError, match="HEALPix order 13"):
        healpix(13)


def test_views_are_relions_matrices():
    """Rows as RELION's euler.cpp has them at psi 0; angles and directions are each other's inverse."""
    rot, tilt = np.array([30.0, -120.0, 10.0]), np.array([40.0, 100.0, 0.0])
    found = views(rot, tilt)
    assert np.allclose(found @ np.swapaxes(found, 1, 2), np.eye(3))
    assert np.allclose(np.linalg.det(found), 1)
    a, b = np.radians(rot), np.radians(tilt)
    expected = np.stack([np.sin(b) * np.cos(a), np.sin(b) * np.sin(a), np.cos(b)], 1)
    assert np.allclose(directions_of(rot, tilt), expected)
    assert np.allclose(found[:, 0], np.stack([np.cos(b) * np.cos(a), np.cos(b) * np.sin(a), -np.sin(b)], 1))
    back = angles_of(expected[:2])
    assert np.allclose(back[0], rot[:2]) and np.allclose(back[1], tilt[:2])
    turned = turned_at_random(healpix(2), np.random.default_rng(0))
    assert np.allclose(np.sort(turned @ turned.T, axis=1), np.sort(healpix(2) @ healpix(2).T, axis=1))


@pytest.mark.parametrize("box", [47, 48])
def test_slices_are_those_of_the_analytic_transform(box):
    rings = 20
    basis, grid = PolarBasis(box, box / 2, rings, 0.0), FourierGrid(box, rings)
    rng = np.random.default_rng(1)
    seen = views(rng.uniform(-180, 180, 6), np.degrees(np.arccos(rng.uniform(-1, 1, 6))))
    found = grid.slices(grid.transform(density_of(box)), basis, seen).numpy()
    kx, ky = (each.numpy() for each in basis.frequency)
    k = np.einsum("rt,vx->vrtx", kx, seen[:, 0]) + np.einsum("rt,vx->vrtx", ky, seen[:, 1])
    true = transform_at(box, k)
    half = basis.n_theta // 2
    expected = np.concatenate([(true.real + true.imag)[..., :half], (true.real - true.imag)[..., :half]], axis=2)
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()  # what linear interpolation leaves
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9995


@pytest.mark.parametrize("box", [31, 32])
def test_spreading_is_the_adjoint_of_slicing(box):
    basis, grid = PolarBasis(box, box / 2, 12, 0.0), FourierGrid(box, 12)
    seen = views_along(healpix(1))
    cube, fields = torch.randn(2, *grid.shape), torch.randn(len(seen), 12, basis.n_theta)
    even = torch.rand(len(seen), 12, basis.n_theta // 2).repeat(1, 1, 2)
    spread = grid.spread(fields, even, basis, seen)
    one = float((grid.slices(cube, basis, seen) * fields).double().sum())
    assert one == pytest.approx(2 * float((cube * spread[:2]).double().sum()), rel=1e-4, abs=1e-2)
    numerator, denominator = grid.whole(spread)
    assert torch.allclose(numerator[0], numerator[0].flip(0, 1, 2))
    assert torch.allclose(numerator[1], -numerator[1].flip(0, 1, 2))
    assert float(denominator.sum()) == pytest.approx(float(even.sum()), rel=1e-4)


@pytest.mark.parametrize("box", [47, 48])
def test_many_slices_make_the_density_again(box):
    """Reconstruction from its own slices, without noise: FSC near 1 to the last shells, and the same grey scale."""
    rings, density = box // 2 - 1, density_of(box, sharp=True)
    basis, grid = PolarBasis(box, box / 2, rings, 0.0), FourierGrid(box, rings)
    seen = views_along(healpix(3))
    fields = grid.slices(grid.transform(density), basis, seen)
    weight = basis.weight[:, None]
    spread = grid.spread(fields * weight, torch.ones_like(fields) * weight, basis, seen)
    found = grid.density(grid.solved(*grid.whole(spread)))
    sphere = soft_sphere(box, 0.4 * box, 3.0, CPU)
    assert float(correlation(found * sphere, density * sphere)[1 : rings - 2].min()) > 0.99
    inside = sphere > 0.99
    scale = float((found * density)[inside].sum() / (density * density)[inside].sum())
    assert scale == pytest.approx(1, abs=0.1)  # all but k = 0, which no ring holds


def test_fsc_and_what_is_read_from_it():
    density = density_of(32)
    assert torch.allclose(correlation(density, 3 * density)[:8], torch.ones(8, dtype=torch.float64))
    noise = torch.randn(2, 32, 32, 32)
    assert float(correlation(*noise)[4:].abs().mean()) < 0.1
    curve = torch.tensor([1, 0.9, 0.5, 0.2, 0.1, 0.3], dtype=torch.float64)
    assert resolved_shell(curve) == 3 and resolved_shell(curve, 0.5) == 2
    assert resolved_shell(torch.ones(9)) == 8 and resolved_shell(torch.zeros(9)) == 1
    assert float(ssnr_of(torch.tensor([0.5]))) == pytest.approx(1)
    low = correlation(low_passed(density, 5.0), density)
    assert float(low[3]) > 0.999
    assert float(torch.fft.rfftn(low_passed(density, 5.0)).abs()[0, 0, 10]) < 1e-3


def test_a_prior_holds_down_what_is_weak():
    grid = FourierGrid(16, 6)
    numerator, denominator = torch.ones(2, *grid.shape), torch.ones(grid.shape)
    free = grid.solved(numerator, denominator)
    held = grid.solved(numerator, denominator, torch.ones(7, dtype=torch.float64))
    inside = grid.shell <= 6
    assert torch.allclose(free[:, inside], torch.ones(()))
    assert torch.allclose(held[:, inside], torch.full((), 0.5))
    assert float(grid.solved(numerator, torch.zeros(grid.shape)).abs().max()) == 0

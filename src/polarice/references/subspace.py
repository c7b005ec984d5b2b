"""Maps whose images differ in few ways: Y = mean + Phi A V, of `rank` rows V that all nodes share.

States of a particle differ by a few things seen in many places: a map of hundreds of free coefficients fits noise where
a few dozen numbers would do, and at low signal-to-noise ratios that is what limits it (docs/design.md). The penalised
likelihood is that of `manifold`, held to coefficients W = A V + mean; maximization is two conditional steps, neither of
which lets it fall (Meng and Rubin, Biometrika 80, 267, 1993):

    A   sum_r Phi' D_r Phi A V_r V_r' + I' A (sum_r lambda_r V_r V_r') = Phi' (S - D mean) V'
    V   [Z' D_r Z + lambda_r A' I' A] V_r = Z' S_r with Z = (1, Phi A), for every ring

The second is a small system for each ring. The first would be as many as there are rows, tied together only by how
D differs between nodes, in shape over the rings: conjugate gradients, preconditioned by the systems of the mean shape,
end after a few steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polarice.references.aligned import Triangle
from polarice.references.latent import LatentGrid

STEPS = 12  # of conjugate gradients, at the most
ENOUGH = 1e-5  # of the first residual's norm


@dataclass(frozen=True)
class Weighted:
    """What the images say of the nodes, and how the prior holds coefficients; float64."""

    numerator: Tensor  # (K, d) S
    power: Tensor  # (K, ring) D
    penalty: Tensor  # (ring,) lambda


@dataclass(frozen=True)
class Rows:
    """A map of few rows; float64."""

    mean: Tensor  # (d,)
    amplitudes: Tensor  # (M, rank) A; its first row, of the constant, is free
    rows: Tensor  # (rank, d) V

    @property
    def coefficients(self) -> Tensor:
        """(M, d) W."""
        found = self.amplitudes @ self.rows
        found[0] += self.mean
        return found

    def nodes(self, grid: LatentGrid) -> tuple[Tensor, Tensor]:
        """(K, 1 + rank) and (1 + rank, d) float32 whose product is the nodes' images."""
        return _design(grid, self.amplitudes).float(), torch.cat([self.mean[None], self.rows]).float()

    @staticmethod
    def cut(coefficients: Tensor, rank: int, weight: Tensor) -> Rows:
        """Coefficients (M, d) cut to a rank: what is kept are the main directions under the weights (d,)."""
        other = coefficients[1:]
        _, direction = torch.linalg.eigh((other * weight) @ other.T)
        return Rows._along(direction[:, -rank:], coefficients)

    @staticmethod
    def of(coefficients: Tensor, rank: int) -> Rows:
        """Coefficients (M, d) that have such a rank already, beside the constant's; found from sums of random signs
        (Halko, Martinsson and Tropp, SIAM Review 53, 217, 2011), the same every time."""
        signs = torch.randint(0, 2, (coefficients.shape[1], 2 * rank), generator=torch.Generator().manual_seed(0))
        sketch = coefficients[1:] @ (2 * signs.double() - 1).to(coefficients.device)
        return Rows._along(torch.linalg.svd(sketch, full_matrices=False).U[:, :rank], coefficients)

    @staticmethod
    def _along(direction: Tensor, coefficients: Tensor) -> Rows:
        amplitudes = torch.cat([direction.new_zeros(1, direction.shape[1]), direction])
        return Rows(coefficients[0], amplitudes, direction.T @ coefficients[1:])


def improved(grid: LatentGrid, triangle: Triangle, seen: Weighted, old: Rows) -> tuple[Rows, Tensor, Tensor]:
    """Rows after both steps; (ring,) mean posterior variance of a coefficient, in units of the mask's share and the
    weight, and (ring,) sums over nodes of Y S."""
    amplitudes = _amplitudes(grid, triangle, seen, old)
    design, held, factors = _systems(grid, seen, amplitudes)
    right = design.T @ seen.numerator
    found = torch.empty_like(right)
    for factor, (a, b) in zip(factors, itertools.pairwise(triangle.bounds.tolist()), strict=True):
        found[:, a:b] = torch.cholesky_solve(right[:, a:b], factor)
    variance = (torch.cholesky_inverse(factors) * held).sum(dim=(1, 2)) / (grid.m - 1)
    return Rows(found[0], amplitudes, found[1:]), variance, triangle.ring_sums((right * found).sum(dim=0))


def variance(grid: LatentGrid, seen: Weighted, of: Rows) -> Tensor:
    """(K, ring) posterior variance of the nodes' fields where the amplitudes are known, in the same units."""
    design, _, factors = _systems(grid, seen, of.amplitudes)
    return torch.linalg.solve_triangular(factors, design.T, upper=False).square().sum(dim=1).T


def _design(grid: LatentGrid, amplitudes: Tensor) -> Tensor:
    """(K, 1 + rank) Z."""
    constant = amplitudes.new_zeros(grid.m, 1)
    constant[0] = 1
    return grid.images(torch.cat([constant, amplitudes], dim=1))


def _systems(grid: LatentGrid, seen: Weighted, amplitudes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(K, 1 + rank) Z, (1 + rank, 1 + rank) A' I' A, and the Cholesky factors of the second step's systems, by ring."""
    design = _design(grid, amplitudes)
    held = torch.block_diag(design.new_zeros(1, 1), amplitudes[1:].T @ amplitudes[1:])
    systems = torch.einsum("ka,kr,kb->rab", design, seen.power, design) + seen.penalty[:, None, None] * held
    least = 1e-12 * systems.diagonal(dim1=1, dim2=2).mean(dim=1)
    return design, held, torch.linalg.cholesky(systems + least[:, None, None] * torch.eye(len(held)).to(held))


def _amplitudes(grid: LatentGrid, triangle: Triangle, seen: Weighted, old: Rows) -> Tensor:
    """(M, rank) the first step."""
    products = torch.stack([ring @ ring.T for ring in _rings(triangle, old.rows)], dim=-1)  # (rank, rank, ring)
    each = torch.einsum("kr,abr->kab", seen.power, products)
    held = torch.einsum("r,abr->ab", seen.penalty, products)
    count = seen.power.sum(dim=1) / seen.power.sum()
    mean = each.sum(dim=0)
    turn, back, strength = _diagonal(mean, held)
    each = turn @ each @ turn.T
    of_mean = triangle.ring_sums(old.rows * old.mean)  # (rank, ring)
    right = grid.project((seen.numerator @ old.rows.T - seen.power @ of_mean.T) @ turn.T)
    systems = grid.gram(count[:, None].expand(-1, len(strength)))
    factors = systems.shifted(torch.maximum(strength, 1e-9 / grid.m * systems.trace()), 1e-30).factors()

    def applied(values: Tensor) -> Tensor:
        found = grid.project((each @ grid.images(values)[:, :, None])[:, :, 0])
        found[1:] += values[1:] * strength
        return found

    def preconditioned(values: Tensor) -> Tensor:
        return factors.solve(values.T[:, :, None])[:, :, 0].T

    return _conjugate_gradients(applied, preconditioned, right, old.amplitudes @ back) @ turn


def _rings(triangle: Triangle, values: Tensor) -> tuple[Tensor, ...]:
    """Each ring's part of values (n, d)."""
    return values.split(np.diff(triangle.bounds).tolist(), dim=1)


def _diagonal(mean: Tensor, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """T, its inverse and l with T mean T' = 1 and T held T' = diag(l)."""
    size = 1e-12 * mean.diagonal().mean() * torch.eye(len(mean)).to(mean)
    root = torch.linalg.cholesky(mean + size)
    half = torch.linalg.solve_triangular(root, held, upper=False)
    half = torch.linalg.solve_triangular(root, half.mT, upper=False)
    strength, vectors = torch.linalg.eigh((half + half.mT) / 2)
    turn = torch.linalg.solve_triangular(root.mT, vectors, upper=True).mT
    return turn, root @ vectors, strength.clamp_min(0)


def _conjugate_gradients(
    applied: Callable[[Tensor], Tensor], preconditioned: Callable[[Tensor], Tensor], right: Tensor, start: Tensor
) -> Tensor:
    """From `start` towards what `applied` turns into `right`, each step nearer in the norm of the system."""
    found = start.clone()
    residual = right - applied(found)
    enough = ENOUGH * float(right.norm())
    step = preconditioned(residual)
    product = float((residual * step).sum())
    for _ in range(STEPS):
        if float(residual.norm()) <= enough or product <= 0:
            break
        along = applied(step)
        length = product / float((step * along).sum())
        found += length * step
        residual -= length * along
        better = preconditioned(residual)
        product, before = float((residual * better).sum()), product
        step = better + product / before * step
    return found

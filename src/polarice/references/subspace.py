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

import torch
from torch import Tensor

from polarice.references.aligned import Triangle
from polarice.references.latent import LatentGrid
from polarice.references.sharing import RingShares

STEPS = 12  # of conjugate gradients, at the most
ENOUGH = 1e-5  # of the first residual's norm


Gather = Callable[[Tensor], Tensor]  # Z (K, a) -> Z' S (a, d)


@dataclass(frozen=True)
class Held:
    """How firmly nodes are held by their images, and coefficients by the prior; float64."""

    power: Tensor  # (K, ring) D
    penalty: Tensor  # (ring,) lambda

    def of(self, rings: slice) -> Held:
        """The same of some rings."""
        return Held(self.power[:, rings], self.penalty[rings])


@dataclass(frozen=True)
class Weighted:
    """What both steps need to know of S (K, d), the weighted sums of the images; float64."""

    along: Tensor  # (K, rank) S V', of the rows as they were
    gather: Gather  # of this rank's rings


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

    @property
    def stacked(self) -> Tensor:
        """(1 + rank, d) mean and rows."""
        return torch.cat([self.mean[None], self.rows])

    def design(self, grid: LatentGrid) -> Tensor:
        """(K, 1 + rank) Z: the nodes' images are Z times mean and rows."""
        return _design(grid, self.amplitudes)

    @staticmethod
    def cut(coefficients: Tensor, rank: int, weight: Tensor) -> Rows:
        """Coefficients (M, d) cut to a rank: what is kept are the main directions under the weights (d,)."""
        other = coefficients[1:]
        _, direction = torch.linalg.eigh((other * weight) @ other.T)
        direction = direction[:, -rank:]
        amplitudes = torch.cat([direction.new_zeros(1, rank), direction])
        return Rows(coefficients[0], amplitudes, direction.T @ other)


def improved(
    grid: LatentGrid, shares: RingShares, held: Held, seen: Weighted, old: Rows
) -> tuple[Rows, Tensor, Tensor]:
    """Rows after both steps; (ring,) mean posterior variance of a coefficient, in units of the mask's share and the
    weight, and (ring,) sums over nodes of Y S. Every rank solves the second step of its rings, and gets all."""
    amplitudes = first_step(grid, shares.triangle, held, seen.along, old)
    design, tied, factors = _systems(grid, held.of(shares.own), amplitudes)
    right = seen.gather(design)
    found, product = torch.empty_like(right), right.new_empty(len(factors))
    ends = shares.triangle.bounds[shares.own.start : shares.own.stop + 1] - shares.place.start
    for ring, (factor, (a, b)) in enumerate(zip(factors, itertools.pairwise(ends.tolist()), strict=True)):
        found[:, a:b] = torch.cholesky_solve(right[:, a:b], factor)
        product[ring] = (right[:, a:b] * found[:, a:b]).sum()
    variance = (torch.cholesky_inverse(factors) * tied).sum(dim=(1, 2)) / (grid.m - 1)
    found, (variance, product) = shares.join(found), shares.comm.join((variance, product))
    return Rows(found[0], amplitudes, found[1:]), variance, product


def variance(grid: LatentGrid, held: Held, of: Rows) -> Tensor:
    """(K, ring) posterior variance of the nodes' fields where the amplitudes are known, in the same units."""
    design, _, factors = _systems(grid, held, of.amplitudes)
    return torch.linalg.solve_triangular(factors, design.T, upper=False).square().sum(dim=1).T


def _design(grid: LatentGrid, amplitudes: Tensor) -> Tensor:
    """(K, 1 + rank) Z."""
    constant = amplitudes.new_zeros(grid.m, 1)
    constant[0] = 1
    return grid.images(torch.cat([constant, amplitudes], dim=1))


def _systems(grid: LatentGrid, held: Held, amplitudes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(K, 1 + rank) Z, (1 + rank, 1 + rank) A' I' A, and the Cholesky factors of the second step's systems, by ring."""
    design = _design(grid, amplitudes)
    tied = torch.block_diag(design.new_zeros(1, 1), amplitudes[1:].T @ amplitudes[1:])
    systems = design.new_empty(held.power.shape[1], *tied.shape)
    for system, power in zip(systems, held.power.T, strict=True):  # an einsum took four times as long
        torch.mm((design * power[:, None]).T, design, out=system)
    systems += held.penalty[:, None, None] * tied
    least = 1e-12 * systems.diagonal(dim1=1, dim2=2).mean(dim=1)
    return design, tied, torch.linalg.cholesky(systems + least[:, None, None] * torch.eye(len(tied)).to(tied))


def first_step(grid: LatentGrid, triangle: Triangle, held: Held, along: Tensor, old: Rows) -> Tensor:
    """(M, rank) the first step; along (K, rank) S V'."""
    products = triangle.ring_products(old.rows)
    each = torch.einsum("kr,rab->kab", held.power, products)
    count = held.power.sum(dim=1) / held.power.sum()
    turn, back, strength = _diagonal(each.sum(dim=0), torch.einsum("r,rab->ab", held.penalty, products))
    each = turn @ each @ turn.T
    of_mean = triangle.ring_sums(old.rows * old.mean)  # (rank, ring)
    right = grid.project((along - held.power @ of_mean.T) @ turn.T)
    systems = grid.gram(count[:, None].expand(-1, len(strength)))
    factors = systems.shifted(torch.maximum(strength, 1e-9 / grid.m * systems.trace()), 1e-30).factors()

    def applied(values: Tensor) -> Tensor:
        found = grid.project((each @ grid.images(values)[:, :, None])[:, :, 0])
        found[1:] += values[1:] * strength
        return found

    def preconditioned(values: Tensor) -> Tensor:
        return factors.solve(values.T[:, :, None])[:, :, 0].T

    return _conjugate_gradients(applied, preconditioned, right, old.amplitudes @ back) @ turn


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

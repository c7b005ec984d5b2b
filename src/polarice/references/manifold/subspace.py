"""Maps whose images differ in few ways: Y = mean + Phi A V, of `rank` rows V that all nodes share.

States of a particle differ by a few things seen in many places: a map of hundreds of free coefficients fits noise where
a few dozen numbers would do, and at low signal-to-noise ratios that is what limits it (docs/design.md). The penalised
likelihood is that of `manifold`, held to coefficients W = A V + mean; maximization is two conditional steps, neither of
which lets it fall (Meng and Rubin, Biometrika 80, 267, 1993):

    A   sum_r Phi' D_r Phi A V_r V_r' + I' A (sum_r lambda_r V_r V_r') = Phi' (S - D mean) V'
    V   [Z' D_r Z + lambda_r A' I' A] V_r = Z' S_r with Z = (1, Phi A), for every ring

The second is a small system for each ring. The first would be as many as there are rows, tied together only by how
D differs between nodes, in shape over the rings: conjugate gradients, preconditioned by the systems of the mean shape,
come near enough in a few steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polarice.references.manifold.latent import LatentGrid
from polarice.references.manifold.sharing import RingShares

STEPS = 4  # of conjugate gradients: what is left to gain is then less than a millionth of what was
GROUPS = 4  # systems that precondition them; one for each column saves no more than a step


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

    stacked: Tensor  # (1 + rank, d) mean and V
    amplitudes: Tensor  # (M, rank) A; its first row, of the constant, is free

    @property
    def mean(self) -> Tensor:
        """(d,)."""
        return self.stacked[0]

    @property
    def rows(self) -> Tensor:
        """(rank, d) V."""
        return self.stacked[1:]

    @property
    def coefficients(self) -> Tensor:
        """(M, d) W."""
        found = self.amplitudes @ self.rows
        found[0] += self.mean
        return found

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
        return Rows(torch.cat([coefficients[:1], direction.T @ other]), amplitudes)


def improved(
    grid: LatentGrid, shares: RingShares, held: Held, seen: Weighted, old: Rows
) -> tuple[Rows, Tensor, Tensor]:
    """Rows after both steps; (ring,) mean posterior variance of a coefficient, in units of the mask's share and the
    weight, and (ring,) sums over nodes of Y S. Ranks share both steps, the first by nodes and the second by rings."""
    amplitudes = first_step(grid, shares, held, seen.along, old)
    design, tied, factors = _systems(grid, held.of(shares.own), amplitudes)
    right = seen.gather(design)
    found, product = torch.empty_like(right), right.new_empty(len(factors))
    ends = shares.packed.bounds[shares.own.start : shares.own.stop + 1] - shares.place.start
    for ring, (factor, (a, b)) in enumerate(zip(factors, itertools.pairwise(ends.tolist()), strict=True)):
        found[:, a:b] = torch.cholesky_solve(right[:, a:b], factor)
        product[ring] = (right[:, a:b] * found[:, a:b]).sum()
    variance = torch.linalg.solve_triangular(factors, _root(tied), upper=False).square().sum(dim=(1, 2)) / (grid.m - 1)
    found, (variance, product) = shares.join(found), shares.comm.all_gather((variance, product))
    return Rows(found, amplitudes), variance, product


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


def _root(matrix: Tensor) -> Tensor:
    """G with G G' = a positive semidefinite matrix."""
    value, direction = torch.linalg.eigh(matrix)
    return direction * value.clamp_min(0).sqrt()


def first_step(grid: LatentGrid, shares: RingShares, held: Held, along: Tensor, old: Rows) -> Tensor:
    """(M, rank) the first step; along (K, rank) S V'. Every rank multiplies for its nodes, and gets all."""
    products = shares.packed.ring_products(old.stacked)
    with_mean, products = products[:, 0, 1:], products[:, 1:, 1:]
    mean = torch.einsum("r,rab->ab", held.power.sum(dim=0), products)
    turn, back, strength = _diagonal(mean, torch.einsum("r,rab->ab", held.penalty, products))
    right = grid.project((along - held.power @ with_mean) @ turn.T)
    own = shares.some(grid.k)
    each = torch.einsum("kr,rab->kab", held.power[own].float(), (turn @ products @ turn.T).float())  # near 1 now

    def applied(values: Tensor) -> Tensor:
        images = grid.images(values)[own].float()
        found = grid.project(shares.comm.all_gather((each @ images[:, :, None])[:, :, 0]).double())
        found[1:] += values[1:] * strength
        return found

    preconditioned = _of_mean_shape(grid, held.power, strength)
    return _conjugate_gradients(applied, preconditioned, right, old.amplitudes @ back) @ turn


def _of_mean_shape(grid: LatentGrid, power: Tensor, strength: Tensor) -> Callable[[Tensor], Tensor]:
    """What solves for the columns of values (M, rank) if D had the same shape over the rings at every node.

    strength (rank,) rises; neighbours, which differ little in it, share a system, so that there are GROUPS of them.
    """
    rank, groups = len(strength), min(GROUPS, len(strength))
    spare = -rank % groups
    shift = torch.cat([strength, strength[-1:].expand(spare)]).view(groups, -1).mean(dim=1)
    count = power.sum(dim=1) / power.sum()
    systems = grid.gram(count[:, None].expand(-1, groups))
    factors = systems.shifted(torch.maximum(shift, 1e-9 / grid.m * systems.trace()), 1e-30).factors()

    def solved(values: Tensor) -> Tensor:
        columns = torch.nn.functional.pad(values, (0, spare)).unflatten(1, (groups, -1)).transpose(0, 1)
        return factors.solve(columns).transpose(0, 1).flatten(1)[:, :rank]

    return solved


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
    """From `start` towards what `applied` turns into `right`, each step nearer in the norm of the system.

    Always as many steps: no rank may decide for itself, by its own rounding, that it was enough.
    """
    found = start.clone()
    residual = right - applied(found)
    step = preconditioned(residual)
    product = (residual * step).sum()
    for _ in range(STEPS):
        along = applied(step)
        length = _ratio(product, (step * along).sum())
        found += length * step
        residual -= length * along
        better = preconditioned(residual)
        product, before = (residual * better).sum(), product
        step = better + _ratio(product, before) * step
    return found


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is nothing: at the end of the way."""
    return torch.where(b > 0, a / b, 0.0)

"""The latent grid of `manifold`: nodes, and the smooth functions that tie their images together.

K nodes x_k lie on a regular grid of one to three axes in [-1, 1]; M - 1 Gaussians lie on a coarser one, and a constant
stands before them. With Phi_km the value of function m at node k, node images are Y = Phi W (generative topographic
mapping: Bishop, Svensen and Williams, Neural Computation 10, 215, 1998).

A Gaussian on a grid is a product over the axes, so Phi and its transpose are applied axis by axis. And the product of
two Gaussians of width s is a Gaussian of width s / sqrt 2 halfway between them,

    phi_a(x) phi_b(x) = exp(-(c_a - c_b)^2 / 4 s^2) exp(-(x - (c_a + c_b) / 2)^2 / s^2),

so Phi' diag(D) Phi holds only (2 m - 1) different sums per axis of m functions, not m^2, and next to nothing for
functions that are far apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from polarice.references.manifold.banded import Systems

CPU = torch.device("cpu")
FUNCTION_SHARE = 0.8  # Gaussians for each node
MAX_FUNCTIONS = 2000  # Gaussians at the most: systems of that size are factored for every ring
MAX_AXES = 3
AXIS_BLOCK = 64  # nodes or functions of an axis that are computed at once
POINT_BLOCK = 1024  # points at which all functions are computed at once
NEGLIGIBLE = 1e-17  # values of a function, and overlaps of two, that count as nothing
LEAST_BLOCK, FEWEST_BLOCKS = 32, 4  # functions of a block; with fewer blocks, one of all is as quick


def grid_shape(k: int | Sequence[int]) -> tuple[int, ...]:
    """Nodes along each axis: a shape as it stands, a number K as floor(sqrt K) rows of as many columns as hold K.

    So 1000 becomes 31 x 33 = 1023 nodes and (1000,), one axis, keeps its 1000. Raises ValueError for less than two
    nodes or more than three axes.
    """
    if isinstance(k, int):
        rows = max(1, math.isqrt(max(k, 0)))
        shape: tuple[int, ...] = (rows, math.ceil(k / rows))
    else:
        shape = tuple(int(n) for n in k)
    if not 1 <= len(shape) <= MAX_AXES or min(shape) < 1 or math.prod(shape) < 2:
        raise ValueError(f"a latent grid has one to {MAX_AXES} axes and at least two nodes, not {k}")
    return shape


@dataclass(frozen=True)
class LatentGrid:
    """Nodes and functions; float64 on one device. K = product of `shape`, M = 1 + product of `functions`.

    shape      nodes along each axis; the last axis runs fastest in K
    functions  Gaussians along each axis
    width      of the Gaussians, in units of their spacing
    """

    shape: tuple[int, ...]
    functions: tuple[int, ...]
    width: float = 1.0
    device: torch.device = CPU

    @staticmethod
    def of(
        k: int | Sequence[int],
        width: float = 1.0,
        share: float = FUNCTION_SHARE,
        device: torch.device = CPU,
    ) -> LatentGrid:
        """The grid of K nodes or of a shape, with about `share` Gaussians for each node, MAX_FUNCTIONS at the most."""
        shape = grid_shape(k)
        axes = sum(n > 1 for n in shape)
        along = min(share, MAX_FUNCTIONS / math.prod(shape)) ** (1 / axes)
        functions = tuple(max(min(n, 2), round(n * along)) for n in shape)
        return LatentGrid(shape, functions, width, device)

    @property
    def k(self) -> int:
        """Nodes."""
        return math.prod(self.shape)

    @property
    def m(self) -> int:
        """Functions, the constant among them."""
        return 1 + math.prod(self.functions)

    @cached_property
    def nodes(self) -> Tensor:
        """(K, axis) where they lie, in [-1, 1]."""
        axes = [_axis(n, self.device) for n in self.shape]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(axes))

    @cached_property
    def phi(self) -> Tensor:
        """(K, M) every function at every node."""
        return self.at(self.nodes)

    def at(self, points: Tensor) -> Tensor:
        """(point, M) every function at points (point, axis); the constant comes first."""
        values = points.new_ones(len(points), 1)
        for axis, m in enumerate(self.functions):
            centres, spacing = _centres(m, self.device)
            along = _gaussians(points[:, axis], centres, self.width * spacing)
            values = (values[:, :, None] * along[:, None, :]).flatten(1)
        return torch.cat([points.new_ones(len(points), 1), values], dim=1)

    @cached_property
    def blocks(self) -> list[slice]:
        """Of the Gaussians: those of a block overlap with none beyond the next one; one block where that is no use."""
        stride = math.prod(self.functions[1:])
        reach = math.ceil(self.width * math.sqrt(-4 * math.log(NEGLIGIBLE))) * stride
        size = max(LEAST_BLOCK, reach)
        if (self.m - 1) < FEWEST_BLOCKS * size:
            size = self.m - 1
        return [slice(start, min(start + size, self.m - 1)) for start in range(0, self.m - 1, size)]

    @property
    def bandwidth(self) -> int:
        """Functions that one of them may overlap with, at the most."""
        return 2 * self.blocks[0].stop

    def images(self, coefficients: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Phi W: coefficients (M, ...) float64 -> (K, ...) of `dtype`."""
        found = coefficients.new_empty(self.k, *coefficients.shape[1:], dtype=dtype)
        _along_axes(coefficients[1:], self._factors, found)
        return found.add_(coefficients[:1].to(dtype))

    def project(self, values: Tensor) -> Tensor:
        """Phi' S: values (K, ...) float64 -> (M, ...)."""
        found = values.new_empty(self.m, *values.shape[1:])
        torch.sum(values, dim=0, out=found[0])
        _along_axes(values, self._transposed, found[1:])
        return found

    def gram(self, weights: Tensor) -> Systems:
        """Phi' diag(D_r) Phi for every column of weights (K, ring) float64."""
        sums = weights.new_empty(math.prod(2 * m - 1 for m in self.functions), weights.shape[1])
        _along_axes(weights, self._midpoints, sums)
        of_ring = sums.T.contiguous()
        place, decay = self._pairs

        def block(rows: slice, columns: slice) -> Tensor:
            to_device = place[rows, columns]
            found = of_ring.index_select(1, to_device.flatten()).view(len(of_ring), *to_device.shape)
            return found.mul_(decay[rows, columns])

        return Systems(
            border=self.project(weights).T.contiguous(),
            diagonal=[block(rows, rows) for rows in self.blocks],
            below=[block(rows, before) for before, rows in itertools.pairwise(self.blocks)],
        )

    def fit(self, points: Tensor, values: Tensor, weights: Tensor, ridge: float) -> Tensor:
        """Coefficients (M, D) whose images at points (point, axis) come nearest to values (point, D).

        By weighted least squares; `ridge` times the mean diagonal holds all but the constant down.
        """
        system, right = points.new_zeros(self.m, self.m), values.new_zeros(self.m, values.shape[1])
        for place, value, weight in zip(*(each.split(POINT_BLOCK) for each in (points, values, weights)), strict=True):
            functions = self.at(place)
            weighted = functions * weight[:, None]
            system += functions.T @ weighted
            right += weighted.T @ value
        system.diagonal()[1:] += ridge * system.diagonal().mean()
        return torch.cholesky_solve(right, torch.linalg.cholesky(system))

    @cached_property
    def squares(self) -> Tensor:
        """(K,) sum over the Gaussians of their squares at every node."""
        return torch.cat([self.at(block)[:, 1:].square().sum(dim=1) for block in self.nodes.split(POINT_BLOCK)])

    @cached_property
    def _factors(self) -> list[_Factor]:
        """(node, Gaussian) of each axis."""
        return [_Factor.of(nodes, centres, self.width * spacing) for nodes, centres, spacing in self._axes]

    @cached_property
    def _transposed(self) -> list[_Factor]:
        return [_Factor.of(centres, nodes, self.width * spacing) for nodes, centres, spacing in self._axes]

    @cached_property
    def _midpoints(self) -> list[_Factor]:
        """(2 m - 1, node) of each axis: the narrower Gaussians that lie halfway between two."""
        found = []
        for nodes, centres, spacing in self._axes:
            steps = torch.arange(2 * len(centres) - 1, dtype=torch.float64, device=self.device)
            halfway = centres[0] + 0.5 * spacing * steps
            found.append(_Factor.of(halfway, nodes, self.width / math.sqrt(2) * spacing))
        return found

    @property
    def _axes(self) -> list[tuple[Tensor, Tensor, float]]:
        """Of each axis: its nodes, its Gaussians' centres, and their spacing."""
        return [
            (_axis(n, self.device), *_centres(m, self.device)) for n, m in zip(self.shape, self.functions, strict=True)
        ]

    @cached_property
    def _pairs(self) -> tuple[Tensor, Tensor]:
        """For every pair of Gaussians: the place of their midpoint's sum, and by how much they overlap; (M-1, M-1)."""
        place = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        decay = torch.ones(1, 1, dtype=torch.float64, device=self.device)
        for m in self.functions:
            index = torch.arange(m, device=self.device)
            to_device = torch.exp(-(index[:, None] - index).double().square() / (4 * self.width**2))
            both = index[:, None] + index
            place = _outer(place * (2 * m - 1), both, torch.add)
            decay = _outer(decay, to_device, torch.mul)
        return place, decay


def _outer(outer: Tensor, inner: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Kronecker product of two square tables, entries joined by `join`."""
    size = len(outer) * len(inner)
    return join(outer[:, None, :, None], inner[None, :, None, :]).reshape(size, size)


def _axis(n: int, device: torch.device) -> Tensor:
    """(n,) evenly from -1 to 1; one lies at 0."""
    if n == 1:
        return torch.zeros(1, dtype=torch.float64, device=device)
    return torch.linspace(-1, 1, n, dtype=torch.float64, device=device)


def _centres(m: int, device: torch.device) -> tuple[Tensor, float]:
    """(m,) centres of an axis' Gaussians and their spacing."""
    return _axis(m, device), 2 / max(m - 1, 1)


def _gaussians(x: Tensor, centres: Tensor, sd: float) -> Tensor:
    """(point, Gaussian)."""
    return torch.exp(-0.5 * ((x[:, None] - centres) / sd).square())


@dataclass(frozen=True)
class _Factor:
    """Gaussians of the distances between points of an axis and others, (out, in): AXIS_BLOCK rows at a time, and of
    each block those columns where it is anything; of a long axis the whole table would be large and nearly empty."""

    shape: tuple[int, int]
    blocks: list[Tensor]
    reach: list[slice]

    @staticmethod
    def of(x: Tensor, others: Tensor, sd: float) -> _Factor:
        blocks, reach = [], []
        for some in x.split(AXIS_BLOCK):
            values = _gaussians(some, others, sd)
            to_device = (values.amax(dim=0) > NEGLIGIBLE).nonzero()[:, 0].tolist()
            reach.append(slice(to_device[0], to_device[-1] + 1))
            blocks.append(values[:, reach[-1]].clone())
        return _Factor((len(x), len(others)), blocks, reach)


def _along_axes(values: Tensor, factors: list[_Factor], out: Tensor) -> None:
    """The Kronecker product of factors (out, in) times values (product of in, ...), an axis at a time, into `out`."""
    done = 1
    for factor in factors[:-1]:
        rows, columns = factor.shape
        found = values.new_empty(done, rows, values.numel() // (done * columns))
        _times(factor, values.reshape(done, columns, -1), found)
        values = found
        done *= rows
    rows, columns = factors[-1].shape
    _times(factors[-1], values.reshape(done, columns, -1), out.view(done, rows, -1))


def _times(factor: _Factor, values: Tensor, out: Tensor) -> None:
    """factor (out, in) times values (batch, in, D), into `out`; of a long axis, block by block, only what lies near."""
    room = values.new_empty(min(AXIS_BLOCK, factor.shape[0]), values.shape[2])
    for number, (block, reach) in enumerate(zip(factor.blocks, factor.reach, strict=True)):
        for each, target in zip(values, out, strict=True):
            target = target[number * AXIS_BLOCK :][: len(block)]
            if target.dtype == values.dtype:
                torch.mm(block, each[reach], out=target)
            else:
                target.copy_(torch.mm(block, each[reach], out=room[: len(block)]))

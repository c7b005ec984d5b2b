"""Where a manifold begins: it grows out of coarser ones, and images not seen say in how many ways it varies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polarice.cluster import SERIAL, Comm
from polarice.references.manifold.aligned import AlignedImages
from polarice.references.manifold.latent import LatentGrid
from polarice.references.manifold.model import Manifold, ManifoldPrior, first_rings, ring_ramp
from polarice.references.manifold.nodes import NodeSums, expect_nodes, log_weights
from polarice.references.starts import from_coarser, from_pca

COARSER = 3  # a grid has so many times the nodes of the coarser one that it starts from
LEAST_COARSE, MOST_COARSE = 10, 250  # nodes of the coarser grids
TRIAL_ITERATIONS, FINER_ITERATIONS = 15, 8
UNSEEN_EVERY = 4  # one of so many images is kept apart to judge a map of the others
FEWEST_UNSEEN = 50  # fewer judge nothing
LEAST_RANK, RANK_STEP = 8, 1.3  # ranks that are tried: this one, and each so many times the one before
TOLD, MARGIN = 0.95, 1.5  # the fewest ways that tell so much of what the best do, and half as many again
FAINT = 1e-4  # of a map's differences: no node is the other, and all are as good as their mean


def pca_start(
    empty: Manifold, images: AlignedImages, even: int, prior: ManifoldPrior, seed: int, comm: Comm = SERIAL
) -> Manifold:
    """A map that grew out of coarser ones, the coarsest laid out over principal components of some images.

    Components of few rings leave fine differences out, those of many fold a long path. So several are tried: the
    coarsest map that ends with the highest log posterior goes on to the next finer grid. Raises ValueError where the
    images do not differ. Every rank gives images of its own, and gets the same map.
    """
    coarsest, *finer = _coarser(empty.grid)
    some = _Some(images, even, replace(prior, equal_shares=0.0), comm)
    trials = [_trial(_on(empty, coarsest), some, how) for how in _candidates(empty, seed)]
    best = max(range(len(trials)), key=lambda i: trials[i][0])
    return _grown(empty, some, trials[best][1], finer)


def unseen_rank(
    empty: Manifold,
    many: int,
    images: AlignedImages,
    even: int,
    prior: ManifoldPrior,
    seed: int,
    comm: Comm = SERIAL,
) -> int:
    """In how many ways a map should vary: 0 for as many as it can, or too few images to tell; many: all images.

    A map of three quarters of some images is cut to one rank after another, and the others are more likely than under
    its mean image alone. The lowest rank that gains TOLD of what the best does lies where the gain is steep, and noise
    moves it little; with a MARGIN, as too few ways cost more than too many, it is taken (docs/design.md). More images
    than these can tell more from noise: the rank is taken to grow as their root.
    """
    n = comm.sum(len(images))
    if n < UNSEEN_EVERY * FEWEST_UNSEEN:
        return 0
    grid = empty.grid if empty.grid.k <= MOST_COARSE else _coarser(empty.grid)[-1]
    apart = torch.arange(len(images), device=empty.basis.device) % UNSEEN_EVERY == 0
    seen, unseen = (_Some(images.take(some), even, prior, comm) for some in (~apart, apart))
    model = pca_start(_on(empty, grid), seen.images, even, prior, seed, comm)
    model = seen.fitted(model, [None] * FINER_ITERATIONS)  # on coarser grids alone it varies in no more ways than those
    ranks = sorted({round(LEAST_RANK * RANK_STEP**i) for i in range(40)} & set(range(grid.m - 1)))
    maps = (_mean_alone(model), *map(model.cut, ranks), model)
    likely = comm.sum(torch.stack([unseen.log_likelihood(each) for each in maps]))
    rank = [*ranks, 0][_first_enough(likely[1:] - likely[0])]
    rank = round(MARGIN * rank * math.sqrt(max(1.0, many / n)))
    return rank if rank < empty.grid.m - 1 else 0


def _first_enough(gains: Tensor) -> int:
    """The first that is TOLD of the best, or more; where none gains anything, the first of all."""
    return int((gains >= TOLD * gains.max()).int().argmax())


def _mean_alone(model: Manifold) -> Manifold:
    """A map that hardly varies about the mean image of one that is free in every way."""
    coefficients = FAINT * model.coefficients
    coefficients[0] = model.weights @ model.vectors.double()
    return replace(model, coefficients=coefficients)


def _grown(empty: Manifold, some: _Some, model: Manifold, finer: Sequence[LatentGrid]) -> Manifold:
    """The map on finer and finer grids, up to the one of `empty`."""
    for grid in finer:
        model = some.fitted(from_coarser(_on(empty, grid), model), [None] * FINER_ITERATIONS)
    return model if model.grid.shape == empty.grid.shape else from_coarser(empty, model)


def _candidates(empty: Manifold, seed: int) -> list[tuple[int, int]]:
    """Numbers of rings from the fewest to a third of all, doubled each time; each with the seed."""
    first, last = first_rings(empty.basis), max(first_rings(empty.basis), empty.basis.r_max // 3)
    return [(first * 2**i, seed) for i in range(1 + int(math.log2(last / first)))]


def _coarser(grid: LatentGrid) -> list[LatentGrid]:
    """Grids of the same axes and proportions, each of COARSER times as many nodes as the one before, up to this one.

    Of those finer than MOST_COARSE nodes none but the last is worth its time.
    """
    axes = sum(n > 1 for n in grid.shape)
    counts = [grid.k / COARSER ** (i + 1) for i in range(20)]
    counts = [k for k in counts if LEAST_COARSE <= k <= MOST_COARSE] or [min(grid.k, MOST_COARSE)]
    shapes = [[max(min(n, 2), round(n * (k / grid.k) ** (1 / axes))) for n in grid.shape] for k in counts[::-1]]
    return [LatentGrid.of(shape, device=grid.device) for shape in shapes]


def _on(empty: Manifold, grid: LatentGrid) -> Manifold:
    return Manifold.empty(empty.basis, grid, empty.noise_power, empty.mask_fraction)


def _trial(empty: Manifold, some: _Some, how: tuple[int, int]) -> tuple[float, Manifold]:
    """Log posterior after some iterations that began on `first` rings, and the map; how = (first, seed)."""
    first, seed = how
    start = from_pca(empty, some.images, first, seed, some.comm)
    model = some.fitted(start, ring_ramp(empty.basis, TRIAL_ITERATIONS, first))
    return model.log_posterior(some.sums(model, None), some.prior), model


@dataclass(frozen=True)
class _Some:
    """Images that fit in memory, of all ranks, and what maps are fitted to them by."""

    images: AlignedImages
    even: int
    prior: ManifoldPrior
    comm: Comm

    def fitted(self, model: Manifold, ramp: Sequence[int | None]) -> Manifold:
        for rings in ramp:
            model = model.maximize(self.sums(model, rings), self.prior, self.comm)
        return model

    def log_likelihood(self, model: Manifold) -> Tensor:
        """() float64 of this rank's, up to the images' own power."""
        return log_weights(model.packed, model.nodes(self.even), self.images).double().logsumexp(dim=1).sum()

    def sums(self, model: Manifold, rings: int | None) -> NodeSums:
        sums = expect_nodes(model.packed, model.nodes(self.even), self.images, rings)[1]
        return model.shares(self.comm).together(sums)

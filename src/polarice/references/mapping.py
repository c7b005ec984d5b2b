"""The loop of a manifold: expect, sum, maximize, yield; and where it begins."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from polarice.align.images import Clock
from polarice.cluster import Comm, Serial
from polarice.references.aligned import AlignedImages
from polarice.references.latent import LatentGrid
from polarice.references.manifold import (
    Manifold,
    ManifoldPrior,
    NodePosterior,
    NodeSums,
    expect_nodes,
    first_rings,
    ring_ramp,
)
from polarice.references.posed import PosedImages
from polarice.references.starts import from_pca
from polarice.types import Assignment, Pose2D

SERIAL = Serial()
TRIAL_NODES = 100  # of the small map on which first numbers of rings are tried
TRIAL_ITERATIONS = 10


@dataclass(frozen=True)
class Placement:
    """Where on the map every particle of a table lies; class_of of the pose is the most probable node."""

    assignment: Assignment
    latent_mean: np.ndarray  # (n, axis) float32, in [-1, 1]; NaN where never looked at
    latent_sd: np.ndarray  # (n, axis) float32 spread of the posterior

    @staticmethod
    def unknown(pose: Pose2D, axes: int) -> Placement:
        """No node yet, at these poses."""
        n = len(pose.psi_deg)
        nowhere = replace(pose, class_of=np.full(n, -1, np.int32))
        return Placement(
            Assignment(nowhere, np.zeros(n), np.zeros(n, np.float32), np.zeros(n, np.int32)),
            np.full((n, axes), np.nan, np.float32),
            np.full((n, axes), np.nan, np.float32),
        )

    @property
    def pose(self) -> Pose2D:
        return self.assignment.pose

    def of(self, parts: list[tuple[np.ndarray, NodePosterior]]) -> Placement:
        """A placement of its own, with what was found of these rows."""
        rows = np.concatenate([rows for rows, _ in parts])
        found = NodePosterior.joined([posterior for _, posterior in parts])

        def with_rows(old: np.ndarray, new: torch.Tensor) -> np.ndarray:
            values = old.copy()
            values[rows] = new.cpu().numpy().astype(old.dtype)
            return values

        before = self.assignment
        assignment = Assignment(
            pose=replace(before.pose, class_of=with_rows(before.pose.class_of, found.node_of)),
            log_likelihood=with_rows(before.log_likelihood, found.log_likelihood),
            max_probability=with_rows(before.max_probability, found.max_probability),
            significant=with_rows(before.significant, found.significant),
        )
        return Placement(
            assignment,
            with_rows(self.latent_mean, found.latent_mean),
            with_rows(self.latent_sd, found.latent_sd),
        )


@dataclass(frozen=True)
class MapState:
    """All that the next iteration needs, and what the last one found."""

    number: int  # iterations done
    model: Manifold
    placement: Placement
    first_rings: int  # on which images are compared in the first iteration


@dataclass(frozen=True)
class MapTurn:
    """One iteration's outcome."""

    state: MapState
    sums: NodeSums
    rings: int  # on which images were compared
    log_likelihood: float  # mean over the particles, of this number of rings
    log_posterior: float  # of all, under the model that they met, see `Manifold.log_posterior`
    max_probability: float
    changed_node: float  # share of the particles
    clock: Clock


@dataclass(frozen=True)
class Plan:
    """How a run goes about it."""

    iterations: int
    prior: ManifoldPrior
    batch: int  # images that meet the nodes at once


def fit(images: PosedImages, state: MapState, plan: Plan, comm: Comm = SERIAL) -> Iterator[MapTurn]:
    """Go on from `state` to the end of the plan; raises ValueError where all nodes hold the same image."""
    ramp = ring_ramp(images.basis, plan.iterations, state.first_rings)
    for number in range(state.number + 1, plan.iterations + 1):
        clock, model = Clock(), state.model
        placement, sums = expected(images, model, state.placement, (plan.batch, ramp[number - 1]), clock)
        since = time.perf_counter()
        sums = comm.sum(sums)
        fitted = model.maximize(sums, plan.prior)
        _ = fitted.vectors  # made now, and counted here
        clock.add("maximization", since)
        before, after = (each.pose.class_of[images.rows] for each in (state.placement, placement))
        state = replace(state, number=number, model=fitted, placement=placement)
        count = float(sums.group_count.sum())
        yield MapTurn(
            state=state,
            sums=sums,
            rings=ramp[number - 1],
            log_likelihood=float(sums.log_likelihood) / count,
            log_posterior=model.log_posterior(sums, plan.prior),
            max_probability=float(sums.max_probability) / count,
            changed_node=float((before != after).mean()),
            clock=clock,
        )


def expected(
    images: PosedImages, model: Manifold, before: Placement, how: tuple[int, int], clock: Clock
) -> tuple[Placement, NodeSums]:
    """The placement of all images under a model, and their sums; how = (batch, rings)."""
    batch, rings = how
    nodes = model.nodes(images.even)
    found: list[tuple[np.ndarray, NodePosterior]] = []
    total: NodeSums | None = None
    for rows, part in images.batches(before.pose, batch, clock):
        with clock.counting("expectation"):
            posterior, sums = expect_nodes(images.triangle, nodes, part, rings)
            total = sums.double() if total is None else total.include(sums)
            found.append((rows, posterior))
        images.images.progress(len(rows))
    assert total is not None
    return before.of(found), total


def pca_start(
    empty: Manifold, images: AlignedImages, even: int, prior: ManifoldPrior, seed: int
) -> tuple[Manifold, int]:
    """A map laid out over principal components, and on how many rings to begin.

    Components of few rings leave fine differences out, those of many fold a long path. So several are tried, on a small
    map of the same axes and some images: the one that ends with the highest log posterior is taken. Raises ValueError
    where the images do not differ.
    """
    small = replace(empty, grid=_small(empty.grid))
    small = Manifold.empty(small.basis, small.grid, small.noise_power, small.mask_fraction)
    trials = [_trial(small, images, even, prior, (first, seed)) for first in _candidates(empty)]
    first = max(trials)[1]
    return from_pca(empty, images, first, seed), first


def _candidates(empty: Manifold) -> list[int]:
    """Numbers of rings from the fewest to a third of all, doubled each time."""
    first, last = first_rings(empty.basis), max(first_rings(empty.basis), empty.basis.r_max // 3)
    return [first * 2**i for i in range(1 + int(math.log2(last / first)))]


def _small(grid: LatentGrid) -> LatentGrid:
    """A grid of the same proportions with TRIAL_NODES at the most."""
    if grid.k <= TRIAL_NODES:
        return grid
    share = (TRIAL_NODES / grid.k) ** (1 / sum(n > 1 for n in grid.shape))
    return LatentGrid.of([max(min(n, 2), int(n * share)) for n in grid.shape], device=grid.device)


def _trial(
    empty: Manifold, images: AlignedImages, even: int, prior: ManifoldPrior, how: tuple[int, int]
) -> tuple[float, int]:
    """Log posterior after some iterations that began on `first` rings, and that number; how = (first, seed)."""
    first, seed = how
    model = from_pca(empty, images, first, seed)
    for rings in ring_ramp(empty.basis, TRIAL_ITERATIONS, first):
        model = model.maximize(_sums(model, images, even, rings), prior)
    return model.log_posterior(_sums(model, images, even, None), prior), first


def _sums(model: Manifold, images: AlignedImages, even: int, rings: int | None) -> NodeSums:
    return expect_nodes(model.triangle, model.nodes(even), images, rings)[1]

"""The expectation of a manifold: aligned images meet its nodes, and now and then their poses are refined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from polarice.align.fit import Expected, State
from polarice.align.images import Clock
from polarice.align.memory_chunks import Portions
from polarice.references.manifold.aligned import AlignedImages
from polarice.references.manifold.aligned_particles import AlignedParticles
from polarice.references.manifold.model import Manifold, ManifoldPrior, ring_ramp
from polarice.references.manifold.nodes import NodePosterior, NodeSums, expect_nodes, expect_thin, gathered
from polarice.references.manifold.refine import PosePrior, refined
from polarice.references.manifold.subspace import Gather
from polarice.types import Assignment, Pose2D

FIRST_REFINED, REFINED_EVERY = 0.3, 2  # share of the iterations after which poses may move, and how often


@dataclass(frozen=True)
class Latent:
    """Where on the manifold the particles of a table lie, and where their poses were at first."""

    mean: np.ndarray  # (n, axis) float32, in [-1, 1]; NaN where never looked at
    sd: np.ndarray  # (n, axis) float32 spread of the posterior
    anchor: Pose2D
    first_rings: int  # on which images are compared in the first iteration

    @staticmethod
    def unknown(pose: Pose2D, axes: int, first_rings: int = 0) -> Latent:
        """Nowhere yet."""
        nothing = np.full((len(pose.psi_deg), axes), np.nan, np.float32)
        return Latent(nothing, nothing.copy(), pose, first_rings)

    def put(self, rows: np.ndarray, found: NodePosterior) -> Latent:
        """The same with what was found of these rows."""
        return replace(
            self, mean=_with_rows(self.mean, rows, found.latent_mean), sd=_with_rows(self.sd, rows, found.latent_sd)
        )


ManifoldState = State[Manifold, Latent]


def first_state(model: Manifold, pose: Pose2D, first_rings: int = 0) -> ManifoldState:
    """Before the first iteration: no particle has a node yet."""
    n = len(pose.psi_deg)
    nowhere = replace(pose, class_of=np.full(n, -1, np.int32))
    nothing = Assignment(nowhere, np.zeros(n), np.zeros(n, np.float32), np.zeros(n, np.int32))
    return State(0, model, nothing, Latent.unknown(pose, len(model.grid.shape), first_rings))


def _with_rows(old: np.ndarray, rows: np.ndarray, new: Tensor) -> np.ndarray:
    values = old.copy()
    values[rows] = new.cpu().numpy().astype(old.dtype)
    return values


def _put(before: Assignment, rows: np.ndarray, found: NodePosterior) -> Assignment:
    """An assignment of its own, with what was found of these rows; the class of a pose is the most probable node."""
    return Assignment(
        pose=replace(before.pose, class_of=_with_rows(before.pose.class_of, rows, found.node_of)),
        log_likelihood=_with_rows(before.log_likelihood, rows, found.log_likelihood),
        max_probability=_with_rows(before.max_probability, rows, found.max_probability),
        significant=_with_rows(before.significant, rows, found.significant),
    )


@dataclass(frozen=True)
class ManifoldStep:
    """What one iteration does."""

    number: int  # from 1
    total: int
    rings: int  # on which images are compared
    refines: bool  # whether poses move before


@dataclass(frozen=True)
class Plan:
    """The schedule of a run, and how it goes about it."""

    iterations: int
    prior: ManifoldPrior
    batch: int  # images that meet the nodes at once
    pose_prior: PosePrior | None = None  # of the poses; None: they stay

    def next(self, state: ManifoldState) -> ManifoldStep | None:
        """The step after a state; None when all iterations are done."""
        number = state.number + 1
        if number > self.iterations:
            return None
        rings = ring_ramp(state.model.basis, self.iterations, state.carried.first_rings)[number - 1]
        return ManifoldStep(number, self.iterations, rings, self.refines(number))

    def refines(self, number: int) -> bool:
        """Whether poses move before iteration `number`: now and then, once the manifold has formed."""
        first = max(2, round(FIRST_REFINED * self.iterations))
        return self.pose_prior is not None and number >= first and (number - first) % REFINED_EVERY == 0


class KeepModel:
    """The policy of a manifold: maximization is all that is done to it."""

    def before(self, state: ManifoldState, step: ManifoldStep, rng: np.random.Generator) -> Manifold:
        return state.model

    def after(
        self, model: Manifold, found: Expected[Manifold, Latent], step: ManifoldStep, rng: np.random.Generator
    ) -> tuple[Manifold, Assignment, tuple[int, ...]]:
        return model, found.assignment, ()


@dataclass(frozen=True)
class ManifoldExpectation:
    """Goes over all images; raises ValueError where all nodes hold the same image."""

    images: AlignedParticles
    plan: Plan

    def __call__(
        self, state: ManifoldState, model: Manifold, step: ManifoldStep, rng: np.random.Generator, clock: Clock
    ) -> Expected[Manifold, Latent]:
        images, plan, start = self.images, self.plan, state.assignment
        if plan.pose_prior is not None and step.refines:
            moved = refined(images, model, (start.pose, state.carried.anchor), plan.pose_prior, clock)
            start = replace(start, pose=moved)
        rows, posterior, sums, gather = expected(images, model, start.pose, (plan.batch, step.rings), clock)

        def maximize() -> Manifold:
            fitted = model.maximize(sums, plan.prior, images.comm, gather)
            _ = fitted.ring_power  # made now, and counted here
            return fitted

        assignment, latent = _put(start, rows, posterior), state.carried.put(rows, posterior)
        return Expected(model, assignment, latent, images.rows, sums, maximize)


def expected(
    images: AlignedParticles, model: Manifold, pose: Pose2D, how: tuple[int, int], clock: Clock
) -> tuple[np.ndarray, NodePosterior, NodeSums, Gather | None]:
    """Rows of all ranks' images, their posterior under a model, and their sums; how = (batch, rings).

    Where nodes are thin and all images are kept, the sums are those along the rows, and what gathers the rest.
    """
    (batch, rings), comm = how, images.comm
    shares = model.shares(comm)
    nodes, low_rank = model.nodes(images.even), model.low_rank and images.all_kept
    found: list[np.ndarray] = []
    posteriors: list[NodePosterior] = []
    products: list[Tensor] = []
    total: NodeSums | None = None
    portions = Portions()

    def compared(part: AlignedImages) -> Callable[[slice], tuple[NodePosterior, NodeSums, Tensor]]:
        if low_rank:
            return lambda some: expect_thin(images.packed, nodes, part.take(some), rings)
        return lambda some: (*expect_nodes(images.packed, nodes, part.take(some), rings), part.vector.new_empty(0))

    for rows, part in images.batches(pose, batch, clock):
        with clock.counting("expectation"):
            outcomes = portions.each(compared(part), len(part))
            for posterior, sums, first in outcomes:
                total = sums.double() if total is None else total.include(sums)
                posteriors.append(posterior)
                products.append(first)
            found.append(rows)
        images.images.progress(len(rows))
    assert total is not None
    rows, posterior, first = np.concatenate(found), NodePosterior.joined(posteriors), torch.cat(products)
    if comm.size > 1:
        with clock.counting("communication"):
            total = comm.sum(total.light()).double() if low_rank else shares.together(total)
            rows, posterior = comm.all_gather((rows, posterior))

    def gather(design: Tensor) -> Tensor:
        """Z' S of all ranks, this one's rings: a second look at the images."""
        done, sums = 0, torch.zeros(design.shape[1], images.packed.d, dtype=torch.float64, device=design.device)

        def again(part: AlignedImages, along: Tensor) -> Callable[[slice], Tensor]:
            return lambda some: gathered(images.packed, nodes, part.take(some), along[some], rings, design)

        for _, part in images.batches(pose, batch, clock):
            with clock.counting("expectation"):
                for each in portions.each(again(part, first[done : done + len(part)]), len(part)):
                    sums += each
            done += len(part)
        with clock.counting("communication"):
            return shares.deal(sums)

    return rows, posterior, total, gather if low_rank else None

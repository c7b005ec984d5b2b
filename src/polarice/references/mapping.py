"""The loop of a manifold: expect, sum, maximize, yield."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from polarice.align.images import Clock
from polarice.align.loop import changes
from polarice.align.portions import Portions
from polarice.references.aligned import AlignedImages
from polarice.references.manifold import Manifold, ManifoldPrior, ring_ramp
from polarice.references.nodes import NodePosterior, NodeSums, expect_nodes, expect_thin, gathered
from polarice.references.posed import PosedImages
from polarice.references.refine import Freedom, refined
from polarice.references.subspace import Gather
from polarice.types import Assignment, Pose2D

FIRST_REFINED, REFINED_EVERY = 0.3, 2  # share of the iterations after which poses may move, and how often


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

    def put(self, rows: np.ndarray, found: NodePosterior) -> Placement:
        """A placement of its own, with what was found of these rows."""

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
    anchor: Pose2D  # where the poses were at first


@dataclass(frozen=True)
class MapTurn:
    """One iteration's outcome."""

    state: MapState
    sums: NodeSums
    rings: int  # on which images were compared
    log_likelihood: float  # mean over the particles, of this number of rings
    log_posterior: float  # of all, under the model that they met, see `Manifold.log_posterior`
    max_probability: float
    changed: tuple[float, float, float]  # share of changed nodes, median change of psi (deg) and of the shift (px)
    clock: Clock


@dataclass(frozen=True)
class Plan:
    """How a run goes about it."""

    iterations: int
    prior: ManifoldPrior
    batch: int  # images that meet the nodes at once
    freedom: Freedom | None = None  # of the poses; None: they stay

    def refines(self, number: int) -> bool:
        """Whether poses move before iteration `number`: now and then, once the map has formed."""
        first = max(2, round(FIRST_REFINED * self.iterations))
        return self.freedom is not None and number >= first and (number - first) % REFINED_EVERY == 0


def fit(images: PosedImages, state: MapState, plan: Plan) -> Iterator[MapTurn]:
    """Go on from `state` to the end of the plan; raises ValueError where all nodes hold the same image.

    Every rank places its part of the images, and knows what all have found.
    """
    ramp = ring_ramp(images.basis, plan.iterations, state.first_rings)
    for number in range(state.number + 1, plan.iterations + 1):
        clock, model, before = Clock(), state.model, state.placement
        start = before
        if plan.freedom is not None and plan.refines(number):
            moved = refined(images, model, (before.pose, state.anchor), plan.freedom, clock)
            start = replace(before, assignment=replace(before.assignment, pose=moved))
        placement, sums, gather = expected(images, model, start, (plan.batch, ramp[number - 1]), clock)
        since, counted = time.perf_counter(), sum(clock.seconds.values())
        fitted = model.maximize(sums, plan.prior, images.comm, gather)
        _ = fitted.ring_power  # made now, and counted here
        clock.add("maximization", since + sum(clock.seconds.values()) - counted)  # less what `gather` took
        state = replace(state, number=number, model=fitted, placement=placement)
        count = float(sums.group_count.sum())
        yield MapTurn(
            state=state,
            sums=sums,
            rings=ramp[number - 1],
            log_likelihood=float(sums.log_likelihood) / count,
            log_posterior=model.log_posterior(sums, plan.prior),
            max_probability=float(sums.max_probability) / count,
            changed=changes(before.pose, placement.pose, images.rows),
            clock=clock,
        )


def expected(
    images: PosedImages, model: Manifold, before: Placement, how: tuple[int, int], clock: Clock
) -> tuple[Placement, NodeSums, Gather | None]:
    """The placement of all ranks' images under a model, and their sums; how = (batch, rings).

    Where nodes are thin and all images are kept, the sums are those along the rows, and what gathers the rest.
    """
    (batch, rings), comm = how, images.comm
    shares = model.shares(comm)
    nodes, thin = model.nodes(images.even), model.thin and images.all_kept
    found: list[np.ndarray] = []
    posteriors: list[NodePosterior] = []
    products: list[Tensor] = []
    total: NodeSums | None = None
    portions = Portions()

    def compared(part: AlignedImages) -> Callable[[slice], tuple[NodePosterior, NodeSums, Tensor]]:
        if thin:
            return lambda some: expect_thin(images.triangle, nodes, part.take(some), rings)
        return lambda some: (*expect_nodes(images.triangle, nodes, part.take(some), rings), part.vector.new_empty(0))

    for rows, part in images.batches(before.pose, batch, clock):
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
            total = comm.sum(total.light()).double() if thin else shares.together(total)
            rows, posterior = comm.join((rows, posterior))

    def gather(design: Tensor) -> Tensor:
        """Z' S of all ranks, this one's rings: a second look at the images."""
        done, sums = 0, torch.zeros(design.shape[1], images.triangle.d, dtype=torch.float64, device=design.device)

        def again(part: AlignedImages, along: Tensor) -> Callable[[slice], Tensor]:
            return lambda some: gathered(images.triangle, nodes, part.take(some), along[some], rings, design)

        for _, part in images.batches(before.pose, batch, clock):
            with clock.counting("expectation"):
                for each in portions.each(again(part, first[done : done + len(part)]), len(part)):
                    sums += each
            done += len(part)
        with clock.counting("communication"):
            return shares.deal(sums)

    return before.put(rows, posterior), total, gather if thin else None

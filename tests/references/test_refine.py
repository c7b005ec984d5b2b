"""Poses that move inside the manifold's iterations: towards the truth, and with them the likelihood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from align.phantoms import Blobs, ctf_parameters, particle_images
from polarice.align.fit import fit
from polarice.align.images import Clock, ParticleImages
from polarice.align.polar import PolarBasis
from polarice.align.store import CacheBudget
from polarice.references.manifold import mapping
from polarice.references.manifold.aligned_particles import AlignedParticles
from polarice.references.manifold.component_count import pca_start
from polarice.references.manifold.latent import LatentGrid
from polarice.references.manifold.mapping import (
    KeepModel,
    ManifoldExpectation,
    ManifoldState,
    Plan,
    expected,
    first_state,
)
from polarice.references.manifold.model import Manifold, ManifoldPrior
from polarice.references.manifold.nodes import expect_nodes
from polarice.references.manifold.refine import PosePrior, refined
from polarice.types import Pose2D
from references.maps import RADIUS_PX, seen_through

BOX, N, NOISE_SD = 40, 300, 0.6
PSI_SD_DEG, SHIFT_SD_PX = 5.0, 0.6


@pytest.fixture(scope="module")
def scene() -> tuple[AlignedParticles, Pose2D, Pose2D, np.ndarray]:
    """Images of four species, their true poses, poses that are off, and the species."""
    rng = np.random.default_rng(0)
    kinds = [Blobs.random(8.0, seed) for seed in range(4)]
    species = np.arange(N) % 4
    psi, shift = rng.uniform(0, 360, N), rng.normal(0, 1, (N, 2))
    parameters = ctf_parameters(N, 500.0)
    clean = np.stack([kinds[s].image(BOX, p, t) for s, p, t in zip(species, psi, shift, strict=True)])
    images = particle_images(
        seen_through(clean, parameters) + NOISE_SD * rng.standard_normal(clean.shape), RADIUS_PX, parameters
    )
    truth = Pose2D(np.zeros(N, np.int32), psi, shift)
    off = replace(
        truth,
        psi_deg=psi + PSI_SD_DEG * rng.standard_normal(N),
        shift_px=shift + SHIFT_SD_PX * rng.standard_normal((N, 2)),
    )
    return (
        AlignedParticles(images, PolarBasis(BOX, RADIUS_PX, 14, 2.0), np.arange(N), CacheBudget()),
        truth,
        off,
        species,
    )


def blank(images: AlignedParticles) -> Manifold:
    noise = torch.full((1, BOX // 2 + 1), NOISE_SD**2, dtype=torch.float64)
    return Manifold.empty(images.basis, LatentGrid.of((4, 4)), noise, images.images.preparation.mask_fraction)


def mapped(images: AlignedParticles, pose: Pose2D, pose_prior: PosePrior | None) -> tuple[ManifoldState, float]:
    """The end of twelve iterations, and its log posterior."""
    prior = ManifoldPrior()
    subset = images.subset(images.rows, pose, Clock())
    model = pca_start(blank(images), subset, images.even, prior, 0)
    last = iterated(images, first_state(model, pose, images.basis.r_max), Plan(12, prior, 1024, pose_prior))[-1]
    return last.state, last.found.model.log_posterior(last.found.sums, prior)


def iterated(images: AlignedParticles, state: ManifoldState, plan: Plan) -> list[Any]:
    return list(fit(state, plan, ManifoldExpectation(images, plan), KeepModel()))


def off_by(pose: Pose2D, truth: Pose2D, species: np.ndarray) -> tuple[float, float]:
    """Median errors in degrees and pixels; every species may have moved as a whole."""
    z = np.exp(1j * np.deg2rad(pose.psi_deg - truth.psi_deg))
    vector = (pose.shift_px - truth.shift_px) @ np.array([1, 1j]) * np.exp(-1j * np.deg2rad(truth.psi_deg))
    for kind in np.unique(species):
        mine = species == kind
        z[mine] *= np.exp(-1j * np.angle(z[mine].mean()))
        vector[mine] -= np.median(vector[mine].real) + 1j * np.median(vector[mine].imag)
    return float(np.median(np.abs(np.rad2deg(np.angle(z))))), float(np.median(np.abs(vector)))


def test_poses_come_nearer_to_the_truth_and_explain_more(scene):
    images, truth, off, species = scene
    moved, free = mapped(images, off, PosePrior(PSI_SD_DEG, SHIFT_SD_PX))
    stayed, fixed = mapped(images, off, None)
    before, after = off_by(off, truth, species), off_by(moved.pose, truth, species)
    assert before[0] > 3 and before[1] > 0.5
    assert after[0] < 0.7 * before[0] and after[1] < 0.7 * before[1], (before, after)
    assert free > fixed + N  # more than one unit of log likelihood for each image
    assert np.array_equal(stayed.pose.psi_deg, off.psi_deg)
    assert np.array_equal(off.psi_deg, moved.carried.anchor.psi_deg)


def test_true_poses_stay_near_the_truth(scene):
    images, truth, _, species = scene
    moved, _ = mapped(images, truth, PosePrior(PSI_SD_DEG, SHIFT_SD_PX))
    angle, shift = off_by(moved.pose, truth, species)
    assert angle < 2.5 and shift < 0.35


def test_a_sweep_never_lowers_the_posterior(scene):
    """The model stays, the poses move: log likelihood less the prior's cost, of all images together."""
    images, _, off, _ = scene
    prior, pose_prior = ManifoldPrior(), PosePrior(PSI_SD_DEG, SHIFT_SD_PX)
    model = pca_start(blank(images), images.subset(images.rows, off, Clock()), images.even, prior, 0)
    pose, values = off, []
    for _ in range(4):
        _, _, sums, _ = expected(images, model, pose, (1024, images.basis.r_max), Clock())
        away = ((pose.psi_deg - off.psi_deg) / pose_prior.psi_sd_deg) ** 2
        cost = away.sum() + ((pose.shift_px - off.shift_px) ** 2).sum() / pose_prior.shift_sd_px**2
        values.append(model.log_posterior(sums, prior) - 0.5 * cost)
        before = pose.psi_deg.copy()
        moved = refined(images, model, (pose, off), pose_prior, Clock())
        assert np.array_equal(before, pose.psi_deg)  # no argument is changed
        pose = moved
    assert values[1] > values[0] + 0.5 * N
    assert np.diff(values).min() > -0.01 * N
    assert np.abs(pose.psi_deg - off.psi_deg).max() <= 2 * pose_prior.psi_sd_deg + 1e-9


def test_streamed_chunks_are_the_kept_ones(scene):
    images, _, off, _ = scene
    small: ParticleImages = images.images
    streamed = AlignedParticles(small, images.basis, images.rows, CacheBudget(0))
    for (rows, a), (again, b) in zip(
        images.batches(off, 256, Clock()), streamed.batches(off, 256, Clock()), strict=True
    ):
        assert np.array_equal(rows, again)
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in vars(b))


def test_where_memory_is_short_images_meet_the_nodes_in_halves(scene, monkeypatch):
    """And are posed in halves: the sums of what failed are not added."""
    images, _, off, _ = scene
    model = pca_start(blank(images), images.subset(images.rows, off, Clock()), images.even, ManifoldPrior(), 0)
    how = (256, images.basis.r_max)
    _, whole, sums, _ = expected(images, model, off, how, Clock())
    seen: dict[str, list[int]] = {"expect_nodes": [], "sample": []}

    def short(of_images: Callable[..., Any]) -> Callable[..., Any]:
        def short_of_memory(*args: Any, **kwargs: Any) -> Any:
            result = of_images(*args, **kwargs)
            count = len(args[2] if of_images is expect_nodes else args[1])
            seen[of_images.__name__].append(count)
            if count > (100 if of_images is expect_nodes else 20):
                raise torch.OutOfMemoryError("no room")
            return result

        return short_of_memory

    monkeypatch.setattr(mapping, "expect_nodes", short(expect_nodes))
    monkeypatch.setattr(PolarBasis, "sample", short(PolarBasis.sample))
    streamed = AlignedParticles(images.images, images.basis, images.rows, CacheBudget(0))
    _, halved, sums_halved, _ = expected(streamed, model, off, how, Clock())
    assert seen == {"expect_nodes": [256, 128, 64, 64, 64, 64, 44], "sample": [1, 32, *[16] * 18, 12]}
    assert torch.equal(halved.node_of, whole.node_of)
    torch.testing.assert_close(sums_halved.numerator, sums.numerator, rtol=1e-4, atol=1e-4)
    assert float(sums_halved.group_count.sum()) == N


def test_images_kept_or_streamed_give_the_same_map_of_few_ways(scene):
    """Kept ones are looked at twice, for the rows alone; streamed ones once, for all nodes. More batches than one."""
    images, pose, _, _ = scene
    streamed = AlignedParticles(images.images, images.basis, images.rows, CacheBudget(0))
    assert images.all_kept and not streamed.all_kept
    start = pca_start(blank(images), images.subset(images.rows, pose, Clock()), images.even, ManifoldPrior(), 0).cut(3)
    plan = Plan(3, ManifoldPrior(), 100)
    turns = [iterated(each, first_state(start, pose, 4), plan) for each in (images, streamed)]
    for kept, other in zip(*turns, strict=True):
        one, two = kept.state, other.state
        assert kept.found.sums.numerator.shape[1] == 4 < other.found.sums.numerator.shape[1]
        assert np.mean(one.pose.class_of == two.pose.class_of) > 0.99
        moved = (two.model.dense - start.dense).abs().max()
        assert (one.model.dense - two.model.dense).abs().max() < 1e-3 * moved
        a, b = (each.found.model.log_posterior(each.found.sums, plan.prior) for each in (kept, other))
        assert a == pytest.approx(b, abs=0.1)  # a sum over 300 images
    assert all(kept.clock.seconds["maximization"] >= 0 for kept in turns[0])

"""Maps of few ways of varying, against systems written out in full, and against the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from align.phantoms import Blobs
from polarice.cluster import SERIAL
from polarice.references.manifold import subspace
from polarice.references.manifold.component_count import pca_start
from polarice.references.manifold.model import ManifoldPrior
from polarice.references.manifold.nodes import expect_nodes, expect_thin, gathered, log_weights
from polarice.references.starts import from_pca
from polarice.simulation.score import adjusted_rand_index
from references.maps import PosedSet, climbed, expected, on_arc, posed_set, problem

FIXED = ManifoldPrior(learn_tau2=False, equal_shares=1.5)
LEARNED = ManifoldPrior(equal_shares=1.5)


def arc_set(shape: int | tuple[int, ...], n: int = 150, noise_sd: float = 1.0, astigmatism_A: float = 0.0) -> PosedSet:
    rng = np.random.default_rng(0)
    return posed_set([on_arc(t) for t in rng.uniform(0, 1, n)], shape, noise_sd, astigmatism_A)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_both_steps_solve_the_equations_written_out(rank):
    """Amplitudes: one dense system of all functions and rows; rows: one for each number of an image."""
    where = arc_set((15,), n=40)
    model = from_pca(where.empty, where.aligned)
    model = model.maximize(expected(model, where.aligned)[1], ManifoldPrior()).cut(rank)
    _, sums = expected(model, where.aligned)
    held, old, grid = model._held(sums), model._rows, model.grid
    numerator = sums.numerator.double()
    seen = subspace.Weighted(numerator @ old.rows.T, lambda design: design.T @ numerator)
    new, variance, product = subspace.improved(grid, model.shares(SERIAL), held, seen, old)

    phi, of = grid.phi, model.packed.ring_of
    power, penalty = held.power[:, of], held.penalty[of]
    free = torch.ones(grid.m, dtype=torch.float64)
    free[0] = 0
    system = torch.einsum("km,kd,kn,ad,bd->manb", phi, power, phi, old.rows, old.rows)
    system += torch.einsum("mn,d,ad,bd->manb", torch.diag(free), penalty, old.rows, old.rows)
    right = phi.T @ (numerator - power * old.mean) @ old.rows.T
    truth = torch.linalg.solve(system.reshape(grid.m * rank, -1), right.reshape(-1)).view(grid.m, rank)
    assert (phi @ (new.amplitudes - truth)).abs().max() < 1e-3 * (phi @ truth).abs().max()

    design = torch.cat([torch.ones(grid.k, 1, dtype=torch.float64), phi @ new.amplitudes], dim=1)
    tied = torch.block_diag(torch.zeros(1, 1, dtype=torch.float64), new.amplitudes[1:].T @ new.amplitudes[1:])
    systems = torch.einsum("ka,kd,kb->dab", design, power, design) + penalty[:, None, None] * tied
    rows = torch.linalg.solve(systems, (design.T @ numerator).T)
    found = torch.cat([new.mean[None], new.rows]).T
    torch.testing.assert_close(found, rows, rtol=0, atol=1e-6 * float(rows.abs().max()))
    trace = torch.einsum("dab,ba->d", torch.linalg.inv(systems), tied) / (grid.m - 1)
    firsts = torch.from_numpy(model.packed.bounds[:-1])
    torch.testing.assert_close(variance, trace[firsts], rtol=1e-6, atol=0)
    torch.testing.assert_close(
        product, model.packed.ring_sums((numerator * (design @ found.T)).sum(dim=0)), rtol=1e-8, atol=1e-8
    )
    error = torch.einsum("ka,dab,kb->kd", design, torch.linalg.inv(systems), design)[:, firsts]
    torch.testing.assert_close(subspace.variance(grid, held, new), error, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(15,), (4, 5), (3, 3, 3), (170,)])
@pytest.mark.parametrize("rank", [4])
def test_penalised_log_likelihood_does_not_fall(shape, rank):
    where = arc_set(shape)
    model, history = climbed(from_pca(where.empty, where.aligned).cut(rank), where.aligned, 9, FIXED)
    gained = np.diff(history)
    assert gained[0] > 10 and model.rank == rank
    assert gained.min() > -1e-5 * (history[-1] - history[0])
    assert torch.linalg.matrix_rank(model.dense[1:], rtol=1e-9) == rank


@pytest.mark.parametrize("rings", [9, None])
@pytest.mark.parametrize("groups", [1, 2])
def test_rows_alone_give_the_same_map(groups, rings):
    """Weights, posterior and sums of thin factors, and what maximization makes of them, as with whole nodes."""
    where = problem(48, 1500.0, n=12, groups=groups)
    model = where.model.cut(2)
    nodes, images, packed = model.nodes(where.even), where.aligned, where.model.packed
    whole = replace(nodes, vector=model.vectors, factors=None)
    low_rank, plain = (log_weights(packed, each, images, rings) for each in (nodes, whole))
    assert (low_rank - plain).abs().max() < 1e-5 * float(np.ptp(plain.numpy(), axis=1).min())

    posterior, sums, first = expect_thin(packed, nodes, images, rings)
    at, seen = expect_nodes(packed, whole, images, rings)
    torch.testing.assert_close(posterior.latent_mean, at.latent_mean, rtol=0, atol=1e-3)
    design, rows = nodes.factors
    for ours, truth in (
        (sums.numerator, seen.numerator @ rows.T),
        (sums.denominator, seen.denominator),
        (gathered(packed, nodes, images, first, rings, design), design.T @ seen.numerator),
    ):
        assert (ours - truth).abs().max() < 1e-4 * truth.abs().max()

    found = model.maximize(
        sums.double(), FIXED, gather=lambda z: gathered(packed, nodes, images, first, rings, z).double()
    )
    truth = model.maximize(seen.double(), FIXED)
    assert (found.vectors - truth.vectors).abs().max() < 1e-3 * (truth.vectors - model.vectors).abs().max()
    torch.testing.assert_close(found.noise_power, truth.noise_power, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.ring_power, found.packed.ring_sums(found.vectors.square()), rtol=1e-4, atol=0)


def test_a_cut_keeps_what_varies_most():
    where = arc_set((15,), n=60)
    model = from_pca(where.empty, where.aligned)  # linear in its one component
    torch.testing.assert_close(
        model.cut(1).vectors, model.vectors, rtol=0, atol=2e-3 * float(model.vectors.abs().max())
    )
    fitted = model.maximize(expected(model, where.aligned)[1], ManifoldPrior())
    whole = fitted.cut(10_000)
    assert whole.rank == fitted.grid.m - 1
    torch.testing.assert_close(whole.vectors, fitted.vectors)
    lost = [float((fitted.cut(rank).vectors - fitted.vectors).norm()) for rank in (1, 2, 4, 8)]
    assert lost == sorted(lost, reverse=True) and lost[-1] < 0.1 * lost[0]
    with pytest.raises(ValueError, match="at least one way"):
        fitted.cut(0)


def test_what_cannot_be_seen_is_not_fitted():
    """At a low signal, a map of few ways parts states better than one of all."""
    rng = np.random.default_rng(5)
    kinds = [Blobs.random(8.0, seed) for seed in range(5)]
    species = rng.integers(0, 5, 500)
    where = posed_set([kinds[s] for s in species], (30,), 2.5)
    start = pca_start(where.empty, where.aligned, where.even, ManifoldPrior(), 0)
    agreed = []
    for model in (start, start.cut(4)):
        fitted, _ = climbed(model, where.aligned, 12, LEARNED)
        node_of = expected(fitted, where.aligned)[0].node_of.numpy()
        agreed.append(adjusted_rand_index(node_of, species))
    assert agreed[1] > 1.2 * agreed[0]


def test_spread_says_how_far_the_truth_is():
    """On an arc: a curve through the coordinates says where a place on it lies on the map; within one and two standard
    deviations of that should lie 68 and 95 % of the images, and a posterior too sure or too vague would miss both."""
    rng = np.random.default_rng(0)
    place = rng.uniform(0, 1, 400)
    where = posed_set([on_arc(t) for t in place], (30,), 0.5)
    start = pca_start(where.empty, where.aligned, where.even, ManifoldPrior(), 0).cut(4)
    found = expected(climbed(start, where.aligned, 12, LEARNED)[0], where.aligned)[0]
    latent, spread = found.latent_mean[:, 0].numpy(), found.latent_sd[:, 0].numpy()
    assert abs(spearmanr(latent, place).statistic) > 0.97
    away = np.abs(latent - np.polynomial.Polynomial.fit(place, latent, 7)(place))
    away /= np.hypot(spread, 1 / 29 / np.sqrt(3))  # a node stands for what lies around it
    assert 0.6 < np.mean(away < 1) < 0.8
    assert 0.9 < np.mean(away < 2) < 0.98

"""The engine against the float64 oracle: log weights, posterior, and the averages of the sums."""

import numpy as np
import pytest
import torch

from align.scenes import Scene, engine_log_weights, run, scene
from polarice.align import expect as expect_module
from polarice.align import oracle
from polarice.references.averages import _fields

CASES = [(48, 0.0), (47, 0.0), (48, 4000.0), (47, 4000.0), (48, None), (47, None)]
CASE_NAMES = [f"box {box}, " + ("no CTF" if a is None else f"astigmatism {a:.0f} A") for box, a in CASES]


def oracle_log_weights(where: Scene) -> np.ndarray:
    """(n, shift, K, psi), with the prior on shifts, which the engine counts in too."""
    truth = oracle.log_weights(where.disc, where.masked, where.ctf_grid, where.references, where.poses, where.noise)
    return truth + where.shift_log_prior


def oracle_posterior(where: Scene, class_log_prior: np.ndarray) -> np.ndarray:
    return oracle.posterior(oracle_log_weights(where), class_log_prior[:, None])


@pytest.mark.parametrize(("box", "astigmatism"), CASES, ids=CASE_NAMES)
def test_log_weights_agree_with_the_oracle(box, astigmatism):
    """Measure: largest difference over all cells of an image, over the range of the oracle's. Asked: 1e-3."""
    where = scene(box, astigmatism)
    ours, truth = engine_log_weights(where), oracle_log_weights(where)
    spread = np.ptp(truth.reshape(len(truth), -1), axis=1)
    assert (spread > 40).all()  # the images tell poses apart
    worst = np.abs(ours - truth).max(axis=(1, 2, 3)) / spread
    assert worst.max() < 3e-5


def test_white_noise_differs_by_the_origin_alone():
    """Against the spectrum that does not fade: the two quadratures part at k = 0, by a constant for all poses."""
    where = scene(48, 4000.0, spectrum=lambda r_max: np.ones_like)
    ours, truth = engine_log_weights(where), oracle_log_weights(where)
    difference = ours - truth
    difference -= difference.mean(axis=(1, 2, 3), keepdims=True)
    assert np.abs(difference).max() < 3e-3 * np.ptp(truth)


@pytest.mark.parametrize(("box", "astigmatism"), CASES, ids=CASE_NAMES)
def test_posterior_agrees_with_the_oracle(box, astigmatism):
    where = scene(box, astigmatism, n=6)
    log_prior = np.log([0.3, 0.7])
    gamma = oracle_posterior(where, log_prior)
    posterior, _ = run(where, log_prior=log_prior)
    shift, reference, psi = np.unravel_index(gamma.reshape(len(gamma), -1).argmax(axis=1), gamma.shape[1:])
    whole = where.centre_px + where.search.shifts_px.numpy()[shift]
    np.testing.assert_array_equal(posterior.class_of.numpy(), reference)
    np.testing.assert_allclose(posterior.psi_rad.numpy(), where.psi_rad[psi], atol=1e-6)
    np.testing.assert_allclose(posterior.shift_px.numpy(), whole, atol=1e-6)
    np.testing.assert_allclose(posterior.max_probability.numpy(), gamma.max(axis=(1, 2, 3)), rtol=5e-3)
    np.testing.assert_array_equal(reference, np.arange(6) % 2)  # the truth


@pytest.mark.parametrize("astigmatism", [0.0, 4000.0])
@pytest.mark.parametrize("box", [48, 47])
def test_averages_agree_with_the_oracle(box, astigmatism, monkeypatch):
    """Numerator and denominator as images, inside the particle: largest difference over the range of the oracle's.

    Beyond the particle the engine drops harmonics (that is its point), so the quotient, which mixes inside and outside,
    can only be compared loosely.
    """
    monkeypatch.setattr(expect_module, "KEPT_MASS", 2.0)  # keep all of the posterior
    where = scene(box, astigmatism, n=6)
    _, sums = run(where)
    gamma = oracle_posterior(where, np.zeros(2))
    numerator, denominator = oracle.averages(where.disc, where.masked, where.ctf_at, gamma, where.poses, where.noise)
    top, bottom = _fields(where.basis, sums)
    np.testing.assert_allclose(sums.class_weight.numpy(), gamma.sum(axis=(0, 1, 3)), rtol=1e-3)
    assert inner_difference(where, top, numerator) < 5e-5
    assert inner_difference(where, bottom, denominator.astype(complex)) < 5e-5
    prior = 0.2 * denominator.max()
    assert inner_difference(where, top / (bottom + prior), numerator / (denominator + prior)) < 0.02


def inner_difference(where: Scene, field: torch.Tensor, transform: np.ndarray) -> float:
    """Largest difference of images inside the particle, over the range of the oracle's."""
    box = where.basis.box_px
    ours, truth = where.basis.to_images(field.float()).numpy(), oracle.to_images(where.disc, transform)
    x = np.arange(box) - box // 2
    inside = np.hypot(x[:, None], x) <= where.basis.radius_px
    return float(np.abs((ours - truth)[:, inside]).max() / np.ptp(truth))


def test_kept_mass_changes_sums_little(monkeypatch):
    where = scene(48, 4000.0, n=6, noise_sd=1.5)  # broad posteriors
    _, kept = run(where)
    monkeypatch.setattr(expect_module, "KEPT_MASS", 2.0)
    _, whole = run(where)
    assert torch.allclose(kept.class_weight, whole.class_weight, atol=6 * 1e-3)
    assert (kept.numerator - whole.numerator).norm() < 2e-3 * whole.numerator.norm()

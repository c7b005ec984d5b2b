"""The engine against the float64 oracle: log weights, posterior, and the averages of the sums."""

import sys

import numpy as np
import pytest
import torch

from align.scenes import Scene, scene
from polarice.align import oracle
from polarice.align.expect import expect
from polarice.references.averages import _fields

expect_module = sys.modules["polarice.align.expect"]

CASES = [(48, 0.0), (47, 0.0), (48, 4000.0), (47, 4000.0), (48, None), (47, None)]
CASE_NAMES = [f"box {box}, {'no CTF' if a is None else 'astigmatism %d A' % a}" for box, a in CASES]


def engine_log_weights(where: Scene) -> np.ndarray:
    """(n, shift, K, psi): what the engine's expectation turns into a posterior, priors left out."""
    batch = where.batch
    references, basis = where.engine_references(), where.basis
    scale = (basis.weight / where.ring_noise)[batch.optics_of]
    phases = basis.shift_phases(where.search.shifts_px)
    data = expect_module._moved_harmonics(basis, batch.field * batch.ctf * scale[:, :, None], phases)
    power = batch.ctf.square() * scale[:, :, None]
    ctf_power = expect_module._even_harmonics(power, len(references.power_conjugate))
    return expect_module.log_weights(basis, references, data, ctf_power, where.search).double().numpy()


def oracle_log_weights(where: Scene) -> np.ndarray:
    return oracle.log_weights(where.disc, where.masked, where.ctf_grid, where.references, where.poses, where.noise)


def oracle_posterior(where: Scene, log_prior: np.ndarray) -> np.ndarray:
    """With class weights and the Gaussian on whole shifts."""
    whole = where.centre_px[:, None] + where.search.shifts_px.double().numpy()
    prior = oracle.shift_log_prior(whole, where.search.shift_sigma_px)[:, :, None, None] + log_prior[:, None]
    return oracle.posterior(oracle_log_weights(where), prior)


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
    posterior, _ = expect(where.basis, where.engine_references(log_prior), where.batch, where.search, where.ring_noise)
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
    """Wiener-filtered averages in pixels, from the engine's sums and from direct sums, inside the particle."""
    monkeypatch.setattr(expect_module, "KEPT_MASS", 2.0)  # keep all of the posterior
    where = scene(box, astigmatism, n=6)
    _, sums = expect(where.basis, where.engine_references(), where.batch, where.search, where.ring_noise)
    gamma = oracle_posterior(where, np.zeros(2))
    numerator, denominator = oracle.averages(where.disc, where.masked, where.ctf_at, gamma, where.poses, where.noise)
    prior = 0.02 * denominator.max()
    truth = oracle.to_images(where.disc, numerator / (denominator + prior))
    top, bottom = _fields(where.basis, sums)
    ours = where.basis.to_images((top / (bottom + prior)).float()).numpy()
    np.testing.assert_allclose(sums.class_weight.numpy(), gamma.sum(axis=(0, 1, 3)), rtol=1e-3)
    x = np.arange(box) - box // 2
    inside = np.hypot(x[:, None], x) <= where.basis.radius_px
    assert np.abs((ours - truth)[:, inside]).max() < 1e-3 * np.ptp(truth)


def test_kept_mass_changes_sums_little(monkeypatch):
    where = scene(48, 4000.0, n=6, noise_sd=1.5)  # broad posteriors
    arguments = (where.basis, where.engine_references(), where.batch, where.search, where.ring_noise)
    _, kept = expect(*arguments)
    monkeypatch.setattr(expect_module, "KEPT_MASS", 2.0)
    _, whole = expect(*arguments)
    assert torch.allclose(kept.class_weight, whole.class_weight, atol=6 * 1e-3)
    assert (kept.numerator - whole.numerator).norm() < 2e-3 * whole.numerator.norm()

"""The averages model: what maximization recovers, what it says of the noise, and what leaves it as it was."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from align.phantoms import CPU, Blobs, ctf_parameters, optics, particle_images, unassigned
from align.scenes import PIXEL_SIZE_A, references_of
from polarice.align.expect import expect
from polarice.align.model import Prior
from polarice.align.polar import PolarBasis
from polarice.align.policy import centred
from polarice.align.schedule import shift_grid
from polarice.align.search import Search
from polarice.align.sums import Sums
from polarice.contrast_transfer import ctf_image
from polarice.fourier import centred_fft2, centred_ifft2
from polarice.references.averages import Averages
from polarice.references.snr import resolved_px
from polarice.types import Pose2D

RADIUS_PX = 12.0
FLAT = Prior(tau2_fudge=1e12)


def with_ctf(clean: np.ndarray, astigmatism_A: float | None) -> tuple[np.ndarray, object]:
    """Images (n, N, N) as a microscope shows them, and the CTF parameters."""
    if astigmatism_A is None:
        return clean, None
    parameters = ctf_parameters(len(clean), astigmatism_A, defocus_A=8000.0)
    return centred_ifft2(
        centred_fft2(clean) * ctf_image(optics(PIXEL_SIZE_A), parameters, clean.shape[-1])
    ).real, parameters


def blank(basis: PolarBasis, k: int, groups: int = 1, noise: float = 1.0, shift_sigma_px: float = 2.0) -> Averages:
    """K empty classes."""
    mask = particle_images(np.zeros((1, basis.box_px, basis.box_px)), basis.radius_px).preparation.mask_fraction
    power = torch.full((groups, basis.box_px // 2 + 1), noise, dtype=torch.float64)
    return Averages.empty(basis, k, power, shift_sigma_px, mask)


def model_of(images: np.ndarray, basis: PolarBasis) -> Averages:
    field = basis.sample(torch.from_numpy(images).float())
    return replace(blank(basis, len(images)), field=field)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def low_passed(images: np.ndarray, basis: PolarBasis) -> np.ndarray:
    """Images as the basis can hold them."""
    return basis.to_images(basis.sample(torch.from_numpy(images).float())).numpy()


@pytest.mark.parametrize("box", [47, 48])
@pytest.mark.parametrize("astigmatism", [None, 0.0, 3000.0])
def test_posed_copies_give_the_reference_back(box, astigmatism):
    """Clean turned and shifted copies, posterior all but certain: correlation and amplitude of both averages."""
    rng = np.random.default_rng(0)
    basis = PolarBasis(box, RADIUS_PX, 16, slack_px=3.0)
    blobs = [Blobs.random(8.0, seed) for seed in (1, 2)]
    truth = low_passed(np.stack([b.image(box) for b in blobs]), basis)
    n, shifts = 60, shift_grid(2.0, 1.0, np.zeros(2))
    psi = 360 / basis.n_theta * rng.integers(0, basis.n_theta, n)
    moved = shifts[rng.integers(0, len(shifts), n)]
    clean = np.stack([blobs[i % 2].image(box, psi[i], moved[i]) for i in range(n)])
    seen, parameters = with_ctf(clean, astigmatism)
    images = particle_images(seen, RADIUS_PX, parameters)
    field = images.fields(basis, images.source.images, np.zeros((n, 2)))
    batch = images.polar(basis, np.arange(n), field, np.zeros((n, 2)), np.zeros((n, 2)))
    model = blank(basis, 2, noise=1e-3)
    field = basis.sample(torch.from_numpy(np.stack([b.image(box) for b in blobs])).float())
    references = references_of(basis, field, images.even_harmonics(basis), torch.zeros(2))
    search = Search.over(basis, torch.from_numpy(shifts).float(), basis.n_theta, 2.0)
    posterior, sums = expect(basis, references, batch, search, model.ring_noise)
    np.testing.assert_array_equal(posterior.class_of.numpy(), np.arange(n) % 2)
    np.testing.assert_allclose(posterior.shift_px.numpy(), moved, atol=1e-6)
    found = model.maximize(sums, Prior()).images().numpy()
    for average, reference in zip(found, truth, strict=True):
        assert correlation(average, reference) > 0.998
        assert float((average * reference).sum() / (reference**2).sum()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("levels", [(1.0,), (1.0, 2.0)])
@pytest.mark.parametrize("known", [True, False], ids=["noise known", "noise guessed"])
def test_noise_of_pure_noise(levels, known):
    """White noise of variance v gives v, with one optics group (within 3 %) and with two (10 %)."""
    box, n = 48, 600
    rng, groups = np.random.default_rng(1), len(levels)
    sd = np.sqrt(np.array(levels))[np.arange(n) % groups]
    images = particle_images(rng.standard_normal((n, box, box)) * sd[:, None, None], RADIUS_PX, None, groups)
    basis = PolarBasis(box, RADIUS_PX, 16, slack_px=2.0)
    model = blank(basis, 2, groups, noise=1.0 if known else 1.5)
    if known:
        model = replace(model, noise_power=torch.tensor(levels, dtype=torch.float64)[:, None].expand(-1, 25).clone())
    field = images.fields(basis, images.source.images, np.zeros((n, 2)))
    batch = images.polar(basis, np.arange(n), field, np.zeros((n, 2)), np.zeros((n, 2)))
    search = Search.over(basis, torch.from_numpy(shift_grid(1.0, 1.0, np.zeros(2))).float(), basis.n_theta, 2.0)
    _, sums = expect(basis, model.references(1), batch, search, model.ring_noise)
    noise = model.maximize(sums, Prior()).ring_noise.double().numpy()
    rings = np.arange(1, basis.r_max + 1)
    mean = (noise * rings).sum(axis=1) / rings.sum()
    np.testing.assert_allclose(mean, levels, rtol=0.03 if groups == 1 else 0.1)
    assert np.abs(noise / np.array(levels)[:, None] - 1)[:, 3:].max() < 0.15  # no shell is far off


def test_signal_is_told_from_noise():
    """Aligned copies in noise of variance 1: the noise comes out at 1, and the SSNR at that of the truth."""
    box, n, rng = 48, 500, np.random.default_rng(2)
    basis = PolarBasis(box, RADIUS_PX, 16)
    truth = Blobs.random(8.0, 3).image(box)
    seen = truth + rng.standard_normal((n, box, box))
    images = particle_images(seen, RADIUS_PX)
    field = images.fields(basis, images.source.images, np.zeros((n, 2)))
    batch = images.polar(basis, np.arange(n), field, np.zeros((n, 2)), np.zeros((n, 2)))
    member = torch.ones(1, n)
    model = blank(basis, 1)
    scale = (basis.weight / model.ring_noise)[batch.optics_of][:, :, None]
    data, power = basis.harmonics(batch.field * scale), (batch.ctf.square() * scale).sum(dim=2)
    sums = Sums.of_batch(
        batch.field,
        batch.ctf,
        (batch.optics_of, 1),
        numerator=torch.einsum("bi,irq->qrb", member.to(data.dtype), data),
        denominator=torch.einsum("bi,ir->rb", member, power)[None].to(torch.complex64),
        class_weight=member.sum(dim=1),
    )
    found = model.maximize(sums, Prior())
    noise = found.ring_noise[0].double()
    assert float((noise * basis.rings).sum() / basis.rings.sum()) == pytest.approx(1, abs=0.03)
    signal = basis.sample(torch.from_numpy(truth[None]).float()).square().mean(dim=2)[0]
    expected = (signal * n / model.mask_fraction).numpy()
    strong = expected > 20
    assert strong.sum() >= 8
    smooth = np.convolve(expected, [1 / 3] * 3, "same")  # as the model does
    np.testing.assert_allclose(found.ssnr[0].numpy()[strong][1:], smooth[strong][1:], rtol=0.25)
    resolved = int(np.flatnonzero(expected < 1)[0]) if (expected < 1).any() else basis.r_max
    assert abs(float(found.resolution_px()[0]) - resolved) <= 3


@pytest.mark.parametrize("box", [47, 48])
def test_centring_moves_averages_and_poses_together(box):
    """Predicted images do not change; particles end up, on the average, at the centres of their averages."""
    rng = np.random.default_rng(6)
    basis = PolarBasis(box, RADIUS_PX, 16, slack_px=3.0)
    off = np.array([[2.5, -1.0], [-1.5, 3.0]])  # where each average has its particle
    images = np.stack([Blobs.random(6.0, s).image(box, 0, t) for s, t in zip((1, 2), off, strict=True)])
    model = model_of(images, basis)
    n, truth = 60, rng.normal(0, 0.5, (60, 2))  # where the particles are
    class_of, psi = np.arange(n) % 2, rng.uniform(0, 360, n)
    shift = truth - turned(off[class_of], psi)
    pose = Pose2D(class_of.astype(np.int32), psi, shift.copy())
    pose.class_of[-1] = -1
    moved, after = centred(model, replace(unassigned(n), pose=pose), np.arange(n - 1))
    first, second = predicted(model, pose), predicted(moved, after.pose)
    assert (first - second).abs().max() < 2e-3 * first.abs().max()
    left = [turned(after.pose.shift_px, -psi)[:-1][class_of[:-1] == c].mean(axis=0) for c in (0, 1)]
    assert np.abs(left).max() < 0.2 * np.abs(off).max()  # a class of 30 goes at least 80 % of the way
    np.testing.assert_array_equal(after.pose.shift_px[-1], shift[-1])
    np.testing.assert_array_equal(pose.shift_px, shift)


def turned(vectors: np.ndarray, angle_deg: np.ndarray) -> np.ndarray:
    """(n, 2) x, y turned by (n,) angles from x towards y."""
    flat = vectors @ [1, 1j] * np.exp(1j * np.deg2rad(angle_deg))
    return np.stack([flat.real, flat.imag], axis=1)


def predicted(model: Averages, pose: Pose2D) -> torch.Tensor:
    """(n, N, N): Shift(+t) Rotate(+psi) of each assigned particle's average, through its harmonics."""
    basis, known = model.basis, np.flatnonzero(pose.class_of >= 0)
    spectrum = torch.fft.rfft(model.field[torch.from_numpy(pose.class_of[known].astype(np.int64))])
    q = torch.arange(spectrum.shape[-1])
    psi = torch.from_numpy(np.deg2rad(pose.psi_deg[known])).float()
    turned = torch.fft.irfft(spectrum * torch.exp(-1j * psi[:, None, None] * q), n=basis.n_theta)
    phases = basis.shift_phases(-torch.from_numpy(pose.shift_px[known]))
    return basis.to_images(basis.unshift(turned, phases))


@pytest.mark.parametrize("larger", [(20, 3.0), (16, 8.0)])
def test_a_larger_basis_and_back_is_the_identity(larger):
    basis = PolarBasis(48, RADIUS_PX, 16, slack_px=3.0)
    model = model_of(np.stack([Blobs.random(8.0, s).image(48) for s in (1, 2)]), basis)
    model = replace(model, field=basis.field(basis.harmonics(model.field)), tau2=torch.rand(2, 16).double())
    wide = replace(basis, r_max=larger[0], slack_px=larger[1])
    up = model.on(wide)
    back = up.on(basis)
    assert (back.field - model.field).abs().max() < 1e-6 * model.field.abs().max()
    assert torch.equal(back.tau2, model.tau2) and torch.equal(back.noise_power, model.noise_power)
    held = up.field[:, :16].square().mean(dim=2) / model.field.square().mean(dim=2)
    assert (held - 1).abs().max() < 1e-5 and not up.field[:, 16:].any()


def test_split_tells_copies_apart_and_leaves_singletons():
    basis = PolarBasis(48, RADIUS_PX, 16)
    model = model_of(np.stack([Blobs.random(8.0, s).image(48) for s in (1, 2)]), basis)
    model = replace(
        model,
        weights=torch.tensor([0.6, 0.4], dtype=torch.float64),
        log_prior=torch.tensor([0.3, -0.3], dtype=torch.float64),
        error=torch.full((2, 16), 0.04, dtype=torch.float64),
        ssnr=torch.full((2, 16), 3.0, dtype=torch.float64),
    )
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 16, basis.n_theta)))
    split = model.split(torch.tensor([0, 1, 0]), noise)
    assert torch.equal(split.field[1], model.field[1])
    width = 0.2 * 3 / 4
    torch.testing.assert_close((split.field[0] - model.field[0]).double(), width * noise[0], rtol=1e-4, atol=1e-5)
    assert (split.field[0] - split.field[2]).std() == pytest.approx(width * math.sqrt(2), rel=0.1)
    torch.testing.assert_close(split.weights, torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64))
    torch.testing.assert_close(split.log_prior, torch.tensor([0.2, -0.4, 0.2], dtype=torch.float64))  # mean 0


# -- what maximization makes of sums that were made by hand -----------------------------------------------------------


def hand_made(basis: PolarBasis, power: torch.Tensor, weight: float = 50.0, groups: int = 1) -> Sums:
    """Sums of classes whose averages have the mean square `power` (K, ring), the CTF's power summing up to `weight`."""
    k, rings = power.shape
    none = Sums.of_none((basis.n_q, 1, rings, k), groups, CPU)
    w = basis.weight.double()[:, None]
    numerator, denominator = none.numerator.clone(), none.denominator.clone()
    numerator[0] = (power.sqrt() * weight).T * w * basis.n_theta
    denominator[0] = weight * w * basis.n_theta
    ones = torch.ones(groups, rings, dtype=torch.float64)
    return replace(
        none,
        numerator=numerator,
        denominator=denominator,
        class_weight=torch.ones(k, dtype=torch.float64),
        image_power=weight * ones,
        ctf_power=weight * ones,
        group_count=torch.full((groups,), weight, dtype=torch.float64),
    )


def test_classes_are_pulled_towards_equal_occupancy_step_by_step():
    """log prior -= balance * log(K * weight), about a mean of 0; an empty class counts as 1/50 of an equal one."""
    basis = PolarBasis(48, RADIUS_PX, 8)
    shares = torch.tensor([30.0, 10.0, 8.0, 0.0], dtype=torch.float64)
    sums = replace(hand_made(basis, torch.ones(4, 8).double()), class_weight=shares)
    step = 0.5 * torch.tensor([2.5, 10 / 12, 8 / 12, 0.02], dtype=torch.float64).log()
    step -= step.mean()
    model = blank(basis, 4)
    for times in (1, 2, 3):
        model = model.maximize(sums, Prior(occupancy_penalty=0.5))
        torch.testing.assert_close(model.log_prior, -times * step)
    for _ in range(100):
        model = model.maximize(sums, Prior(occupancy_penalty=0.5))
    assert model.log_prior.max() == 30.0 and model.log_prior.min() == -30.0  # exp of more is of no use
    learned = model.maximize(sums, Prior())
    torch.testing.assert_close(learned.weights, shares / 48)
    torch.testing.assert_close(learned.log_prior[:3], (shares / 48).log()[:3])
    assert learned.log_prior[3] < -20


def test_the_prior_holds_an_average_down_by_its_signal_to_noise_ratio():
    """A = num / (den + f / tau^2), tau^2 = T * SSNR * f / den: an average shrinks by T SSNR / (T SSNR + 1)."""
    basis = PolarBasis(48, RADIUS_PX, 12)
    model = blank(basis, 1)
    error = model.mask_fraction / 50.0
    for ratio, fudge in ((4.0, 2.0), (4.0, 0.5), (0.25, 1.0)):
        power = torch.full((1, 12), error * (1 + ratio), dtype=torch.float64)
        found = model.maximize(hand_made(basis, power), Prior(tau2_fudge=fudge))
        torch.testing.assert_close(found.ssnr, torch.full((1, 12), ratio, dtype=torch.float64))
        torch.testing.assert_close(found.error, torch.full((1, 12), error, dtype=torch.float64))
        weight_floor = torch.full((12,), ratio, dtype=torch.float64)
        weight_floor[: 4 if ratio < 1 else 12] = max(ratio, 1.0)  # three rings beyond the first, which always counts
        shrunk = fudge * weight_floor / (fudge * weight_floor + 1)
        held = found.field[0].square().mean(dim=1).sqrt().double() / power[0].sqrt()
        torch.testing.assert_close(held, shrunk, rtol=1e-5, atol=0)
        floored = model.maximize(hand_made(basis, power), Prior(tau2_fudge=fudge, min_ssnr=9.0))
        assert floored.field.square().mean().sqrt() / power.mean().sqrt() == pytest.approx(9 * fudge / (9 * fudge + 1))


def test_rings_without_signal_are_nothing():
    """Not nearly nothing: products of numbers like 1e-30 with images are denormal, and slow."""
    basis = PolarBasis(48, RADIUS_PX, 12)
    model = blank(basis, 1)
    power = torch.full((1, 12), 0.5 * model.mask_fraction / 50.0, dtype=torch.float64)  # half of what noise leaves
    found = model.maximize(hand_made(basis, power), Prior(tau2_fudge=2.0))
    assert (found.field[0, :4] != 0).any(dim=1).all()  # granted
    assert (found.field[0, 4:] == 0).all() and (found.references(1).conjugate[:, 4:] == 0).all()


def test_the_width_of_the_shift_prior_is_that_of_one_coordinate():
    """100 particles, sum of |t|^2 = 1800 px^2: 3 px in x and in y; never less than asked for."""
    basis = PolarBasis(48, RADIUS_PX, 8)
    sums = hand_made(basis, torch.ones(2, 8).double())
    sums = replace(sums, class_weight=sums.class_weight * 50, squared_shift=torch.tensor(1800.0).double())
    assert blank(basis, 2).maximize(sums, Prior()).shift_sigma_px == pytest.approx(3.0)
    assert blank(basis, 2).maximize(sums, Prior(min_shift_sigma_px=4.0)).shift_sigma_px == 4.0


def test_each_group_keeps_its_own_noise():
    """What is explained is shared out in units of each group's noise, by its CTF power; without images, as it was."""
    basis = PolarBasis(48, RADIUS_PX, 8)
    model = blank(basis, 1, groups=3)
    fraction, signal, noise = model.mask_fraction, 4.0, torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    model = replace(model, noise_power=noise[:, None].expand(3, 25).clone())
    n, ctf = torch.tensor([100.0, 400.0, 0.0], dtype=torch.float64), torch.tensor([0.8, 0.3, 0.0]).double()
    weight = float((n * ctf / noise).sum())
    sums = replace(
        hand_made(basis, torch.full((1, 8), signal).double(), weight, groups=3),
        image_power=(n * (ctf * signal + fraction * noise))[:, None].expand(3, 8),
        ctf_power=(n * ctf)[:, None].expand(3, 8),
        group_count=n,
    )
    found = model.maximize(sums, FLAT)
    torch.testing.assert_close(found.noise_power, model.noise_power, rtol=1e-6, atol=0)


def test_what_a_held_down_average_leaves_is_noise():
    """Of images CTF * S in noise, an average a S leaves the power CTF^2 (1 - a)^2 S^2 beside it."""
    basis = PolarBasis(48, RADIUS_PX, 8)
    model, n, ctf, signal = blank(basis, 1), 100.0, 0.8, 4.0
    power = n * (ctf * signal + model.mask_fraction) * torch.ones(1, 8, dtype=torch.float64)
    sums = hand_made(basis, torch.full((1, 8), signal).double(), n * ctf)
    count = torch.tensor([n], dtype=torch.float64)
    found = model.maximize(replace(sums, image_power=power, group_count=count), Prior(tau2_fudge=1e-2))
    share = found.field.square().mean().sqrt().item() / signal**0.5
    assert 0.5 < share < 0.95
    left = 1 + ctf * (1 - share) ** 2 * signal / model.mask_fraction
    assert found.ring_noise[0].tolist() == pytest.approx([left] * 8, rel=1e-5)


def test_where_an_average_ceases_to_hold_signal():
    """The last ring before the SSNR falls below 1 for more than two rings; the first where there is none."""
    ssnr = torch.zeros(4, 12, dtype=torch.float64)
    ssnr[0, :5] = 1.0
    ssnr[1, [0, 1, 4, 7]] = 3.0  # gaps of two
    ssnr[2, [0, 1, 5, 6]] = 3.0  # a gap of three
    assert resolved_px(ssnr).tolist() == [5, 8, 2, 1]


def log_likelihood(model: Averages, sums: Sums, search: Search) -> float:
    """Whole log likelihood of the images under `model`, with what the engine leaves out: data power, normalisation.

    A ring has 2 pi r real coefficients, of which the mask leaves the share f independent; images share one grid of
    shifts around zero.
    """
    noise = model.noise_power[:, 1 : model.basis.r_max + 1]
    rings = math.pi * model.basis.rings.double()
    power = (rings * (sums.image_power / noise)).sum()
    normal = (sums.group_count[:, None] * model.mask_fraction * rings * noise.log()).sum()
    prior = -search.shifts_px.double().square().sum(dim=1) / (2 * search.shift_sigma_px**2)
    return float(sums.log_likelihood - power - normal - sums.count * prior.logsumexp(0))


@pytest.mark.parametrize("astigmatism", [None, 2000.0])
def test_log_likelihood_does_not_fall(astigmatism, monkeypatch):
    """Eight iterations of plain expectation maximization: one basis, one grid, no prior on the averages."""
    monkeypatch.setattr(sys.modules["polarice.align.expect"], "KEPT_MASS", 2.0)
    box, n, rng = 48, 80, np.random.default_rng(4)
    basis = PolarBasis(box, RADIUS_PX, 12, slack_px=3.0)
    blobs = [Blobs.random(8.0, seed, sigma_px=1.2) for seed in (5, 6)]
    clean = np.stack([blobs[i % 2].image(box, rng.uniform(0, 360), rng.normal(0, 0.8, 2)) for i in range(n)])
    seen, parameters = with_ctf(clean, astigmatism)
    images = particle_images(seen + 0.5 * rng.standard_normal(seen.shape), RADIUS_PX, parameters)
    field = images.fields(basis, images.source.images, np.zeros((n, 2)))
    batch = images.polar(basis, np.arange(n), field, np.zeros((n, 2)), np.zeros((n, 2)))
    model = blank(basis, 2, noise=0.4)
    start = torch.from_numpy(np.stack([b.image(box) + 2 * rng.standard_normal((box, box)) for b in blobs])).float()
    model = replace(model, field=basis.sample(start * images.preparation.mask(CPU)))
    shifts = torch.from_numpy(shift_grid(3.0, 1.0, np.zeros(2))).float()
    history = []
    for _ in range(8):
        search = Search.over(basis, shifts, basis.n_theta, model.shift_sigma_px)
        references = model.references(images.even_harmonics(basis))
        _, sums = expect(basis, references, batch, search, model.ring_noise)
        history.append(log_likelihood(model, sums, search))
        model = model.maximize(sums, FLAT)
    gained = np.diff(history)
    assert gained[0] > 10
    assert gained.min() > -1e-3 * (history[-1] - history[0])

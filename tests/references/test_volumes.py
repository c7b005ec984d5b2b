"""Several maps of one set of particles: one expectation and one maximization against direct float64 sums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from align.phantoms import ctf_parameters, optics, particle_images, unassigned
from polarice.align import oracle
from polarice.align.images import Clock, ParticleImages
from polarice.align.polar import PolarBasis
from polarice.align.search import Search
from polarice.align.store import CacheBudget, PolarStore
from polarice.contrast_transfer import ctf
from polarice.references.agreement import adjusted_rand, matched
from polarice.references.directions import healpix, posed_views, views_along
from polarice.references.halfmaps import VolumeSums
from polarice.references.posed_views import PosedPass
from polarice.references.slices import PAD, FourierGrid
from polarice.references.symmetry import operators
from polarice.references.views import Found, Parts, Pass, ViewGrid
from polarice.references.volumes import GRANTED_SHELLS, Volumes, random_sets
from references.maps import seen_through

BOX, RINGS, N, K, PIXEL_A = 24, 8, 6, 2, 3.0
RADIUS_PX = 9.0
SHIFTS = np.array([[0.0, 0.0], [1.0, -0.5], [-0.5, 1.0]])
WEIGHTS = np.array([0.3, 0.7])


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Density (N, N, N; z, y, x) of Gaussian blobs, and their centres (blob, 3; x, y, z from the box's centre)."""
    centres = np.random.default_rng(seed).uniform(-0.13, 0.13, (6, 3)) * BOX
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return sum(np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / (2 * 1.6**2)) for a, b, c in centres), centres


def projection(centres: np.ndarray, view: np.ndarray, shift_px: np.ndarray) -> np.ndarray:
    """(N, N) of the blobs along the third row of a view (3, 3), then shifted."""
    axis = np.arange(BOX) - BOX // 2
    places = centres @ view[:2].T + shift_px
    lines = [np.exp(-((axis[:, None] - p) ** 2) / (2 * 1.6**2)) for p in places.T]
    return (2 * np.pi * 1.6**2) ** 0.5 * lines[1] @ lines[0].T


@dataclass(frozen=True)
class Scene:
    """Images of two densities whose views lie on the grid of directions, and all that compares them."""

    images: ParticleImages
    model: Volumes
    basis: PolarBasis
    search: Search
    grid: ViewGrid
    truth: np.ndarray  # (n,) class
    view: np.ndarray  # (n,) which direction
    psi_rad: np.ndarray
    group: np.ndarray

    def parts(self, one: bool = False) -> Parts:
        """Even rows are of the first half, odd ones of the second; or all are of the first."""
        rows = np.arange(N)
        of_half = (rows, rows[:0]) if one else (rows[::2], rows[1::2])
        before = Found.of(unassigned(N), self.grid.directions[self.view])
        before.psi_deg[:] = np.degrees(self.psi_rad)
        store = PolarStore(rows, CacheBudget())
        return Parts(of_half, ((0, 1), (2, 3)), before, np.zeros((N, 2)), store)

    def run(self, one: bool = False) -> tuple[Found, VolumeSums]:
        work = Pass(self.images, self.basis, self.search, 1 << 20, 1, self.group)
        return work.run(self.model, (self.grid,) * 2, self.parts(one), Clock())

    def run_posed(self) -> tuple[Found, VolumeSums]:
        work = PosedPass(self.images, self.basis, 1 << 20, self.group)
        return work.run(self.model, (self.grid,) * 2, self.parts(), Clock())


def scene(astigmatism_A: float, symmetry: str = "C1") -> Scene:
    rng = np.random.default_rng(5)
    basis = PolarBasis(BOX, RADIUS_PX + 2.5, RINGS, 2.0)
    maps, centres = zip(*map(blobs, (1, 2)), strict=True)
    directions = healpix(0)
    truth, view = np.arange(N) % K, rng.integers(0, len(directions), N)
    turns = rng.integers(0, basis.n_theta, N)
    psi_rad = 2 * np.pi * turns / basis.n_theta
    views = [view_at(directions[v], psi) for v, psi in zip(view, psi_rad, strict=True)]
    clean = np.stack(
        [projection(centres[c], a, SHIFTS[i % 2]) for i, (c, a) in enumerate(zip(truth, views, strict=True))]
    )
    parameters = ctf_parameters(N, astigmatism_A)
    noise = 0.5 * rng.standard_normal(clean.shape)
    images = particle_images(seen_through(clean, parameters) + noise, RADIUS_PX, parameters)
    power = torch.from_numpy(oracle.fading_noise(RINGS)(np.arange(BOX // 2 + 1.0)))[None]
    begun = Volumes.begun(
        torch.from_numpy(np.stack(maps)).float(), 20.0, power, RADIUS_PX, images.preparation.mask_fraction
    )
    model = Volumes(**vars(begun) | {"weights": torch.from_numpy(WEIGHTS)})
    search = Search.over(basis, torch.from_numpy(SHIFTS).float(), basis.n_theta, model.shift_sigma_px)
    return Scene(
        images, model, basis, search, ViewGrid(0, False, directions), truth, view, psi_rad, operators(symmetry)
    )


def view_at(direction: np.ndarray, psi_rad: float) -> np.ndarray:
    """A(rot, tilt, psi) of an image that is the slice along `direction`, turned by psi in its plane."""
    rot, tilt = np.degrees(np.arctan2(direction[1], direction[0])), np.degrees(np.arccos(direction[2]))
    return posed_views(np.array([rot]), np.array([tilt]), np.array([-np.degrees(psi_rad)]))[0]


@dataclass(frozen=True)
class Rings:
    """The frequencies of the basis's near half circles, as the oracle takes them."""

    box_px: int
    frequency: np.ndarray  # (ring and angle, 2)

    @property
    def radius(self) -> np.ndarray:
        return np.hypot(*self.frequency.T)

    @staticmethod
    def of(basis: PolarBasis) -> Rings:
        kx, ky = (k[:, : basis.n_theta // 2].double().numpy() for k in basis.frequency)
        return Rings(basis.box_px, np.stack([kx.ravel(), ky.ravel()], axis=1))


def slices_of(where: Scene) -> np.ndarray:
    """(class * directions, ring, angle) complex128 on the whole circle: what the engine compares images with."""
    grid, views = FourierGrid(BOX, RINGS), views_along(where.grid.directions)
    fields = torch.cat([grid.slices(grid.transform(each), where.basis, views) for each in where.model.maps])
    to_device, far = fields.double().numpy().reshape(len(fields), RINGS, 2, -1).transpose(2, 0, 1, 3)
    half = (to_device + far) / 2 + 0.5j * (to_device - far)
    return np.concatenate([half, half.conj()], axis=2)


def oracle_posterior(where: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Posterior (n, shift, class * directions, psi), and its log weights: direct sums over the points of the rings."""
    kx, ky = (k.double().numpy() for k in where.basis.frequency)
    k = np.stack([kx.ravel(), ky.ravel()], axis=1)
    data = oracle.transform_at(masked_of(where), k).reshape(N, RINGS, -1)
    seen = np.asarray(ctf(optics(PIXEL_A), where.images.particles.ctf, *(k.T / (BOX * PIXEL_A)))).reshape(data.shape)
    scale = (where.basis.weight.double().numpy() / oracle.fading_noise(RINGS)(np.arange(1.0, RINGS + 1)))[:, None]
    references = slices_of(where)
    weights = np.empty((N, len(SHIFTS), len(references), where.basis.n_theta))
    for s, shift in enumerate(SHIFTS):
        moved = (data.conj() * seen * scale) * np.exp(-2j * np.pi / BOX * (k @ shift)).reshape(data.shape[1:])
        for p in range(where.basis.n_theta):
            turned = np.roll(references, p, axis=2)
            score = np.einsum("irt,crt->ic", moved, turned, optimize=True).real
            norm = np.einsum("irt,crt->ic", seen**2 * scale, np.abs(turned) ** 2, optimize=True)
            weights[:, s, :, p] = score - norm / 2
    of_class = np.log(WEIGHTS).repeat(len(where.grid.directions))[:, None]
    of_shift = oracle.shift_log_prior(SHIFTS, where.model.shift_sigma_px)[:, None, None]
    weights = weights + of_shift + of_class
    return oracle.posterior(weights, np.zeros(1)), weights


def masked_of(where: Scene) -> np.ndarray:
    """(n, N, N) float64 images as they are compared."""
    pixels = torch.from_numpy(where.images.source.read(np.arange(N)))
    return where.images.preparation(pixels, torch.zeros(N, 2)).double().numpy()


def oracle_sums(where: Scene, gamma: np.ndarray, mates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators (class, point, point, point), every image inserted at every pose by itself."""
    rings = Rings.of(where.basis)

    def seen(frequency: np.ndarray) -> np.ndarray:
        kx, ky = frequency.T / (BOX * PIXEL_A)
        return np.asarray(ctf(optics(PIXEL_A), where.images.particles.ctf, kx, ky))

    angles = 2 * np.pi * np.arange(where.basis.n_theta) / where.basis.n_theta
    noise = oracle.fading_noise(RINGS)
    num, den = oracle.averages(rings, masked_of(where), seen, gamma, (SHIFTS, angles), noise)
    area = where.basis.weight.double().numpy().repeat(where.basis.n_theta // 2)
    reach = FourierGrid(BOX, RINGS).reach
    cubes = np.zeros((2, K, *(2 * reach + 1,) * 3), complex)
    for place, view in enumerate(np.tile(views_along(where.grid.directions), (K, 1, 1))):
        for mate in mates:
            k = PAD * rings.frequency @ (view @ mate)[:2] + reach
            for target, values in zip(cubes, (num[place] * area, den[place] * area), strict=True):
                scatter(target[place // len(where.grid.directions)], k, values)
    whole = cubes + cubes[:, :, ::-1, ::-1, ::-1].conj()
    return whole[0], whole[1].real


def scatter(cube: np.ndarray, k: np.ndarray, values: np.ndarray) -> None:
    """Add values at points k (n, 3; x, y, z), shared out to the eight corners about each."""
    first = np.floor(k).astype(int)
    rest = k - first
    for corner in np.ndindex(2, 2, 2):
        share = np.prod(np.where(corner, rest, 1 - rest), axis=1)
        x, y, z = (first + corner).T
        np.add.at(cube, (z, y, x), share * values)


@pytest.mark.parametrize(("astigmatism_A", "symmetry"), [(3000.0, "C1"), (0.0, "D2")])
def test_one_expectation_of_two_maps_is_that_of_direct_sums(astigmatism_A, symmetry):
    """Class, view, certainty and likelihood of every image, and the sums of both maps at every point of the grid."""
    where = scene(astigmatism_A, symmetry)
    found, sums = where.run()
    gamma, weights = oracle_posterior(where)
    flat, d = gamma.reshape(N, -1), len(where.grid.directions)
    assert np.array_equal(found.class_of, where.truth)
    direction = (found.direction @ where.grid.directions.T).argmax(axis=1)
    psi = np.rint(np.radians(found.psi_deg) * where.basis.n_theta / (2 * np.pi)).astype(int)
    shift = np.abs(found.shift_px[:, None] - SHIFTS).sum(axis=2).argmin(axis=1)
    there = gamma[np.arange(N), shift, found.class_of * d + direction, psi]
    np.testing.assert_allclose(there, flat.max(axis=1), rtol=0.02)  # an opposite view may be as likely as another
    np.testing.assert_allclose(found.max_probability, flat.max(axis=1), rtol=0.02)
    likelihood = np.log(np.exp(weights - weights.max()).sum(axis=(1, 2, 3))) + weights.max()
    assert np.abs(found.log_likelihood - likelihood).max() < 1e-4 * np.ptp(weights)
    share = gamma.sum(axis=(1, 3)).reshape(N, K, d).sum(axis=2)
    np.testing.assert_allclose(
        sums.weight.numpy().reshape(2, K), [share[::2].sum(axis=0), share[1::2].sum(axis=0)], atol=0.01
    )
    num, den = oracle_sums(where, gamma, where.group)
    ours = torch.complex(*sums.numerator.double().unbind(dim=1)).numpy().reshape(2, K, *num.shape[1:]).sum(axis=0)
    assert np.abs(ours - num).max() < 5e-3 * np.abs(num).max()
    ours_den = sums.denominator.double().numpy().reshape(2, K, *num.shape[1:]).sum(axis=0)
    assert np.abs(ours_den - den).max() < 5e-3 * den.max()


def test_one_maximization_is_that_of_direct_sums():
    """The map, signal and noise of each class, by direct float64 sums over the grid's points."""
    where = scene(3000.0)
    _, sums = where.run()
    grid, fudge = FourierGrid(BOX, RINGS), 4.0
    fitted = where.model.maximize(sums, grid, fudge)
    radius = grid.radius.double().numpy()
    shell = np.minimum(np.rint(radius), RINGS + 1).astype(int)
    sphere = soft(BOX, RADIUS_PX)
    for k in range(K):
        num = torch.complex(*sums.numerator[[k, K + k]].double().unbind(dim=1)).numpy()
        den = sums.denominator[[k, K + k]].double().numpy()
        one, other = (inverse(wiener(n, d, shell, None), radius) * sphere for n, d in zip(num, den, strict=True))
        fsc = shells_of(one, other) / np.sqrt(shells_of(one, one) * shells_of(other, other))
        ratio = np.clip(fsc[: RINGS + 1], 0.001, 0.999)
        ssnr = 2 * (sphere**2).mean() * ratio / (1 - ratio)
        ssnr[0] = ssnr[1]
        np.testing.assert_allclose(fitted.ssnr[k, : RINGS + 1], ssnr, rtol=2e-3)
        prior = np.maximum(fudge * ssnr, np.arange(RINGS + 1) <= fitted.shells[k].item() + GRANTED_SHELLS)
        truth = inverse(wiener(num.sum(axis=0), den.sum(axis=0), shell, prior), radius) * sphere
        assert np.abs(fitted.maps[k].numpy() - truth).max() < 1e-4 * np.abs(truth).max()
    assert float(fitted.weights.sum()) == pytest.approx(1)
    share = sums.weight.numpy().reshape(2, K).sum(axis=0)
    np.testing.assert_allclose(fitted.weights, share / share.sum())


def wiener(num: np.ndarray, den: np.ndarray, shell: np.ndarray, prior: np.ndarray | None) -> np.ndarray:
    mean = np.bincount(shell.ravel(), den.ravel()) / np.bincount(shell.ravel())
    floored = np.maximum(den, 1e-3 * mean[shell])
    if prior is not None:
        floored = floored + (mean / np.append(prior, np.inf))[shell]
    return np.where(den > 0, num / np.maximum(floored, 1e-30), 0)


def inverse(transform: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """(N, N, N) density of a transform on the padded grid, by sums along each axis; linear interpolation undone."""
    reach, x = transform.shape[0] // 2, np.arange(BOX) - BOX // 2
    wave = np.exp(2j * np.pi * np.outer(x, np.arange(-reach, reach + 1)) / (PAD * BOX))
    inside = np.where(radius <= RINGS, transform, 0)
    found = np.einsum("abc,za,yb,xc->zyx", inside, wave, wave, wave, optimize=True).real * BOX / (PAD * BOX) ** 3
    envelope = np.sinc(x / (PAD * BOX)) ** 2
    return found / (envelope[:, None, None] * envelope[:, None] * envelope)


def soft(box: int, radius: float) -> np.ndarray:
    x = np.arange(box) - box // 2
    r = np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2)
    return 0.5 + 0.5 * np.cos(np.pi * np.clip((r - radius) / 5, 0, 1))


def shells_of(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N // 2 + 1,) sums over shells of the product of two transforms."""
    k = np.fft.fftfreq(BOX, 1 / BOX)
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)).astype(int).ravel()
    return np.bincount(shell, (np.fft.fftn(one) * np.fft.fftn(other).conj()).real.ravel())[: BOX // 2 + 1]


def test_sums_of_two_halves_are_those_of_the_whole():
    where = scene(3000.0)
    (found, halves), (again, whole) = where.run(), where.run(one=True)
    assert np.array_equal(found.class_of, again.class_of)
    for name in ("numerator", "denominator", "weight", "cross", "power"):
        two, one = getattr(halves, name), getattr(whole, name)
        two, one = (each.view(2, K, *each.shape[1:]).sum(dim=0) for each in (two, one))
        assert (two - one).abs().max() < 2e-5 * one.abs().max(), name
    assert float(halves.log_likelihood) == pytest.approx(float(whole.log_likelihood), abs=1e-3)


def test_known_poses_give_what_a_search_finds():
    """Images of which hardly any noise is left choose their true pose: kept poses give the same classes and sums."""
    where = scene(3000.0)
    sharp = Volumes(**vars(where.model) | {"noise_power": where.model.noise_power / 50})
    where = Scene(**vars(where) | {"model": sharp})
    found, sums = where.run_posed()
    assert np.array_equal(found.class_of, where.truth) and found.max_probability.min() > 0.99
    assert np.array_equal(found.psi_deg, np.degrees(where.psi_rad))  # poses stay
    centred = [i for i in range(N) if i % 2 == 0]  # of the others the shift is not told to it
    searched, its = where.run()
    assert np.array_equal(searched.class_of[centred], found.class_of[centred])
    mine, theirs = (each.numerator[:K] for each in (sums, its))  # the first half: even rows
    assert (mine - theirs).abs().max() < 0.02 * theirs.abs().max()
    np.testing.assert_allclose(sums.weight[:K], its.weight[:K], atol=0.01)


def test_an_empty_class_is_left_empty():
    where = scene(0.0)
    _, sums = where.run()
    for name in ("numerator", "denominator", "weight", "cross", "power"):
        getattr(sums, name)[[1, 3]] = 0
    fitted = where.model.maximize(sums, FourierGrid(BOX, RINGS), 4.0)
    assert fitted.weights.tolist() == [1, 0] and float(fitted.maps[1].abs().max()) == 0
    assert torch.isfinite(fitted.maps).all() and fitted.shell == int(fitted.shells[0])


def test_random_sets_are_equal_halves_of_equal_classes():
    rows = np.arange(5, 105)
    found = random_sets(rows, 5, 120, np.random.default_rng(1))
    assert np.array_equal(np.unique(found, return_counts=True)[1], [20] + 10 * [10])
    assert (found[:5] == -1).all() and (found[105:] == -1).all()


def test_agreement_does_not_ask_for_names():
    one = np.repeat([0, 1, 2], 40)
    other = np.array([2, 0, 1])[one]
    assert matched(one, other, 3).tolist() == [1, 2, 0]
    assert adjusted_rand(one, other, 3) == pytest.approx(1)
    wrong = other.copy()
    wrong[:12] = 0
    named = matched(one, wrong, 3)
    assert (named[wrong] == one).mean() == pytest.approx(0.9)
    chance = np.random.default_rng(0).integers(0, 3, 120)
    assert abs(adjusted_rand(one, chance, 3)) < 0.03

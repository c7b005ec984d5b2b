"""The manifold model: against the oracle, against its own laws, and on particles whose states are known."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from align.phantoms import Blobs, particle_images
from polarice.align import oracle
from polarice.align.polar import PolarBasis
from polarice.references.manifold.aligned import AlignedImages, PackedHarmonics
from polarice.references.manifold.model import Manifold, ManifoldPrior, _probes, ring_ramp
from polarice.references.manifold.nodes import Nodes, NodeSums, expect_nodes, log_weights
from polarice.references.starts import from_averages, from_pca
from references import manifold_oracle
from references.maps import (
    RADIUS_PX,
    PosedSet,
    Problem,
    aligned,
    blank,
    climbed,
    expected,
    fitted,
    on_arc,
    posed_set,
    problem,
    true_nodes,
)

CASES = [(48, 0.0), (47, 0.0), (48, 4000.0), (47, 4000.0), (48, None), (47, None)]
CASE_NAMES = [f"box {box}, " + ("no CTF" if a is None else f"astigmatism {a:.0f} A") for box, a in CASES]
FIXED = ManifoldPrior(learn_tau2=False)


@pytest.mark.parametrize(("box", "astigmatism"), CASES, ids=CASE_NAMES)
def test_log_weights_agree_with_direct_sums_on_pixels(box, astigmatism):
    """Any angle, any shift: largest difference over the nodes of an image, over the range of the oracle's."""
    where = problem(box, astigmatism, noise=0.02)
    ours = log_weights(where.model.packed, where.model.nodes(where.even), where.aligned).double().numpy()
    disc = oracle.Disc(box, where.model.basis.r_max)
    whole = where.ctf_at(oracle.Disc(box, box).frequency).reshape(-1, box, box)
    power = where.model.noise_power[0].numpy()

    def spectrum(radius: np.ndarray) -> np.ndarray:
        return oracle.fading_noise(disc.r_max)(radius) * power[8]  # 1 at r_max / 2

    truth = np.stack(
        [
            oracle.log_weights(
                disc,
                where.masked[i : i + 1],
                whole[i : i + 1],
                where.nodes,
                (where.shift_px[i : i + 1], where.psi_rad[i : i + 1]),
                spectrum,
            )[0, 0, :, 0]
            for i in range(len(where.images))
        ]
    )
    truth += np.log(where.model.weights.numpy())
    spread = np.ptp(truth, axis=1)
    assert (spread > 40).all()  # the images tell nodes apart
    assert (np.abs(ours - truth).max(axis=1) / spread).max() < 1e-4


def oracle_fields(where: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Posed fields and CTFs; angles must be whole samples."""
    basis = where.model.basis
    steps = np.rint(where.psi_rad * basis.n_theta / (2 * np.pi)).astype(int)
    data = manifold_oracle.posed_fields(basis, where.masked, where.shift_px, steps)
    return data, manifold_oracle.turned(basis, where.ctf_at(manifold_oracle.ring_points(basis)), steps)


def in_band(basis: PolarBasis, samples: np.ndarray) -> np.ndarray:
    """Fields (..., ring, angle) with the harmonics alone that rings keep."""
    harmonics = np.fft.rfft(samples)
    harmonics[..., np.arange(harmonics.shape[-1]) > basis.harmonics_of_ring[:, None]] = 0
    return np.fft.irfft(harmonics, n=basis.n_theta)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("box", "astigmatism"), CASES, ids=CASE_NAMES)
def test_both_steps_agree_with_the_oracle(box, astigmatism, groups):
    where = problem(box, astigmatism, n=24, groups=groups, whole_turns=True)
    model, (data, ctf) = where.model, oracle_fields(where)
    posterior, sums = expected(model, where.aligned, where.even)
    grid, basis = model.grid, model.basis
    functions = manifold_oracle.phi(grid.shape, grid.functions, grid.width)
    nodes = np.einsum("km,mra->kra", functions, model.packed.field(model.coefficients).numpy())
    weights = manifold_oracle.log_weights(data, ctf, nodes, where.scale, model.weights.numpy())
    share = manifold_oracle.responsibilities(weights)

    spread = np.ptp(weights, axis=1)
    ours = log_weights(model.packed, model.nodes(where.even), where.aligned).numpy()
    assert (np.abs(ours - weights).max(axis=1) / spread).max() < 1e-4
    np.testing.assert_array_equal(posterior.node_of.numpy(), weights.argmax(axis=1))
    np.testing.assert_allclose(posterior.max_probability.numpy(), share.max(axis=1), atol=2e-3)
    mean = share @ grid.nodes.numpy()
    np.testing.assert_allclose(posterior.latent_mean.numpy(), mean, atol=2e-3)
    spread = np.sqrt(np.einsum("nk,nka->na", share, (grid.nodes.numpy() - mean[:, None]) ** 2))
    np.testing.assert_allclose(posterior.latent_sd.numpy(), spread, atol=5e-3)
    np.testing.assert_allclose(sums.node_weight.numpy(), share.sum(axis=0), atol=1e-2)

    hold = basis.weight.double().numpy() * model.mask_fraction / model.tau2.numpy()
    truth = manifold_oracle.coefficients(functions, share, (data, ctf), where.scale, hold)
    found = model.maximize(sums, FIXED)
    pictures = in_band(basis, np.einsum("km,mra->kra", functions, truth))
    assert np.abs(found.field.numpy() - pictures).max() < 1e-3 * np.abs(pictures).max()
    ours, truth = found.packed.field(found.coefficients).numpy(), in_band(basis, truth)
    assert np.abs(ours - truth).max() < 1e-3 * np.abs(truth).max()
    expected_weights = (share.sum(axis=0) + FIXED.pseudo_count) / (len(share) + grid.k * FIXED.pseudo_count)
    np.testing.assert_allclose(found.weights.numpy(), expected_weights, rtol=5e-3)
    system = np.einsum(
        "ka,kr,kb->rab", functions, np.einsum("nk,nr->kr", share, where.scale * (ctf**2).mean(2)), functions
    )
    system[:, range(1, grid.m), range(1, grid.m)] += hold[:, None]
    inverse = np.linalg.inv(system) * (model.mask_fraction * basis.weight.numpy())[:, None, None]
    error = np.einsum("ka,rab,kb->kr", functions, inverse, functions)
    np.testing.assert_allclose(model.error(sums).numpy(), error, rtol=5e-3)
    tau2 = (truth[1:] ** 2).mean(axis=(0, 2)) + np.trace(inverse[:, 1:, 1:], axis1=1, axis2=2) / (grid.m - 1)
    smooth = np.convolve(tau2, np.ones(3), "same") / np.convolve(np.ones_like(tau2), np.ones(3), "same")
    np.testing.assert_allclose(model.maximize(sums, ManifoldPrior()).tau2.numpy(), smooth, rtol=5e-3)
    if groups == 1:
        noise = manifold_oracle.noise(share, (data, ctf), pictures, model.mask_fraction)
        np.testing.assert_allclose(found.noise_power[0, 1 : basis.r_max + 1].numpy(), noise, rtol=1e-3)


def test_turning_the_image_turns_nothing_else():
    """The same particle at another pose has the same posterior: differences of log weights stay."""
    blob = Blobs.random(5.0, 1)
    where = problem(48, None)
    weights = []
    for psi, shift in ((0.0, (0.0, 0.0)), (101.7, (1.3, -2.2))):
        images = particle_images(blob.image(48, psi, shift)[None], RADIUS_PX)
        posed = aligned(images, where.model, np.deg2rad([psi]), np.array([shift]))
        weights.append(log_weights(where.model.packed, where.model.nodes(), posed).numpy()[0])
    assert np.abs(weights[0] - weights[1]).max() < 2e-3 * np.ptp(weights[0])


@pytest.mark.parametrize("astigmatism", [None, 0.0])
@pytest.mark.parametrize("shape", [(15,), (4, 5), (3, 3, 3)])
def test_penalised_log_likelihood_does_not_fall(astigmatism, shape):
    """Ten iterations; with round CTFs both steps are exact."""
    rng = np.random.default_rng(0)
    where = posed_set([on_arc(t) for t in rng.uniform(0, 1, 150)], shape, 1.0, astigmatism)
    gained = np.diff(climbed(from_pca(where.empty, where.aligned), where.aligned, 11, FIXED)[1])
    assert gained[0] > 10
    assert gained.min() > -1e-5 * gained.sum()


def test_batches_add_up_and_repeat_and_leave_their_arguments():
    where = problem(48, 4000.0, n=10, groups=2)
    model, images = where.model, where.aligned
    nodes = model.nodes(where.even)
    tensors = [t for t in (*vars(images).values(), *vars(nodes).values()) if isinstance(t, torch.Tensor)]
    before = [t.clone() for t in (*tensors, model.coefficients)]
    _, whole = expect_nodes(model.packed, nodes, images)
    _, again = expect_nodes(model.packed, nodes, images)
    first = expect_nodes(model.packed, nodes, images.take(slice(0, 3)))[1].double()
    total = first.include(expect_nodes(model.packed, nodes, images.take(slice(3, None)))[1])
    for each in fields(NodeSums):
        ours, truth = getattr(total, each.name), getattr(whole, each.name).double()
        assert torch.equal(getattr(again, each.name), getattr(whole, each.name)), each.name
        # single precision in another order: 1e-6 to 1.6e-5 on the processors seen
        assert (ours - truth).abs().max() < 3e-5 * truth.abs().max(), each.name
    one, two = (model.maximize(sums, ManifoldPrior()) for sums in (whole, again))
    assert torch.equal(one.coefficients, two.coefficients) and torch.equal(one.noise_power, two.noise_power)
    assert all(torch.equal(a, b) for a, b in zip(before, (*tensors, model.coefficients), strict=True))


@pytest.mark.parametrize("m", [9, 150])
def test_probes_find_the_trace_without_the_constant(m):
    """Exactly where functions are few, else to a tenth."""
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((m, 2 * m))
    system = torch.from_numpy(factor @ factor.T)
    system[0, 0] = 1e6
    probes = _probes(m, torch.device("cpu"))
    found, truth = float((probes * (system @ probes)).sum()), float(system.diagonal()[1:].sum())
    assert found == pytest.approx(truth, rel=1e-12 if m < 32 else 0.1)


def test_vectors_multiply_as_fields_do():
    basis = PolarBasis(47, 11.0, 15, slack_px=2.0)
    packed, rng = PackedHarmonics(basis), np.random.default_rng(0)
    vectors = torch.from_numpy(rng.standard_normal((2, packed.d)))
    field = packed.field(vectors)
    torch.testing.assert_close((field[0] * field[1]).sum(), vectors[0] @ vectors[1])
    torch.testing.assert_close(packed.vectors(basis.harmonics(field)), vectors)
    torch.testing.assert_close(packed.ring_sums(vectors), torch.stack([field_sums(packed, v) for v in vectors]))


def field_sums(packed: PackedHarmonics, vector: torch.Tensor) -> torch.Tensor:
    return torch.stack([vector[packed.ring_of == r].sum() for r in range(packed.basis.r_max)])


def test_a_larger_basis_and_back_is_the_identity():
    model = problem().model
    wide = model.on(replace(model.basis, r_max=20, slack_px=6.0))
    assert not wide.field[:, 16:].any()
    np.testing.assert_allclose(wide.field[:, :16].square().mean(2), model.field.square().mean(2), rtol=1e-4)
    back = wide.on(model.basis)
    torch.testing.assert_close(back.coefficients, model.coefficients)
    assert torch.equal(back.tau2, model.tau2)
    assert (wide.tau2 > 0).all()


def test_a_search_over_poses_may_take_the_nodes():
    """The references of `align.expect` are the nodes: same field, same squared field, same prior."""
    model = problem().model
    references = model.references(3)
    field = model.basis.field(references.conjugate.permute(2, 1, 0).conj().resolve_conj())
    torch.testing.assert_close(field, model.field)
    power = torch.fft.rfft(model.field.square())[..., :6:2]
    torch.testing.assert_close(references.power_conjugate.permute(2, 1, 0).conj().resolve_conj(), power)


def test_equal_starts_are_refused():
    where = posed_set([on_arc(0.5)] * 4, (5,), 1.0)
    with pytest.raises(ValueError, match="stay together"):
        where.empty.nodes()
    average = where.empty.basis.sample(torch.from_numpy(on_arc(0.5).image(40)).float()[None])
    with pytest.raises(ValueError, match="all the same"):
        from_averages(where.empty, average.expand(3, -1, -1), torch.full((3,), 1 / 3))
    nothing = replace(where.aligned, vector=torch.zeros_like(where.aligned.vector))
    with pytest.raises(ValueError, match="do not differ"):
        from_pca(where.empty, nothing)


def test_averages_lie_on_the_map_as_they_resemble_each_other():
    """Seven states on an arc, shuffled: the map's ends are the arc's, and each state is found where it lies."""
    empty = blank(PolarBasis(40, 11.0, 12), (15,), 1.0)
    order = np.random.default_rng(1).permutation(7)
    pictures = np.stack([on_arc(i / 6).image(40) for i in order])
    field = empty.basis.sample(torch.from_numpy(pictures).float())
    model = from_averages(empty, field, torch.full((7,), 1 / 7))
    nearest = torch.cdist(field.flatten(1), model.field.flatten(1)).argmin(dim=1).numpy()
    assert abs(rank_correlation(nearest, order)) > 0.9
    assert np.ptp(nearest) >= 8


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's: ties share their mean rank."""

    def ranks(x: np.ndarray) -> np.ndarray:
        _, place, count = np.unique(x, return_inverse=True, return_counts=True)
        return (np.cumsum(count) - 0.5 * (count - 1))[place]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


CONTINUA = pytest.mark.parametrize(("astigmatism", "noise_sd"), [(None, 1.2), (2000.0, 0.7)], ids=["no CTF", "CTF"])


def arc_set(shape: tuple[int, ...], astigmatism: float | None, noise_sd: float) -> tuple[PosedSet, np.ndarray, Nodes]:
    """400 particles with a blob anywhere on an arc, where it is in [-1, 1], and the arc itself as 41 nodes.

    The arc is nine widths of the blob long: principal components fold it. The signal's variance inside the mask is
    0.16 (no CTF) and 0.46 (before the CTF) of the noise's.
    """
    truth = np.random.default_rng(2).uniform(-1, 1, 400)
    where = posed_set([on_arc((t + 1) / 2) for t in truth], shape, noise_sd, astigmatism)
    place = np.linspace(-1, 1, 41)
    return where, truth, true_nodes(where, [on_arc((p + 1) / 2) for p in place], place[:, None])


@CONTINUA
def test_a_continuum_comes_out_in_its_order(astigmatism, noise_sd):
    """Rank correlation of the latent coordinate with the truth; the best there can be is that of the true arc."""
    where, truth, arc = arc_set((20,), astigmatism, noise_sd)
    start = from_pca(where.empty, where.aligned)
    model = fitted(start, where.aligned, 20, where.even)
    best, found, laid_out = (
        abs(rank_correlation(posterior.latent_mean[:, 0].numpy(), truth))
        for posterior, _ in (
            expect_nodes(where.empty.packed, arc, where.aligned),
            expected(model, where.aligned, where.even),
            expected(start, where.aligned, where.even),
        )
    )
    assert found > 0.92
    assert found > best - 0.04
    assert found > laid_out + 0.1
    shells = slice(1, model.basis.r_max + 1)
    ratio = model.noise_power[0, shells] / where.empty.noise_power[0, shells]
    assert float((ratio * model.basis.rings).sum() / model.basis.rings.sum()) == pytest.approx(1, abs=0.05)


@CONTINUA
def test_the_posterior_spread_is_the_error(astigmatism, noise_sd):
    """With the true arc as nodes, the latent coordinate is as far from the truth as its standard deviation says."""
    where, truth, arc = arc_set((20,), astigmatism, noise_sd)
    posterior, _ = expect_nodes(where.empty.packed, arc, where.aligned)
    error = np.abs(posterior.latent_mean[:, 0].numpy() - truth)
    spread = np.maximum(posterior.latent_sd[:, 0].numpy(), 0.5 * 2 / 40)  # the nodes are that far apart
    assert 0.9 < np.mean(error < 2 * spread) < 0.99
    assert np.sqrt(np.mean(error**2)) == pytest.approx(np.sqrt(np.mean(spread**2)), rel=0.25)


def test_few_rings_first_unfold_what_components_fold():
    """The reason for the ramp: components of all rings, compared on all from the beginning, stay in disorder."""
    where, truth, _ = arc_set((20,), 2000.0, 0.7)
    plain = from_pca(where.empty, where.aligned, where.empty.basis.r_max)
    start = from_pca(where.empty, where.aligned)
    for _ in range(20):
        plain = plain.maximize(expected(plain, where.aligned, where.even)[1], ManifoldPrior())
    stuck, found = (
        abs(rank_correlation(expected(m, where.aligned, where.even)[0].latent_mean[:, 0].numpy(), truth))
        for m in (plain, fitted(start, where.aligned, 20, where.even))
    )
    assert found > stuck + 0.1


def test_ring_ramp():
    ramp = ring_ramp(PolarBasis(128, 45.0, 50), 30)
    assert ramp == sorted(ramp)
    assert (ramp[0], ramp[17] < 50, ramp[18:]) == (2, True, [50] * 12)
    assert ring_ramp(PolarBasis(32, 12.0, 1), 1) == [1]


def purity(node_of: torch.Tensor, species: np.ndarray) -> float:
    """Share of the images that are of the species that most images of their node are of."""
    table = np.zeros((int(node_of.max()) + 1, int(species.max()) + 1))
    np.add.at(table, (node_of.numpy(), species), 1)
    return table.max(axis=1).sum() / len(species)


def test_a_mixture_comes_apart():
    """Five species on a 4 x 4 map, signal 0.07 of the noise's variance.

    Purity, against the nodes where PCA lays them out, labels dealt at random, and the true images as five nodes.
    """
    rng = np.random.default_rng(3)
    species = rng.integers(0, 5, 400)
    kinds = [Blobs.random(8.0, seed) for seed in range(5)]
    where = posed_set([kinds[s] for s in species], (4, 4), 1.5)
    start = from_pca(where.empty, where.aligned)
    model = fitted(start, where.aligned, 20)
    found, laid_out = (expected(m, where.aligned)[0].node_of for m in (model, start))
    truth = true_nodes(where, kinds, np.zeros((5, 2)))
    best = purity(expect_nodes(where.empty.packed, truth, where.aligned)[0].node_of, species)
    assert purity(found, species) > best - 0.04
    assert purity(found, species) > purity(laid_out, species) + 0.15
    assert purity(found, species) > purity(found, rng.permutation(species)) + 0.4


def test_pca_start_parts_what_differs():
    """Two species, one axis: before any iteration they lie at the two ends."""
    species = np.arange(80) % 2
    kinds = [Blobs.random(8.0, seed) for seed in (1, 2)]
    where = posed_set([kinds[s] for s in species], (6,), 1.0)
    model = from_pca(where.empty, where.aligned)
    again = from_pca(where.empty, where.aligned)
    assert torch.equal(model.coefficients, again.coefficients)
    place = expected(model, where.aligned)[0].latent_mean[:, 0].numpy()
    assert abs(place[species == 0].mean() - place[species == 1].mean()) > 0.6
    assert purity(torch.from_numpy((place > place.mean()).astype(int)), species) == 1


def test_pure_noise_is_told_from_signal():
    """A map of pure noise varies by a small part of what one of signal does (found: 0.013)."""
    nothing = Blobs(np.zeros(1), np.ones(1), np.zeros((1, 2)))
    rng = np.random.default_rng(4)
    models = []
    for particles in ([nothing] * 200, [on_arc(t) for t in rng.uniform(0, 1, 200)]):
        where = posed_set(particles, (12,), 1.5, None)
        models.append(fitted(from_pca(where.empty, where.aligned), where.aligned, 15))
    noise, signal = (varying_power(model) for model in models)
    assert noise < 0.05 * signal


def varying_power(model: Manifold) -> float:
    """Sum over Cartesian k of the variance over nodes."""
    mean = model.weights.float() @ model.vectors
    deviation = (model.vectors - mean).square() * model.basis.weight[model.packed.ring_of]
    return float(model.weights.float() @ deviation.sum(dim=1))


def test_joined_batches_are_the_whole():
    images = problem().aligned
    parts = [images.take(slice(0, 2)), images.take(torch.arange(2, 5))]
    whole = AlignedImages.joined(parts)
    assert all(torch.equal(a, b) for a, b in zip(vars(images).values(), vars(whole).values(), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_the_cpu():
    """Start, five iterations and the posterior; the components' signs are the solver's."""
    rng, device = np.random.default_rng(5), torch.device("cuda")
    where = posed_set([on_arc(t) for t in rng.uniform(0, 1, 200)], (4, 5), 1.0, 2000.0)
    start = from_pca(where.empty, where.aligned)
    on_cpu = fitted(start, where.aligned, 5, where.even)
    there = replace(
        start,
        basis=replace(start.basis, device=device),
        grid=replace(start.grid, device=device),
        **{name: getattr(start, name).to(device) for name in ("coefficients", "weights", "tau2", "noise_power")},
    )
    images = AlignedImages(*(tensor.to(device) for tensor in vars(where.aligned).values()))
    on_gpu = fitted(there, images, 5, where.even)
    torch.testing.assert_close(on_gpu.vectors.cpu(), on_cpu.vectors, rtol=1e-2, atol=1e-3 * float(on_cpu.vectors.max()))
    torch.testing.assert_close(on_gpu.noise_power.cpu(), on_cpu.noise_power, rtol=1e-3, atol=0)
    one, two = expected(on_gpu, images, where.even)[0], expected(on_cpu, where.aligned, where.even)[0]
    torch.testing.assert_close(one.latent_mean.cpu(), two.latent_mean, rtol=0, atol=1e-2)
    empty = replace(there, coefficients=torch.zeros_like(there.coefficients))
    ratio = from_pca(empty, images).vectors.cpu().norm() / start.vectors.norm()
    assert float(ratio) == pytest.approx(1, abs=1e-3)

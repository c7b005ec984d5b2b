"""Simulated particles against analytic projections, their stated statistics, and their truth."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy")
from scipy.spatial.transform import Rotation

from polarice.contrast_transfer import ctf_image
from polarice.fourier import centred_fft2, centred_grid, shell_mean, shell_of
from polarice.simulation import (
    Junk,
    Microscope,
    NoiseModel,
    Orientations,
    Simulation,
    Species,
    euler_of_quat,
    quat_of_euler,
    simulate,
)
from polarice.simulation.score import adjusted_rand_index, purity, rank_correlation
from polarice.types import InputError

NO_CTF = Microscope(ctf=False)


class Blobs:
    """Gaussian blobs (Angstrom), whose density and projections are known in closed form."""

    def __init__(self, reach_A: float, seed: int = 0, count: int = 10) -> None:
        rng = np.random.default_rng(seed)
        away = rng.normal(size=(count, 3))
        self.centre = away / np.linalg.norm(away, axis=1, keepdims=True) * reach_A * rng.uniform(0.2, 1, (count, 1))
        self.sigma, self.height = rng.uniform(5, 7, count), rng.uniform(0.5, 1, count)

    def species(self, size: int, pixel_A: float, fraction: float = 1.0) -> Species:
        axis, density = (np.arange(size) - size // 2) * pixel_A, np.zeros((size,) * 3)
        for centre, sigma, height in zip(self.centre, self.sigma, self.height, strict=True):
            x, y, z = (np.exp(-((axis - c) ** 2) / (2 * sigma**2)) for c in centre)
            density += height * z[:, None, None] * y[:, None] * x
        return Species("blobs", density.astype(np.float32), pixel_A, fraction)

    def projection(self, rotation: np.ndarray, shift_px: np.ndarray, box: int, pixel_A: float) -> np.ndarray:
        axis, image = (np.arange(box) - box // 2) * pixel_A, np.zeros((box, box))
        for centre, sigma, height in zip(self.centre @ rotation.T, self.sigma, self.height, strict=True):
            cx, cy = centre[:2] + shift_px * pixel_A
            gauss = [np.exp(-((axis - c) ** 2) / (2 * sigma**2)) for c in (cy, cx)]
            image += height * np.sqrt(2 * np.pi) * sigma * gauss[0][:, None] * gauss[1]
        return image


def small(n: int = 40, box: int = 32, **changes) -> Simulation:
    simulation = Simulation((Blobs(35).species(32, 4.0),), n, box, 4.0, shift_sigma_px=1.0)
    return replace(simulation, **changes)


@pytest.mark.parametrize(
    ("box", "pixel", "size", "voxel"), [(64, 2, 64, 2), (65, 2, 64, 2), (96, 2, 65, 2), (49, 2.6, 64, 2)]
)
def test_projections_against_gaussians(box, pixel, size, voxel):
    blobs = Blobs(40)
    simulation = small(20, box, species=(blobs.species(size, voxel),), pixel_size_A=pixel, microscope=NO_CTF)
    source = simulate(simulation)
    for row, rotation in enumerate(Rotation.from_quat(source.truth.quat).as_matrix()):
        expected = blobs.projection(rotation, source.truth.shift_px[row], box, pixel)
        assert np.linalg.norm(source.signal(row) - expected) < 0.006 * np.linalg.norm(expected)


def test_projection_along_the_axes_is_the_sum_of_voxels():
    """Identity: x, y of the image are x, y of the map. Quarter turn about x: image y is minus map z."""
    species = Blobs(30).species(32, 4.0)
    turns = Rotation.from_euler("x", [[0], [90]], degrees=True).as_quat()
    simulation = small(2, species=(species,), microscope=NO_CTF, orientations=Orientations("given", quat=turns))
    source = simulate(replace(simulation, shift_sigma_px=0.0))
    assert np.abs(source.signal(0) - 4 * species.density.sum(0)).max() < 0.01 * source.signal(0).max()
    upside_down = np.roll(4 * species.density.sum(1)[::-1], 1, axis=0)  # [-z, x]
    assert np.abs(source.signal(1) - upside_down).max() < 0.01 * source.signal(1).max()


def test_an_image_depends_on_its_row_alone():
    simulation = small(30, junk=Junk(0.2), noise=NoiseModel(0.1, exponent=1.0))
    images = simulate(simulation).read(np.arange(30))
    again = simulate(simulation, threads=3)
    assert np.array_equal(again.read(np.arange(30)[::-1])[::-1], images)
    assert np.array_equal(np.concatenate([again.read(np.array([row])) for row in range(30)]), images)
    assert np.array_equal(simulation.species[0].density, Blobs(35).species(32, 4.0).density)
    other = simulate(replace(simulation, seed=2)).read(np.arange(30))
    assert np.abs(np.corrcoef(images.ravel(), other.ravel())[0, 1]) < 0.5


def test_ctf_multiplies_the_transform():
    ctf_on = Microscope(astigmatism_A=3000, phase_shift_deg=20, bfactor_A2=50, micrographs=3)
    source, plain = simulate(small(6, microscope=ctf_on)), simulate(small(6, microscope=NO_CTF))
    assert np.array_equal(source.truth.quat, plain.truth.quat)
    for row in range(6):
        waves = ctf_image(source.optics, source.truth.ctf.take(np.array([row])), 32)[0]
        expected = centred_fft2(plain.signal(row)) * waves
        assert np.abs(centred_fft2(source.signal(row)) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("exponent", (0.0, 1.0))
def test_snr_is_what_was_asked_for(exponent):
    source = simulate(small(300, box=48, noise=NoiseModel(0.2, exponent=exponent)))
    inside = np.hypot(*centred_grid(48)) < 0.42 * 48
    signal, noise = [], []
    for row, image in enumerate(source.read(np.arange(300))):
        clean = source.signal(row)
        ones = np.stack([clean.ravel(), np.ones(clean.size)], axis=1)
        fit, *_ = np.linalg.lstsq(ones, image.ravel(), rcond=None)
        rest = (image.ravel() - ones @ fit).reshape(48, 48) / fit[0]
        signal.append(clean[inside].var())
        noise.append(rest.var())
    # coloured noise and signal overlap in frequency: the fit takes a little of the noise for signal
    assert np.mean(signal) / np.mean(noise) == pytest.approx(0.2, rel=0.02 if exponent == 0 else 0.06)


def test_noise_spectra():
    only_noise = Junk(1.0, ("noise",))
    shell = shell_of(64)

    def power(noise):
        images = simulate(small(400, box=64, noise=noise, junk=only_noise)).read(np.arange(400))
        return shell_mean((np.abs(centred_fft2(images)) ** 2).mean(0), shell)

    assert np.allclose(power(NoiseModel(1.0))[1:], 1, atol=0.08)
    coloured = power(NoiseModel(1.0, exponent=1.0))
    slope = np.polyfit(np.log(np.arange(2, 32)), np.log(coloured[2:32]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.05)
    given = power(NoiseModel(1.0, spectrum=np.array([4.0, 3, 2, 1, 1])))
    assert given[8] / given[28] == pytest.approx(3, rel=0.1)
    assert given[16] / given[28] == pytest.approx(2, rel=0.1)


def test_background_and_contrast():
    images = simulate(small(60, box=48, noise=NoiseModel(1.0))).read(np.arange(60))
    radius = np.hypot(*centred_grid(48))
    background = images[:, radius > 0.47 * 48]
    assert np.abs(background.mean(1)).max() < 1e-4
    assert np.abs(background.std(1) - 1).max() < 1e-4
    assert images[:, radius < 12].mean() > 0.1  # white particles
    dark = simulate(small(60, box=48, noise=NoiseModel(1.0), invert=True)).read(np.arange(60))
    assert np.array_equal(dark, -images)


def test_shifts_and_their_limit():
    shift = simulate(small(4000, shift_sigma_px=2.0, shift_limit_px=3.0)).truth.shift_px
    assert np.abs(shift).max() == 3
    assert np.median(np.abs(shift)) == pytest.approx(0.6745 * 2, rel=0.05)


def test_uniform_orientations():
    matrix = Rotation.from_quat(simulate(small(5000)).truth.quat).as_matrix()
    view = matrix[:, 2]
    assert np.abs(view.mean(0)).max() < 0.04
    assert np.abs(view.T @ view / 5000 - np.eye(3) / 3).max() < 0.02


@pytest.mark.parametrize("concentration", (3.0, 50.0))
def test_preferred_views_lie_about_their_axes(concentration):
    axes = ((0.0, 3.0, 0.0), (1.0, 0.0, 1.0))
    truth = simulate(small(6000, orientations=Orientations("preferred", concentration, axes))).truth
    matrix = Rotation.from_quat(truth.quat).as_matrix()
    unit = np.array(axes) / np.linalg.norm(axes, axis=1, keepdims=True)
    cosine = (matrix[:, 2] @ unit.T).max(1)
    if concentration > 10:
        assert np.median(cosine) == pytest.approx(1 - np.log(2) / concentration, abs=0.002)
        assert (matrix[:, 2] @ unit[0] > 0.8).mean() == pytest.approx(0.5, abs=0.03)
    resultant = matrix[:, 2].mean(0)  # (coth k - 1 / k) of the mean of the axes
    length = 1 / np.tanh(concentration) - 1 / concentration
    assert np.abs(resultant - length * unit.mean(0)).max() < 0.03
    psi = np.deg2rad(euler_of_quat(truth.quat)[:, 2])
    assert abs(np.exp(1j * psi).mean()) < 0.04


def test_given_orientations_are_repeated():
    quat = Rotation.random(7, random_state=1).as_quat()
    truth = simulate(small(20, orientations=Orientations("given", quat=quat))).truth
    assert np.array_equal(truth.quat, quat[np.arange(20) % 7])


def test_euler_angles_there_and_back():
    quat = np.concatenate(
        [
            Rotation.random(200, random_state=2).as_quat(),
            Rotation.from_euler("z", [[0], [30], [-120]], degrees=True).as_quat(),
            Rotation.from_euler("ZY", [[0, 180], [40, 180]], degrees=True).as_quat(),
        ]
    )
    angles = euler_of_quat(quat)
    assert np.all((angles[:, 1] >= 0) & (angles[:, 1] <= 180))
    apart = Rotation.from_quat(quat_of_euler(angles)) * Rotation.from_quat(quat).inv()
    assert np.rad2deg(apart.magnitude()).max() < 1e-5
    in_plane = Rotation.from_quat(quat_of_euler(np.array([[0.0, 0, -25]]))).as_matrix()[0]  # psi -25: x to y by 25
    assert np.rad2deg(np.arctan2(in_plane[1, 0], in_plane[0, 0])) == pytest.approx(25)


def test_species_and_junk_come_in_their_shares():
    species = (Blobs(35, 1).species(32, 4.0, 3.0), Blobs(30, 2).species(24, 4.5, 1.0))
    source = simulate(small(400, species=species, junk=Junk(0.1, ("edge", "contamination"))))
    assert np.bincount(source.truth.label).tolist() == [270, 90, 20, 20]
    assert source.truth.label_names == ("blobs", "blobs", "edge", "contamination")
    junk = np.flatnonzero(source.truth.is_junk)
    assert np.array_equal(source.truth.quat[junk], np.tile([0, 0, 0, 1.0], (40, 1)))
    assert np.all(source.truth.shift_px[junk] == 0)
    assert np.all(source.signal(int(junk[0])) == 0)
    images = source.read(np.arange(400))
    low = shell_mean(np.abs(centred_fft2(images)) ** 2, shell_of(32))[:, 1:3].mean(1)
    assert np.median(low[junk]) > 3 * np.median(low[~source.truth.is_junk])
    first = int(np.flatnonzero(source.truth.label == 1)[0])
    rotation = Rotation.from_quat(source.truth.quat[first]).as_matrix()
    plain = simulate(small(400, species=species, junk=source.simulation.junk, microscope=NO_CTF))
    expected = Blobs(30, 2).projection(rotation, source.truth.shift_px[first], 32, 4.0)
    assert np.linalg.norm(plain.signal(first) - expected) < 0.02 * np.linalg.norm(expected)


def test_particles_of_a_micrograph_share_their_defocus():
    microscope = Microscope(defocus_min_A=8000, defocus_max_A=30000, defocus_spread_A=150, micrographs=20)
    truth = simulate(small(2000, microscope=microscope)).truth
    mean = (truth.ctf.defocus_u_A + truth.ctf.defocus_v_A) / 2
    of = [mean[truth.micrograph_of == i] for i in range(20)]
    assert np.sqrt(np.mean([each.var(ddof=1) for each in of])) == pytest.approx(150, rel=0.06)
    assert np.ptp([each.mean() for each in of]) > 12000
    astigmatism = truth.ctf.defocus_u_A - truth.ctf.defocus_v_A
    assert np.ptp(astigmatism[truth.micrograph_of == 3]) < 1e-6
    assert 0 <= astigmatism.min() < astigmatism.max() <= 400


def test_the_table_belongs_to_the_images():
    source = simulate(small(250))
    table = source.particles
    assert len(table) == len(source) == 250
    assert table.group_names == ("mic000001.mrc", "mic000002.mrc", "mic000003.mrc")
    assert np.array_equal(table.ctf.defocus_u_A, source.truth.ctf.defocus_u_A)
    assert table.optics[0].box_px == source.box_px == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"particles": 0}, "at least 1"),
        ({"noise": NoiseModel(0.0)}, "SNR"),
        ({"species": ()}, "no species"),
        ({"junk": Junk(0.5, ("mouse",))}, "mouse"),
        ({"orientations": Orientations("given")}, "quaternions"),
        ({"microscope": Microscope(defocus_min_A=3e4)}, "defocus"),
    ],
)
def test_what_cannot_be_simulated_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        small(**changes)


def test_what_does_not_fit_is_cut_not_wrapped():
    from polarice.simulation.volume import fit_to_box, share_outside

    species = Blobs(35).species(64, 4.0)
    assert share_outside(species, 256) < 1e-9
    assert share_outside(species, 60) > 0.1
    cut = fit_to_box(species, 60)
    distance = np.sqrt(sum(np.ix_(*[(np.arange(len(cut)) - len(cut) // 2) ** 2] * 3)))
    assert len(cut) <= 20
    assert np.all(cut[distance > 7.5] == 0)
    centre = slice(32 - 3, 32 + 3)
    inner = slice(len(cut) // 2 - 3, len(cut) // 2 + 3)
    assert np.array_equal(cut[inner, inner, inner], species.density[centre, centre, centre])


def test_partition_scores():
    """Purity, adjusted Rand index and rank correlation, against scikit-learn, scipy and by hand."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, 400)
    found = np.where(rng.uniform(size=400) < 0.3, rng.integers(0, 9, 400), label)
    metrics = pytest.importorskip("sklearn.metrics")
    assert adjusted_rand_index(found, label) == pytest.approx(metrics.adjusted_rand_score(label, found), abs=1e-12)
    assert adjusted_rand_index(label + 3, label) == 1.0
    assert abs(adjusted_rand_index(rng.permutation(label), label)) < 0.03
    assert purity(np.array([0, 0, 0, 5, 5]), np.array([1, 1, 2, 2, 2])) == 0.8
    assert rank_correlation(np.array([1.0, 2, 3, 10]), np.array([4.0, 3, 2, 1])) == pytest.approx(-1)

"""The data that the package carries are what their README says, and the script that cut them finds a known defocus."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from polarice.ctf import ctf, frequency_grid
from polarice.fourier import centred_fft2, centred_ifft2, shell_mean, shell_of
from polarice.io.mrc import open_stack, read_header, read_volume
from polarice.io.star import read_star

ROOT = Path(__file__).parents[1]
DATA = ROOT / "src/polarice/data"
SHARED = ROOT / "../shared/data/apoferritin_empiar10146"


@pytest.fixture(scope="module")
def cutter():
    spec = importlib.util.spec_from_file_location("cut_apoferritin", ROOT / "scripts/cut_apoferritin.py")
    module = importlib.util.module_from_spec(spec)
    importlib.sys.modules["cut_apoferritin"] = module
    spec.loader.exec_module(module)
    return module


def test_bundle_is_small_and_whole():
    assert sum(file.stat().st_size for file in DATA.rglob("*") if file.is_file()) < 3_000_000
    particles = read_star(DATA / "apoferritin/particles.star").table("particles")
    header = read_header(DATA / "apoferritin/particles.mrcs")
    assert (len(particles), header.n, header.nx, header.mode) == (550, 550, 64, 0)
    assert header.pixel_size_A == pytest.approx(3.375)
    defocus = particles.numbers("rlnDefocusU")
    assert 16_000 < defocus.min() and defocus.max() < 26_000
    assert len(np.unique(particles.text("rlnMicrographName"))) == 11
    assert "CC0" in (DATA / "README.md").read_text() and "CC0" in (DATA / "apoferritin/README.md").read_text()


def test_bundled_particles_are_white_shells_in_the_centre():
    images = open_stack(DATA / "apoferritin/particles.mrcs").astype(np.float64)
    profile = shell_mean(images.mean(axis=0), shell_of(64)) / 24  # by radius in pixels, in deviations of the noise
    assert 40 <= np.argmax(profile) * 3.375 <= 50  # apoferritin is a shell: 130 A across, 80 A inside
    assert profile.max() > 0.5 and profile[:7].max() < 0  # hollow
    outside = shell_of(64) > 24
    assert np.abs(images[:, outside].mean(axis=1)).max() < 0.05 * 24
    np.testing.assert_allclose(images[:, outside].std(axis=1), 24, rtol=0.03)


def test_bundled_ribosome_fits_its_box():
    volume, pixel_size_A = read_volume(DATA / "ribosome70S.mrc")
    assert volume.shape == (64, 64, 64) and pixel_size_A == pytest.approx(4.8)
    assert volume.max() == 127
    faces = [np.abs(np.take(volume, end, axis)).max() for axis in range(3) for end in (0, -1)]
    assert max(faces) <= 2
    z, y, x = (np.arange(64) - 32 for _ in range(3))
    radius_A = 4.8 * np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    gyration_A = np.sqrt((volume * radius_A**2).sum() / volume.sum())
    assert gyration_A == pytest.approx(87, abs=3)  # of the 142,504 atoms: 86.5 A


@pytest.mark.parametrize(("u_A", "v_A", "angle_deg"), [(18_300, 17_500, 40), (24_800, 24_300, 115)])
def test_ctf_fit_finds_the_defocus_of_a_simulated_micrograph(cutter, u_A, v_A, angle_deg):
    rng = np.random.default_rng(0)
    optics = cutter.MICROGRAPH_OPTICS
    truth = cutter.CTFFit(u_A, v_A, angle_deg, 0)
    fx, fy = frequency_grid(1200, optics.pixel_size_A)
    damping = np.exp(-30 * (fx**2 + fy**2))
    signal = centred_fft2(rng.normal(size=(1200, 1200))) * ctf(optics, truth.parameters(), fx, fy)[0] * damping
    found = cutter.fit_ctf(centred_ifft2(signal).real + rng.normal(size=(1200, 1200)))
    assert found.defocus_u_A == pytest.approx(u_A, abs=60)
    assert found.defocus_v_A == pytest.approx(v_A, abs=60)
    assert (found.defocus_angle_deg - angle_deg + 90) % 180 - 90 == pytest.approx(0, abs=4)


def test_real_picks_give_1903_particles_and_a_drifted_micrograph_no_rings(cutter):
    if not SHARED.is_dir():
        pytest.skip("../shared/data/apoferritin_empiar10146 is not there")
    picks = [read_star(path).table("") for path in (SHARED / "coords").glob("*_joac1137.star")]
    assert (len(picks), sum(map(len, picks))) == (11, 1903)
    good, drifted = (open_stack(SHARED / f"micrographs/May08_{time}_avg.mrc")[0] for time in ("05.53.51", "06.09.02"))
    fit = cutter.fit_ctf(good)
    assert fit.correlation > 0.25 > 0.08 > cutter.fit_ctf(drifted).correlation
    assert fit.defocus_u_A == pytest.approx(19_430, abs=60) and fit.defocus_v_A == pytest.approx(19_075, abs=60)


def test_boxes_are_centred_on_their_picks(cutter):
    micrograph = np.zeros((200, 260), np.float32)
    micrograph[70, 180] = 1
    boxes, inside = cutter.cut_boxes(micrograph, np.array([[180.2, 69.8], [20.0, 100.0]]), 64)
    assert np.unravel_index(boxes[0].argmax(), boxes[0].shape) == (32, 32)
    np.testing.assert_array_equal(inside, [True, False])


def test_normalised_background_has_mean_0_deviation_1_and_no_ramp(cutter):
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:65, :65] - 32
    images = rng.normal(5, 3, (4, 65, 65)) + 0.3 * x - 0.2 * y
    before = images.copy()
    flat = cutter.normalise(images)
    outside = np.hypot(y, x) > 0.375 * 65
    np.testing.assert_allclose(flat[:, outside].mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(flat[:, outside].std(axis=1), 1, rtol=1e-5)
    assert np.abs((flat[:, outside] * x[outside]).mean(axis=1)).max() < 1e-5
    np.testing.assert_array_equal(images, before)

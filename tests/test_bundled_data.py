"""The data that the package carries are what their README says, and the script that cut them finds a known defocus."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from polarice.fourier import shell_mean, shell_of
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


def test_real_picks_give_1903_particles(cutter):
    if not SHARED.is_dir():
        pytest.skip("../shared/data/apoferritin_empiar10146 is not there")
    picks = sorted((SHARED / "coords").glob("*_joac1137.star"))
    assert (len(picks), sum(len(read_star(path).table("")) for path in picks)) == (11, 1903)
    (path,) = (SHARED / "micrographs").glob("May08_05.53.51*")
    part = cutter.cut_micrograph(path, SHARED / "coords/May08_05.53.51_avg_joac1137.star", 144, 64)
    assert part.images.shape == (183, 64, 64)
    assert part.fit.defocus_u_A == pytest.approx(19_430, abs=60) and part.fit.defocus_v_A == pytest.approx(
        19_075, abs=60
    )
    profile = shell_mean(part.images[part.inside].mean(axis=0), shell_of(64))
    assert 40 <= np.argmax(profile) * 3.375 <= 50

"""Defocus, astigmatism, phase shift and flags of micrographs whose CTF is known, and of real ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contrast_transfer.rings import OPTICS, micrograph
from polarice.contrast_transfer import ctf
from polarice.contrast_transfer.estimate import Fit, Rings, Search, estimate
from polarice.contrast_transfer.quality import judge
from polarice.contrast_transfer.spectrum import Spectrum, of_power, spectrum_of
from polarice.fourier import centred_fft2
from polarice.io.mrc import open_stack
from polarice.types import InputError, Optics

REAL = Path(__file__).parents[3] / "shared/data/apoferritin_empiar10146/micrographs"
DEFOCI = [(9_000, 8_400, 20.0), (15_600, 15_500, -60.0), (22_000, 20_500, 75.0), (28_500, 28_100, -10.0)]


def fitted(image, search=Search(), optics=OPTICS):  # noqa: B008
    spectrum = spectrum_of(image, 1.5)
    fit = estimate(spectrum, optics, search)
    return fit, judge(spectrum, optics, fit)


def apart_deg(a, b):
    return abs((a - b + 90) % 180 - 90)


def test_defocus_and_astigmatism():
    errors = []
    for seed, truth in enumerate(DEFOCI):
        fit, quality = fitted(micrograph(truth, seed=seed))
        errors += [fit.defocus_u_A - truth[0], fit.defocus_v_A - truth[1]]
        assert -90 <= fit.defocus_angle_deg <= 90
        assert truth[0] - truth[1] < 300 or apart_deg(fit.defocus_angle_deg, truth[2]) < 5
        assert quality.flags == ()
        assert quality.agreement > 0.9
        assert quality.resolution_A < 5
    assert np.sqrt(np.mean(np.square(errors))) < 50


def test_phase_shift():
    fit, _ = fitted(micrograph((14_000, 13_400, 30.0), phase_deg=70.0), Search(phase_shift_deg=(0.0, 180.0)))
    assert abs(fit.phase_shift_deg - 70) < 6
    assert abs(fit.defocus_A - 13_700) < 80


def test_large_astigmatism_is_found():
    fit, _ = fitted(micrograph((17_000, 15_200, -35.0)))
    assert abs(fit.astigmatism_A - 1_800) < 100
    assert apart_deg(fit.defocus_angle_deg, -35) < 3


def test_a_perfect_spectrum_correlates_wholly():
    """Rings without noise on a background that the splines hold: correlation 1 at the truth, less beside it."""
    fx, fy = Spectrum(np.zeros((256, 256)), 1.5).grid()
    truth = Fit(16_000, 15_000, 40.0, 0.0, 80.0, 0.0)
    s2 = fx**2 + fy**2
    wave = ctf(OPTICS, truth.parameters(), fx, fy)[0]
    spectrum = Spectrum(np.exp(-40 * s2) * 2 * wave**2 - np.exp(-40 * s2) + 3 - 5 * s2, 1.5)
    rings = Rings.of(spectrum, OPTICS, (30.0, 5.0))
    assert rings.correlation(truth) > 0.999
    assert rings.correlation(Fit(16_100, 15_100, 40.0, 0.0, 80.0, 0.0)) < 0.99
    assert abs(estimate(spectrum, OPTICS).defocus_A - 15_500) < 2


def test_what_is_wrong_is_said():
    noise = np.random.default_rng(1).standard_normal((1024, 1024))
    nothing = fitted(noise)[1]
    assert nothing.flags == ("no rings",) and nothing.drifted == nothing.smear / 0.2 < 1
    assert replace(nothing, drift=1.0).flags == ("no rings",)  # of rings that are none: neither flag nor figure
    assert replace(nothing, drift=1.0).drifted < 1
    far = fitted(micrograph((18_000, 17_700, 0.0), drift_px=40.0))[1]
    assert far.flags == ("no rings", "drift") and far.smear > 0.3 and far.drifted == far.smear / 0.2
    fit, quality = fitted(micrograph((18_000, 17_700, 0.0), drift_px=5.0))
    assert quality.flags == ("drift",) and quality.drifted == quality.drift / 0.75 > 1
    assert abs(fit.defocus_A - 17_850) < 150
    fit, quality = fitted(micrograph((18_000, 17_700, 0.0), ice=2.0))
    assert quality.flags == ("ice",)
    assert 0.25 < quality.ice < 0.6
    assert abs(fitted(micrograph((18_000, 17_700, 0.0)))[1].ice) < 0.1


def test_fit_resolution_follows_the_rings():
    """A defocus that goes wrong beyond a frequency is trusted up to there."""
    far = spectrum_of(micrograph((18_000, 18_000, 0.0), seed=3), 1.5)
    fx, fy = far.grid()
    noise = spectrum_of(np.random.default_rng(2).standard_normal((1024, 1024)), 1.5)
    cut = Spectrum(np.where(np.hypot(fx, fy) < 1 / 8, far.log_power, noise.log_power), 1.5)
    fit = estimate(cut, OPTICS, Search(resolution_A=(30.0, 8.5)))
    assert abs(fit.defocus_A - 18_000) < 100
    assert 7 < judge(cut, OPTICS, fit, (30.0, 8.5)).resolution_A < 9.5


def test_a_bead_is_one_tiles_matter():
    truth = (16_000, 15_600, 10.0)
    image = micrograph(truth)
    image[100:140, 200:240] += 30
    fit, _ = fitted(image)
    assert abs(fit.defocus_A - 15_800) < 60


def test_summed_spectra_are_fitted_as_micrographs_are():
    images = [micrograph((16_000, 15_600, 10.0), side=512, seed=seed) for seed in range(6)]
    spectrum = of_power(sum(np.abs(centred_fft2(image.astype(float))) ** 2 for image in images), 1.5)
    assert abs(estimate(spectrum, OPTICS).defocus_A - 15_800) < 60


def test_bad_pixels_are_refused():
    image = micrograph(DEFOCI[0], side=512)
    image[3, 5] = np.nan
    with pytest.raises(InputError, match="not numbers"):
        spectrum_of(image, 1.5)
    with pytest.raises(InputError, match="all pixels are equal"):
        spectrum_of(np.zeros((600, 600)), 1.5)
    with pytest.raises(InputError, match="hold nothing between"):
        estimate(Spectrum(np.zeros((128, 128)), 20.0), OPTICS)


@pytest.mark.skipif(not REAL.is_dir(), reason="the apoferritin micrographs are not there")
def test_real_micrographs():
    """Halves of a micrograph agree within 150 A; the one that drifted has no rings."""
    optics = Optics("opticsGroup1", 1.5, 300.0, 0.001, 0.07, 0)
    for name in ("May08_03.05.02", "May08_05.53.51"):
        image = open_stack(REAL / f"{name}_avg.mrc")[0]
        half = image.shape[1] // 2
        left, right = (fitted(part, optics=optics)[0] for part in (image[:, :half], image[:, half:]))
        assert abs(left.defocus_A - right.defocus_A) < 150
        assert 16_000 < left.defocus_A < 26_000
    quality = fitted(open_stack(REAL / "May08_06.09.02_avg.mrc")[0], optics=optics)[1]
    assert quality.flags == ("no rings", "drift") and quality.smear > 0.4

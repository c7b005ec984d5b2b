"""The sum of frames: exact where it can be, dose weights against the formula, spectra against a direct transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polarice.motion_correction.aligned_sum import _hann, sum_frames
from polarice.motion_correction.dose import Dose, critical_exposure, dose_weights
from polarice.motion_correction.exposure import expose, hot_pixels
from polarice.types import InputError, Motion

torch.set_num_threads(1)
rng = np.random.default_rng(7)


def still(frames, shape):
    return Motion(np.zeros((frames, 2)), shape, np.zeros((2, 6, 3)))


@pytest.mark.parametrize("shape", [(700, 613), (96, 130), (512, 900)])
def test_without_motion_it_is_the_sum(shape):
    frames = rng.poisson(20, (3, *shape)).astype(np.uint8)
    made = sum_frames(expose(frames.copy(), find_hot=False)[0], still(3, shape), 1.0)
    assert np.abs(made.plain - frames.sum(0)).max() < 2e-3


@pytest.mark.parametrize("dose", [None, Dose(1.0)])
def test_even_and_odd_frames_add_up_and_their_noise_is_not_shared(dose):
    frames = rng.poisson(20, (5, 120, 130)).astype(np.uint8)
    made = sum_frames(expose(frames.copy(), find_hot=False)[0], still(5, (120, 130)), 1.5, dose, halves=True)
    even, odd = made.halves
    whole = made.plain if dose is None else made.weighted
    assert np.abs(even + odd - whole).max() < 2e-3
    assert abs(np.corrcoef(even.ravel(), odd.ravel())[0, 1]) < 0.05
    if dose is None:
        assert np.abs(even - frames[1::2].sum(0)).max() < 2e-3  # frames 2 and 4


def test_whole_pixels_are_moved_back_exactly():
    base = rng.poisson(20, (640, 700)).astype(np.uint8)
    moves = np.array([[0, 0], [4, -3], [-7, 11]])
    frames = np.stack([np.roll(base, (dy, dx), (0, 1)) for dx, dy in moves])
    motion = Motion(moves.astype(float), base.shape, np.zeros((2, 6, 3)))
    made = sum_frames(expose(frames, find_hot=False)[0], motion, 1.0)
    inner = (slice(20, -20), slice(20, -20))
    assert np.abs(made.plain[inner] - 3.0 * base[inner]).max() < 5e-3


def test_parts_of_pixels_are_moved_back_up_to_nyquist():
    """Waves of 40 % of the sampling frequency: interpolation would lose half of them."""
    y, x = np.indices((560, 600))
    moves = np.array([[0, 0], [0.5, 0.25], [-0.3, 0.5]])

    def waves(dx, dy):
        return 100 + 10 * np.cos(0.8 * np.pi * (x - dx)) + 10 * np.cos(0.7 * np.pi * (y - dy))

    frames = np.stack([waves(dx, dy) for dx, dy in moves]).astype(np.float32)
    made = sum_frames(expose(frames, find_hot=False)[0], Motion(moves, (560, 600), np.zeros((2, 6, 3))), 1.0)
    error = made.plain[40:-40, 40:-40] - 3 * waves(0, 0)[40:-40, 40:-40]
    assert np.sqrt((error**2).mean()) < 0.3  # of 30 in each wave


def test_the_gain_multiplies_and_defects_are_replaced():
    gain = rng.uniform(0.5, 2, (120, 130)).astype(np.float32)
    gain[40:60, 70] = 0
    light = np.full((4, 120, 130), 1000.0)
    frames = (light / np.where(gain > 0, gain, 1)).astype(np.float32)
    frames[:, 40:60, 70] = 0
    exposure, _ = expose(frames, gain)
    made = sum_frames(exposure, still(4, (120, 130)), 1.0)
    assert np.abs(made.plain - 4000).max() < 1 and exposure.mean == pytest.approx(1000, rel=1e-4)
    assert sorted(map(tuple, exposure.bad.tolist())) == [(70, y) for y in range(40, 60)]
    assert gain[40, 70] == 0  # the caller's own is as it was


def test_hot_pixels_are_found_and_only_they():
    total = rng.poisson(60, (300, 300)).astype(np.float32)
    total[100:160, 100:160] *= 1.6  # thick ice is no defect
    places = [(10, 20), (150, 150), (299, 0)]
    for y, x in places:
        total[y, x] = 3000
    found = np.argwhere(hot_pixels(total, np.zeros(total.shape, bool)))
    assert {tuple(place) for place in found.tolist()} >= set(places) and len(found) < 12


@pytest.mark.parametrize(("frames", "message"), [
    (np.zeros((4, 20, 20), np.uint8), "0 of 4 frames can be used; frame 1 is zero everywhere"),
    (np.full((4, 20, 20), np.nan, np.float32), "frame 1 holds values that are no numbers"),
    (np.ones((1, 20, 20), np.uint8), "1 of 1 frames"),
])  # fmt: skip
def test_frames_that_are_no_use_are_refused(frames, message):
    with pytest.raises(InputError, match=message):
        expose(frames)


def test_critical_exposure_of_the_paper():
    """Grant & Grigorieff 2015, equation 3, at 300 kV; 200 kV takes a fifth off."""
    assert critical_exposure(np.array([1 / 10, 1 / 3.0]), 300) == pytest.approx([14.142, 4.3398], rel=1e-3)
    assert critical_exposure(np.array([0.1]), 200) == pytest.approx(0.8 * critical_exposure(np.array([0.1]), 300))
    assert np.isinf(critical_exposure(np.array([0.0]), 300)).all()
    with pytest.raises(InputError, match="not for 140 kV"):
        critical_exposure(np.array([0.1]), 140)


def test_dose_weights_are_the_formula_and_keep_the_noise():
    k = np.array([0.0, 0.05, 0.2])
    weights = dose_weights(k, Dose(1.5, 2.0, 300), np.array([0, 3]))
    q = np.exp(-np.array([3.5, 8.0])[:, None] / (2 * (0.24499 * np.maximum(k, 1e-30) ** -1.6649 + 2.8141)))
    assert np.allclose(weights, q / np.sqrt((q**2).sum(0)), rtol=1e-5)
    assert np.allclose((weights**2).sum(0), 1, rtol=1e-5)


def test_a_weighted_sum_keeps_mean_and_noise_and_loses_late_detail():
    frames = rng.poisson(50, (8, 300, 300)).astype(np.uint8)
    made = sum_frames(expose(frames.copy(), find_hot=False)[0], still(8, (300, 300)), 1.0, Dose(5.0))
    assert made.weighted is not None and made.weighted.mean() == pytest.approx(made.plain.mean(), rel=1e-3)
    assert made.weighted.std() == pytest.approx(made.plain.std(), rel=0.03)


def test_the_spectrum_is_that_of_windowed_sums():
    image = torch.from_numpy(rng.normal(size=(32, 32)))
    window = torch.hann_window(32, periodic=True, dtype=torch.float64)
    direct = torch.fft.rfft2(image * window * window[:, None])
    assert torch.allclose(_hann(torch.fft.rfft2(image)), direct, atol=1e-12)
    frames = rng.poisson(20, (8, 512, 512)).astype(np.uint8)
    made = sum_frames(expose(frames, find_hot=False)[0], still(8, (512, 512)), 1.0, spectrum_group=4)
    expected = 2 * 80 * 512**2 * (3 / 8) ** 2  # two sums of variance 80, a Hann window in both directions
    assert made.spectrum is not None and made.spectrum[20:200, 20:200].mean() == pytest.approx(expected, rel=0.02)

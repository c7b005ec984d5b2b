"""Images that no specimen makes are named; those that a microscope makes are not."""

import numpy as np
import pytest
import torch

from align.phantoms import particle_images
from polarice.align.image_statistics import survey
from polarice.align.outliers import clipped, outliers, robust
from polarice.align.prepare import background

N, BOX = 64, 48


def images(seed: int = 0) -> np.ndarray:
    """Noise of standard deviation 2 around 7."""
    return (7 + 2 * np.random.default_rng(seed).standard_normal((N, BOX, BOX))).astype(np.float32)


def found(pixels: np.ndarray) -> dict[int, str]:
    mean, sd = (each.numpy() for each in background(torch.from_numpy(pixels), 16.0))
    return outliers(pixels, mean, sd)


@pytest.mark.parametrize("value", [1e4, -1e4, 1e6, 1e20, -3e38])
@pytest.mark.parametrize("where", [(24, 24), (1, 2), (slice(3, 4), slice(None))], ids=["particle", "corner", "row"])
def test_hot_pixels_are_found_wherever_they_are(value, where):
    pixels = images()
    pixels[5][where] = value
    assert list(found(pixels)) == [5]
    count = pixels[5][where].size
    assert found(pixels)[5].startswith(f"an outlier ({count} px far outside, up to {value:.3g}; the rest deviate by ")


def test_what_a_microscope_makes_stays():
    pixels = images()
    y, x = np.mgrid[:BOX, :BOX] - 24
    disc = np.hypot(y - 5, x + 3) < 6
    pixels[3][disc] -= 2 * 40  # a gold bead
    pixels[4][:, 30:] -= 2 * 60  # the edge of a gold foil
    pixels[6][20:24, 20:24] += 2 * 50  # ice
    pixels[7] *= 1e3  # another scale
    pixels[8] = np.random.default_rng(1).poisson(0.02, (BOX, BOX))  # few electrons
    pixels[9] = np.exp(-(np.hypot(y, x) ** 2) / 128)  # a particle without noise
    pixels[10] = 3.5  # constant: named elsewhere
    assert found(pixels) == {}
    assert found(images(1) * 1e-20) == {}


def test_no_image_of_noise_in_ten_thousand():
    rng = np.random.default_rng(2)
    for _ in range(40):
        assert found(rng.standard_normal((256, 32, 32)).astype(np.float32)) == {}


def test_median_and_deviation_do_not_heed_a_twentieth():
    values = np.random.default_rng(3).standard_normal(20_000)
    values[:900] = 1e9
    assert robust(values) == pytest.approx((0.06, 1.05), abs=0.03)


def test_clipping_takes_out_the_pixel_and_nothing_else():
    pixels = images()[0]
    spoilt = pixels.copy()
    spoilt[7, 8] = 1e20
    mended = clipped(spoilt)
    assert mended[7, 8] == pytest.approx(7, abs=0.2)
    mended[7, 8] = pixels[7, 8]
    np.testing.assert_array_equal(mended, pixels)


@pytest.mark.parametrize("mode", ["exclude", "clip", "keep"])
def test_the_look_leaves_out_clips_or_keeps(mode):
    pixels = images() - 7
    pixels[5, 24, 24] = 1e6
    looked = survey(particle_images(pixels, 16.0), np.arange(N), 0, 16, outlier_images=mode)
    expected = {"exclude": ([5], []), "clip": ([], [5]), "keep": ([], [])}
    assert (list(looked.bad), list(looked.clipped)) == expected[mode]
    assert (looked.noise_power.max() > 100) == (mode == "keep")


def test_each_image_is_judged_by_itself():
    """Three in a hundred pixels hot: found among others, alone, and among images that are all so."""
    rng = np.random.default_rng(2)
    good = rng.standard_normal((6, 48, 48)).astype(np.float32)
    hot = good.copy()
    hot[rng.random(hot.shape) < 0.03] = 1e4
    assert list(found(np.concatenate([good, hot]))) == [6, 7, 8, 9, 10, 11]
    assert list(found(hot)) == [0, 1, 2, 3, 4, 5] and all(list(found(each[None])) == [0] for each in hot)
    assert list(found(good)) == []


def test_images_of_which_most_pixels_are_the_same_are_left_alone():
    """A small particle without noise, a masked image, a count here and there."""
    image = np.zeros((48, 48), np.float32)
    image[20:24, 20:24] = 3.0
    assert found(image[None]) == {}
    np.testing.assert_array_equal(clipped(image), image)


def test_one_hot_pixel_in_an_image_without_noise_is_an_outlier():
    image = np.zeros((48, 48), np.float32)
    image[7, 9] = 1e5
    assert list(found(image[None])) == [0]


def test_quartiles_are_those_of_all_rows_and_columns():
    """A noisy column at the left does not hide hot pixels."""
    rng = np.random.default_rng(4)
    image = rng.standard_normal((256, 256)).astype(np.float32)
    image[:, :4] *= 300
    image[rng.random(image.shape) < 0.03] = 1e5
    assert list(found(image[None])) == [0]

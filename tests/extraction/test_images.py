"""Boxes, scale and background, against plain loops and the truth."""

import numpy as np
import pytest

from polarice.extraction.background import Background, default_radius_px, normalise
from polarice.extraction.boxes import cut, inside, touching
from polarice.extraction.images import Recipe, images_of
from polarice.fourier import centred_grid, rescale

PICTURE = np.arange(40 * 50, dtype=np.int16).reshape(40, 50)


def test_boxes_repeat_the_nearest_pixel_beyond_the_edge():
    xy = np.array([[10.9, 20.2], [1.0, 39.0], [49.0, 0.0]])
    boxes = cut(PICTURE, xy, 8)
    for (x, y), box in zip(xy.astype(int), boxes, strict=True):
        for row in range(8):
            for column in range(8):
                expected = PICTURE[np.clip(y - 4 + row, 0, 39), np.clip(x - 4 + column, 0, 49)]
                assert box[row, column] == expected
    assert boxes[0, 4, 4] == PICTURE[20, 10]


def test_what_lies_inside():
    xy = np.array([[4, 4], [3.9, 4], [46, 36], [46.9, 36], [47, 36], [-4, 10], [-3.9, 10], [53.9, 10], [54, 10]])
    assert inside(xy, (40, 50), 8).tolist() == [True, False, True, True, False, False, False, False, False]
    assert touching(xy, (40, 50), 8).tolist() == [True] * 5 + [False, True, True, False]


def scene(n=3, box=48, seed=0):
    rng = np.random.default_rng(seed)
    y, x = centred_grid(box)
    disc = np.hypot(y, x) < 12
    return rng.standard_normal((n, box, box)) * 3 + 7 + 0.2 * x - 0.1 * y + 5 * disc


def test_background_becomes_zero_and_one_and_the_ramp_goes():
    images = scene()
    kept = images.copy()
    y, x = centred_grid(48)
    outside = np.hypot(y, x) > 18
    done = normalise(images, Background(18.0))
    assert np.array_equal(images, kept)
    for image in done:
        assert abs(image[outside].mean()) < 1e-6
        assert abs(image[outside].std() - 1) < 1e-6
        assert abs((image * x)[outside].sum() / (x * x)[outside].sum()) < 1e-6
    level = normalise(images, Background(18.0, ramp=False))
    slope = (level * x)[:, outside].sum(axis=1) / (x * x)[outside].sum()
    assert np.abs(slope * images[:, outside].std(axis=1) - 0.2).max() < 0.03


def test_dust_becomes_noise_of_the_background():
    images = scene()
    images[1, 3, 4] += 300
    images[1, 40, 8] -= 300
    how = Background(18.0, white_dust=6.0, black_dust=6.0)
    done = normalise(images, how)
    assert np.abs(done).max() < 8
    clean = normalise(scene(), Background(18.0))
    assert np.abs(done[1] - clean[1]).mean() < 0.15
    assert np.abs(done[0] - clean[0]).max() < 1e-6
    assert np.array_equal(normalise(images[1:2], how, seeds=[1])[0], done[1])


def test_flat_background_and_no_background():
    flat = np.full((1, 16, 16), 4.0)
    assert np.isfinite(normalise(flat, Background(6.0))).all()
    with pytest.raises(ValueError, match="leaves no background"):
        normalise(flat, Background(12.0))


def test_images_are_scaled_then_normalised_then_inverted():
    rng = np.random.default_rng(1)
    picture = rng.standard_normal((100, 100))
    xy = np.array([[50.0, 40.0]])
    small = rescale(cut(picture, xy, 48).astype(float), 32)
    expected = -normalise(small, Background(default_radius_px(32)))
    assert np.abs(images_of(picture, xy, Recipe.usual(48, 32)) - expected).max() < 1e-6
    plain = images_of(picture, xy, Recipe(48, 48, False, None))
    assert np.array_equal(plain, cut(picture, xy, 48))

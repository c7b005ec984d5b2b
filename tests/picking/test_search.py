"""Particles of known places are found, each once; scores against a plain loop; dirt is seen."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from polarice.picking.blob import disc_of, scrambled
from polarice.picking.correlate import Correlator, plain_scores
from polarice.picking.peaks import peaks_of
from polarice.picking.search import Found, find
from polarice.picking.templates import kernels_of, seen_through
from polarice.picking.working import working_copy
from polarice.types import CTFParameters, Optics

PIXEL_A, DIAMETER_A, SIDE = 4.0, 145.0, 640


def shell(x, y, radius_px=13.0, width_px=3.5):
    """A hollow particle, about 36 px wide."""
    r = np.hypot(x, y)
    return np.exp(-(((r - radius_px) / width_px) ** 2)) + 0.35 * (r < radius_px)


def club(x, y):
    """A particle with a direction."""
    return np.exp(-((x / 5) ** 2 + (y / 13) ** 2)) + np.exp(-((x - 6) ** 2 + (y - 9) ** 2) / 20)


def places(n=70, apart_px=31.0, seed=0):
    """Coordinates (n, 2), packed until some touch."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < n:
        xy = rng.uniform(16, SIDE - 16, 2)
        if all(np.hypot(*(xy - other)) > apart_px for other in found):
            found.append(xy)
    return np.array(found)


def scene(xy, particle=shell, noise=1.2, seed=0, turn=False):
    """A micrograph (SIDE, SIDE) with dark particles on a sloping background."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    image = 100 + 0.001 * x + noise * gaussian_filter(rng.standard_normal((SIDE, SIDE)), 0.7) * 2
    for cx, cy in xy:
        angle = rng.uniform(0, 2 * np.pi) if turn else 0.0
        dx, dy = x - cx, y - cy
        to_device = (np.abs(dx) < 30) & (np.abs(dy) < 30)
        u = dx[to_device] * np.cos(angle) + dy[to_device] * np.sin(angle)
        v = dy[to_device] * np.cos(angle) - dx[to_device] * np.sin(angle)
        image[to_device] -= particle(u, v)
    return image


def f1(found: Found, xy, level=None, within_px=6.0):
    good = (found.scores >= (found.chance if level is None else level)) & ~found.in_dirt
    if not good.any():
        return 0.0
    apart = np.hypot(*(found.xy_px[good][:, None] - xy).transpose(2, 0, 1))
    hits = (apart.min(axis=0) < within_px).sum()
    return 2 * hits / (good.sum() + len(xy))


def test_scores_are_pearsons_correlations():
    rng = np.random.default_rng(0)
    picture, kernel = rng.standard_normal((31, 40)), rng.standard_normal((9, 9))
    disc = disc_of(kernel, 4.2)
    scores = Correlator(picture, disc).scores(kernel[None])[0]
    assert np.abs(scores - plain_scores(picture, kernel, disc)).max() < 1e-4
    picture[10:19, 20:29] += 50 * kernel
    top = Correlator(picture, disc).scores(kernel[None])[0]
    assert np.unravel_index(top.argmax(), top.shape) == (14, 24)
    assert 0.99 < top.max() < 1 + 1e-4


def test_peaks_are_refined_and_apart():
    y, x = np.mgrid[:50, :60]
    bumps = np.exp(-((x - 20.3) ** 2 + (y - 30.4) ** 2) / 30) + 0.8 * np.exp(-((x - 45.2) ** 2 + (y - 9.8) ** 2) / 30)
    found = peaks_of(bumps, 8.0)
    assert np.abs(found.xy[:2] - [[20.3, 30.4], [45.2, 9.8]]).max() < 0.03
    assert found.scores[0] > found.scores[1]
    random = peaks_of(np.random.default_rng(0).standard_normal((80, 80)), 6.0)
    apart = np.hypot(*(random.xy[:, None] - random.xy).transpose(2, 0, 1)) + 99 * np.eye(len(random.xy))
    assert apart.min() > 5


@pytest.mark.parametrize("diameter_A", [130.0, 145.0, 170.0])
def test_hollow_particles_are_found_by_their_size(diameter_A):
    """A Laplacian of a Gaussian alone sees discs between shells that touch."""
    xy = places()
    assert f1(find(working_copy(scene(xy), PIXEL_A, diameter_A)), xy) > 0.93


def test_white_particles_are_dark_ones_turned_over():
    xy = places(30)
    dark, white = (working_copy(sign * scene(xy), PIXEL_A, DIAMETER_A, dark=sign > 0) for sign in (1, -1))
    assert np.allclose(dark.pixels, white.pixels, atol=1e-4)


def test_templates_find_particles_at_all_angles():
    xy = places(50, apart_px=38.0)
    micrograph = scene(xy, club, noise=0.4, turn=True)
    y, x = np.mgrid[-32:32, -32:32]
    working = working_copy(micrograph, PIXEL_A, DIAMETER_A)
    templates = club(x, y)[None].astype(np.float32)
    kernels = kernels_of(templates, working.step, 0.6 * working.diameter_px, 15.0)
    assert len(kernels) == 24
    found = find(working, kernels)
    assert f1(found, xy) > 0.95
    single = find(working, kernels[:1])
    assert f1(single, xy) < f1(found, xy)


def test_kernels_are_turned_and_scaled():
    y, x = np.mgrid[-40:40, -40:40]
    bar = np.exp(-((x / 12) ** 2 + (y / 4) ** 2))[None]
    upright = np.exp(-((x / 4) ** 2 + (y / 12) ** 2))[None]
    kernels = kernels_of(bar, 2.0, 12.0, 90.0)
    assert np.abs(kernels[1] - kernels_of(upright, 2.0, 12.0, 90.0)[0]).max() < 0.01
    across = kernels[0][12]
    assert abs(across[12 + 6] / across[12] - np.exp(-1)) < 0.02


def test_templates_seen_through_a_ctf():
    optics = Optics("o", 4.0, 300.0, 2.7, 0.1, 0)
    parameters = CTFParameters(*(np.array([v]) for v in (15_000.0, 15_000.0, 0.0, 0.0, 0.0, 1.0)))
    point = np.zeros((1, 64, 64), np.float32)
    point[0, 32, 32] = 1
    seen = seen_through(point, optics, parameters)
    assert abs(seen.sum() - 0.1) < 1e-4  # amplitude contrast alone at frequency 0
    ring = np.hypot(*np.mgrid[-32:32, -32:32])
    assert abs(seen[0][np.abs(ring - 2) < 0.5].mean() / seen[0, 32, 32] - 0.5) < 0.5


def test_chance_has_the_same_spectrum_and_nothing_in_it():
    xy = places()
    picture = working_copy(scene(xy), PIXEL_A, DIAMETER_A).pixels
    other = scrambled(picture)
    ratio = np.abs(np.fft.rfft2(other))[1:, 1:-1] / np.abs(np.fft.rfft2(picture))[1:, 1:-1]
    assert np.abs(ratio - 1).max() < 0.02
    found = find(working_copy(scene(np.zeros((0, 2))), PIXEL_A, DIAMETER_A))
    assert (found.scores >= found.chance).mean() < 0.1


def test_particles_on_dirt_are_told():
    xy = places()
    image = scene(xy)
    image[200:330, 300:420] -= 30
    found = find(working_copy(image, PIXEL_A, DIAMETER_A))
    on = (found.xy_px[:, 0] > 300) & (found.xy_px[:, 0] < 420) & (found.xy_px[:, 1] > 200) & (found.xy_px[:, 1] < 330)
    assert on.any()
    assert found.in_dirt[on].all()
    far = (found.xy_px[:, 0] < 250) | (found.xy_px[:, 0] > 470) | (found.xy_px[:, 1] < 150) | (found.xy_px[:, 1] > 380)
    assert not found.in_dirt[far].any()

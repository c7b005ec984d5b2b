"""Maps resampled, turned, symmetrised and fitted, against truth and RELION; their surface in pictures."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from jobs.runs import polarice as run
from polarice.io.mrc import read_volume, write_volume
from polarice.io.star import read_star
from polarice.postprocessing import fit, surface
from polarice.postprocessing.resample import Interpolated, Move, centred, mirrored, rescaled, symmetrised
from polarice.postprocessing.spectrum import boxed, low_pass, resampled
from polarice.references.fsc import correlation
from polarice.references.symmetry import generators, operators
from postprocessing.halves import ribosome
from programs import relion

BOX = 48


@pytest.fixture(scope="module")
def density():
    """The ribosome with all that a box of 48 holds well, and its pixel size."""
    found, pixel_A = ribosome(BOX)
    return low_pass(found, 18), pixel_A


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """Pages take longer to draw than all else."""
    monkeypatch.setattr("polarice.report.density.write_map_page", lambda *given: None)


@pytest.fixture
def place(tmp_path, monkeypatch, density):
    monkeypatch.chdir(tmp_path)
    write_volume("map.mrc", density[0].numpy(), density[1])
    return tmp_path


def likeness(one, other):
    return float(np.corrcoef(np.asarray(one).ravel(), np.asarray(other).ravel())[0, 1])


def apart_deg(one: np.ndarray, other: np.ndarray) -> float:
    return math.degrees(Rotation.from_matrix(one @ other.T).magnitude())


def test_moves_are_what_they_say(density):
    given, _ = density
    ready = Interpolated(given)
    inside = (slice(8, -8),) * 3
    assert (ready.moved(Move()) - given)[inside].abs().max() < 0.01 * given.max()
    by = ready.moved(Move(shift_px=np.array([3.0, -2, 1])))  # x, y, z
    assert (by - given.roll((1, -2, 3), (0, 1, 2)))[inside].abs().max() < 0.01 * given.max()
    assert likeness(ready.moved(Move(mirrored=True))[inside], mirrored(given)[inside]) > 0.9999
    point = torch.zeros(BOX, BOX, BOX)
    point[BOX // 2 + 2, BOX // 2 - 3, BOX // 2 + 5] = 1
    blob = low_pass(point, 8)
    rotation, shift = Rotation.random(rng=np.random.default_rng(2)).as_matrix(), np.array([1.5, 0.25, -2])
    moved = Interpolated(blob).moved(Move(rotation, shift)).clamp_min(0) ** 4
    x = torch.arange(BOX) - BOX // 2
    middle = [float((moved.sum(dim=axes) * x).sum() / moved.sum()) for axes in ((0, 1), (0, 2), (1, 2))]
    assert middle == pytest.approx(list(rotation @ (5, -3, 2) + shift), abs=0.03)


@pytest.mark.parametrize("hand", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_random_move_is_found(density, hand):
    given, _ = density
    rng = np.random.default_rng(int(hand))
    move = Move(Rotation.random(rng=rng).as_matrix(), rng.uniform(-4, 4, 3), hand)
    moved = Interpolated(given).moved(move)
    noisy = moved + 0.5 * float(moved.std()) * torch.from_numpy(rng.standard_normal(moved.shape).astype(np.float32))
    found = fit.fit(given, noisy)
    assert found.move.mirrored == hand and found.correlation > 0.85 and found.hands[0] > found.hands[1] + 0.1
    assert apart_deg(found.move.rotation, move.rotation) < 0.1
    assert np.abs(found.move.shift_px - move.shift_px).max() < 0.05


@pytest.mark.parametrize("name", [pytest.param("D3", marks=pytest.mark.slow), "O"])
def test_axes_are_found(density, name):
    """What is left of the true turn is one of the group's own; O's normaliser is O."""
    given, _ = density
    whole = Interpolated(given).moved(Move(shift_px=np.array([4.0, 2, -3])))
    group = operators(name)
    even = symmetrised(whole, group)
    rng = np.random.default_rng(5)
    move = Move(Rotation.random(rng=rng).as_matrix(), rng.uniform(-2, 2, 3))
    found = fit.align_axes(Interpolated(even).moved(move), group, generators(name))
    left = found.move.rotation @ move.rotation
    normaliser = operators("D6") if name == "D3" else group
    assert min(apart_deg(left, each) for each in normaliser) < 0.5
    assert found.correlation > 0.9


def test_symmetrised_and_mirrored_as_relion_does(place, density):
    for name, words, theirs in (
        ("sym", "--sym D2", ("--sym", "D2")),
        ("hand", "--invert-hand", ("--invert_hand",)),
        ("low", "--lowpass 40", ("--lowpass", 40)),
        ("high", "--highpass 100", ("--highpass", 100)),
        ("box", "--new-box 64", ("--new_box", 64)),
        ("fine", f"--rescale-angpix {density[1] * 0.75}", ("--rescale_angpix", density[1] * 0.75)),
    ):
        ended = run(f"map map.mrc --o {name} --threads 1 {words}")
        assert ended.code == 0, ended.err
        relion("relion_image_handler", "--i", "map.mrc", "--o", f"{name}.mrc", "--angpix", density[1], *theirs)
        one, other = read_volume(f"{name}/map.mrc"), read_volume(f"{name}.mrc")
        assert one[0].shape == other[0].shape and one[1] == pytest.approx(other[1], rel=1e-3), name
        assert likeness(one[0], other[0]) > 0.995, name


def test_rescaled_maps_are_the_same_density(density):
    given, pixel_A = density
    fine, fine_A = rescaled(given, pixel_A, 0.7 * pixel_A)
    assert fine_A == pytest.approx(0.7 * pixel_A, rel=2e-4)
    back = Interpolated(fine).moved(Move(), BOX, pixel_A / fine_A)
    inside = (slice(6, -6),) * 3
    assert likeness(back[inside], given[inside]) > 0.999
    assert boxed(boxed(given, 60), BOX).equal(given)
    assert (resampled(resampled(given, 80), BOX) - given).abs().max() < 1e-3 * given.max()
    shifted, shift = centred(given.roll((5, -3, 2), (0, 1, 2)))
    assert np.abs(shift + (2, -3, 5)).max() <= 2 and shifted.roll(
        tuple(int(-each) for each in shift[::-1]), (0, 1, 2)
    ).equal(given.roll((5, -3, 2), (0, 1, 2)))


def test_maps_are_compared(place, density):
    """The same density in another box, turned, mirrored: fitted back, its FSC is 1 as far as it reaches."""
    given, pixel_A = density
    rotation = Rotation.random(rng=np.random.default_rng(8)).as_matrix()
    moved = Interpolated(given).moved(Move(rotation, np.array([2.0, 1, -1]), True), 56, 0.9)
    write_volume("other.mrc", moved.numpy(), 0.9 * pixel_A)
    ended = run("map map.mrc --o c --compare other.mrc --threads 1")
    assert ended.code == 0, ended.err
    assert "mirrored" in ended.out and "FSC with other.mrc" in ended.out
    record = json.loads((place / "c/job.json").read_text())["figures"]
    assert apart_deg(np.array(record["rotation"]), rotation) < 0.2 and record["mirrored"]
    fsc = read_star("c/compared.star").table("fsc").numbers("rlnGoldStandardFsc")
    assert fsc[1:16].min() > 0.99
    expected = correlation(torch.from_numpy(read_volume("c/fitted.mrc")[0]), moved)
    assert np.allclose(fsc, expected, atol=1e-4)
    assert run("map map.mrc --o d --compare other.mrc --no-fit --threads 1").code == 0
    apart = read_star("d/compared.star").table("fsc").numbers("rlnGoldStandardFsc")
    assert apart[6:].mean() < 0.5 * fsc[6:16].mean()


def test_what_a_map_cannot_be_changed_to(place):
    assert "no such point group" in run("map map.mrc --o none --sym X3").err
    assert "is the folder" in run("map map.mrc --o out.mrc").err
    write_volume("flat.mrc", np.ones((20, 20, 20), np.float32), 3.0)
    assert "this map is empty" in run("map flat.mrc --o none").err
    write_volume("oblong.mrc", np.random.default_rng(1).random((20, 20, 24), np.float32), 3.0)
    assert "24 x 20 x 20 voxels" in run("map oblong.mrc --o none").err
    assert "states no pixel size" in _without_pixel_size(place)
    assert not (place / "none").exists()


def _without_pixel_size(place):
    write_volume("plain.mrc", np.random.default_rng(1).random((20, 20, 20), np.float32), 0.0)
    return run("map plain.mrc --o none").err


def test_a_surface_is_where_the_level_is():
    """A ball of radius 12: its disc, lit in the middle, white outside; the level that encloses a mass."""
    n, radius = 48, 12.0
    x = torch.arange(n) - n // 2
    r = (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2).sqrt()
    ball = torch.sigmoid(radius - r)
    picture = surface.picture(ball, 0.5, 100)
    assert picture.shape == (100, 300, 3)
    front = picture[:, :100].astype(float)
    covered = (front.min(axis=2) < 250).mean()
    reach = surface.MARGIN * radius + 1  # of the frame, in voxels: two of the finer ones beyond
    assert covered == pytest.approx(math.pi * radius**2 / (2 * reach) ** 2, rel=0.06)
    assert front[0, 0].min() == 255 and front[50, 50].mean() > front[88, 60].mean()
    mass_kDa = 4 / 3 * math.pi * radius**3 * 8 / surface.A3_OF_DALTON / 1000
    assert surface.contour(ball, 2.0, mass_kDa).level == pytest.approx(0.5, abs=0.1)
    speck = ball.clone()
    speck[2:4, 2:4, 2:4] = 1
    assert np.array_equal(surface.picture(speck, 0.5, 60), surface.picture(ball, 0.5, 60))

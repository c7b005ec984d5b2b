"""Gain references and defects: orientation, sense, size."""

from __future__ import annotations

import numpy as np
import pytest

from polarice.io.gain import GainRule, read_defects, read_gain
from polarice.io.mrc import write_image
from polarice.types import InputError

tifffile = pytest.importorskip("tifffile")
GAIN = np.random.default_rng(2).uniform(0.5, 2, (6, 8)).astype(np.float32)


def test_mrc_stands_tiff_is_upside_down_eer_gain_is_not(tmp_path):
    write_image(tmp_path / "g.mrc", GAIN, 1.0)
    tifffile.imwrite(tmp_path / "g.tif", GAIN)
    (tmp_path / "g.gain").write_bytes((tmp_path / "g.tif").read_bytes())
    assert np.array_equal(read_gain(tmp_path / "g.mrc", (6, 8), False), GAIN)
    assert np.array_equal(read_gain(tmp_path / "g.tif", (6, 8), False), GAIN[::-1])
    assert np.array_equal(read_gain(tmp_path / "g.gain", (6, 8), True), GAIN)


def test_flat_fields_divide_and_zero_is_a_defect(tmp_path):
    flat = GAIN.copy()
    flat[2, 3] = 0
    write_image(tmp_path / "g.mrc", flat, 1.0)
    expected = np.where(flat > 0, flat[flat > 0].mean(dtype=np.float64) / np.where(flat > 0, flat, 1), 0)
    assert np.allclose(read_gain(tmp_path / "g.mrc", (6, 8), True), expected, rtol=1e-6)  # EER, and no .gain
    assert np.allclose(read_gain(tmp_path / "g.mrc", (6, 8), False, GainRule(sense="divide")), expected, rtol=1e-6)
    assert np.array_equal(read_gain(tmp_path / "g.mrc", (6, 8), True, GainRule(sense="multiply")), flat)


def test_a_flat_field_in_counts_is_read_and_a_pixel_far_beyond_it_is_a_defect(tmp_path):
    counts = GAIN * np.float32(1e8)
    counts[1, 1] = 1e18
    write_image(tmp_path / "g.mrc", counts, 1.0)
    read = read_gain(tmp_path / "g.mrc", (6, 8), False)
    assert read[1, 1] == 0 and np.array_equal(np.delete(read, 9), np.delete(counts, 9))
    flat = read_gain(tmp_path / "g.mrc", (6, 8), True)
    kept = np.delete(counts.astype(np.float64), 9)
    assert flat[1, 1] == 0 and np.allclose(np.delete(flat, 9), kept.mean() / kept, rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "moved"),
    [
        (GainRule(1, 0), lambda a: a[::-1].T),  # the left column becomes the top row: clockwise, rows downwards
        (GainRule(2, 0), lambda a: a[::-1, ::-1]),
        (GainRule(3, 0), lambda a: a.T[::-1]),
        (GainRule(0, 1), lambda a: a[::-1]),
        (GainRule(0, 2), lambda a: a[:, ::-1]),
        (GainRule(1, 2), lambda a: a[::-1].T[:, ::-1]),
    ],
)
def test_turned_clockwise_then_flipped(tmp_path, rule, moved):
    write_image(tmp_path / "g.mrc", GAIN, 1.0)
    expected = moved(GAIN)
    assert np.array_equal(read_gain(tmp_path / "g.mrc", expected.shape, False, rule), expected)


def test_super_resolution_takes_the_gain_of_the_sensor(tmp_path):
    write_image(tmp_path / "g.mrc", GAIN, 1.0)
    rule = GainRule(sense="multiply")
    assert np.array_equal(read_gain(tmp_path / "g.mrc", (12, 16), True, rule), np.kron(GAIN, np.ones((2, 2))))
    small = read_gain(tmp_path / "g.mrc", (3, 4), True, rule)
    assert small[1, 2] == pytest.approx(GAIN[2:4, 4:6].mean(), rel=1e-6)


def test_wrong_sizes_are_told_with_the_way_out(tmp_path):
    write_image(tmp_path / "g.mrc", GAIN, 1.0)
    with pytest.raises(InputError, match=r"8 x 6 pixels, the movie 6 x 8; turn it with --gain-rot 1"):
        read_gain(tmp_path / "g.mrc", (8, 6), False)
    with pytest.raises(InputError, match=r"8 x 6 pixels, the movie 20 x 10; check"):
        read_gain(tmp_path / "g.mrc", (10, 20), False)
    write_image(tmp_path / "z.mrc", GAIN * 0, 1.0)
    with pytest.raises(InputError, match="nowhere above 0"):
        read_gain(tmp_path / "z.mrc", (6, 8), False)


def test_defects_as_a_list_and_as_a_map(tmp_path):
    (tmp_path / "d.txt").write_text("# camera\n1 2 3 1\n7 5 4 4\n")
    mask = read_defects(tmp_path / "d.txt", (6, 8))
    assert np.argwhere(mask).tolist() == [[2, 1], [2, 2], [2, 3], [5, 7]]
    write_image(tmp_path / "d.mrc", mask.astype(np.float32), 1.0)
    assert np.array_equal(read_defects(tmp_path / "d.mrc", (6, 8)), mask)
    (tmp_path / "e.txt").write_text("1 2 3\n")
    with pytest.raises(InputError, match=r"line 1.*four numbers"):
        read_defects(tmp_path / "e.txt", (6, 8))
    (tmp_path / "e.txt").write_text("9 2 3 1\n")
    with pytest.raises(InputError, match="outside of 8 x 6"):
        read_defects(tmp_path / "e.txt", (6, 8))

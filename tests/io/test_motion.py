"""A movie's motion in RELION's file, there and back, and RELION's own."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from polarice.io.motion import MovieFacts, read_motion, write_motion
from polarice.io.star import read_star
from polarice.types import InputError, Motion

REAL = Path(__file__).parents[2] / "../shared/data/metadata/em-testdata_movie_frameImage.star"


def test_there_and_back(tmp_path):
    rng = np.random.default_rng(0)
    motion = Motion(rng.normal(size=(5, 2)), (30, 40), rng.normal(size=(2, 6, 3)) * 1e-4)
    write_motion(tmp_path / "m.star", motion, MovieFacts("m.tif", 1.5, 2.0, 1.0, 0.0, 300.0), np.array([[3, 4]]))
    again = read_motion(tmp_path / "m.star")
    assert again.shape == (30, 40)
    assert np.allclose(again.shifts_px, motion.shifts_px, atol=1e-6)
    assert np.allclose(again.local_px, motion.local_px, rtol=1e-8)
    star = read_star(tmp_path / "m.star")
    assert star["general"].pairs["rlnMicrographBinning"] == "2.000000"
    assert star.table("hot_pixels").numbers("rlnCoordinateX").tolist() == [3]
    assert star.table("global_shift").numbers("rlnMicrographShiftX")[1] == pytest.approx(-motion.shifts_px[1, 0])


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data")
def test_relions_polynomial_runs_through_relions_own_patches():
    """RELION wrote what each patch and frame did beside its polynomial: at its least squares, as we read it."""
    motion, shifts = read_motion(REAL), read_star(REAL).table("local_shift")
    frame = shifts.integers("rlnMicrographFrameNumber") - 1
    x, y = shifts.numbers("rlnCoordinateX"), shifts.numbers("rlnCoordinateY")
    measured = -np.stack([shifts.numbers("rlnMicrographShiftX"), shifts.numbers("rlnMicrographShiftY")], -1)
    fitted = motion.at(frame, x, y) - motion.shifts_px[frame]
    other = motion.at(frame, y, x) - motion.shifts_px[frame]  # x and y exchanged
    for axis in range(2):
        found = np.corrcoef(measured[:, axis], fitted[:, axis])[0, 1]
        assert found > 0.65 and found > np.corrcoef(measured[:, axis], other[:, axis])[0, 1] + 0.1


def test_frames_that_relion_did_not_use_are_none(tmp_path):
    """RELION lists all frames of the movie, those that it left out at -9999."""
    shifts = np.array([[9999.0, 9999.0], [0, 0], [1, -2], [9999.0, 9999.0]])
    write_motion(
        tmp_path / "m.star", Motion(shifts, (30, 40), np.zeros((2, 6, 3))),
        MovieFacts("m.tif", 1.5, 1.0, 1.0, 0.0, 300.0), np.zeros((0, 2), int),
    )  # fmt: skip
    assert read_star(tmp_path / "m.star").table("global_shift").numbers("rlnMicrographShiftX")[0] == -9999
    assert read_motion(tmp_path / "m.star").shifts_px.tolist() == [[0, 0], [1, -2]]


def test_other_models_are_refused(tmp_path):
    motion = Motion(np.zeros((3, 2)), (30, 40), np.zeros((2, 6, 3)))
    write_motion(tmp_path / "m.star", motion, MovieFacts("m.tif", 1.5, 1.0, 1.0, 0.0, 300.0), np.zeros((0, 2), int))
    text = (tmp_path / "m.star").read_text()
    (tmp_path / "m.star").write_text(re.sub(r"(_rlnMotionModelVersion) +1", r"\1 7", text))
    with pytest.raises(InputError, match="model 7"):
        read_motion(tmp_path / "m.star")

"""SerialEM's .mdoc, EPU's names, clusters of beam shifts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polarice.io.sessions import clusters, epu_template, parse_mdoc, read_mdoc
from polarice.types import InputError

MDOC = """PixelSpacing = 0.83
ImageFile = a.tif
Voltage = 300

[ZValue = 0]
ExposureDose = 49.8
NumSubFrames = 40
ImageShift = -1.25 0.5
GainReference = Count.gain
DateTime = 12-Nov-26  10:11:12
"""


def test_mdoc_beside_a_movie(tmp_path):
    (tmp_path / "a.tif.mdoc").write_text(MDOC)
    found = read_mdoc(tmp_path / "a.tif")
    assert found is not None and found == parse_mdoc(MDOC.replace("\n", "\r\n"))
    assert (found.pixel_size_A, found.dose_e_A2, found.frames, found.voltage_kV) == (0.83, 49.8, 40, 300)
    assert found.image_shift_um == (-1.25, 0.5) and found.gain == "Count.gain" and found.defects is None
    assert read_mdoc(tmp_path / "b.tif") is None


def test_nonsense_is_not_believed():
    found = parse_mdoc("PixelSpacing = no\nExposureDose = 0\nImageShift = 1\n")
    assert found.pixel_size_A is None and found.dose_e_A2 is None and found.image_shift_um is None


def test_epu_names():
    name = "FoilHole_24015405_Data_24016401_24016403_20200225_0014_Fractions.tiff"
    assert epu_template(Path("Images-Disc1") / name) == "24016401"
    assert epu_template(Path("stack_0001.tif")) is None


def test_beam_shifts_fall_into_their_groups():
    rng = np.random.default_rng(3)
    y, x = np.divmod(np.arange(9), 3)
    truth = rng.integers(0, 9, 500)
    shifts = np.stack([x, y], -1)[truth] * 2.0 + rng.normal(0, 0.05, (500, 2))
    assert np.array_equal(clusters(shifts, 0.3), truth)


def test_a_file_that_is_no_mdoc_is_not_read_in_part(tmp_path):
    (tmp_path / "a.tif.mdoc").write_text("PixelSpacing = 1.1\n" * 230_000)
    with pytest.raises(InputError, match=r"a\.tif\.mdoc: longer than 4,194,304 characters"):
        read_mdoc(tmp_path / "a.tif")

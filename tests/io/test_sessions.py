"""SerialEM's .mdoc, EPU's names, clusters of beam shifts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polarice.io.sessions import clusters, epu_template, parse_mdoc, read_beside, read_mdoc
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


EPU_XML = """<?xml version="1.0" encoding="utf-8"?>
<MicroscopeImage xmlns="http://schemas.datacontract.org/2004/07/Fei.SharedObjects" xmlns:i="http://www.w3.org/2001/x">
<SpatialScale><pixelSize><x><numericValue>{pixel}</numericValue></x><y><numericValue>1</numericValue></y></pixelSize>
</SpatialScale><microscopeData><gun><AccelerationVoltage>{volt}</AccelerationVoltage></gun></microscopeData>
</MicroscopeImage>"""


@pytest.mark.parametrize(
    "name", ["FoilHole_1_Data_2_3_20200101_1_Fractions.tiff", "FoilHole_1_Data_2_3_20200101_1_EER.eer"]
)
def test_what_epu_leaves_beside_a_movie(tmp_path, name):
    """Metres and volts there."""
    assert read_beside(tmp_path / name) is None
    (tmp_path / "FoilHole_1_Data_2_3_20200101_1.xml").write_text(EPU_XML.format(pixel="8.3E-11", volt="200000"))
    found = read_beside(tmp_path / name)
    assert (found.pixel_size_A, found.voltage_kV, found.kind) == (pytest.approx(0.83), 200, ".xml")
    (tmp_path / f"{name}.mdoc").write_text("PixelSpacing = 0.9\n")
    assert read_beside(tmp_path / name).pixel_size_A == 0.9  # SerialEM's counts first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (EPU_XML[:200], "damaged"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><a/>", "entities of its own"),
        (" " * ((1 << 22) + 1), "too long"),
    ],
)
def test_an_xml_file_that_is_none(tmp_path, text, message):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_beside(tmp_path / "a.tif")
    path.write_text(EPU_XML.format(pixel="nan", volt="-1"))
    assert (read_beside(tmp_path / "a.tif").pixel_size_A, read_beside(tmp_path / "a.tif").voltage_kV) == (None, None)
    path.write_text("<other/>")
    assert read_beside(tmp_path / "a.tif") is None

"""polarice import: what comes from a microscope becomes a table; what contradicts is named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from polarice.cli import main
from polarice.io.cryosparc import read_cs
from polarice.io.micrographs import read_micrographs
from polarice.io.star import Block, Table, read_star, write_star
from polarice.jobs import import_

tifffile = pytest.importorskip("tifffile")
DATA = Path(__file__).parents[2] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
FRAMES = np.random.default_rng(0).poisson(2, (3, 20, 24)).astype(np.uint8)


def run(*words: object) -> int:
    return main(["import", *map(str, words)])


def mrc(path: Path, data: np.ndarray, pixel_size_A: float) -> None:
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(data.astype(np.float32))
        file.voxel_size = pixel_size_A


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_movies_with_mdoc_dose_and_beam_shift_groups(here):
    for number, shift in enumerate([(0, 0), (2, 0), (0.01, 0.02), (2.02, 0)]):
        name = f"m{number}.tif"
        tifffile.imwrite(name, FRAMES, photometric="minisblack", compression="lzw")
        mdoc = f"PixelSpacing = 0.83\nExposureDose = 30\nNumSubFrames = 3\nImageShift = {shift[0]} {shift[1]}\n"
        Path(name + ".mdoc").write_text(mdoc)
    assert run("m*.tif", "m*.mdoc", "--optics-groups", "beam-shift", "--mtf", "mtf.star", "--o", "out") == 0
    table = read_micrographs("out/movies.star", "movies")
    assert table.names == ("m0.tif", "m1.tif", "m2.tif", "m3.tif") and table.optics_of.tolist() == [0, 1, 0, 1]
    assert [group.name for group in table.optics] == ["opticsGroup1", "opticsGroup2"]
    assert table.optics[0].pixel_size_A == 0.83 and table.optics_table.text("rlnMtfFileName")[0] == "mtf.star"
    assert table.table.numbers("rlnMicrographDoseRate").tolist() == [10.0] * 4


@pytest.mark.parametrize(
    ("mdoc", "words", "voltage", "told"),
    [
        ("Voltage = 200\n", [], 200, ""),
        ("Voltage = 200\n", ["--voltage", "300"], 300, "states another voltage, a.tif 200 kV; 300 is used"),
        ("", [], 300, ""),
        ("NumSubFrames = 9\n", [], 300, "a.tif 3 where it says 9"),
        ("GainReference = gain.dm4\nDefectFile = d.txt\n", [], 300, "name a gain reference: gain.dm4; give it"),
        ("ImageShift = nan 1\n" + "\n" * 100_000 + "Voltage = 120\n", [], 120, ""),
    ],
)
def test_what_stands_beside_a_movie_is_used_or_told(here, capsys, mdoc, words, voltage, told):
    tifffile.imwrite("a.tif", FRAMES, photometric="minisblack")
    Path("a.tif.mdoc").write_text(mdoc)
    assert run("a.tif", "--angpix", "1", "--o", "out", *words) == 0
    assert read_micrographs("out/movies.star", "movies").optics[0].voltage_kV == voltage
    said = capsys.readouterr().err
    assert told in said and bool(told) == ("warning" in said)


def test_mdoc_files_that_disagree_on_the_voltage_are_refused(here, capsys):
    for name, voltage in (("a", 200), ("b", 300)):
        tifffile.imwrite(f"{name}.tif", FRAMES, photometric="minisblack")
        Path(f"{name}.tif.mdoc").write_text(f"Voltage = {voltage}\n")
    assert run("a.tif", "b.tif", "--angpix", "1", "--o", "out") == 2
    assert "b.tif: the file beside it says 300 kV, that of a.tif 200 kV" in capsys.readouterr().err
    assert not Path("out").exists()


def test_epu_s_xml_is_used_or_told(here, capsys):
    """It stands beside the movies, matched by `import *`; a pixel size of the user's counts first."""
    tifffile.imwrite("FoilHole_1_Data_2_Fractions.tif", FRAMES, photometric="minisblack", compression="lzw")
    Path("FoilHole_1_Data_2.xml").write_text(
        "<MicroscopeImage><pixelSize><x><numericValue>8.3E-11</numericValue></x></pixelSize>"
        "<AccelerationVoltage>200000</AccelerationVoltage></MicroscopeImage>"
    )
    assert run("*", "--o", "out") == 0
    optics = read_micrographs("out/movies.star", "movies").optics[0]
    assert (optics.pixel_size_A, optics.voltage_kV) == (0.83, 200)
    assert "0.83 A of EPU's .xml is taken, and frames in super-resolution have half" in capsys.readouterr().err
    assert run("FoilHole*", "--angpix", "0.415", "--o", "half") == 0
    assert "the .xml of 1 file(s) states another pixel size" in capsys.readouterr().err


def test_a_file_that_breaks_a_library_is_left_out_alone(here, capsys, monkeypatch):
    for name in ("a", "b", "c"):
        tifffile.imwrite(f"{name}.tif", FRAMES, photometric="minisblack")
    opened = import_.open_movie

    def breaks(path, events=None):
        if Path(path).name == "b.tif":
            raise TypeError("'<' not supported between instances of 'tuple' and 'int'")
        return opened(path, events)

    monkeypatch.setattr(import_, "open_movie", breaks)
    assert run("a.tif", "b.tif", "c.tif", "--angpix", "1", "--o", "out") == 0
    assert read_micrographs("out/movies.star", "movies").names == ("a.tif", "c.tif")
    assert "left out: b.tif: a fault of polarice, not of the file: TypeError" in capsys.readouterr().err


def test_epu_names_make_groups(here):
    for place in (11, 12, 11):
        for hole in (1, 2):
            tifffile.imwrite(f"FoilHole_{hole}_Data_{place}_99_20200225_0014_Fractions.tiff", FRAMES[:2])
    assert run("FoilHole*.tiff", "--optics-groups", "epu", "--angpix", 1.1, "--o", "out") == 0
    assert read_micrographs("out/movies.star", "movies").optics_of.tolist() == [0, 1, 0, 1]


def test_what_is_unlike_the_rest_is_left_out_and_named(here, capsys):
    for name in ("a.mrc", "b.mrc", "c.mrc"):
        mrc(Path(name), FRAMES[0], 1.5)
    mrc(Path("big.mrc"), np.zeros((30, 40)), 1.5)
    mrc(Path("movie.mrcs"), FRAMES, 1.5)
    Path("cut.mrc").write_bytes(Path("a.mrc").read_bytes()[:1500])
    assert run("a.mrc", "b.mrc", "c.mrc", "big.mrc", "movie.mrcs", "cut.mrc", "--o", "out") == 0
    table = read_micrographs("out/micrographs.star")
    assert table.names == ("a.mrc", "b.mrc", "c.mrc") and table.optics[0].pixel_size_A == 1.5
    told = capsys.readouterr()
    assert "3 of 6 micrographs done, 3 left out" in told.out
    assert "big.mrc: 40 x 30 pixels" in told.err and "cut.mrc is cut off" in told.err and "movie.mrcs" in told.err
    assert "cut.mrc is cut off" in Path("out/report.html").read_text()


def test_pixel_sizes_that_contradict_are_refused_or_overruled(here, capsys):
    mrc(Path("a.mrc"), FRAMES[0], 1.5)
    mrc(Path("b.mrc"), FRAMES[0], 1.0)
    assert run("a.mrc", "b.mrc", "--o", "out") == 2
    assert not Path("out").exists()
    assert "b.mrc states a pixel size of 1 A, a.mrc one of 1.5 A" in capsys.readouterr().err
    assert run("a.mrc", "b.mrc", "--pixel-size", 1.5, "--o", "out") == 0
    assert "warning: 1 file(s) state another pixel size, b.mrc 1 A; 1.5 A is used" in capsys.readouterr().err
    tifffile.imwrite("c.tif", FRAMES, photometric="minisblack")
    assert run("c.tif", "--o", "out") == 2 and "give it with --angpix" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    (["none.tif"], "none.tif: no such file"),
    (["a.mrc", "a.mrc"], "a.mrc is given twice"),
    (["a.mrc", "--to", "cs"], "for tables of particles"),
    (["a.mrc", "--optics-groups", "epu"], "no name of EPU"),
    (["a.mrc", "--optics-groups", "beam-shift"], "no .mdoc with ImageShift"),
    (["p.star", "a.mrc"], "one table at a time"),
])  # fmt: skip
def test_what_cannot_be_is_told(here, capsys, words, message):
    mrc(Path("a.mrc"), FRAMES[0], 1.5)
    Path("p.star").write_text("data_\n")
    assert run(*words, "--o", "out") == 2
    assert message in capsys.readouterr().err


@needs_data
def test_particles_of_relion_to_cryosparc_and_back(here):
    source = DATA / "particles_small/relion31_helical_5.star"
    assert run(source, "--to", "cs", "--o", "cs") == 0
    assert len(read_cs("cs/particles.cs")) == 5
    assert run("cs/particles.cs", "--o", "star") == 0
    assert run("cs/particles.cs", "--o", "star") == 0  # again, into the same folder
    first, again = (read_star(path).table("particles") for path in (source, "star/particles.star"))
    same = ("rlnDefocusU", "rlnDefocusAngle", "rlnOriginXAngst", "rlnOriginYAngst", "rlnAngleTilt", "rlnAnglePsi")
    for label in same:
        assert np.allclose(again.numbers(label), first.numbers(label), rtol=1e-5, atol=2e-4)
    rot = again.numbers("rlnAngleRot") - first.numbers("rlnAngleRot")
    assert np.allclose((rot + 180) % 360 - 180, 0, atol=2e-4)


def test_a_defocus_that_no_microscope_has_is_refused_and_a_missing_one_told(here, capsys):
    mrc(Path("s.mrcs"), np.ones((2, 8, 8)), 1.5)
    images, optics = ["1@s.mrcs", "2@s.mrcs"], Table.of({"rlnOpticsGroup": [1], "rlnImagePixelSize": [1.5]})

    def imported(defocus: dict[str, list[float]]) -> int:
        particles = Table.of({"rlnImageName": images, **defocus, "rlnOpticsGroup": [1, 1]})
        write_star("p.star", [Block("optics", table=optics), Block("particles", table=particles)])
        return run("p.star", "--o", "out")

    assert imported({"rlnDefocusU": [1e4, -1e30], "rlnDefocusV": [1e4, 1e4]}) == 2
    assert "data_particles, row 2: _rlnDefocusU is -1e+30; correct or remove the row" in capsys.readouterr().err
    assert not Path("out").exists()
    assert imported({}) == 0
    assert "warning: p.star has no _rlnDefocusU, _rlnDefocusV; classify with --no-ctf" in capsys.readouterr().err
    assert imported({"rlnDefocusU": [1e4, 1.1e4], "rlnDefocusV": [1e4, 1e4]}) == 0
    assert "warning" not in capsys.readouterr().err


def test_what_a_cs_lacks_is_told(here, capsys):
    """Dark particles, and no places in micrographs."""
    columns = [("uid", "u8"), ("blob/path", "S20"), ("blob/idx", "u4"), ("blob/shape", "u4", (2,))]
    rows = np.zeros(2, [*columns, ("blob/psize_A", "f4"), ("blob/sign", "f4")])
    rows["uid"], rows["blob/path"], rows["blob/idx"] = [7, 8], b"s.mrcs", [0, 1]
    rows["blob/shape"], rows["blob/psize_A"], rows["blob/sign"] = 8, 1.5, -1
    np.save("p.npy", rows)
    Path("p.npy").rename("p.cs")
    assert run("p.cs", "--o", "dark") == 0
    told = capsys.readouterr().err
    assert "warning: these particles are dark (blob/sign -1); invert the images for RELION" in told
    assert "warning: p.cs has no location/* columns: no rlnMicrographName and no coordinates" in told
    rows["blob/sign"] = 1
    np.save("p.npy", rows)
    Path("p.npy").rename("p.cs")
    assert run("p.cs", "--o", "white") == 0
    assert "dark" not in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("relion_run_motioncorr") is None, reason="needs relion_run_motioncorr")
def test_relion_takes_the_table_of_movies(here):
    frames = np.random.default_rng(0).poisson(20, (3, 64, 96)).astype(np.uint8)
    tifffile.imwrite("m.tif", frames, photometric="minisblack", compression="zlib")
    assert run("m.tif", "--angpix", 1.5, "--o", "out") == 0
    words = "relion_run_motioncorr --i out/movies.star --o MC --use_own --j 1"
    subprocess.run(words.split(), check=True, capture_output=True)
    assert mrcfile.read("MC/m.mrc").shape == (64, 96)

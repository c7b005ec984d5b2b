"""polarice motion through real files, against truth and beside RELION."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from jobs.movie_sets import FRAMES, PIXEL_A, SHAPE, simulation, write_table
from polarice.cli import main
from polarice.fourier import frc
from polarice.io.eer import write_eer
from polarice.io.micrographs import read_micrographs
from polarice.io.motion import read_motion
from polarice.io.mrc import write_image
from polarice.io.star import read_star
from polarice.simulation.movies import rms_error_px

tifffile = pytest.importorskip("tifffile")
relion = pytest.mark.skipif(shutil.which("relion_run_motioncorr") is None, reason="needs relion_run_motioncorr")
PATCHES = ["--patch-x", "3", "--patch-y", "3"]


def run(*words: object) -> int:
    return main(["motion", *map(str, words), "--threads", "1"])


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    """A TIFF movie with gain, dead and hot pixels: (folder, simulation)."""
    folder = tmp_path_factory.mktemp("movie")
    rng = np.random.default_rng(8)
    gain = rng.uniform(0.7, 1.4, SHAPE).astype(np.float32)
    dead, hot = np.zeros(SHAPE, bool), rng.random(SHAPE) < 1e-4
    dead[200:206, 100:180] = True
    made = simulation(gain=gain, dead=dead, hot=hot)
    frames = np.stack(list(made.counts()))
    tifffile.imwrite(folder / "a.tif", frames[:, ::-1], compression="lzw", photometric="minisblack")
    write_image(folder / "gain.mrc", gain, PIXEL_A)
    (folder / "defects.txt").write_text("100 200 80 6\n")
    write_table(folder / "movies.star", ["a.tif"])
    return folder, made


def test_a_movie_with_gain_and_defects_to_half_a_pixel(movie, monkeypatch):
    folder, made = movie
    monkeypatch.chdir(folder)
    options = ["--gainref", "gain.mrc", "--defect-file", "defects.txt", "--dose-per-frame", "0.5", "--save-noDW"]
    options.append("--even-odd-split")
    assert run("movies.star", "--o", "out", *options, *PATCHES) == 0
    whole, local = rms_error_px(read_motion("out/a.star"), made.motion)
    assert whole < 0.5 and local < 0.7
    table = read_micrographs("out/micrographs.star")
    assert table.names == ("out/a.mrc",) and table.table.text("rlnMicrographMetadata").tolist() == ["out/a.star"]
    assert table.table.text("rlnMicrographNameOdd").tolist() == ["out/a_ODD.mrc"]
    halves = mrcfile.read("out/a_EVN.mrc") + mrcfile.read("out/a_ODD.mrc")
    assert np.abs(halves - mrcfile.read("out/a.mrc")).max() < 1e-2
    image = mrcfile.read("out/a_noDW.mrc")
    assert image.mean() == pytest.approx(2.0 * FRAMES, rel=0.01)
    assert image[200:206, 100:180].mean() == pytest.approx(2.0 * FRAMES, rel=0.05)  # not dark any more
    close = frc(image[:, :360] - image.mean(), made.contrast[:, :360])
    assert close[3:40].mean() > 0.8 and mrcfile.validate("out/a.mrc")
    spectrum = mrcfile.read("out/a_PS.mrc")
    assert spectrum.shape == (360, 360) and spectrum[180 - 12 : 180 + 12, 180 + 12].mean() > 1.5 * spectrum[:40].mean()
    hot = read_star("out/a.star").table("hot_pixels")
    places = set(zip(hot.integers("rlnCoordinateX").tolist(), hot.integers("rlnCoordinateY").tolist(), strict=True))
    assert {(int(x), int(y)) for y, x in np.argwhere(made.hot)} <= places


def test_the_same_again_does_nothing_and_other_options_want_another_folder(movie, monkeypatch, capsys):
    """Tables of later jobs name the micrographs: they are not to become others in silence."""
    folder, _ = movie
    monkeypatch.chdir(folder)
    assert run("movies.star", "--o", "again", "--no-dose-weighting", *PATCHES) == 0
    before, used = Path("again/a.mrc").stat().st_mtime_ns, Path("again/usage.json").read_bytes()
    assert run("movies.star", "--o", "again", "--no-dose-weighting", *PATCHES) == 0
    assert Path("again/usage.json").read_bytes() == used  # a run that did nothing has used nothing
    other = ("--no-dose-weighting", *PATCHES, "--bin-factor", "2", "--float16")
    assert run("movies.star", "--o", "again", *other) == 2
    assert "made with other options: --bin-factor (now 2.0, then 1.0), --float16" in capsys.readouterr().err
    assert Path("again/a.mrc").stat().st_mtime_ns == before
    assert run("movies.star", "--o", "smaller", *other) == 0
    with mrcfile.open("smaller/a.mrc") as binned:
        assert binned.data.shape == (180, 200) and binned.data.dtype == np.float16
        assert float(binned.voxel_size.x) == pytest.approx(4.0)
    sizes = read_micrographs("smaller/micrographs.star").optics_table.numbers("rlnMicrographPixelSize")
    assert sizes.tolist() == [4.0]


def test_bad_movies_are_named_and_the_rest_is_done(movie, monkeypatch, capsys):
    folder, _ = movie
    monkeypatch.chdir(folder)
    whole = Path("a.tif").read_bytes()
    Path("cut.tif").write_bytes(whole[: len(whole) // 2])
    frames = tifffile.imread("a.tif")
    tifffile.imwrite("empty.tif", frames * 0, photometric="minisblack")
    holed = frames.copy()
    holed[3] = 0
    tifffile.imwrite("holed.tif", holed, photometric="minisblack")
    tifffile.imwrite("small.tif", frames[:, :300], photometric="minisblack")
    nan = frames.astype(np.float32)
    nan[:, 5, 5] = np.nan
    tifffile.imwrite("nan.tif", nan, photometric="minisblack")
    names = ["cut.tif", "empty.tif", "holed.tif", "small.tif", "nan.tif", "gone.tif", "a.tif"]
    table = write_table(folder / "bad.star", names)
    assert run(table, "--o", "bad", "--gainref", "gain.mrc", "--no-dose-weighting", "--patch-x", 1, "--patch-y", 1) == 0
    assert read_micrographs("bad/micrographs.star").names == ("bad/holed.mrc", "bad/a.mrc")
    told = capsys.readouterr()
    assert "2 of 7 movies done, 5 left out" in told.out
    page = Path("bad/report.html").read_text()
    for text in (
        "cut.tif", "0 of 10 frames can be used; frame 1 is zero everywhere", "frame 4 is zero everywhere; left out",
        "gain reference is 400 x 360 pixels, the movie 400 x 300", "holds values that are no numbers", "no such file",
    ):  # fmt: skip
        assert text in page


def test_a_gain_reference_that_no_movie_suits_is_told_once_and_before_the_work(movie, monkeypatch, capsys):
    folder, _ = movie
    monkeypatch.chdir(folder)
    write_image("other.mrc", np.ones((300, 400)), PIXEL_A)
    table = write_table(folder / "several.star", ["gone.tif", "a.tif", "b.tif"])
    shutil.copy("a.tif", "b.tif")
    assert run(table, "--o", "none", "--gainref", "other.mrc", "--no-dose-weighting") == 2
    told = capsys.readouterr().err
    assert told.count("other.mrc: the gain reference is 400 x 300 pixels, the movie 400 x 360") == 1
    assert not Path("none").exists()


@pytest.mark.parametrize(("words", "message"), [
    ([], "give --dose-per-frame or --total-dose"),
    (["--dose-per-frame", "0"], "give --dose-per-frame or --total-dose"),
    (["--dose-per-frame", "1", "--total-dose", "10"], "say the same thing"),
    (["--no-dose-weighting", "--gain-rot", "1"], "need --gainref"),
    (["--no-dose-weighting", "--gainref", "none.mrc"], "none.mrc: no such file"),
    (["--no-dose-weighting", "--save-noDW"], "is for dose weighting"),
    (["--dose-per-frame", "1", "--eer-dose", "1"], "--eer-dose needs --total-dose"),
    (["--no-dose-weighting", "--patch-x", "3"], "go together"),
    (["--no-dose-weighting", "--first-frame", "4", "--last-frame", "4"], "--last-frame 4 must be more than"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_told_before_the_work(movie, monkeypatch, capsys, words, message):
    monkeypatch.chdir(movie[0])
    assert run("movies.star", "--o", "none", *words) == 2
    assert message in capsys.readouterr().err and not Path("none").exists()


def test_a_part_of_the_frames(movie, monkeypatch, capsys):
    """Frames 3 to 8 alone are used, and had the dose of the first two before them."""
    folder, made = movie
    monkeypatch.chdir(folder)
    gain = ["--gainref", "gain.mrc", "--patch-x", 1, "--patch-y", 1]
    part = ["--first-frame", 3, "--last-frame", 8, *gain]
    assert run("movies.star", "--o", "part", "--dose-per-frame", 2, "--save-noDW", *part) == 0
    motion, truth = read_motion("part/a.star"), made.motion.shifts_px[2:8]
    apart = motion.shifts_px - motion.shifts_px.mean(0) - truth + truth.mean(0)
    assert len(motion.shifts_px) == 6 and np.sqrt((apart**2).sum(-1).mean()) < 1.0
    assert mrcfile.read("part/a_noDW.mrc").mean() == pytest.approx(2.0 * 6, rel=0.02)
    star = read_star("part/a.star")
    general, numbers = star["general"].pairs, star.table("global_shift").integers("rlnMicrographFrameNumber")
    assert (general["rlnMicrographStartFrame"], general["rlnImageSizeZ"]) == ("3", str(FRAMES))
    assert numbers.tolist() == [3, 4, 5, 6, 7, 8]
    tifffile.imwrite("part.tif", tifffile.imread("a.tif")[2:8], photometric="minisblack", compression="lzw")
    later = ["--dose-per-frame", 2, "--preexposure", 4, *gain]
    assert run(write_table(folder / "part.star", ["part.tif"]), "--o", "alone", *later) == 0
    assert np.abs(mrcfile.read("part/a.mrc") - mrcfile.read("alone/part.mrc")).max() < 1e-3
    frames = tifffile.imread("a.tif") * np.uint8(0)
    tifffile.imwrite("dark.tif", frames, photometric="minisblack")
    dark = write_table(folder / "dark.star", ["dark.tif"])
    assert run(dark, "--o", "dark", "--no-dose-weighting", "--first-frame", 3) == 2
    assert "0 of 8 frames can be used; frame 3 is zero everywhere" in capsys.readouterr().err
    assert run("movies.star", "--o", "late", "--no-dose-weighting", "--first-frame", FRAMES) == 2
    assert f"a.tif has {FRAMES} frames; two from --first-frame on are wanted" in capsys.readouterr().err


def test_eer_fractions_with_a_flat_field(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = simulation(seed=3, dose=1.2, local_px=0.0)
    write_eer(tmp_path / "a.eer", made.events(8), SHAPE)
    write_image(tmp_path / "flat.mrc", np.full(SHAPE, 3.0), PIXEL_A)
    table = write_table(tmp_path / "movies.star", ["a.eer"])
    options = ["--gainref", "flat.mrc", "--total-dose", "20", "--eer-dose", "2", "--patch-x", 1, "--patch-y", 1]
    assert run(table, "--o", "out", *options) == 0
    motion = read_motion("out/a.star")
    assert motion.shifts_px.shape == (10, 2) and rms_error_px(motion, made.motion)[0] < 0.5
    general = read_star("out/a.star")["general"].pairs
    assert (general["rlnEERGrouping"], general["rlnMicrographDoseRate"]) == ("8", "2.000000")


def test_a_pixel_size_that_the_file_contradicts_is_a_remark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with mrcfile.new("a.mrcs") as file:
        file.set_data(np.stack(list(simulation().counts())).astype(np.int16))
        file.voxel_size = 1.0
    table = write_table(tmp_path / "movies.star", ["a.mrcs"])
    assert run(table, "--o", "out", "--no-dose-weighting", "--patch-x", 1, "--patch-y", 1, "--angpix", 2.5) == 0
    assert "the file says 1 A/px; 2.5 is used" in Path("out/report.html").read_text()
    assert read_micrographs("out/micrographs.star").optics[0].pixel_size_A == 2.5


@relion
def test_no_worse_than_relion_on_the_same_files(movie, monkeypatch):
    folder, made = movie
    monkeypatch.chdir(folder)
    assert run("movies.star", "--o", "ours", "--gainref", "gain.mrc", "--dose-per-frame", "0.5", *PATCHES) == 0
    words = "relion_run_motioncorr --i movies.star --o theirs --use_own --j 1 --patch_x 3 --patch_y 3 --bfactor 150"
    words += " --gainref gain.mrc --dose_weighting --dose_per_frame 0.5"
    subprocess.run(words.split(), check=True, capture_output=True)
    ours, theirs = (rms_error_px(read_motion(f"{who}/a.star"), made.motion) for who in ("ours", "theirs"))
    assert ours[0] < theirs[0] + 0.1 and ours[1] < theirs[1] + 0.1
    images = [mrcfile.read(f"{who}/a.mrc")[:, :360] for who in ("ours", "theirs")]
    close = [frc(image - image.mean(), made.contrast[:, :360])[3:60].mean() for image in images]
    assert close[0] > close[1] - 0.01


@relion
def test_relion_reads_what_we_write(movie, monkeypatch):
    folder, _ = movie
    monkeypatch.chdir(folder)
    assert run("movies.star", "--o", "kept", "--no-dose-weighting", "--patch-x", 1, "--patch-y", 1) == 0
    words = "relion_star_printtable kept/a.star data_global_shift rlnMicrographFrameNumber rlnMicrographShiftX"
    shown = subprocess.run(words.split(), check=True, capture_output=True, text=True).stdout.split()
    assert np.allclose([float(word) for word in shown[1::2]], -read_motion("kept/a.star").shifts_px[:, 0], atol=1e-5)
    words = "relion_image_handler --i kept/a.mrc --stats"
    stats = subprocess.run(words.split(), check=True, capture_output=True, text=True).stdout
    assert "400" in stats and "360" in stats

"""polarice ctf, pick and extract on files: numbers against truth, bad files named and skipped, restart, RELION."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from contrast_transfer.rings import micrograph
from jobs.micrograph_tables import HEAD, table_text
from jobs.runs import polarice
from picking.test_search import places, scene
from polarice.fourier import centred_fft2
from polarice.io.coordinates import Coordinates, read_coordinates, write_coordinates
from polarice.io.mrc import open_stack, read_header, write_image, write_stack
from polarice.io.star import read_star


def write_picture(path: Path, pixels: np.ndarray, pixel_A: float) -> None:
    """One section, not square perhaps: RELION and we read it as a micrograph."""
    path.parent.mkdir(exist_ok=True)
    side = min(pixels.shape)
    write_stack(path, pixels[None, :side, :side].astype(np.float32), pixel_A)


def table(names: list[str], pixel_A: float, path: str = "micrographs.star") -> None:
    Path(path).write_text(table_text(names, pixel_A))


def run(command: str):
    ended = polarice(command)
    assert ended.code == 0, ended.err
    return ended


@pytest.fixture
def rings(tmp_path, monkeypatch) -> dict[str, tuple[float, float, float]]:
    """Two micrographs of known defocus, one of noise, a truncated one, one with NaN, one all zero, one missing."""
    monkeypatch.chdir(tmp_path)
    truth = {"Mic/a.mrc": (16_000.0, 15_500.0, 30.0), "Mic/b.mrc": (12_000.0, 11_800.0, -50.0)}
    for seed, (name, defocus) in enumerate(truth.items()):
        write_picture(tmp_path / name, micrograph(defocus, side=768, seed=seed), 1.5)
    noise = np.random.default_rng(0).standard_normal((768, 768))
    write_picture(tmp_path / "Mic/noise.mrc", noise, 1.5)
    write_picture(tmp_path / "Mic/zero.mrc", np.zeros((64, 64)), 1.5)
    noise[3, 4] = np.nan
    write_picture(tmp_path / "Mic/nan.mrc", noise, 1.5)
    content = (tmp_path / "Mic/a.mrc").read_bytes()
    (tmp_path / "Mic/cut.mrc").write_bytes(content[: len(content) // 2])
    table([*truth, *(f"Mic/{name}.mrc" for name in ("noise", "zero", "nan", "cut", "missing"))], 1.5)
    return truth


def test_ctf_fits_what_it_can_and_names_the_rest(rings):
    ended = run("ctf micrographs.star --o CtfFind/job002 --threads 1")
    found = read_star("CtfFind/job002/micrographs.star").table("micrographs")
    assert found.text("rlnMicrographName").tolist() == list(rings)
    for row, (u, v, _) in enumerate(rings.values()):
        assert abs(found.numbers("rlnDefocusU")[row] - u) < 100
        assert abs(found.numbers("rlnDefocusV")[row] - v) < 100
    assert (found.numbers("rlnCtfMaxResolution") < 6).all()
    for name in ("zero", "nan", "cut", "missing"):
        assert f"Mic/{name}.mrc" in ended.err
    assert "3 of 7 micrographs done, 4 left out, 1 without Thon rings not in micrographs.star" in ended.out
    page = Path("CtfFind/job002/report.html").read_text()
    assert "no Thon rings" in page
    assert "pixels are not numbers" in page
    picture = found.text("rlnCtfImage")[0]
    assert picture.endswith(".ctf:mrc")
    both = open_stack(picture.removesuffix(":mrc"))[0]
    left, right = both[:, 100:256], both[:, 257:413][:, ::-1]  # a centrosymmetric pair
    to_device = np.hypot(*np.mgrid[-256:256, -156:0]) < 70
    assert np.corrcoef(left[to_device], right[::-1][to_device])[0, 1] > 0.3


def test_another_program_s_tables_are_not_written_over(rings):
    for job in ("ctf", "pick --particle-diameter 100", "extract --box 64 --coords theirs"):
        shutil.rmtree("theirs", ignore_errors=True)
        Path("theirs").mkdir()
        Path("theirs/micrographs.star").write_text("theirs")
        ended = polarice(f"{job} micrographs.star --o theirs")
        assert ended.code == 2 and "theirs holds micrographs.star, which no job of polarice wrote" in ended.err
        assert [path.read_text() for path in Path("theirs").iterdir()] == ["theirs"]


def test_optics_that_are_no_numbers_are_told(rings):
    text = Path("micrographs.star").read_text()
    Path("micrographs.star").write_text(re.sub(r"\b300(\.0*)?\b", "nan", text))
    assert Path("micrographs.star").read_text() != text
    for job in ("ctf", "pick --particle-diameter 100", "extract --box 64 --coords theirs"):
        ended = polarice(f"{job} micrographs.star --o out")
        assert ended.code == 2 and "data_optics, row 1: _rlnVoltage is nan, and not between" in ended.err


def test_ctf_goes_on_with_what_is_missing(rings):
    run("ctf micrographs.star --threads 1")
    before = {path.name: path.stat().st_mtime_ns for path in Path("ctf/Mic").glob("*_ctf.png")}
    shutil.copy("Mic/b.mrc", "Mic/missing.mrc")
    run("ctf micrographs.star --threads 1")
    after = {path.name: path.stat().st_mtime_ns for path in Path("ctf/Mic").glob("*_ctf.png")}
    assert set(after) - set(before) == {"missing_ctf.png"}
    assert all(after[name] == time for name, time in before.items())


def test_ctf_takes_summed_power_spectra(rings):
    """The micrograph itself is noise; its movie's spectrum is that of a."""
    image = open_stack("Mic/a.mrc")[0][:512, :512].astype(float)
    write_stack("Mic/noise_PS.mrc", np.abs(centred_fft2(image))[None].astype(np.float32), 1.5)
    text = HEAD.format(pixel_A=1.5) + "_rlnCtfPowerSpectrum #3\nMic/noise.mrc 1 Mic/noise_PS.mrc\n"
    Path("spectra.star").write_text(text)
    run("ctf spectra.star --threads 1")
    found = read_star("ctf/micrographs.star").table("micrographs")
    assert abs(found.numbers("rlnDefocusU")[0] - 16_000) < 300


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("ctf micrographs.star --defocus-min 9000 --defocus-max 8000", "must be less than"),
        ("pick micrographs.star --blob", "--particle-diameter is needed"),
        ("pick micrographs.star --blob --picks x --particle-diameter 100", "two ways to pick"),
        ("pick micrographs.star --templates none.mrcs --particle-diameter 100", "none.mrcs"),
        ("pick micrographs.star --picks nowhere", "no such file or folder of coordinates"),
        ("extract micrographs.star --box 32", "names no coordinates"),
        ("extract micrographs.star", "--box is needed"),
        ("extract micrographs.star --box 33 --coords x", "must be even"),
        ("extract micrographs.star --box 32 --bg-radius 20 --coords x", "at most half"),
        ("extract micrographs.star --box 32 --no-norm --white-dust 4 --coords x", "parts of the normalisation"),
    ],
)
def test_wrong_options_are_told_before_the_work(rings, command, message):
    ended = polarice(command)
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err


@pytest.fixture
def shells(tmp_path, monkeypatch) -> dict[str, np.ndarray]:
    """Two micrographs with dark particles at known places, and one file that is none."""
    monkeypatch.chdir(tmp_path)
    truth = {}
    for seed in (0, 1):
        xy = places(60, seed=seed)
        truth[f"Mic/m{seed}.mrc"] = xy
        write_picture(tmp_path / f"Mic/m{seed}.mrc", scene(xy, seed=seed), 4.0)
    (tmp_path / "Mic/bad.mrc").write_bytes(b"nothing")
    table([*truth, "Mic/bad.mrc"], 4.0)
    return truth


def picks_of(folder: str, name: str) -> Coordinates:
    return read_coordinates(Path(folder, name).with_suffix("").as_posix() + "_autopick.star")


def hits(found: np.ndarray, xy: np.ndarray) -> int:
    return int((np.hypot(*(found[:, None] - xy).transpose(2, 0, 1)).min(axis=0) < 6).sum())


def test_pick_finds_them_and_thresholds_move_afterwards(shells):
    run("pick micrographs.star --o AutoPick/job003 --blob --particle-diameter 145 --threads 1")
    for name, xy in shells.items():
        found = picks_of("AutoPick/job003", name)
        assert hits(found.xy_px, xy) >= 57
        assert len(found.xy_px) <= 66
    table = read_star("AutoPick/job003/micrographs.star").table("micrographs")
    assert table.text("rlnMicrographName").tolist() == list(shells)
    records = {path: path.stat().st_mtime_ns for path in Path("AutoPick/job003/Mic").glob("m*_polarice.json")}
    scores = np.concatenate([picks_of("AutoPick/job003", name).scores for name in shells])
    level = float(np.median(scores))
    run(f"pick micrographs.star --o AutoPick/job003 --blob --particle-diameter 145 --threads 1 --threshold {level}")
    again = np.concatenate([picks_of("AutoPick/job003", name).scores for name in shells])
    assert sorted(again) == sorted(scores[scores >= level])
    assert all(path.stat().st_mtime_ns == time for path, time in records.items())
    run("pick micrographs.star --o AutoPick/job003 --blob --particle-diameter 145 --threads 1 --best 5")
    assert [len(picks_of("AutoPick/job003", name).xy_px) for name in shells] == [5, 5]


def test_templates_and_others_picks(shells):
    xy = shells["Mic/m0.mrc"]
    write_coordinates("m0_manual.star", Coordinates(xy, None))
    Path("others").mkdir()
    shutil.move("m0_manual.star", "others")
    Path("others/m1.box").write_text("".join(f"{x - 20} {y - 20} 40 40\n" for x, y in shells["Mic/m1.mrc"]))
    run("pick micrographs.star --o imported --picks others --threads 1")
    for name, truth in shells.items():
        assert np.abs(picks_of("imported", name).xy_px - truth).max() < 1e-4
    run("extract imported/micrographs.star --o cut --box 48 --threads 1")
    stack = open_stack("cut/Mic/m0.mrcs")
    write_stack("templates.mrcs", stack.mean(axis=0, keepdims=True), 4.0)
    run(
        "pick micrographs.star --o matched --templates templates.mrcs --particle-diameter 145 --psi-step 60 --threads 1"
    )
    for name, truth in shells.items():
        assert hits(picks_of("matched", name).xy_px, truth) >= 57


def relion(*words: object) -> None:
    if shutil.which(str(words[0])) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def picked(shells, *more: tuple[float, float]) -> None:
    """Coordinates with fractions, two partly off the edge, and `more`, in the folder `picks`."""
    rng = np.random.default_rng(5)
    for name, xy in shells.items():
        moved = np.concatenate([xy + rng.uniform(-2, 2, xy.shape), [(3.7, 500.2), (636.9, 8.1), *more]])
        folder = Path("picks", name).parent
        folder.mkdir(parents=True, exist_ok=True)
        write_coordinates(folder / f"{Path(name).stem}_pick.star", Coordinates(moved, None))


def extracted_by_both(shells, ours: str, theirs: str) -> tuple[np.ndarray, np.ndarray]:
    picked(shells)
    table(list(shells), 4.0)
    run(f"extract micrographs.star --o ours --coords picks --box 48 --threads 1 --no-whole {ours}")
    places = "--coord_dir picks/ --coord_suffix _pick.star --part_star theirs.star --part_dir theirs/"
    words = f"--i micrographs.star {places} --extract --extract_size 48 --invert_contrast {theirs}"
    relion("relion_preprocess", *words.split())
    return open_stack("ours/Mic/m0.mrcs"), open_stack("theirs/Mic/m0.mrcs")


def test_extraction_is_relions(shells):
    ours, theirs = extracted_by_both(shells, "", "--norm --bg_radius 18")
    assert ours.shape == theirs.shape == (62, 48, 48)
    assert np.abs(ours - theirs).max() < 2e-6


def test_scaled_extraction_is_relions_but_for_nyquist(shells):
    """We put both sides of the Nyquist frequency together, RELION keeps one."""
    ours, theirs = extracted_by_both(shells, "--scale 32 --no-norm", "--scale 32")
    assert abs(read_header("ours/Mic/m0.mrcs").pixel_size_A - 6.0) < 1e-4
    one, other = (centred_fft2(images.astype(float))[:, 1:, 1:] for images in (ours, theirs))
    assert np.abs(one - other).max() < 1e-6 * np.abs(other).max()
    assert np.abs(ours - theirs).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--box 700", "640 x 640 pixels, less than --box 700"),
        ("--box 638", "boxes of 638 px leave their micrograph; a smaller --box, or --no-whole"),
        ("--box 48 --min-score 0.5", "m0_pick.star: no scores (_rlnAutopickFigureOfMerit); leave out --min-score"),
    ],
)
def test_extract_says_why_nothing_is_left(shells, options, message):
    picked(shells)
    table(list(shells), 4.0)
    ended = polarice(f"extract micrographs.star --coords picks --threads 1 {options}")
    assert ended.code == 2 and message in ended.err


def test_pick_says_why_there_are_none(shells):
    table(list(shells), 4.0)
    ended = run("pick micrographs.star --blob --particle-diameter 145 --threads 1 --threshold 0.99")
    assert "0 particles picked" in ended.out and "lower --threshold" in ended.err


@pytest.mark.parametrize("shape", [(20, 20), (1, 512)])
def test_ctf_of_a_scrap_is_refused(tmp_path, monkeypatch, shape):
    monkeypatch.chdir(tmp_path)
    write_image("scrap.mrc", np.random.default_rng(0).standard_normal(shape).astype(np.float32), 1.5)
    table(["scrap.mrc"], 1.5)
    ended = polarice("ctf micrographs.star --threads 1")
    assert ended.code == 2
    assert f"scrap.mrc: {shape[1]} x {shape[0]} pixels are too few for Thon rings" in ended.err


def test_reports_of_many_micrographs_stay_small(shells):
    """Noise is shown as small JPEGs, each a link to its picture."""
    run("pick micrographs.star --blob --particle-diameter 145 --threads 1")
    page = Path("pick/report.html")
    assert page.stat().st_size < 250_000
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 2
    assert text.count('href="Mic/m0_autopick.png"') == 2  # gallery and table


def test_extract_counts_and_tables(shells):
    picked(shells, (-60.0, 20.0))  # RELION ends the whole run there
    table(list(shells), 4.0)
    ended = run("extract micrographs.star --o ours --coords picks --box 48 --threads 1 --float16")
    assert "wholly off the edge" in ended.out
    particles = read_star("ours/particles.star").table("particles")
    optics = read_star("ours/particles.star").table("optics")
    assert optics.numbers("rlnImagePixelSize").tolist() == [4.0]
    assert optics.integers("rlnImageSize").tolist() == [48]
    assert read_header("ours/Mic/m0.mrcs").mode == 12
    xy = np.stack([particles.numbers("rlnCoordinateX"), particles.numbers("rlnCoordinateY")], axis=1)
    assert (np.trunc(xy) >= 24).all()
    assert (np.trunc(xy) + 24 <= 640).all()
    record = json.loads(Path("ours/Mic/m0_polarice.json").read_text())
    assert record["figures"]["wholly off the edge"] == 1
    assert record["figures"]["particles"] + record["figures"]["partly off the edge"] == 62
    names = particles.text("rlnImageName")
    assert names[0] == "000001@ours/Mic/m0.mrcs"
    run("class2d ours/particles.star --o c --k 2 --iter 2 --particle-diameter 145 --no-ctf --threads 1")


def test_the_same_coordinates_twice_are_told(shells):
    xy = np.array([(100.0, 100.0), (300.0, 200.0), (100.4, 100.4), (300.0, 200.0)])
    for name in shells:
        write_coordinates(f"{Path(name).stem}_pick.star", Coordinates(xy, None))
    ended = run("extract micrographs.star --o cut --coords . --box 48 --threads 1")
    assert f"warning: {2 * len(shells)} particles lie within a pixel of another" in ended.err
    ended = run("pick micrographs.star --o picked --picks . --coord-suffix _pick --threads 1")
    assert f"warning: {2 * len(shells)} coordinates lie within a pixel of another" in ended.err


def test_all_kinds_of_micrographs_are_read(tmp_path, monkeypatch):
    """What import takes, extract, pick and ctf take: the same picture in three kinds gives the same particles."""
    import gzip

    import tifffile

    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(3).standard_normal((96, 96)).astype(np.float32)
    write_picture(Path("Mic/a.mrc"), pixels, 2.0)
    with gzip.open("Mic/b.mrc.gz", "wb") as stream:
        stream.write(Path("Mic/a.mrc").read_bytes())
    tifffile.imwrite("Mic/c.tif", pixels[::-1])  # TIFF is upside down
    tifffile.imwrite("Mic/d.tif", np.stack([pixels, pixels]))
    table([f"Mic/{name}" for name in ("a.mrc", "b.mrc.gz", "c.tif", "d.tif")], 2.0)
    Path("xy").mkdir()
    for stem in "abcd":
        write_coordinates(f"xy/{stem}_pick.star", Coordinates(np.array([(40.0, 50.0), (60.0, 30.0)]), None))
    ended = run("extract micrographs.star --coords xy --box 16 --o cut --threads 1")
    assert "Mic/d.tif: 2 images; one micrograph is wanted" in ended.err
    first = open_stack("cut/Mic/a.mrcs")
    assert first.shape == (2, 16, 16)
    for stem in "bc":
        assert np.array_equal(open_stack(f"cut/Mic/{stem}.mrcs"), first)
    run("ctf micrographs.star --o ctf --box 64 --keep-ringless --threads 1")
    assert read_star("ctf/micrographs.star").table("micrographs").text("rlnMicrographName").tolist()[1:] == [
        "Mic/b.mrc.gz",
        "Mic/c.tif",
    ]
    run("pick micrographs.star --o pick --picks xy --threads 1")
    assert len(picks_of("pick", "Mic/c.tif").xy_px) == 2


def test_bare_names():
    from polarice.io.micrographs import bare_name, folders_of

    names = {"a/m.mrc": "m", "m.MRC.GZ": "m", "m.tif": "m", "m_1.5": "m_1.5", "m_1.5.eer": "m_1.5", "m.gz": "m"}
    assert {name: bare_name(name) for name in names} == names
    assert folders_of("Import/job001/Movies/x/a.tiff") == ("Movies", "x")
    assert folders_of("../raw/a.tiff") == ("raw",)

"""polarice extract --particles: coordinates moved to where particles were found, against truth and against RELION."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from align.phantoms import Blobs
from jobs.micrograph_tables import table_text
from jobs.runs import polarice, stub_report
from polarice.io.coordinates import Coordinates, write_coordinates
from polarice.io.mrc import open_stack, read_header, write_image
from polarice.io.rows import read_rows, write_rows
from polarice.io.star import read_star
from programs import relion

SIDE, BOX_PX, PIXEL_A = 512, 48, 3.0
STEP = 60  # between particles, px


def run(line: str):
    ended = polarice(line)
    assert ended.code == 0, ended.err
    return ended


@pytest.fixture
def picked(tmp_path, monkeypatch) -> dict[str, np.ndarray]:
    """Two micrographs of dark phantoms, and picks up to 4 px off; the true centres by micrograph."""
    monkeypatch.chdir(tmp_path)
    rng, truth = np.random.default_rng(2), {}
    phantom = Blobs.random(11.0, 4)
    for name in ("a", "b"):
        pixels = 0.25 * rng.standard_normal((SIDE, SIDE))
        places = np.stack(np.meshgrid(*[np.arange(STEP // 2, SIDE - 20, STEP)] * 2), axis=-1).reshape(-1, 2)
        places = places + rng.integers(-3, 4, places.shape)
        for x, y in places.tolist():
            y0, x0 = y - BOX_PX // 2, x - BOX_PX // 2
            image = phantom.image(BOX_PX, float(rng.uniform(0, 360)), (0.0, 0.0))
            low = np.maximum([y0, x0], 0)
            high = np.minimum([y0 + BOX_PX, x0 + BOX_PX], SIDE)
            part = image[low[0] - y0 : high[0] - y0, low[1] - x0 : high[1] - x0]
            pixels[low[0] : high[0], low[1] : high[1]] -= part / phantom.image(BOX_PX, 0.0, (0.0, 0.0)).std()
        Path("Mic").mkdir(exist_ok=True)
        write_image(f"Mic/{name}.mrc", pixels.astype(np.float32), PIXEL_A)
        off = rng.uniform(-4, 4, places.shape)
        Path("picks/Mic").mkdir(parents=True, exist_ok=True)
        write_coordinates(f"picks/Mic/{name}_pick.star", Coordinates(places + off, None))
        truth[f"Mic/{name}.mrc"] = places.astype(float)
    Path("micrographs.star").write_text(table_text(list(truth), PIXEL_A))
    return truth


def errors(path: str, truth: dict[str, np.ndarray]) -> np.ndarray:
    """(n, 2) of every particle how far its coordinates are from the nearest true centre, px."""
    table = read_star(path).table("particles")
    xy = np.stack([np.trunc(table.numbers(f"rlnCoordinate{letter}")) for letter in "XY"], axis=1)
    names = table.text("rlnMicrographName").tolist()
    to_device = [truth[n][np.argmin(np.hypot(*(truth[n] - p).T))] for n, p in zip(names, xy, strict=True)]
    return xy - np.array(to_device)


def test_recentred_particles_lie_where_they_are(picked, monkeypatch):
    """Shifts found by class2d, against the true centres: what the class as a whole is off is common to all."""
    stub_report(monkeypatch)
    run(f"extract micrographs.star --coords picks --o cut --box {BOX_PX} --threads 1")
    run("class2d cut/particles.star --k 1 --iter 8 --no-ctf --particle-diameter 110 --threads 1 --o c")
    before = errors("c/run_it008_data.star", picked)
    run("extract --particles c/run_it008_data.star --recenter --box 56 --o again --threads 1")
    after = errors("again/particles.star", picked)
    assert len(after) > 90 and np.hypot(*before.T).mean() > 2.5
    assert np.hypot(*(after - np.median(after, axis=0)).T).mean() < 1.0
    assert np.hypot(*np.median(after, axis=0)) < 2.0
    table, old = (read_star(f"{path}.star").table("particles") for path in ("again/particles", "c/run_it008_data"))
    assert open_stack("again/Mic/a.mrcs").shape[1:] == (56, 56) and read_header("again/Mic/a.mrcs").pixel_size_A == 3.0
    origin = np.stack([table.numbers(f"rlnOrigin{letter}Angst") for letter in "XY"], axis=1)
    assert np.abs(origin).max() <= PIXEL_A / 2 + 1e-3
    assert set(old.labels) <= set(table.labels)
    assert np.isin(table.text("rlnLogLikeliContribution"), old.text("rlnLogLikeliContribution")).all()
    optics = read_star("again/particles.star").table("optics")
    assert optics.integers("rlnImageSize").tolist() == [56] and optics.numbers("rlnImagePixelSize").tolist() == [3.0]


def test_recentring_is_relions(picked):
    """Coordinates, origins left over and images, against relion_preprocess --reextract_data_star --recenter."""
    run(f"extract micrographs.star --coords picks --o cut --box {BOX_PX} --threads 1 --no-whole")
    rows = read_rows("cut/particles.star")
    rng = np.random.default_rng(7)
    columns = {f"rlnOrigin{letter}Angst": rng.uniform(-14, 14, len(rows)) for letter in "XY"}
    write_rows("moved.star", rows, {**columns, "rlnAnglePsi": rng.uniform(-180, 180, len(rows))})
    words = f"--extract --extract_size {BOX_PX} --invert_contrast --norm --bg_radius 18 --recenter"
    relion(
        "relion_preprocess", "--i", "micrographs.star", "--reextract_data_star", "moved.star", "--part_star",
        "theirs/particles.star", "--part_dir", "theirs/", *words.split(),
    )  # fmt: skip
    run(f"extract micrographs.star --particles moved.star --recenter --o ours --box {BOX_PX} --threads 1 --no-whole")
    ours, theirs = (read_star(f"{name}/particles.star").table("particles") for name in ("ours", "theirs"))
    assert len(ours) == len(theirs) == len(rows)
    of_ours = np.lexsort([ours.numbers("rlnAnglePsi")])
    of_theirs = np.lexsort([theirs.numbers("rlnAnglePsi")])
    for label in ("rlnAnglePsi", "rlnCoordinateX", "rlnCoordinateY", "rlnOriginXAngst", "rlnOriginYAngst"):
        np.testing.assert_allclose(
            ours.numbers(label)[of_ours], theirs.numbers(label)[of_theirs], atol=2e-4, err_msg=label
        )
    for name in ("a", "b"):
        np.testing.assert_allclose(
            open_stack(f"ours/Mic/{name}.mrcs"), open_stack(f"theirs/Mic/{name}.mrcs"), atol=2e-4
        )


def test_without_recentring_the_same_images_come_again(picked):
    run(f"extract micrographs.star --coords picks --o cut --box {BOX_PX} --threads 1")
    run("select cut --o half --name b*")
    run(f"extract --particles half/particles.star --o again --box {BOX_PX} --threads 1")
    assert np.array_equal(open_stack("again/Mic/b.mrcs"), open_stack("cut/Mic/b.mrcs"))
    assert not Path("again/Mic/a.mrcs").exists()
    run("extract micrographs.star --particles half/particles.star --o small --box 48 --scale 24 --threads 1")
    assert read_star("small/particles.star").table("optics").numbers("rlnImagePixelSize").tolist() == [6.0]


def test_particles_cut_by_the_edge_are_left_out_and_counted(picked):
    ended = run("extract micrographs.star --coords picks --o cut --box 72 --threads 1")
    table = read_star("cut/particles.star").table("particles")
    xy = np.stack([np.trunc(table.numbers(f"rlnCoordinate{letter}")) for letter in "XY"], axis=1)
    assert (xy >= 36).all() and (xy + 36 <= SIDE).all()
    given = sum(len(places) for places in picked.values())
    assert f"{len(table)} particles, {given - len(table)} partly off the edge (left out)" in ended.out
    ended = run("extract micrographs.star --coords picks --o all --box 72 --threads 1 --no-whole")
    assert f"{given} particles, {given - len(table)} partly off the edge (the nearest pixels repeated)" in ended.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--box 48", "give a table of micrographs, or --particles"),
        ("micrographs.star --coords picks --recenter --box 48", "--recenter is for --particles"),
        ("micrographs.star --particles cut/particles.star --coords picks --box 48", "leave out --coords"),
        ("--particles cut/particles.star --recenter --box 48", "no column _rlnOriginXAngst"),
        ("--particles micrographs.star --box 48", "no coordinates in micrographs"),
        ("other.star --particles cut/particles.star --box 48", "names none of the micrographs of cut/particles.star"),
    ],
)
def test_what_cannot_be_done_is_said(picked, words, message):
    run(f"extract micrographs.star --coords picks --o cut --box {BOX_PX} --threads 1")
    Path("other.star").write_text(table_text(["Other/x.mrc"], PIXEL_A))
    ended = polarice(f"extract {words} --o bad --threads 1")
    assert ended.code == 2 and message in ended.err, ended.err

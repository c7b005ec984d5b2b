"""polarice select on files: what is chosen, what is written, RELION's own runs, workflows, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jobs.runs import polarice, stub_report
from jobs.sets import ParticleSet
from polarice.io.rows import read_rows
from polarice.io.star import read_star
from programs import relion

SET = ParticleSet(n=160, box_px=32, noise_sd=0.3, ctf=False)


@pytest.fixture(scope="module")
def classified(tmp_path_factory) -> Path:
    """A folder with particles.star and the run `c` of class2d on it: 6 classes, 4 iterations."""
    folder = tmp_path_factory.mktemp("select")
    SET.write(folder)
    before = Path.cwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        stub_report(patch)
        words = "--k 6 --iter 4 --particle-diameter 70 --no-ctf --threads 1"
        ended = polarice(f"class2d particles.star --o c {words}")
    os.chdir(before)
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def here(classified, monkeypatch) -> Path:
    monkeypatch.chdir(classified)
    return classified


def run(line: str):
    ended = polarice(line)
    assert ended.code == 0, ended.err
    return ended


def lines_of(path: str) -> list[str]:
    """Rows of the table of particles, as they stand."""
    return [line for line in Path(path).read_text().splitlines() if "@" in line]


def test_both_tables_come_out_as_they_stood(here):
    table = read_star("c/run_it004_data.star").table("particles")
    numbers = table.integers("rlnClassNumber")
    most = np.bincount(numbers).argmax()
    ended = run(f"select c --o s1 --exclude {most}")
    assert f"{(numbers != most).sum()} of 160 particles of c/run_it004_data.star chosen" in ended.out
    rows = lines_of("c/run_it004_data.star")
    assert lines_of("s1/particles.star") == [row for row, k in zip(rows, numbers, strict=True) if k != most]
    assert lines_of("s1/particles_excluded.star") == [row for row, k in zip(rows, numbers, strict=True) if k == most]
    selected = read_star("s1/backup_selection.star")[""].table.integers("rlnSelected")
    assert selected.tolist() == [int(k != most) for k in range(1, 7)]
    averages = read_star("s1/class_averages.star")[""].table
    assert averages.text("rlnReferenceImage").tolist() == [
        f"{k:06d}@c/run_it004_classes.mrcs" for k in range(1, 7) if k != most
    ]
    classes = read_star("s1/classes.star").table("classes")
    assert classes.integers("rlnGroupNrParticles").tolist() == np.bincount(numbers, minlength=7)[1:].tolist()
    assert f"not class other than {most}" in classes.text("polariceReason")[most - 1]
    told = json.loads(Path("s1/job.json").read_text())
    assert told["selection"]["rule"] == f"class other than {most}"
    assert told["selection"]["chosen"] == (numbers != most).sum() and told["selection"]["rows"] == 160
    assert told["selection"]["classes"] == [k for k in range(1, 7) if k != most]
    note = Path("s1/selection.txt").read_text().splitlines()
    assert note[0] == f"polarice select c --o s1 --exclude {most}" and note[1] in ended.out
    page = Path("s1/report.html").read_text()
    assert page.count("data:image/png") == 6 and "Classes left out" in page


def test_rules_are_combined_and_relion_agrees(here):
    """Against relion_star_handler's selection by value, one label after the other."""
    run("select c --o s2 --classes 1-3 --min-probability 0.6 --where rlnAnglePsi<=90 rlnOriginXAngst>=-3")
    words = [("rlnClassNumber", 1, 3), ("rlnMaxValueProbDistribution", 0.6, 1), ("rlnAnglePsi", -180, 90)]
    source = "c/run_it004_data.star"
    for number, (label, low, high) in enumerate([*words, ("rlnOriginXAngst", -3, 99)]):
        target = f"r{number}.star"
        relion(
            "relion_star_handler", "--i", source, "--o", target, "--select", label, "--minval", low, "--maxval", high
        )
        source = target
    ours, theirs = (read_star(path).table("particles").text("rlnImageName") for path in ("s2/particles.star", source))
    assert 0 < len(ours) < 120 and ours.tolist() == theirs.tolist()


def test_relion_goes_on_from_what_is_selected(here):
    run("select c --o s3 --min-particles 5")
    relion("relion_stack_create", "--i", "s3/particles.star", "--o", "s3/stack")
    assert len(read_star("s3/stack.star").table("particles")) == len(lines_of("s3/particles.star"))
    relion("relion_star_handler", "--i", "s3/class_averages.star", "--o", "s3/averages.star")


def test_a_class2d_folder_of_relions(here):
    words = (
        "--K 3 --iter 2 --tau2_fudge 2 --particle_diameter 70 --zero_mask --norm --scale --psi_step 24 --oversampling 0"
    )
    Path("rel").mkdir(exist_ok=True)
    relion("relion_refine", "--i", "particles.star", "--o", "rel/run", *words.split(), "--j", 1, "--random_seed", 1)
    numbers = read_star("rel/run_it002_data.star").table("particles").integers("rlnClassNumber")
    run("select rel --o s4 --classes 1,3")
    assert len(lines_of("s4/particles.star")) == np.isin(numbers, (1, 3)).sum()
    run("select rel/run_it002_optimiser.star --o s5 --auto --min-score 0")
    scores = read_star("s5/classes.star").table("classes").numbers("rlnClassScore")
    assert len(scores) == 3 and ((scores >= 0) & (scores <= 1)).all() and scores.max() > 0.5
    assert read_star("s5/class_averages.star")[""].table.n == 3


def test_duplicates_and_micrographs(here):
    table = read_rows("particles.star")
    n = len(table)
    rng = np.random.default_rng(5)
    names = np.array([f"MotionCorr/job002/Mic/m{i % 4}.mrc" for i in range(n)], object)
    place = {
        "rlnMicrographName": names,
        "rlnCoordinateX": rng.uniform(0, 500, n),
        "rlnCoordinateY": rng.uniform(0, 500, n),
    }
    Path("placed.star").write_text("")
    from polarice.io.rows import write_rows

    write_rows("placed.star", table, {**place, "rlnOriginXAngst": np.zeros(n), "rlnOriginYAngst": np.zeros(n)})
    ended = polarice("select placed.star --o s6 --min-distance 60")
    assert ended.code == 2 and "no pixel size of the micrographs; give it with --micrograph-angpix" in ended.err
    run("select placed.star --o s6 --min-distance 60 --micrograph-angpix 1.5")
    kept = read_star("s6/particles.star").table("particles")
    xy = np.stack([kept.numbers(f"rlnCoordinate{letter}") for letter in "XY"], axis=1)
    for name in set(kept.text("rlnMicrographName").tolist()):
        mine = xy[kept.text("rlnMicrographName") == name]
        distance = np.hypot(*(mine[:, None] - mine).T) + 1e9 * np.eye(len(mine))
        assert len(mine) > 10 and distance.min() * 1.5 >= 60
    Path("mics.star").write_text(
        "data_micrographs\n\nloop_\n_rlnMicrographName #1\nMic/m1.mrc\nCtf/job003/Mic/m3.mrc\n"
    )
    run("select placed.star --o s7 --micrographs mics.star --not-name m3*")
    assert set(read_star("s7/particles.star").table("particles").text("rlnMicrographName")) == {names[1]}


def test_micrographs_by_what_ctf_and_motion_found(here):
    head = "data_optics\n\nloop_\n_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n_rlnVoltage #3\ng 1 300\n\n"
    labels = (
        "rlnMicrographName",
        "rlnCtfMaxResolution",
        "rlnAccumMotionTotal",
        "rlnCtfIceRingDensity",
        "polariceCtfDrift",
    )
    rows = [
        "a.mrc 4.0 10 0.1 0.2",
        "b.mrc 9.0 10 0.1 0.2",
        "c.mrc 4.0 90 0.1 0.2",
        "d.mrc 4.0 9 0.6 0.2",
        "e.mrc 4 9 0 1.4",
    ]
    table = "data_micrographs\n\nloop_\n" + "".join(f"_{label} #{i}\n" for i, label in enumerate(labels, 1))
    Path("micrographs.star").write_text(head + table + "\n".join(rows) + "\n")
    ended = run("select micrographs.star --o s8 --fit-resolution 6 --motion 50 --ice 0.25 --drift 1")
    assert "1 of 5 micrographs of micrographs.star chosen" in ended.out
    kept = read_rows("s8/micrographs.star")
    assert kept.kind == "micrographs" and kept.table.text("rlnMicrographName").tolist() == ["a.mrc"]
    assert len(read_rows("s8/micrographs_excluded.star")) == 4
    assert "1 not drift at most 1 (1 by this alone or first)" in ended.out


def test_by_place_on_the_manifold(here):
    from polarice.io.rows import write_rows

    table = read_rows("particles.star")
    latent = np.linspace(-1, 1, len(table))
    write_rows("mapped.star", table, {"polariceLatent1": latent, "polariceLatent2": latent**2})
    run("select mapped.star --o s9 --latent 0.5 1 0 0.5")
    kept = read_star("s9/particles.star").table("particles").numbers("polariceLatent1")
    assert kept.tolist() == [round(x, 6) for x in latent if 0.5 <= x and x * x <= 0.5]


def test_classes_of_maps(here):
    """Class3D: classes by number, share and resolution; nothing judges volumes."""
    from polarice.io.rows import write_rows

    table, numbers = read_rows("particles.star"), np.repeat([1, 2, 3, 3], 40)
    Path("three").mkdir(exist_ok=True)
    write_rows("three/run_it007_data.star", table, {"rlnClassNumber": numbers})
    Path("three/run_it007_model.star").write_text(
        "data_model_general\n\n_rlnPixelSize 3.0\n\ndata_model_classes\n\nloop_\n_rlnReferenceImage #1\n"
        "_rlnEstimatedResolution #2\nthree/run_it007_class001.mrc 9.0\nthree/run_it007_class002.mrc 20.0\n"
        "three/run_it007_class003.mrc inf\n"
    )
    run("select three --o s11 --resolution 15")
    assert read_star("s11/particles.star").table("particles").integers("rlnClassNumber").tolist() == [1] * 40
    run("select three --o s12 --occupancy 30")
    assert read_star("s12/particles.star").table("particles").integers("rlnClassNumber").tolist() == [3] * 80
    assert read_star("s12/backup_selection.star")[""].table.integers("rlnSelected").tolist() == [0, 0, 1]
    ended = polarice("select three --o s13 --auto")
    assert ended.code == 2 and "there are no averages that are images" in ended.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("select c --o bad", "no rule is given"),
        ("select c --o bad --classes 9", "there is no class 9; they go from 1 to 6"),
        ("select c --o bad --min-probability 0.5 --where rlnAnglePsi>999", "none of 160 particles are left; "),
        ("select particles.star --o bad --auto", "no column _rlnClassNumber"),
        ("select c --o bad --latent 0 1", "--latent is for what sml has made"),
        ("select c --o bad --min-distance 10", "no coordinates of particles"),
        ("select nowhere --o bad --auto", "no such file"),
        ("select . --o bad --ice 1", "no column _rlnCtfIceRingDensity"),
        ("select c --o c --classes 1", "holds the results of a job (class2d)"),
    ],
)
def test_what_cannot_be_done_is_said(here, line, message):
    ended = polarice(line)
    assert ended.code == 2 and message in ended.err, ended.err
    assert not Path("bad").exists()


def test_a_step_of_a_workflow(here, monkeypatch):
    """select between two classifications: done once, done again when its rule changes."""
    stub_report(monkeypatch)
    text = """
threads = 1
[[step]]
job = "class2d"
particles = "particles.star"
k = 4
iter = 2
particle_diameter = 70.0
ctf = false
[[step]]
job = "select"
table = "{class2d.data}"
classes = "1-3"
[[step]]
job = "class2d"
name = "again"
particles = "{select.data}"
k = 2
iter = 1
particle_diameter = 70.0
ctf = false
"""
    Path("flow.toml").write_text(text)
    run("run flow.toml")
    count = len(lines_of("select/particles.star"))
    assert len(lines_of("again/run_it001_data.star")) == count > 0
    assert run("run flow.toml").out.count("nothing has changed") == 3
    Path("flow.toml").write_text(text.replace('"1-3"', '"1-2"'))
    out = run("run flow.toml").out
    assert "polarice select class2d/run_it002_data.star --o select --classes 1-2" in out
    assert out.count("nothing has changed") == 1 and len(lines_of("again/run_it001_data.star")) < count


def test_angles_tell_the_share_of_the_sphere(here):
    from polarice.io.rows import write_rows

    table = read_rows("particles.star")
    n = len(table)
    tilt = np.where(np.arange(n) % 2, 20.0, 90.0)
    columns = {"rlnAngleRot": np.linspace(-180, 180, n), "rlnAngleTilt": tilt, "rlnClassNumber": 1 + np.arange(n) % 2}
    write_rows("viewed.star", table, columns)
    ended = run("select viewed.star --o s10 --classes 1")
    assert "views: " in ended.out and "% of the sphere before" in ended.out
    before, after = (int(word) for word in ended.out.split("views: ")[1].split() if word.isdigit())
    assert 0 < after < before < 60

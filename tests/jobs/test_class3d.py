"""class3d as a user runs it, on particles of two kinds whose truth is known."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.runs import polarice as run
from jobs.test_refine3d import ANGPIX, BOX, MPIRUN, alone, truth_map
from polarice.bench.folder import DATA
from polarice.io.mrc import read_volume, write_volume
from polarice.io.star import read_star
from polarice.jobs import simulate
from programs import relion

N = 200
POSED = "class3d p/truth.star --ref whole.mrc --k 2 --particle-diameter 300 --skip-align --threads 1"
JOINT = "class3d p/particles.star --ref whole.mrc part.mrc --particle-diameter 300 --healpix-order 2 --threads 1"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Particles of the bundled ribosome and of a part of it, their maps, and classes at their true poses."""
    folder = tmp_path_factory.mktemp("class3d")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        density, pixel_A = read_volume(DATA / "ribosome70S.mrc")
        middle = len(density) // 2
        part = np.where(np.arange(len(density)) < middle, 0, density).astype(np.float32)  # x < 0 is gone
        write_volume("small.mrc", part, pixel_A)
        inputs = (DATA / "ribosome70S.mrc", Path("small.mrc"))
        simulate.run(
            simulate.Params(
                inputs=inputs, o=Path("p"), particles=N, box=BOX, angpix=ANGPIX, snr=0.15, shift_sigma=0.5, seed=3,
                threads=1,
            )
        )  # fmt: skip
        whole = truth_map()
        write_volume("whole.mrc", whole, ANGPIX)
        write_volume("part.mrc", np.where(np.arange(BOX) < BOX // 2, 0, whole).astype(np.float32), ANGPIX)
        alone(f"{POSED} --o posed")
        told = run(f"{JOINT} --iter 2 --o joint")
        assert told.code == 0, told.err
        Path("joint.txt").write_text(told.out)
    return folder


def right(table: str) -> float:
    """Share of the particles in the right class, after the matching of classes and kinds that fits best."""
    with np.load("p/truth.npz") as truth:
        kind = truth["label"]
    classes = read_star(table).table("particles").integers("rlnClassNumber") - 1
    share = float((classes == kind).mean())
    return max(share, 1 - share)


def test_classes_at_known_poses_are_the_kinds(made, monkeypatch):
    monkeypatch.chdir(made)
    assert right("posed/run_data.star") > 0.95
    history = [json.loads(line) for line in Path("posed/history.jsonl").read_text().splitlines()]
    assert 5 < len(history) < 40 and history[-1]["changed_class"] < 0.1  # it has ended by itself
    before, after = (read_star(f).table("particles") for f in ("p/truth.star", "posed/run_data.star"))
    for name in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"):
        off = (before.numbers(name) - after.numbers(name) + 180) % 360 - 180
        assert np.abs(off).max() < 1e-3, name
    true = truth_map()
    maps = [read_volume(f"posed/run_class{k:03d}.mrc")[0] for k in (1, 2)]
    gone = [float(each[:, :, : BOX // 2 - 3].std() / each[:, :, BOX // 2 :].std()) for each in maps]
    part, whole = maps[int(np.argmin(gone))], maps[int(np.argmax(gone))]
    assert np.corrcoef(whole.ravel(), true.ravel())[0, 1] > 0.8
    assert min(gone) < 0.6 * max(gone)
    assert np.corrcoef(part[:, :, BOX // 2 :].ravel(), true[:, :, BOX // 2 :].ravel())[0, 1] > 0.8
    page = Path("posed/report.html").read_text()
    assert page.count("data:image/png") == 4 and "changed their class" in page


def test_from_two_maps_classes_are_found_with_poses(made, monkeypatch):
    """Class 1 is of the first reference, class 2 of the second; and it tells shares and resolution."""
    monkeypatch.chdir(made)
    with np.load("p/truth.npz") as truth:
        kind = truth["label"]
    classes = read_star("joint/run_data.star").table("particles").integers("rlnClassNumber") - 1
    assert (classes == kind).mean() > 0.8  # in two iterations of 15 degree steps
    told = Path("joint.txt").read_text()
    assert "200 particles; classes: " in told and " A; report: " in told
    model = read_star("joint/run_it002_model.star")
    shares = model.table("model_classes").numbers("rlnClassDistribution")
    assert shares.sum() == pytest.approx(1, abs=1e-5) and np.abs(shares - 0.5).max() < 0.15
    names = model.table("model_classes").text("rlnReferenceImage")
    assert list(names) == ["joint/run_it002_class001.mrc", "joint/run_it002_class002.mrc"]


def test_a_run_that_goes_on_repeats_the_bits(made, monkeypatch):
    monkeypatch.chdir(made)
    shutil.copytree("posed", "again")
    later = [path for path in Path("again").glob("run_it*") if int(path.name[6:9]) > 3]
    for path in [*later, *Path("again").glob("run_[cd]*"), Path("again/report.html")]:
        path.unlink()
    assert "going on after iteration 3 of 40" in alone("class3d --continue again")
    for name in ("run_class001.mrc", "run_class002.mrc", "run_data.star"):
        assert (Path("again") / name).read_bytes() == (Path("posed") / name).read_bytes(), name
    told = alone("class3d --continue again")
    assert "classes have been found; nothing but the report is made" in told


@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun (the package mpich) is installed here")
def test_two_ranks_make_the_maps_of_one(made, monkeypatch):
    monkeypatch.chdir(made)
    done = subprocess.run(
        [MPIRUN, "-n", "2", sys.executable, "-m", "polarice", *f"{POSED} --o ranks".split()],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for k in (1, 2):
        one, two = (read_volume(f"{name}/run_class{k:03d}.mrc")[0] for name in ("posed", "ranks"))
        assert np.abs(one - two).max() < 5e-3 * np.abs(one).max()
    one, two = (read_star(f"{name}/run_data.star").table("particles") for name in ("posed", "ranks"))
    assert (one.integers("rlnClassNumber") == two.integers("rlnClassNumber")).mean() > 0.99


def test_seeds_agree_and_that_is_told(made, monkeypatch):
    monkeypatch.chdir(made)
    ended = run(f"{POSED} --seeds 2 --o seeds")
    assert ended.code == 0, ended.err
    assert "particles are in the same class with all 2 seeds (adjusted Rand index " in ended.out
    told = json.loads(Path("seeds/agreement.json").read_text())
    assert told["together"] > 0.9 and len(told["seeds"]) == 2
    assert told["seeds"][0]["log_likelihood"] >= told["seeds"][1]["log_likelihood"]
    assert right("seeds/run_data.star") > 0.95
    stable = read_star("seeds/run_stable_data.star").table("particles")
    assert len(stable) == round(told["together"] * N)
    one, two = (
        read_star(f"seeds/{each['folder']}/run_data.star").table("particles").integers("rlnClassNumber")
        for each in told["seeds"]
    )
    named = np.array(told["seeds"][1]["classes"])
    assert (named[two - 1] == one).mean() == pytest.approx(told["together"])
    assert "Agreement" in Path("seeds/report.html").read_text()
    again = run("class3d --continue seeds")  # nothing is left to do
    assert again.code == 0 and "with all 2 seeds" in again.out, again.err


def test_relion_goes_on_from_a_classification(made, monkeypatch):
    """relion_refine reads the model, sampling, data and optimiser files, and keeps the classes."""
    monkeypatch.chdir(made)
    relion(
        "relion_refine", "--continue", "joint/run_it002_optimiser.star", "--iter", 3, "--o", "joint/relion", "--j", 1
    )
    ours = read_star("joint/run_data.star").table("particles")
    (path,) = Path("joint").glob("relion*_it003_data.star")
    found = read_star(path).table("particles")
    row = np.array([int(name.partition("@")[0]) - 1 for name in found.text("rlnImageName")])
    assert (ours.integers("rlnClassNumber")[row] == found.integers("rlnClassNumber")).mean() > 0.9
    for k in (1, 2):
        mine, its = (
            read_volume(next(iter(Path("joint").glob(f"{name}_class{k:03d}.mrc"))))[0]
            for name in ("run_it002", "relion*_it003")
        )
        assert np.corrcoef(mine.ravel(), its.ravel())[0, 1] > 0.8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("class3d p/particles.star --o none", "--ref: class3d begins with a map"),
        (f"{JOINT} --k 3 --o none", "--k 3: 2 references are given"),
        (f"{JOINT} --skip-align --local --o none", "--local: nothing is searched for with --skip-align"),
        (f"{JOINT} --skip-align --o none", "--skip-align: p/particles.star"),
        (f"{JOINT} --memory 0.01 --o none", "the transforms of 2 maps of 32 px take up to"),
        (f"{JOINT} --sym X --o none", "no such point group"),
    ],
)
def test_what_cannot_be_classified(made, monkeypatch, words, message):
    monkeypatch.chdir(made)
    ended = run(words)
    assert ended.code == 2 and message in ended.err, ended.err
    assert not Path("none").exists()

"""The demo end to end, small; and its score, against a referee that shares no code with it."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from polarice import cli
from polarice.io.mrc import open_stack
from polarice.io.particles import pose_columns
from polarice.io.star import Block, Table, write_star
from polarice.jobs.demo import score_of
from polarice.report.montage import strip
from polarice.simulation.score import Score, least_view_deg, score
from polarice.types import Pose2D

REFEREE = Path(__file__).parents[1] / "../shared/referee/score_class2d.py"
SMALL = ["--particles", "240", "--k", "4"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of a small demo, run twice in the same place, a file of the user's own in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("demo"))
        assert cli.main(["demo", *SMALL, "--iter", "1"]) == 0
        Path("demo/ribosome/notes.txt").write_text("mine")
        Path("demo/ribosome/run_it007_data.star").write_text("of a longer demo before")
        assert cli.main(["demo", *SMALL, "--iter", "2"]) == 0
        yield Path("demo").absolute()


def referee(data_star: Path, truth_npz: Path) -> dict[str, float]:
    pytest.importorskip("starfile")
    if not REFEREE.is_file():
        pytest.skip("../shared/referee/score_class2d.py is not there")
    words = [sys.executable, REFEREE, data_star, truth_npz]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def assert_agrees(ours: Score, theirs: dict[str, float]) -> None:
    assert (ours.particles, ours.classes) == (theirs["particles"], theirs["classes"])
    for name, decimals in {"effective": 2, "view_deg": 2, "pose_deg": 2, "good": 4, "shift_px": 3}.items():
        assert getattr(ours, name) == pytest.approx(theirs[name], abs=0.51 * 10**-decimals), name


def test_demo_leaves_a_page_that_stands_alone(demo):
    page = (demo / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'href="([^"#]+)"', page)
    assert links == ["ribosome/report.html", "ribosome/", "apoferritin/report.html", "apoferritin/"]
    assert all((demo / link).exists() for link in links)
    assert not re.search(r"https?://", page) and "<script" not in page
    pictures = [base64.b64decode(each) for each in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert len(pictures) == 4
    assert pictures[1] == (demo / "ribosome/run_it002_classes.png").read_bytes()
    assert pictures[3] == (demo / "apoferritin/run_it002_classes.png").read_bytes()


def test_page_tells_the_score_and_the_counts(demo):
    page = (demo / "report.html").read_text(encoding="utf-8")
    found = score_of(demo / "ribosome/run_it002_data.star", demo / "simulated/truth.npz")
    for value in (f"{found.view_deg:.1f}°", f"{found.pose_deg:.1f}°", f"{found.shift_px:.2f} px", "240", "550"):
        assert f"<b>{value}</b>" in page, value
    assert "of 4 classes in use" in page and "of 10 classes in use" in page


def test_an_earlier_demo_is_replaced_and_nothing_else(demo):
    assert (demo / "ribosome/notes.txt").read_text() == "mine"
    assert not (demo / "ribosome/run_it007_data.star").exists()
    assert sorted(each.name for each in demo.iterdir()) == [
        "RELION_JOB_EXIT_SUCCESS", "apoferritin", "job.json", "report.html", "ribosome", "simulated", "state.json"
    ]  # fmt: skip


def test_a_folder_that_is_not_a_demos_is_refused(tmp_path, capsys):
    (tmp_path / "report.html").write_text("mine")
    assert cli.main(["demo", "--o", str(tmp_path)]) == 2
    assert f"{tmp_path}: holds files that no demo made; choose another folder with --o" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("mine")
    assert cli.main(["demo", "--o", str(tmp_path / "file")]) == 2


def test_score_of_the_demo_is_the_referees(demo):
    data_star, truth = demo / "ribosome/run_it002_data.star", demo / "simulated/truth.npz"
    assert_agrees(score_of(data_star, truth), referee(data_star, truth))


def found_poses(n: int, k: int, wrong: float, rng: np.random.Generator) -> tuple[Pose2D, np.ndarray, np.ndarray]:
    """Poses that were found, true rotations (xyzw) and true shifts, of classes that each have a view; some wrong."""
    class_of = rng.integers(k, size=n).astype(np.int32)
    class_rotation = Rotation.random(k, rng=rng)[class_of]
    psi_deg = rng.uniform(-180, 180, n)
    jitter = Rotation.from_rotvec(rng.normal(scale=np.deg2rad(5), size=(n, 3)))
    rotation = jitter * Rotation.from_euler("z", psi_deg[:, None], degrees=True) * class_rotation
    shift_px = rng.normal(scale=3, size=(n, 2))
    pose = Pose2D(class_of, psi_deg, shift_px + rng.normal(scale=0.7, size=(n, 2)))
    pose.psi_deg[: int(wrong * n)] += 180
    return pose, rotation.as_quat(), shift_px


# Three independent errors of 5 degrees: the median angle is 1.54 of one. With three tenths of the particles upside down
# it is the quantile 0.5 / 0.7 of the others: 1.94 of one. Of two shift errors of 0.7 px the median is 1.177 of one.
@pytest.mark.parametrize(("wrong", "pose_deg"), [(0.0, 7.7), (0.3, 9.7)])
def test_score_is_the_referees_where_the_answer_is_known(tmp_path, wrong, pose_deg):
    rng = np.random.default_rng(5)
    pose, quat, shift_px = found_poses(600, 12, wrong, rng)
    label = rng.integers(3, size=600)
    ours = score(pose, quat, shift_px, label)
    assert ours.pose_deg == pytest.approx(pose_deg, abs=0.5)
    if not wrong:
        assert ours.shift_px == pytest.approx(1.177 * 0.7, abs=0.08)
    names = [f"{i + 1:06d}@x.mrcs" for i in range(600)]
    optics = {"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["a"], "rlnImagePixelSize": [2.0]}
    columns = {"rlnImageName": names, "rlnOpticsGroup": [1] * 600, **pose_columns(pose, 2.0)}
    tables = [Block("optics", table=Table.of(optics)), Block("particles", table=Table.of(columns))]
    write_star(tmp_path / "data.star", tables)
    np.savez(tmp_path / "truth.npz", quat=quat, shift=shift_px, pixel_size=2.0, label=label)
    theirs = referee(tmp_path / "data.star", tmp_path / "truth.npz")
    assert_agrees(ours, theirs)
    assert ours.purity == pytest.approx(theirs["purity"], abs=6e-5)


def test_score_leaves_out_what_has_no_class():
    pose, quat, shift_px = found_poses(200, 3, 0.0, np.random.default_rng(1))
    pose.class_of[::4] = -1
    there = pose.class_of >= 0
    assert score(pose, quat, shift_px) == score(pose.take(there), quat[there], shift_px[there])
    pose.class_of[:] = -1
    with pytest.raises(ValueError, match="no particle has a class"):
        score(pose, quat, shift_px)


def test_no_classes_score_better_than_caps_of_the_sphere():
    view = Rotation.random(40_000, rng=np.random.default_rng(2)).as_matrix()[:, 2]
    cap = view[view[:, 2] > 1 - 2 / 20]  # one twentieth of the sphere about z
    assert len(cap) / len(view) == pytest.approx(1 / 20, rel=0.05)
    assert np.rad2deg(np.median(np.arccos(cap[:, 2]))) == pytest.approx(least_view_deg(20), abs=0.3)


def test_strip_shows_every_image_in_its_place(demo):
    images = np.asarray(open_stack(demo / "simulated/particles.mrcs")[:3], np.float32)
    sheet = np.asarray(strip(images, 64, gap_px=4))
    assert sheet.shape == (64, 3 * 64 + 2 * 4) and (sheet[:, 64:68] == 255).all()
    for place, image in enumerate(images):
        shown = sheet[:, 68 * place : 68 * place + 64].astype(float)
        assert np.corrcoef(shown.ravel(), image.ravel())[0, 1] > 0.99

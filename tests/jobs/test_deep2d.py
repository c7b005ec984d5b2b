"""deep2d: both jobs in one folder, stopped anywhere, and refused before hours are spent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.runs import STOPPED_BY_CRASH, assert_same_files, crash, polarice
from jobs.sets import ParticleSet
from polarice.io.star import read_star
from polarice.simulation.score import purity

SET = ParticleSet(n=160, box_px=24, noise_sd=0.3)
RUN = "deep2d particles.star --k 3x4 --iter 4 --align-k 4 --align-iter 3 --particle-diameter 50 --threads 1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("deep2d")
    SET.write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ended = polarice(f"{RUN} --o out")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("1/2  align2d with 4 references, in out/align2d\n")
    assert ended.out.endswith("report of both: out/report.html\n")
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    SET.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_folder_holds_both(whole):
    found = read_star(whole / "out/sml/run_it004_data.star").table("particles")
    assert purity(found.integers("rlnClassNumber") - 1, SET.label) > 0.85
    assert "polariceLatent2" in found.labels
    assert read_star(whole / "out/sml/register.star").table("classes").integers("rlnClassNumber").max() == 4
    page = (whole / "out/report.html").read_text()
    assert 'href="align2d/report.html"' in page and 'href="sml/report.html"' in page


@pytest.mark.parametrize("at", [1, 5, 21, 24])
def test_it_goes_on_wherever_it_was_killed(whole, place, at):
    assert crash(f"{RUN} --o out", place, ("os.replace", at)) == STOPPED_BY_CRASH
    line = "deep2d --continue out" if (place / "out/job.json").exists() else f"{RUN} --o out"
    assert crash(line, place) == 0
    averages = [(folder / "out/sml/run_it004_classes.mrcs").read_bytes() for folder in (whole, place)]
    assert averages[0] == averages[1]
    assert_same_files(place / "out/align2d", whole / "out/align2d", 3)


def test_too_few_particles_are_told_at_once(place):
    ended = polarice("deep2d particles.star --k 1000 --o out")
    assert ended.code == 2 and "--k 1000 and --align-k 50 for 160 particles; ask for fewer" in ended.err
    assert not Path("out").exists()


def test_poses_of_the_map_are_those_of_the_alignment_in_one_frame(whole):
    """Within each class of the alignment, angles have moved by one angle."""
    tables = [
        read_star(whole / f"out/{name}_data.star").table("particles") for name in ("align2d/run_it003", "sml/run_it004")
    ]
    moved = np.exp(1j * np.deg2rad(tables[1].numbers("rlnAnglePsi") - tables[0].numbers("rlnAnglePsi")))
    class_of = tables[0].integers("rlnClassNumber")
    means = [abs(moved[class_of == c].mean()) for c in np.unique(class_of)]
    assert min(means) > 0.999999 and abs(moved.mean()) < 0.999

"""One pixel far outside in one image: it is named and left out, or clipped, in every job that takes particles."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.runs import polarice
from jobs.sets import ParticleSet
from polarice.io.mrc import open_stack, write_stack
from polarice.io.star import read_star

SET = ParticleSet(n=120, box_px=24)
ROW = 7
MPIRUN = Path(sys.prefix) / "bin/mpirun"
JOBS = {
    "class2d": "class2d particles.star --k 4 --iter 2 --o out",
    "align2d": "align2d particles.star --k 4 --iter 2 --o out",
    "sml": "sml particles.star --k 3x3 --iter 3 --o out",
    "deep2d": "deep2d particles.star --k 4 --iter 3 --align-k 4 --align-iter 2 --o out",
}
LAST = {
    "class2d": "out/run_it002",
    "align2d": "out/run_it002",
    "sml": "out/run_it003",
    "deep2d": "out/sml/run_it003",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    SET.write(tmp_path)
    SET.write_table(tmp_path, **SET.aligned())
    images = np.array(open_stack(tmp_path / "stack.mrcs"))
    images[ROW, 3, 4] = 1e20
    write_stack(tmp_path / "stack.mrcs", images, 3.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def left(prefix: str) -> list[str]:
    return read_star(f"{prefix}_data.star").table("particles").text("rlnImageName").tolist()


@pytest.mark.parametrize("job", JOBS)
def test_the_image_is_named_and_left_out(place, job):
    ended = polarice(f"{JOBS[job]} --particle-diameter 50 --threads 1")
    assert ended.code == 0, ended.err
    names = left(LAST[job])
    assert len(names) == SET.n - 1 and not [name for name in names if name.startswith(f"{ROW + 1:06d}@")]
    averages = open_stack(f"{LAST[job]}_classes.mrcs")
    assert np.isfinite(averages).all() and np.abs(averages).max() < 100
    page = Path("out/align2d/report.html" if job == "deep2d" else "out/report.html").read_text()
    assert f"{ROW + 1:06d}@" in page and "outlier" in page


@pytest.mark.parametrize("job", ["class2d", "sml"])
def test_the_image_is_kept_and_its_pixel_clipped(place, job):
    ended = polarice(f"{JOBS[job]} --particle-diameter 50 --threads 1 --outlier-images clip")
    assert ended.code == 0, ended.err
    assert len(left(LAST[job])) == SET.n
    averages = open_stack(f"{LAST[job]}_classes.mrcs")
    assert np.isfinite(averages).all() and np.abs(averages).max() < 100


@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun (the package mpich) is installed here")
def test_ranks_leave_it_out_too(place):
    pytest.importorskip("mpi4py")
    words = [str(MPIRUN), "-n", "2", sys.executable, "-m", "polarice", *JOBS["class2d"].split()]
    words += ["--particle-diameter", "50", "--threads", "1"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, env={**os.environ})
    assert ended.returncode == 0, ended.stderr
    assert len(left(LAST["class2d"])) == SET.n - 1

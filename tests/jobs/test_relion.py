"""RELION's own programs take what a real run leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.runs import polarice, stub_report
from jobs.sets import PIXEL_A, ParticleSet
from polarice.io.mrc import open_stack
from polarice.io.star import read_star
from programs import relion

SET = ParticleSet(n=300, box_px=32, noise_sd=0.3, ctf=False)
DIAMETER_A, CLASSES, ITERATIONS = 70.0, 5, 6


@pytest.fixture
def last(tmp_path, monkeypatch) -> Path:
    """A run without CTF in the folder `out` of the working directory; returns the root of its last files."""
    monkeypatch.chdir(tmp_path)
    stub_report(monkeypatch)
    SET.write(tmp_path)
    ended = polarice(
        f"class2d particles.star --k {CLASSES} --iter {ITERATIONS} --particle-diameter {DIAMETER_A} --no-ctf "
        "--threads 1 --o out"
    )
    assert ended.code == 0, ended.err
    return Path(f"out/run_it{ITERATIONS:03d}")


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, over the pixels inside the particle's mask."""
    x = np.arange(SET.box_px) - SET.box_px // 2
    inside = np.hypot(x[:, None], x) <= DIAMETER_A / PIXEL_A / 2
    return float(np.corrcoef(a[inside], b[inside])[0, 1])


def test_relion_refine_goes_on_from_a_real_folder(last):
    relion(
        "relion_refine", "--continue", f"{last}_optimiser.star", "--iter", ITERATIONS + 1, "--o", "out/run", "--j", 1
    )
    (theirs,) = Path("out").glob(f"run*_it{ITERATIONS + 1:03d}_classes.mrcs")
    ours = open_stack(f"{last}_classes.mrcs")
    assert min(map(correlation, ours, open_stack(theirs))) > 0.95
    before, after = (
        read_star(path).table("particles")
        for path in (f"{last}_data.star", str(theirs).replace("classes.mrcs", "data.star"))
    )
    row = np.array([int(name.partition("@")[0]) - 1 for name in after.text("rlnImageName")])
    same = before.integers("rlnClassNumber")[row] == after.integers("rlnClassNumber")
    assert same.mean() > 0.9


def test_relions_class_means_are_our_averages(last):
    """The mean of each class's images, turned and moved by relion_stack_create, against our average of it."""
    relion("relion_stack_create", "--i", f"{last}_data.star", "--o", "moved", "--apply_transformation")
    stack, averages = open_stack("moved.mrcs"), open_stack(f"{last}_classes.mrcs")
    class_of = read_star(f"{last}_data.star").table("particles").integers("rlnClassNumber") - 1
    found = [correlation(stack[class_of == k].mean(axis=0), averages[k]) for k in range(CLASSES)]
    assert min(found) > 0.98, found

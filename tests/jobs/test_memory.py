"""More particles than memory: images are streamed, and what is kept of each is small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.sets import ParticleSet
from polarice.io.mrc import StackWriter
from polarice.io.star import read_star

LIMIT_GIB = 4.0
REST_GIB = 0.12  # beside libraries and --memory: tables, charts, pieces of freed memory
# ru_maxrss counts pages of mapped files too: the most that the process ever held
MEASURED = (
    "import json, resource, sys, torch; from polarice.cli import main;"
    "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20;"
    "libraries = peak(); code = main(sys.argv[1:]); print(json.dumps([code, libraries, peak()]))"
)


def write_noise(folder: Path, n: int, box_px: int) -> None:
    """A stack of n int8 images (64 different ones, over and over) and its table."""
    images = 30 * np.random.default_rng(0).standard_normal((64, box_px, box_px)).clip(-4, 4)
    with StackWriter(folder / "stack.mrcs", n, box_px, 3.0, np.int8) as writer:
        for start in range(0, n, len(images)):
            writer.append(images[: n - start])
    aligned = ParticleSet(n=n, box_px=box_px).aligned()
    ParticleSet(n=n, box_px=box_px, columns=aligned).write_table(folder)


def measured(line: str, folder: Path) -> tuple[float, float]:
    """GiB that a process held after loading the libraries, and at the most."""
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, *line.split()], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
    )
    code, libraries_GiB, peak_GiB = json.loads(ended.stdout.splitlines()[-1])
    assert code == 0
    return libraries_GiB, peak_GiB


def test_a_map_keeps_to_the_memory_that_it_is_given(tmp_path):
    """0.13 GiB of posed images: with 0.25, some of them are kept, the others streamed."""
    write_noise(tmp_path, 5000, 96)
    libraries_GiB, peak_GiB = measured(
        "sml particles.star --k 20 --rank 0 --iter 1 --memory 0.25 --threads 2 --o out", tmp_path
    )
    assert peak_GiB - libraries_GiB < 0.25 + REST_GIB


@pytest.mark.slow
def test_a_hundred_thousand_particles_of_128_px_in_under_4_GB(tmp_path):
    write_noise(tmp_path, 100_000, 128)
    line = "class2d particles.star --k 20 --iter 1 --strict-highres-exp 12 --threads 1 --offset-range 2 --o out"
    _, peak_GiB = measured(line, tmp_path)
    assert peak_GiB < LIMIT_GIB, f"{peak_GiB:.2f} GiB"
    assert len(read_star(tmp_path / "out/run_it001_data.star").table("particles")) == 100_000

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
# ru_maxrss counts pages of mapped files too: the most that the process ever held
MEASURED = (
    "import json, resource, sys; from polarice.cli import main; code = main(sys.argv[1:]);"
    "print(json.dumps([code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))"
)


def write_noise(folder: Path, n: int, box_px: int) -> None:
    """A stack of n int8 images (64 different ones, over and over) and its table."""
    images = 30 * np.random.default_rng(0).standard_normal((64, box_px, box_px)).clip(-4, 4)
    with StackWriter(folder / "stack.mrcs", n, box_px, 3.0, np.int8) as writer:
        for start in range(0, n, len(images)):
            writer.append(images[: n - start])
    ParticleSet(n=n, box_px=box_px).write_table(folder)


@pytest.mark.slow
def test_a_hundred_thousand_particles_of_128_px_in_under_4_GB(tmp_path):
    write_noise(tmp_path, 100_000, 128)
    line = "class2d particles.star --k 20 --iter 1 --strict-highres-exp 12 --threads 1 --offset-range 2 --o out"
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, *line.split()], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True
    )
    code, peak_GiB = json.loads(ended.stdout.splitlines()[-1])
    assert code == 0
    assert peak_GiB < LIMIT_GIB, f"{peak_GiB:.2f} GiB"
    assert len(read_star(tmp_path / "out/run_it001_data.star").table("particles")) == 100_000

"""What `polarice bench scaling` asks of the ranks and of the schedule.

mpirun -n R python -m polarice.bench.rank_times BYTES ...      prints the seconds of a sum of so many bytes, as JSON
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from polarice.cluster import Comm, world

REPEAT = 9


def time_sums(volumes: Sequence[int], comm: Comm) -> list[float]:
    """Median seconds of the sum of a single precision array of each volume in bytes, over all ranks."""
    found = []
    for volume in volumes:
        array = np.ones(max(1, volume // 4), np.float32)
        times = []
        for _ in range(REPEAT):
            comm.collect(0)
            since = time.perf_counter()
            comm.sum(array)
            times.append(time.perf_counter() - since)
        found.append(float(np.median(times)))
    return found


def steps(k: int, iterations: int, particles: int, growing_batches: bool) -> tuple[list[int], list[float]]:
    """Images compared in each iteration of a run, and the share of the K references that there are."""
    from polarice.align.schedule import Schedule

    plan = Schedule(k, iterations, particles, 8, 32, 5.0, 1.0, growing_batches=growing_batches)
    made = [plan.step(number + 1) for number in range(iterations)]
    return [step.batch for step in made], [step.references / k for step in made]


def forget_cached(path: Path) -> None:
    """Let the system's cache of a file go, so that it is read from the disk; where the system knows how."""
    with suppress(OSError, AttributeError), open(path, "rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold_bytes_per_s(path: Path, piece: int = 8 << 20) -> float:
    """Rate at which a file comes from the disk, read once from beginning to end."""
    forget_cached(path)
    since, done = time.perf_counter(), 0
    with open(path, "rb", buffering=0) as stream:
        while read := stream.read(piece):
            done += len(read)
    return done / (time.perf_counter() - since)


if __name__ == "__main__":
    with world("bench scaling") as everyone:
        seconds = time_sums([int(word) for word in sys.argv[1:]], everyone)
        if everyone.rank == 0:
            print(json.dumps(seconds))

"""Parameters of the jobs that make manifolds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polarice.project.params import option, output
from polarice.runs.particle_job import ParticleJob
from polarice.types import InputError

MAX_AXES = 3
MOST_USUAL = 1000  # where nothing is said, and before the particles are counted
MOST_NODES = 100_000


@dataclass(frozen=True)
class ManifoldJob(ParticleJob):
    """Parameters of all that makes manifolds."""

    o: Path = output("SML")
    k: str | None = option(
        None, "nodes (classes) of the manifold: 1000 on a line, 32x32 on a square, 10x10x10 in a cube",
        flags=("-k", "--K"), level="essential", derived="one for 20 particles, at most 1000",
    )  # fmt: skip
    iter: int | None = option(
        None, "iterations", derived="30; with --continue, as before", low=1, high=999, renewable=True, level="essential"
    )
    start: Literal["pca", "classes", "random"] = option(
        "pca", "lay the map out by the images' principal components, by the classes of the table, or at random"
    )
    register: bool = option(
        True, "turn and shift the table's classes, each of which has a frame of its own, into register first"
    )
    refine_poses: bool = option(
        False, "let angles and shifts move, a little, to where the map explains the images best"
    )
    refine_psi: float = option(
        4.0, "standard deviation of how far angles may move", needs=("refine_poses", True), unit="deg", low=0.1, high=45
    )
    refine_shift: float = option(
        0.75,
        "standard deviation of how far shifts may move",
        needs=("refine_poses", True),
        unit="px",
        low=0.05,
        high=10,
    )
    average: Literal["soft", "hard"] = option(
        "soft", "averages in the results: the map's own, or of the particles whose best node each one is"
    )
    threshold: float = option(
        0.0,
        "hard averages of the particles alone that have their node with this probability",
        low=0,
        high=1,
        needs=("average", "hard"),
    )
    rank: int | None = option(
        None, "components in which averages may differ from their mean, 0 for any",
        derived="as many as held-out images confirm", low=0, high=10_000,
    )  # fmt: skip
    tau2_fudge: float = option(1.0, "strength of the data against the prior", low=0.01, high=100)
    frames: int = option(60, "frames of the movie along the manifold", low=2, high=2000)
    write_every: int = option(10, "write RELION's files every so many iterations, and at the end", low=1, high=999)

    @property
    def shape(self) -> tuple[int, ...]:
        """The grid, without axes of one node. Raises InputError."""
        words = (self.k or str(MOST_USUAL)).lower().split("x")
        if not all(word.isascii() and word.isdigit() for word in words) or len(words) > MAX_AXES:
            raise InputError(f"--k {self.k}: give a number of nodes, or a grid such as 32x32 or 10x10x10")
        counts = [int(word) for word in words]
        if not 2 <= math.prod(counts) <= MOST_NODES:
            raise InputError(f"--k {self.k}: a map has from 2 to {MOST_NODES} nodes")
        return tuple(n for n in counts if n > 1)

    @property
    def classes(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class PerClassJob(ManifoldJob):
    """One manifold, or one inside each class."""

    search: bool = option(False, "a map of --k nodes inside each class of the table, each in a folder of its own")

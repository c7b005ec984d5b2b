"""`polarice align2d`: bring every particle into register with one of a few class averages (the MAP phase)."""

from __future__ import annotations

from dataclasses import dataclass

from polarice.project.params import option
from polarice.runs.classification import Classification

SUMMARY = "align particles in two dimensions: psi, shift and one of a few references for each"
EXAMPLE = "polarice align2d Extract/job005/particles.star --o Align2D/job006 -k 50 --particle-diameter 180"
RANKS = True  # mpirun may start several


@dataclass(frozen=True)
class Params(Classification):
    """All the particles in every iteration, few references."""

    k: int = option(50, "number of references", low=1, high=100_000, flags=("-k", "--K"), level="essential")


def run(params: Params) -> None:
    """Align; raises InputError for what cannot be used."""
    from polarice.runs.classification import classify

    classify("align2d", params, growing_batches=False, iterations=25)

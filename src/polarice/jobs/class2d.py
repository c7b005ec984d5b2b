"""`polarice class2d`: sort particles into many class averages, aligning them on the way."""

from __future__ import annotations

from dataclasses import dataclass

from polarice.project.params import option
from polarice.runs.classification import Classification

SUMMARY = "classify particles in two dimensions, with mini-batches that grow to all of them"
EXAMPLE = "polarice class2d Extract/job005/particles.star --o Class2D/job006 -k 100 --particle-diameter 180"
RANKS = True  # mpirun may start several


@dataclass(frozen=True)
class Params(Classification):
    """Growing mini-batches, many classes."""

    k: int = option(100, "number of classes", low=1, high=100_000, flags=("-k", "--K"), level="essential")
    iter: int | None = option(
        None, "iterations", derived="30; with --continue, as before", low=1, high=999, renewable=True, level="essential"
    )


def run(params: Params) -> None:
    """Classify; raises InputError for what cannot be used."""
    from polarice.runs.classification import classify

    classify("class2d", params, growing_batches=True, iterations=30)

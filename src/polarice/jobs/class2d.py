"""`polarice class2d`: sort particles into many class averages, aligning them on the way."""

from __future__ import annotations

from dataclasses import dataclass

from polarice.jobs.classification import Classification
from polarice.jobs.params import option

SUMMARY = "classify particles in two dimensions, with mini-batches that grow to all of them"
RANKS = True  # mpirun may start several


@dataclass(frozen=True)
class Params(Classification):
    """Growing mini-batches, many classes."""

    k: int = option(100, "number of classes", low=1, high=100_000, flags=("-k", "--K"))
    iter: int | None = option(None, "number of iterations; 30, or those of the run that goes on", low=1, high=999)


def run(params: Params) -> None:
    """Classify; raises InputError for what cannot be used."""
    from polarice.jobs.classification import classify

    classify("class2d", params, growing_batches=True, iterations=30)

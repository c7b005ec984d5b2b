"""`polarice class3d`: sort particles into K maps, with alignment or with poses kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

from polarice.runs.classification3d import Classification3D

SUMMARY = "sort particles into several maps, aligned or with the poses that they have; tell how stable classes are"
EXAMPLE = "polarice class3d Refine3D/job009/run_data.star --ref Refine3D/job009/run_class001.mrc -k 3"

RANKS = True  # mpirun may start several


@dataclass(frozen=True)
class Params(Classification3D):
    """References, how many classes, and how to search."""


def run(params: Params) -> None:
    """Classify; raises InputError for what cannot be used."""
    from polarice.runs.classification3d import classify
    from polarice.runs.seeds3d import classify_from_seeds, from_seeds

    params = replace(params, sym=params.sym.strip().upper())
    if params.continue_ is None:
        params = replace(params, k=params.classes)
    if from_seeds(params):
        classify_from_seeds(params)
    else:
        classify("class3d", params)

"""`polarice sml`: deep classification of aligned particles, on a smooth map of many nodes."""

from __future__ import annotations

from dataclasses import dataclass

from polarice.runs.manifold_job import PerClassJob

SUMMARY = "classify aligned particles deeply, into a map of many classes on which neighbours resemble each other"
EXAMPLE = "polarice sml Class2D/job006/run_it030_data.star --o SML/job007 -k 32x32 --particle-diameter 180"
RANKS = True  # mpirun may start several


@dataclass(frozen=True)
class Params(PerClassJob):
    """One manifold, or one inside each class."""


def run(params: Params) -> None:
    """Map; raises InputError for what cannot be used."""
    from polarice.runs.mapping import map_particles
    from polarice.runs.per_class import search, searches

    if searches(params):
        search(params)
    else:
        map_particles("sml", params)

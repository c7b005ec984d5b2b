"""`polarice refine3d`: refine a map against particles, in two halves that never mix."""

from __future__ import annotations

from dataclasses import dataclass, replace

from polarice.runs.refinement import Refinement

SUMMARY = "refine a map from particles: two half sets, global and then local search, resolution by their FSC"
EXAMPLE = (
    "polarice refine3d Class2D/job006/run_it030_data.star --o Refine3D/job009"
    " --ref InitialModel/job008/initial_model.mrc --particle-diameter 180"
)

RANKS = True  # mpirun may start several


@dataclass(frozen=True)
class Params(Refinement):
    """A reference, and how far and how finely to search."""


def run(params: Params) -> None:
    """Refine; raises InputError for what cannot be used."""
    from polarice.runs.refinement import refine

    refine("refine3d", replace(params, sym=params.sym.strip().upper()))

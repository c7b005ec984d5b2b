"""`polarice refine3d`: refine a map against particles, in two halves that never mix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from polarice.jobs.params import MAP, option, output
from polarice.jobs.particle_job import ParticleJob

SUMMARY = "refine a map from particles: two half sets, global and then local search, resolution by their FSC"
EXAMPLE = (
    "polarice refine3d Class2D/job006/run_it030_data.star --o Refine3D/job009"
    " --ref InitialModel/job008/initial_model.mrc --particle-diameter 180"
)

RANKS = True  # mpirun may start several


@dataclass(frozen=True)
class Params(ParticleJob):
    """A reference, and how far and how finely to search."""

    o: Path = output("Refine3D")
    ref: Path | None = option(
        None,
        "map to begin with (.mrc), of the particles' box and pixel size",
        level="essential",
        path=MAP,
        derived="that of the run that goes on",
    )
    ini_high: float = option(60.0, "resolution that the map is low-passed to at first", unit="A", low=1)
    sym: str = option(
        "C1", "point group of the particle, its axes where RELION has them: C1, D2, T, O, I ...", level="essential"
    )
    iter: int | None = option(
        None,
        "most iterations; refinement ends by itself",
        derived="25; with --continue, as before",
        low=1,
        high=999,
        renewable=True,
        level="essential",
    )
    firstiter_cc: bool = option(
        True,
        "in the first iteration each image counts at its best pose alone, so that round particles find a beginning",
    )
    tau2_fudge: float = option(1.0, "strength of the data against the prior", low=0.01, high=100)
    low_resol_join_halves: float = option(
        40.0, "halves are one up to this resolution, so that they keep pose and hand", unit="A", low=1
    )
    auto_local_healpix_order: int = option(4, "HEALPix order from which particles are searched locally", low=3, high=6)
    offset_range: float = option(5.0, "shifts are searched this far from each last centre, at first", unit="px", low=0)
    offset_step: float = option(1.0, "step of the shifts; twice it at first, half of it at the end", unit="px", low=0.1)

    def faults(self) -> Iterator[str]:
        if self.ref is None and self.continue_ is None:
            yield "--ref: refine3d begins with a map; give one (.mrc), or make one with polarice initial3d"


def run(params: Params) -> None:
    """Refine; raises InputError for what cannot be used."""
    from polarice.jobs.refinement import refine

    refine("refine3d", replace(params, sym=params.sym.strip().upper()))

"""What `import polarice` offers: every job as a function, particles and results as objects.

    data = polarice.particles("particles.star")
    run = polarice.class2d(data, k=20, diameter_A=180)
    run.select([1, 2, 5]).write("good.star")

Options have the names and bounds of the command line's, `-` written as `_`; `out` is its `--o`, `diameter_A` its
`--particle-diameter`. What cannot be used raises `polarice.InputError` with the text that the command line prints.
"""

from __future__ import annotations

from polarice.api.functions import (
    align2d,
    class2d,
    class3d,
    ctf,
    deep2d,
    extract,
    import_,
    initial3d,
    map_,
    mask,
    motion,
    pick,
    postprocess,
    reconstruct,
    refine3d,
    select,
    simulate,
    sml,
)
from polarice.api.particles import ParticleSet, particles
from polarice.api.results import Classification, JobResult, MapResult, TableResult, open_result
from polarice.types import InputError

__all__ = [
    "Classification", "InputError", "JobResult", "MapResult", "ParticleSet", "TableResult", "align2d", "class2d",
    "class3d", "ctf", "deep2d", "extract", "import_", "initial3d", "map_", "mask", "motion", "open_result", "particles",
    "pick", "postprocess", "reconstruct", "refine3d", "select", "simulate", "sml",
]  # fmt: skip

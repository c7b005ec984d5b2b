"""The files of a refinement, named as RELION's Refine3D names them.

    run_itNNN_half1_class001.mrc, _half2_     what references are slices of: regularised and masked
    run_itNNN_data.star                       poses and half sets
    run_class001.mrc                          at the end: both halves together
    run_half1_class001_unfil.mrc, run_half2_  at the end: without prior and mask, for postprocessing
    run_data.star, run_fsc.star               at the end: poses; FSC of the halves, masked

Angles and origins are RELION's: see `references.directions` and `io.particles`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polarice.io.mrc import write_volume
from polarice.io.particles import ParticleTable, pose_columns, write_particles
from polarice.io.star import Block, Table, write_star
from polarice.types import Assignment

if TYPE_CHECKING:
    from collections.abc import Mapping


def write_half_maps(root: Path, densities: np.ndarray, pixel_size_A: float) -> tuple[str, ...]:
    """ROOT_half1_class001.mrc and ROOT_half2_class001.mrc of densities (2, N, N, N); their paths."""
    paths = tuple(f"{root}_half{number}_class001.mrc" for number in range(1, len(densities) + 1))
    for path, density in zip(paths, densities, strict=True):
        write_volume(path, density, pixel_size_A)
    return paths


def write_unfiltered(root: Path, densities: np.ndarray, pixel_size_A: float) -> None:
    """ROOT_half1_class001_unfil.mrc and ROOT_half2_ of densities (2, N, N, N)."""
    for number, density in enumerate(densities, 1):
        write_volume(f"{root}_half{number}_class001_unfil.mrc", density, pixel_size_A)


def write_poses(
    path: Path, table: ParticleTable, rows: np.ndarray, found: Assignment, views: Mapping[str, np.ndarray]
) -> None:
    """The table's `rows` with their poses; `found` and `views` (rlnAngleRot, rlnAngleTilt, rlnRandomSubset) in step."""
    pixel_A = table.particles.optics[int(table.particles.optics_of[0])].pixel_size_A
    columns = {
        **views,
        **pose_columns(found.pose, pixel_A),
        "rlnLogLikeliContribution": found.log_likelihood,
        "rlnMaxValueProbDistribution": found.max_probability,
        "rlnNrOfSignificantSamples": found.significant,
    }
    write_particles(path, table, rows, columns)


def write_fsc(path: Path, fsc: np.ndarray, box_A: float) -> None:
    """FSC (S,) by shell, as a table `fsc` in RELION's columns."""
    shell = np.arange(len(fsc))
    columns = {
        "rlnSpectralIndex": shell,
        "rlnResolution": shell / box_A,
        "rlnAngstromResolution": np.where(shell > 0, box_A / np.maximum(shell, 1), 999.0),
        "rlnGoldStandardFsc": fsc,
    }
    write_star(path, [Block("fsc", table=Table.of(columns))])

"""The tables of RELION's jobs in three dimensions beside their maps, for `relion_refine --continue` and the rest.

    run_itNNN_model.star         of Class3D; run_itNNN_half1_model.star and half2 of Refine3D
    run_itNNN_sampling.star      the grid of directions, RELION's steps being twice ours: it halves them once
    run_itNNN_data.star          poses, classes, half sets
    run_itNNN_optimiser.star     last: an iteration that has one is complete

Scales are those of `io.class2d`: a slice of a map's transform is that of an image, so sigma2 and tau2 = ours / (2 N^2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from polarice.io.particles import ParticleTable
from polarice.io.relion_run.class2d import (
    Groups,
    RunNames,
    RunSettings,
    groups_of,
    model_blocks,
    optimiser_block,
    write_data,
)
from polarice.io.star import Block, Table, write_star
from polarice.types import Iteration

OVERSAMPLING = 1  # RELION's orders of directions are coarser by so many than those that it compares


@dataclass(frozen=True)
class Search3D:
    """How directions and shifts were searched."""

    symmetry: str
    order: int  # HEALPix
    local_order: int  # from which particles are searched around where they were
    local: bool
    skip_align: bool = False


@dataclass(frozen=True)
class Reference3D:
    """A model's maps on disk."""

    maps: tuple[str, ...]  # one a class
    fsc: np.ndarray | None = None  # (S,) of half maps


def write_iteration_3d(
    root: Path,
    iteration: Iteration,
    particles: tuple[ParticleTable, np.ndarray, Mapping[str, np.ndarray]],
    run: RunSettings,
    search: Search3D,
    models: Mapping[str, Reference3D],
) -> Path:
    """Write ROOT_itNNN_..., of an iteration whose maps are on disk; the optimiser file's path.

    particles: the table, the rows that the assignment is about, and further columns of these. models: what stands
    before "model.star" in the files' names ("", or "half1_" and "half2_"), and the maps of each.
    """
    table, rows, columns = particles
    names, groups = RunNames(str(root), iteration.number), groups_of(table, rows)
    optimiser = Path(names["optimiser.star"])
    optimiser.unlink(missing_ok=True)
    run = replace(run, dimensions=3)
    files = [names[f"{kind}model.star"] for kind in models]
    for path, model in zip(files, models.values(), strict=True):
        write_star(path, _model_blocks(iteration, run, groups, model, search))
    write_star(names["sampling.star"], [_sampling_block(iteration, search)])
    write_data(names["data.star"], iteration, table, rows, groups, columns)
    write_star(optimiser, [optimiser_block(names, iteration, run, _optimiser(files, search))])
    return optimiser


def _model_blocks(
    iteration: Iteration, run: RunSettings, groups: Groups, model: Reference3D, search: Search3D
) -> Iterator[Block]:
    maps = {"rlnReferenceImage": np.array(model.maps, object)}
    yield from model_blocks(iteration, run, groups, maps, model.fsc)
    if search.symmetry in ("C1", "C01"):  # of others RELION leaves out mates in an order of its own, and begins anew
        directions = 12 * 4 ** _coarse(search)
        for k, weight in enumerate(iteration.model.weights):
            even = np.full(directions, weight / directions)
            yield Block(f"model_pdf_orient_class_{k + 1}", table=Table.of({"rlnOrientationDistribution": even}))


def _coarse(search: Search3D) -> int:
    return max(0, search.order - OVERSAMPLING)


def _sampling_block(iteration: Iteration, search: Search3D) -> Block:
    pixel = iteration.model.pixel_size_A
    step = max(2 * iteration.shift_step_px, 0.1) * pixel
    reach = max(iteration.shift_range_px * pixel, step)
    psi_step = 360 / (6 * 2 ** _coarse(search))
    return Block.of_pairs(
        "sampling_general",
        {
            "rlnIs3DSampling": 1,
            "rlnIs3DTranslationalSampling": 0,
            "rlnHealpixOrder": _coarse(search),
            "rlnSymmetryGroup": search.symmetry,
            "rlnTiltAngleLimit": -91.0,
            "rlnPsiStep": psi_step,
            "rlnOffsetRange": reach,
            "rlnOffsetStep": step,
            "rlnHelicalOffsetStep": -1.0,
            "rlnSamplingPerturbInstance": 0.0,
            "rlnSamplingPerturbFactor": 0.5,
            "rlnHealpixOrderOriginal": _coarse(search),
            "rlnPsiStepOriginal": psi_step,
            "rlnOffsetRangeOriginal": reach,
            "rlnOffsetStepOriginal": step,
        },
    )


def _optimiser(models: Sequence[str], search: Search3D) -> dict[str, str | int | float]:
    """What is not as in a 2D classification."""
    halves = len(models) > 1
    more: dict[str, str | int | float] = {
        "rlnModelStarFile": models[0],
        "rlnDoSplitRandomHalves": int(halves),
        "rlnDoAutoRefine": int(halves),
        "rlnAutoLocalSearchesHealpixOrder": max(0, search.local_order - OVERSAMPLING),
        "rlnDoSkipAlign": int(search.skip_align),
    }
    if halves:
        more["rlnModelStarFile2"] = models[1]
    return more

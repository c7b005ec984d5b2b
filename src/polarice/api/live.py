"""Classification in memory, iteration by iteration, without a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from polarice.api.options import SPELLED, params_of
from polarice.api.particles import ParticleSet
from polarice.api.results import Classification
from polarice.runs.classification import Classification as Params
from polarice.types import InputError, Iteration

OF_A_FOLDER = ("continue_", "copy_to", "price", "profile")  # options of a run that writes
OF_READING = ("angpix", "image_dir", "unsigned")  # options that say how a table and its stacks are read


def class_iterations(job: str, data: ParticleSet, options: dict[str, Any]) -> Iterator[Classification]:
    """The classes after each iteration of align2d or class2d. Raises InputError for what cannot be used."""
    from polarice.runs.classification import first_state, iteration_of, iterations, schedule_of
    from polarice.runs.particle_job import as_phase_flipped, check_images, images_of, require_plausible, require_usable
    from polarice.runs.resources import device_of

    if data.in_memory and data.table.particles.ctf is None:
        options = {"ctf": False, **options}  # an array without defocus: particles() says so
    params = cast(Params, params_of(job, {**options, "particles": data.table.path, "o": Path(job)}))
    _require_all_used(params)
    if params.ctf and data.table.particles.ctf is None:
        raise InputError(f"{data.table.path}: not every particle has a CTF; run polarice ctf, or give ctf=False")
    if params.ctf_phase_flipped:
        data = replace(data, table=as_phase_flipped(data.table), whole=False)
    growing = job == "class2d"
    params = replace(params, iter=params.iter or (30 if growing else 25))
    device = device_of(params)
    require_usable(params, data.table, data.box_px)
    images = images_of(params, data.table.particles, data.source, device)
    require_plausible(data.table, images)
    looked = check_images(data.table, images, params)
    schedule = schedule_of(looked.images, params, len(looked.rows), growing)
    state = first_state(looked.images, schedule, looked.order, looked.noise_power, params)
    for result in iterations(state, schedule, looked, params):
        yield _classification(iteration_of(result, looked.images, looked.rows), data, looked.rows)


def _require_all_used(params: Params) -> None:
    """Raise InputError naming an option that would do nothing here."""
    for field in (*OF_A_FOLDER, *OF_READING):
        if not getattr(params, field, None):
            continue
        remedy = "give out=, a folder for the results"
        if field in OF_READING:
            remedy += ", or give polarice.particles the table with it" if field != "unsigned" else ""
        raise InputError(f"{SPELLED.get(field, field)}: has no effect on particles that are already read; {remedy}")


def _classification(iteration: Iteration, data: ParticleSet, rows: np.ndarray) -> Classification:
    from polarice.io.particles import pose_columns

    chosen, pose = data[rows], iteration.assignment.pose
    columns = pose_columns(pose, data.pixel_size_A) | {
        "rlnLogLikeliContribution": iteration.assignment.log_likelihood,
        "rlnMaxValueProbDistribution": iteration.assignment.max_probability,
    }
    table = replace(
        chosen.table,
        table=chosen.table.table.with_columns(columns),
        particles=replace(chosen.table.particles, pose=pose),
    )
    model = iteration.model
    return Classification(
        model.averages, model.weights, model.resolution_A, replace(chosen, table=table, whole=False), iteration.number
    )

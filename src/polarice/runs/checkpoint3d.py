"""Checkpoints of refinements: `run_itNNN_polarice.npz`, as those of classifications."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polarice.io.arrays import Arrays
from polarice.runs.checkpoint import arrays_of_assignment, arrays_of_classes, assignment_of, part_of, read, write
from polarice.types import ClassModel

if TYPE_CHECKING:
    import torch

    from polarice.references.refinement import RefineState


def write_refinement(folder: Path, state: RefineState, outline: ClassModel) -> Path:
    """Write the state of refine3d; InputError where the disk is full."""
    model, progress = state.model, state.carried
    arrays: Arrays = arrays_of_assignment(state.assignment) | arrays_of_classes(outline)
    for each in fields(model):
        value = getattr(model, each.name)
        arrays[f"model.{each.name}"] = value.cpu().numpy() if hasattr(value, "cpu") else np.asarray(value)
    assert progress.step is not None, "an iteration has been made"
    arrays |= {f"step.{each.name}": np.asarray(getattr(progress.step, each.name)) for each in fields(progress.step)}
    arrays |= {"cut_px": progress.crop_centre_px, "direction": progress.direction, "half_of": progress.half_of}
    return write(folder, state.number, arrays | {"gain": np.array([progress.best_shell, progress.idle])})


def read_refinement(folder: Path, number: int, device: torch.device) -> RefineState:
    """The state as it was written; InputError where the file cannot be read."""

    def state(arrays: Arrays) -> RefineState:
        import torch

        from polarice.align.fit import State
        from polarice.references.halfmaps import HalfMaps
        from polarice.references.refinement import Progress, RefineStep

        known = part_of(arrays, "model")
        tensors: Arrays = {
            name: value.item() if value.ndim == 0 else torch.from_numpy(value).to(device)
            for name, value in known.items()
        }
        model = HalfMaps(**tensors)
        step = RefineStep(**{name: value.item() for name, value in part_of(arrays, "step").items()})
        best, idle = arrays["gain"].tolist()
        progress = Progress(arrays["cut_px"], arrays["direction"], arrays["half_of"], step, best, idle)
        found = State(number, model, assignment_of(arrays), progress)
        _require_fitting(found)
        return found

    return read(folder, number, state)


def _require_fitting(state: RefineState) -> None:
    """Raise ValueError where the arrays are not of one pair of maps, or not of one set of particles."""
    from polarice.references.refinement import MOST_ORDER

    model, progress = state.model, state.carried
    n, box, count = model.densities.shape[0], model.box_px, len(progress.half_of)
    shapes = {"densities": (2, box, box, box), "unfiltered": (2, box, box, box), "joined": (box, box, box)}
    shapes["fsc"] = (box // 2 + 1,)
    tensors = {each.name: value for each in fields(model) if hasattr(value := getattr(model, each.name), "isfinite")}
    if none := [name for name, value in tensors.items() if not bool(value.isfinite().all())]:
        raise ValueError(f"values that are no numbers in {', '.join(none)}")
    wrong = [name for name, shape in shapes.items() if tuple(getattr(model, name).shape) != shape]
    if wrong or n != 2 or progress.direction.shape != (count, 3) or len(state.pose.psi_deg) != count:
        raise ValueError(f"arrays that do not fit together: {', '.join(wrong) or 'of the particles'}")
    length = np.linalg.norm(progress.direction, axis=1)
    if not (np.isclose(length, 1, atol=1e-3) | (length == 0)).all() or not np.isin(progress.half_of, (-1, 0, 1)).all():
        raise ValueError("directions or half sets make no sense")
    step = progress.step
    if step is None or not (1 <= step.r_max <= box // 2 and 0 <= step.order <= MOST_ORDER):
        raise ValueError("the last step makes no sense")
    if not (0 < model.shift_sigma_px < box and 0 < model.mask_fraction <= 1 and 1 <= model.shell <= box // 2):
        raise ValueError("shift_sigma_px, mask_fraction or shell make no sense")
    if (
        model.noise_power.ndim != 2
        or model.noise_power.shape[1] != box // 2 + 1
        or not bool((model.noise_power > 0).all())
    ):
        raise ValueError("no noise spectrum")

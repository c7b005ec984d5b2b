"""Checkpoints of what compares particles with maps: `run_itNNN_polarice.npz`, as those of classifications."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.io.arrays import Arrays
from polarice.runs.checkpoint import arrays_of_assignment, arrays_of_classes, assignment_of, part_of, read, write
from polarice.types import ClassModel

if TYPE_CHECKING:
    import torch

    from polarice.align.fit import State
    from polarice.references.classes3d import ClassState
    from polarice.references.refinement import RefineState


def write_maps(folder: Path, state: State[Any, Any], outline: ClassModel) -> Path:
    """Write the state of refine3d or class3d; InputError where the disk is full."""
    progress, step = state.carried, state.carried.step
    assert step is not None, "an iteration has been made"
    arrays: Arrays = arrays_of_assignment(state.assignment) | arrays_of_classes(outline)
    for each in fields(state.model):
        value = getattr(state.model, each.name)
        arrays[f"model.{each.name}"] = value.cpu().numpy() if hasattr(value, "cpu") else np.asarray(value)
    arrays |= {f"step.{each.name}": np.asarray(getattr(step, each.name)) for each in fields(step)}
    kept = [each.name for each in fields(progress) if each.name not in ("step", "crop_centre_px")]
    arrays |= {f"carried.{name}": np.asarray(getattr(progress, name)) for name in kept}
    return write(
        folder,
        state.number,
        arrays | {"cut_px": progress.crop_centre_px, "changed_class": np.asarray(state.changed_class)},
    )


def read_refinement(folder: Path, number: int, device: torch.device) -> RefineState:
    """The state of refine3d as it was written; InputError where the file cannot be read."""

    def state(arrays: Arrays) -> RefineState:
        from polarice.references.halfmaps import HalfMaps
        from polarice.references.refinement import Progress

        found = _state(arrays, number, (HalfMaps, Progress), device)
        box = found.model.box_px
        shapes: dict[str, tuple[int, ...]] = {"densities": (2, box, box, box), "unfiltered": (2, box, box, box)}
        shapes["joined"] = (box, box, box)
        _require_fitting(found, shapes | {"fsc": (box // 2 + 1,)}, 2)
        return found

    return read(folder, number, state)


def read_classes(folder: Path, number: int, device: torch.device) -> ClassState:
    """The state of class3d as it was written; InputError where the file cannot be read."""

    def state(arrays: Arrays) -> ClassState:
        from polarice.references.classes3d import ClassProgress
        from polarice.references.volumes import Volumes

        found = _state(arrays, number, (Volumes, ClassProgress), device)
        k, box = len(arrays["classes.weights"]), found.model.box_px
        shapes: dict[str, tuple[int, ...]] = {"maps": (k, box, box, box), "weights": (k,), "shells": (k,)}
        _require_fitting(found, shapes | {"tau2": (k, box // 2 + 1), "ssnr": (k, box // 2 + 1)}, 2 * k)
        return found

    return read(folder, number, state)


def _state(arrays: Arrays, number: int, kinds: tuple[type, type], device: torch.device) -> State[Any, Any]:
    """A state of these kinds of model and progress."""
    import torch

    from polarice.align.fit import State
    from polarice.references.refinement import RefineStep

    def plain(name: str) -> dict[str, Any]:
        return {key: value.item() if value.ndim == 0 else value for key, value in part_of(arrays, name).items()}

    model_of, progress_of = kinds
    known = plain("model")
    tensors = {
        name: torch.from_numpy(value).to(device) if isinstance(value, np.ndarray) else value
        for name, value in known.items()
    }
    progress = progress_of(crop_centre_px=arrays["cut_px"], step=RefineStep(**plain("step")), **plain("carried"))
    changed = float(arrays["changed_class"])
    return State(number, model_of(**tensors), assignment_of(arrays), progress, changed)


def _require_fitting(state: State[Any, Any], shapes: dict[str, tuple[int, ...]], sets: int) -> None:
    """Raise ValueError where the arrays are not of one set of maps, or not of so many sets of particles."""
    from polarice.references.refinement import MOST_ORDER

    model, progress, count = state.model, state.carried, len(state.carried.set_of)
    box = model.box_px
    tensors = {each.name: value for each in fields(model) if hasattr(value := getattr(model, each.name), "isfinite")}
    if none := [name for name, value in tensors.items() if not bool(value.isfinite().all())]:
        raise ValueError(f"values that are no numbers in {', '.join(none)}")
    wrong = [name for name, shape in shapes.items() if tuple(getattr(model, name).shape) != shape]
    if wrong or progress.direction.shape != (count, 3) or len(state.pose.psi_deg) != count:
        raise ValueError(f"arrays that do not fit together: {', '.join(wrong) or 'of the particles'}")
    length = np.linalg.norm(progress.direction, axis=1)
    if (
        not (np.isclose(length, 1, atol=1e-3) | (length == 0)).all()
        or not np.isin(progress.set_of, range(-1, sets)).all()
    ):
        raise ValueError("directions or sets of particles make no sense")
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

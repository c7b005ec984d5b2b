"""Checkpoints: the state of a classification after each iteration, bit for bit, in `run_itNNN_polarice.npz`.

The checkpoint is the last file of an iteration to be written: an iteration is done when it stands there.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.io.atomic import replacing
from polarice.types import Assignment, InputError, Pose2D

if TYPE_CHECKING:
    import torch

    from polarice.align.loop import State
    from polarice.references.averages import Averages

_BASIS = ("box_px", "radius_px", "r_max", "slack_px")


def path_of(folder: Path, number: int) -> Path:
    return folder / f"run_it{number:03d}_polarice.npz"


def write_checkpoint(folder: Path, state: State[Averages]) -> Path:
    """Write the state; InputError where the disk is full."""
    model, found = state.model, state.assignment
    arrays: dict[str, Any] = {f"basis.{name}": getattr(model.basis, name) for name in _BASIS}
    for each in fields(model):
        value = getattr(model, each.name)
        if each.name != "basis":
            arrays[f"model.{each.name}"] = value.cpu().numpy() if hasattr(value, "cpu") else value
    arrays |= {"cut_px": state.cut_px, "changed_class": state.changed_class}
    arrays |= {f"pose.{each.name}": getattr(found.pose, each.name) for each in fields(found.pose)}
    arrays |= {f"found.{each.name}": getattr(found, each.name) for each in fields(found) if each.name != "pose"}
    path = path_of(folder, state.number)
    with replacing(path) as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    return path


def checkpoints(folder: Path) -> list[int]:
    """Numbers of the iterations that the folder holds checkpoints of, ascending."""
    found = (re.fullmatch(r"run_it(\d{3,})_polarice\.npz", path.name) for path in folder.glob("run_it*_polarice.npz"))
    return sorted(int(match[1]) for match in found if match)


def read_checkpoint(folder: Path, number: int, device: torch.device) -> State[Averages]:
    """The state as it was written; InputError where the file cannot be read."""
    path = path_of(folder, number)
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return _state(number, dict(stored), device)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: this checkpoint cannot be read ({error}); remove it to go on from the one before"
        ) from error


def _state(number: int, arrays: dict[str, np.ndarray], device: torch.device) -> State[Averages]:
    import torch

    from polarice.align.loop import State
    from polarice.align.polar import PolarBasis
    from polarice.references.averages import Averages

    def part(name: str) -> dict[str, Any]:
        return {key.partition(".")[2]: value for key, value in arrays.items() if key.startswith(f"{name}.")}

    basis = PolarBasis(**{name: value.item() for name, value in part("basis").items()}, device=device)
    model: dict[str, Any] = {
        name: value.item() if value.ndim == 0 else torch.from_numpy(value).to(device)
        for name, value in part("model").items()
    }
    found = Assignment(Pose2D(**part("pose")), **part("found"))
    return State(number, Averages(basis=basis, **model), found, arrays["cut_px"], float(arrays["changed_class"]))

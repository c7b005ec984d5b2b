"""Checkpoints: the state of a classification, bit for bit, in `run_itNNN_polarice.npz`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from polarice.align.loop import State
from polarice.align.polar import PolarBasis
from polarice.io.atomic import replacing
from polarice.references.averages import Averages
from polarice.types import Assignment, InputError, Pose2D

KEPT = 2  # the newest checkpoints stay; a kill during the writing of one leaves the one before
_MODEL_ARRAYS = ("field", "weights", "log_prior", "tau2", "error", "ssnr", "noise_power")


def path_of(folder: Path, number: int) -> Path:
    return folder / f"run_it{number:03d}_polarice.npz"


def write_checkpoint(folder: Path, state: State[Averages]) -> Path:
    """Write the state, then drop checkpoints older than the newest two."""
    model, assignment = state.model, state.assignment
    arrays = {name: getattr(model, name).cpu().numpy() for name in _MODEL_ARRAYS}
    arrays |= {
        "basis": np.array([model.basis.box_px, model.basis.radius_px, model.basis.r_max, model.basis.slack_px]),
        "scalars": np.array([model.shift_sigma_px, model.mask_fraction]),
        "class_of": assignment.pose.class_of,
        "psi_deg": assignment.pose.psi_deg,
        "shift_px": assignment.pose.shift_px,
        "log_likelihood": assignment.log_likelihood,
        "max_probability": assignment.max_probability,
        "significant": assignment.significant,
    }
    path = path_of(folder, state.number)
    with replacing(path) as stream:
        np.savez(stream, **arrays)
    for old in checkpoints(folder)[:-KEPT]:
        path_of(folder, old).unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[int]:
    """Numbers of the iterations that the folder holds checkpoints of, ascending."""
    found = (re.fullmatch(r"run_it(\d{3,})_polarice\.npz", path.name) for path in folder.glob("run_it*_polarice.npz"))
    return sorted(int(match[1]) for match in found if match)


def read_checkpoint(folder: Path, number: int, device: torch.device) -> State[Averages]:
    """The state as it was written; InputError where the file cannot be read."""
    path = path_of(folder, number)
    try:
        with np.load(path) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: this checkpoint cannot be read ({error}); remove it to go on from the one before")
    box, radius, r_max, slack = arrays["basis"]
    shift_sigma, mask_fraction = arrays["scalars"]
    model = Averages(
        basis=PolarBasis(int(box), float(radius), int(r_max), float(slack), device),
        shift_sigma_px=float(shift_sigma),
        mask_fraction=float(mask_fraction),
        **{name: torch.from_numpy(arrays[name]).to(device) for name in _MODEL_ARRAYS},
    )
    assignment = Assignment(
        Pose2D(arrays["class_of"], arrays["psi_deg"], arrays["shift_px"]),
        arrays["log_likelihood"],
        arrays["max_probability"],
        arrays["significant"],
    )
    return State(number, model, assignment)

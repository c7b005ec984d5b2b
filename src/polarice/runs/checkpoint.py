"""Checkpoints: the state of a classification after each iteration, bit for bit, in `run_itNNN_polarice.npz`.

The checkpoint is the last file of an iteration to be written: an iteration is done when it stands there. It holds what
is known of the class averages, too, so that the report of a last iteration can be made without doing that again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from polarice.io.arrays import Arrays, in_short, require_plain
from polarice.io.atomic import replacing
from polarice.types import Assignment, ClassModel, InputError, Iteration, Pose2D

if TYPE_CHECKING:
    import torch

    from polarice.align.classify import Cuts
    from polarice.align.fit import State
    from polarice.align.polar import PolarBasis
    from polarice.references.averages import Averages
    from polarice.references.manifold.mapping import ManifoldState

S = TypeVar("S")

MOST_BOX_PX = 1 << 16
LARGEST = 1e18  # whose square is still a number in single precision
_BASIS = ("box_px", "radius_px", "r_max", "slack_px")
_GRID = ("shape", "functions", "width")


def path_of(folder: Path, number: int) -> Path:
    return folder / f"run_it{number:03d}_polarice.npz"


def checkpoints(folder: Path) -> list[int]:
    """Numbers of the iterations that the folder holds checkpoints of, ascending."""
    found = (re.fullmatch(r"run_it(\d{3,})_polarice\.npz", path.name) for path in folder.glob("run_it*_polarice.npz"))
    return sorted(int(match[1]) for match in found if match)


def write_checkpoint(folder: Path, state: State[Averages, Cuts], classes: ClassModel) -> Path:
    """Write the state of align2d or class2d; InputError where the disk is full."""
    arrays = _of_model(state.model) | arrays_of_assignment(state.assignment) | arrays_of_classes(classes)
    return write(
        folder, state.number, arrays | {"cut_px": state.carried.crop_centre_px, "changed_class": state.changed_class}
    )


def read_checkpoint(folder: Path, number: int, device: torch.device) -> State[Averages, Cuts]:
    """The state as it was written; InputError where the file cannot be read."""

    def state(arrays: Arrays) -> State[Averages, Cuts]:
        from polarice.align.classify import Cuts
        from polarice.align.fit import State
        from polarice.references.averages import Averages

        model = Averages(basis=_basis(arrays, device), **_tensors(arrays, device))
        _require_averages(model, len(arrays["classes.weights"]))
        return State(number, model, assignment_of(arrays), Cuts(arrays["cut_px"]), float(arrays["changed_class"]))

    return read(folder, number, state)


def write_map_checkpoint(folder: Path, state: ManifoldState, classes: ClassModel) -> Path:
    """Write the state of sml; InputError where the disk is full."""
    latent = state.carried
    arrays = _of_model(state.model) | arrays_of_assignment(state.assignment) | arrays_of_classes(classes)
    arrays |= {f"grid.{name}": getattr(state.model.grid, name) for name in _GRID}
    arrays |= {f"anchor.{each.name}": getattr(latent.anchor, each.name) for each in fields(latent.anchor)}
    arrays |= {"latent_mean": latent.mean, "latent_sd": latent.sd}
    return write(folder, state.number, arrays | {"first_rings": latent.first_rings})


def read_map_checkpoint(folder: Path, number: int, device: torch.device) -> ManifoldState:
    """The state as it was written; InputError where the file cannot be read."""

    def state(arrays: Arrays) -> ManifoldState:
        from polarice.align.fit import State
        from polarice.references.manifold.latent import LatentGrid
        from polarice.references.manifold.mapping import Latent
        from polarice.references.manifold.model import Manifold

        grid = part_of(arrays, "grid")
        shape, functions = (tuple(grid[name].tolist()) for name in ("shape", "functions"))
        model = Manifold(
            basis=_basis(arrays, device),
            grid=LatentGrid(shape, functions, grid["width"].item(), device),
            **_tensors(arrays, device),
        )
        anchor, rings = Pose2D(**part_of(arrays, "anchor")), arrays["first_rings"].item()
        latent = Latent(arrays["latent_mean"], arrays["latent_sd"], anchor, rings)
        found = State(number, model, assignment_of(arrays), latent)
        _require_fitting(found)
        return found

    return read(folder, number, state)


def read_iteration(folder: Path, number: int, total: int, rows: np.ndarray) -> Iteration:
    """What iteration `number` of `total` left behind of the particles `rows`: as in its checkpoint, its line of the
    history and its stack of averages. InputError where one of them cannot be read."""
    from polarice.io.mrc import open_stack
    from polarice.report.history import figures_of, read_history

    figures = next((figures_of(row) for row in read_history(folder) if row["number"] == number), None)
    if figures is None:
        raise _damaged(folder, number, "history.jsonl has no line of it")
    path = folder / f"run_it{number:03d}_classes.mrcs"

    def iteration(arrays: Arrays) -> Iteration:
        known = part_of(arrays, "classes")
        known |= {name: value.item() for name, value in known.items() if value.ndim == 0}
        model = ClassModel(averages=open_stack(path).astype(np.float32), **known)
        return Iteration(**figures | {"total": total, "model": model, "assignment": assignment_of(arrays).take(rows)})

    return read(folder, number, iteration)


def write(folder: Path, number: int, arrays: Arrays) -> Path:
    path = path_of(folder, number)
    with replacing(path) as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    return path


def require_readable(folder: Path, number: int) -> None:
    """Raise InputError where a checkpoint is not whole: its checksums are compared."""
    read(folder, number, lambda arrays: None)


def read(folder: Path, number: int, state: Callable[[Arrays], S]) -> S:
    path = path_of(folder, number)
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            require_plain(stored.zip)
            arrays = dict(stored)
            _require_numbers(arrays)
            _require_one_set(arrays)
            return state(arrays)
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(folder, number, "arrays are missing, or of another kind") from error
    except OSError as error:
        raise _damaged(folder, number, error.strerror or str(error)) from error
    except MemoryError as error:
        raise _damaged(folder, number, "it does not fit into memory, or is damaged") from error
    except Exception as error:  # zipfile, zlib, numpy and its parser of headers each have their own
        raise _damaged(folder, number, in_short(error)) from error


def _require_one_set(arrays: Arrays) -> None:
    """Raise ValueError where what is known of the particles is not of one set, or not of the classes."""
    each = {name: value for name, value in arrays.items() if name.startswith(("pose.", "found.", "cut_px"))}
    axes = {name: 2 if name.endswith(("shift_px", "cut_px")) else 1 for name in each}
    wrong = [name for name, value in each.items() if value.ndim != axes[name] or value.shape[1:] not in ((), (2,))]
    if wrong or len({len(value) for value in each.values()}) > 1:
        raise ValueError(f"arrays that do not fit together: {', '.join(wrong) or 'of the particles'}")
    classes, weights = arrays.get("pose.class_of"), arrays.get("classes.weights")
    if classes is None or weights is None or classes.dtype.kind not in "iu" or weights.ndim != 1:
        raise ValueError("pose.class_of or classes.weights is missing, or of another kind")
    for name, dimensions in (("signal_power", 2), ("ssnr", 2), ("resolution_A", 1)):
        value = arrays.get(f"classes.{name}")
        if value is None or value.ndim != dimensions or len(value) != len(weights):
            raise ValueError(f"classes.{name} is missing, or not of the {len(weights)} classes")
    if len(classes) and not -1 <= classes.min() <= classes.max() < len(weights):
        raise ValueError(f"pose.class_of holds numbers that none of the {len(weights)} classes has")


def _damaged(folder: Path, number: int, why: str) -> InputError:
    """What to say of a checkpoint that is of no use."""
    earlier = [each for each in checkpoints(folder) if each < number]
    remedy = f"remove it to go on from iteration {earlier[-1]}" if earlier else "none is before it: start anew"
    return InputError(f"{path_of(folder, number)}: this checkpoint cannot be read ({why}); {remedy}")


def _require_numbers(arrays: Arrays) -> None:
    for name, value in arrays.items():
        if name.startswith(("pose.", "found.", "classes.", "cut_px")) and value.dtype.kind not in "iuf":
            raise ValueError(f"{name} holds {value.dtype}")
        if name.startswith("model.") and value.dtype.kind not in "iufb":
            raise ValueError(f"{name} holds {value.dtype}")
        if name.startswith("anchor.") and not np.isfinite(value).all():
            raise ValueError(f"{name} holds values that are no numbers")
        if name in ("pose.shift_px", "cut_px", "anchor.shift_px") and not (np.abs(value) <= MOST_BOX_PX).all():
            raise ValueError(f"{name} lies outside of any box")
        if name == "pose.psi_deg" and not np.isfinite(value).all():
            raise ValueError(f"{name} holds values that are no numbers")
        if name.startswith("model.") and (np.isnan(value).any() or (np.abs(value[np.isfinite(value)]) > LARGEST).any()):
            raise ValueError(f"{name} holds values that are no numbers, or beyond {LARGEST:g}")


def _require_averages(model: Averages, k: int) -> None:
    """Raise ValueError where the arrays are not of one model of k classes."""
    rings = model.basis.r_max
    shapes: dict[str, tuple[int, ...]] = {name: (k, rings) for name in ("tau2", "error", "ssnr")}
    shapes |= {"field": (k, rings, model.basis.n_theta), "weights": (k,), "log_prior": (k,)}
    shapes["noise_power"] = (len(model.noise_power), model.basis.box_px // 2 + 1)
    wrong = [name for name, shape in shapes.items() if tuple(getattr(model, name).shape) != shape]
    if wrong:
        raise ValueError(f"arrays that do not fit together: {', '.join(wrong)}")
    if not bool(model.noise_power.isfinite().all()):
        raise ValueError("model.noise_power holds values that are no numbers")
    if not len(model.noise_power) or not (model.weights >= 0).all() or abs(float(model.weights.sum()) - 1) > 0.01:
        raise ValueError("no noise spectrum, or weights that are no shares")
    if not (0 < model.shift_sigma_px < MOST_BOX_PX and 0 < model.mask_fraction <= 1):
        raise ValueError("shift_sigma_px or mask_fraction make no sense")


def _require_fitting(state: ManifoldState) -> None:
    """Raise ValueError where the arrays of a map are not of one map, or not of one set of particles."""
    model, latent = state.model, state.carried
    shapes = {
        "coefficients": (1 + model.rank if model.rank else model.grid.m, model.packed.d),
        "weights": (model.grid.k,),
        "tau2": (model.basis.r_max,),
        "noise_power": (len(model.noise_power), model.basis.box_px // 2 + 1),
    }
    if model.amplitudes is not None:
        shapes["amplitudes"] = (model.grid.m, model.rank)
    wrong = [name for name, shape in shapes.items() if tuple(getattr(model, name).shape) != shape]
    found = state.assignment
    each = [*vars(found.pose).values(), *vars(latent.anchor).values(), latent.mean, latent.sd]
    each += [found.log_likelihood, found.max_probability, found.significant]
    if wrong or len({len(values) for values in each}) > 1:
        raise ValueError(f"arrays that do not fit together: {', '.join(wrong) or 'of the particles'}")
    if not all(np.isfinite(values).all() for values in (latent.mean, latent.sd)):
        raise ValueError("latent coordinates that are no numbers")


def _of_model(model: Any) -> Arrays:
    arrays: Arrays = {f"basis.{name}": getattr(model.basis, name) for name in _BASIS}
    for each in fields(model):
        value = getattr(model, each.name)
        if each.name not in ("basis", "grid") and value is not None:
            arrays[f"model.{each.name}"] = value.cpu().numpy() if hasattr(value, "cpu") else value
    return arrays


def arrays_of_classes(classes: ClassModel) -> Arrays:
    """Without the averages, which have a file of their own."""
    return {f"classes.{each.name}": getattr(classes, each.name) for each in fields(classes) if each.name != "averages"}


def arrays_of_assignment(found: Assignment) -> Arrays:
    arrays: Arrays = {f"pose.{each.name}": getattr(found.pose, each.name) for each in fields(found.pose)}
    return arrays | {f"found.{each.name}": getattr(found, each.name) for each in fields(found) if each.name != "pose"}


def part_of(arrays: Arrays, name: str) -> Arrays:
    return {key.partition(".")[2]: value for key, value in arrays.items() if key.startswith(f"{name}.")}


def _basis(arrays: Arrays, device: torch.device) -> PolarBasis:
    from polarice.align.polar import PolarBasis

    basis = {name: value.item() for name, value in part_of(arrays, "basis").items()}
    box = basis["box_px"]
    if not isinstance(box, int) or not isinstance(basis["r_max"], int) or not 1 <= basis["r_max"] <= box <= MOST_BOX_PX:
        raise ValueError(f"a box of {box} px and {basis['r_max']} rings make no sense")
    if not (0 < basis["radius_px"] <= box and 0 <= basis["slack_px"] <= box):
        raise ValueError(f"a radius of {basis['radius_px']} px and shifts of {basis['slack_px']} px make no sense")
    return PolarBasis(**basis, device=device)


def _tensors(arrays: Arrays, device: torch.device) -> Arrays:
    """The model's fields; what has no axis is a plain number."""
    import torch

    return {
        name: value.item() if value.ndim == 0 else torch.from_numpy(value).to(device)
        for name, value in part_of(arrays, "model").items()
    }


def assignment_of(arrays: Arrays) -> Assignment:
    return Assignment(Pose2D(**part_of(arrays, "pose")), **part_of(arrays, "found"))

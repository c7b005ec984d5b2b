"""Two half maps for a job: found from a folder or one name, read, and held against each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polarice.postprocessing.result import Halves
from polarice.project.state import read_state
from polarice.runs.density import read_map, require_same_grid
from polarice.types import InputError

if TYPE_CHECKING:
    from torch import Tensor

PAIRS = (("half1", "half2"), ("half_A", "half_B"), ("half_a", "half_b"), ("half_1", "half_2"))
NAMES = ("run_half1_class001_unfil.mrc", "*half1*unfil*.mrc", "*half1*.mrc", "*half_A.mrc")
SAME = 1e-5  # of the standard deviation: no difference between two maps
MASKED_SHARE = 0.3  # of voxels that are exactly 0
FILTERED_ABOVE = 0.143  # FSC just inside of where a map ends


def read_halves(given: Sequence[Path], angpix: float | None) -> Halves:
    """The halves that are meant. Raises InputError where one cannot be found, they do not fit, or are the same."""
    said: list[str] = []
    paths = _paths(given, said)
    one, other = (read_map(path, angpix) for path in paths)
    require_same_grid(one, other)
    ended = read_state(one.path.parent)
    if ended is not None and ended.state != "done":
        said.append(f"the job in {one.path.parent} has not ended ({ended.state}): these are half maps on the way")
    spread = float(one.density.std())
    if np.abs(one.density - other.density).max() < SAME * spread:
        raise InputError(
            f"{one.path} and {other.path} are the same map: their FSC is 1 everywhere and tells nothing; "
            "give the two unfiltered half maps of one refinement"
        )
    zeros = float((one.density == 0).mean())
    if zeros > MASKED_SHARE:
        said.append(
            f"{zeros:.0%} of {one.path.name} are exactly 0: it was masked before, and the FSC without a mask is none; "
            "give the unmasked half maps"
        )
    return Halves(one, other, tuple(said))


def filter_warnings(halves: tuple[Tensor, Tensor], fsc: np.ndarray, box_A: float) -> list[str]:
    """What an FSC (S,) without a mask says of halves that were filtered, or are not independent."""
    import torch

    from polarice.postprocessing.corrected import filtered_from, is_one_everywhere

    if is_one_everywhere(torch.from_numpy(fsc)):
        return ["the FSC is 1 on all shells: these halves are not independent, and the resolution is not known"]
    last = min(map(filtered_from, halves))
    inner = fsc[max(1, last - 3) : last]
    if last < len(fsc) - 1 and len(inner) and inner.mean() > FILTERED_ABOVE:
        return [
            f"the half maps end at {box_A / last:.1f} A, where they still agree (FSC {inner.mean():.2f}): they were "
            "filtered before; give the unfiltered ones (..._unfil.mrc)"
        ]
    return []


def _paths(given: Sequence[Path], said: list[str]) -> tuple[Path, Path]:
    if len(given) > 2:
        raise InputError(f"{len(given)} files; give one folder, one half map or two")
    first = given[0]
    if len(given) == 2:
        if any(a in given[1].name and b in first.name for a, b in PAIRS):
            said.append(f"{first.name} is the second half by its name; the halves were given in the other order")
            return given[1], first
        return first, given[1]
    if first.is_dir():
        first = _in_folder(first)
    elif not first.exists():
        raise InputError(f"{first}: no such file or folder; give the folder of a refinement, or a half map")
    for a, b in PAIRS:
        for mine, its in ((a, b), (b, a)):
            if mine in first.name:
                other = first.with_name(re.sub(f"{mine}(?!.*{mine})", its, first.name))
                if not other.exists():
                    raise InputError(f"{other}: not there, the other half of {first}; give both half maps")
                return (first, other) if mine == a else (other, first)
    raise InputError(f"{first}: its name holds no half1 or half2, so the other half is not known; give both half maps")


def _in_folder(folder: Path) -> Path:
    for name in NAMES:
        if found := sorted(folder.glob(name)):
            return found[-1]
    raise InputError(
        f"{folder}: no half map (run_half1_class001_unfil.mrc) is in it; it is written when a refinement has ended, "
        "and by reconstruct where the table has half sets"
    )

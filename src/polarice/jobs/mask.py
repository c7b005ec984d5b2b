"""`polarice mask`: a solvent mask made from a map."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polarice.project.params import MAP, Parameters, argument, option, output
from polarice.types import InputError

if TYPE_CHECKING:
    from polarice.postprocessing.mask import MaskFigures
    from polarice.runs.density import Map

SUMMARY = "make a solvent mask of a map: low-passed, cut at a level, grown, with a soft edge"
EXAMPLE = "polarice mask Refine3D/job009/run_class001.mrc --o MaskCreate/job011"
FILES = ("mask.mrc", "mask.png", "report.html")
FEWEST_VOXELS = 8


@dataclass(frozen=True)
class Params(Parameters):
    """The map, and the mask's shape; names are RELION's where RELION has them."""

    map: Path = argument("the map: both halves together, not sharpened", flags=("--i",), path=MAP)
    o: Path = output("MaskCreate")
    lowpass: float = option(15.0, "low-pass the map first; 0: not", unit="A", low=0)
    ini_threshold: float | None = option(None, "level of the particle in the low-passed map", derived="Otsu's")
    largest: bool = option(False, "keep the largest connected piece alone")
    extend_inimask: float = option(3.0, "grow by so many pixels", unit="px", low=0, high=1000)
    width_soft_edge: float = option(
        6.0, "width of the soft edge beyond", unit="px", low=0, high=1000, flags=("--width-mask-edge",)
    )
    and_: Path | None = option(None, "keep what is in this mask too", path=MAP)
    or_: Path | None = option(None, "add what is in this mask", path=MAP)
    sub: Path | None = option(None, "take away what is in this mask", path=MAP, flags=("--and-not",))
    invert: bool = option(False, "the solvent in the particle's place")
    angpix: float | None = option(None, "pixel size", derived="the header's", unit="A", low=0.01, high=100)


def run(params: Params) -> None:
    """Make the mask. Raises InputError for what cannot be used, and where nothing is left in the mask."""
    from polarice.io.mrc import write_volume
    from polarice.postprocessing.mask import figures
    from polarice.project.outputs import claimed
    from polarice.project.params import as_dict, command_line
    from polarice.project.provenance import write_job_json
    from polarice.report.density import write_mask_page
    from polarice.runs.density import read_map, require_folder

    require_folder(params.o)
    given = read_map(params.map, params.angpix)
    inputs = [path for path in (params.map, params.and_, params.or_, params.sub) if path is not None]
    mask, level, rule = made(params, given)
    found = figures(mask)
    with ExitStack() as held:
        kept = claimed("mask", params.o, FILES, inputs, held)
        write_job_json(
            params.o, "mask", as_dict(params), command_line("mask", params), inputs=inputs, seed=0,
            more={"outputs": kept, "threshold": level, "volume_A3": found.voxels * given.pixel_A**3},
        )  # fmt: skip
        write_volume(params.o / FILES[0], mask, given.pixel_A)
        words = told(found, given.pixel_A, level, rule)
        write_mask_page(params, given, mask, words)
    print(f"{params.o / FILES[0]}: {words}")
    for each in warnings(found, params.invert):
        print(f"warning: {each}")


def made(params: Params, given: Map) -> tuple[np.ndarray, float, str]:
    """The mask (N, N, N), the level, and who chose it. Raises InputError where nothing is inside, or everything."""
    import torch

    from polarice.postprocessing.mask import MaskShape, binary, soft, threshold
    from polarice.postprocessing.spectrum import low_pass
    from polarice.runs.density import read_mask

    density = torch.from_numpy(given.density)
    if params.lowpass > 2 * given.pixel_A:
        density = low_pass(density, given.box_A / params.lowpass)
    smooth = density.numpy()
    level, rule = params.ini_threshold, "given"
    if level is None:
        level, rule = threshold(smooth), "Otsu's rule"
    inside = binary(smooth, level, params.largest)
    for path, join in ((params.and_, np.logical_and), (params.or_, np.logical_or), (params.sub, _without)):
        if path is not None:
            inside = join(inside, read_mask(path, given, params.angpix) > 0.5)
    if inside.sum() < FEWEST_VOXELS:
        raise InputError(
            f"{given.path}: {int(inside.sum())} voxels are above {level:.4g}, the mask would be empty; the map runs "
            f"from {smooth.min():.4g} to {smooth.max():.4g} after the low-pass: give another --ini-threshold"
        )
    mask = soft(inside, MaskShape(params.extend_inimask, params.width_soft_edge, params.largest, params.invert))
    if mask.min() == mask.max():
        raise InputError(f"{given.path}: the mask fills the whole box; give a higher --ini-threshold")
    return mask, float(level), rule


def _without(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return one & ~other


def told(found: MaskFigures, pixel_A: float, level: float, rule: str) -> str:
    """What the mask holds, in a line."""
    return f"level {level:.4g} ({rule}), {found.voxels * pixel_A**3:,.0f} A^3, {found.share:.1%} of the box"


def warnings(found: MaskFigures, inverted: bool) -> list[str]:
    """What is to be said about a mask that may be no good."""
    said = []
    if found.touches and not inverted:
        said.append("the mask touches the edge of the box; a higher threshold, less growth or a larger box may help")
    if found.share > 0.6 and not inverted:
        said.append(f"the mask fills {found.share:.0%} of the box, so that it hardly keeps solvent out")
    return said

"""`polarice map`: a map filtered, resampled, cut, turned, symmetrised; and compared with another one."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.postprocessing.result import Comparison, Map
from polarice.project.params import MAP, argument, option, output
from polarice.runs.resources import Computing
from polarice.types import InputError

if TYPE_CHECKING:
    from polarice.postprocessing.fit import Fit

SUMMARY = (
    "change a map, in this order: low-pass, high-pass, rescale, new box, centre, invert the hand, align to axes, "
    "symmetrise; then compare it with another"
)
EXAMPLE = "polarice map PostProcess/job011/postprocess.mrc --o Map/job012 --lowpass 10 --sym D2"
FILES = ("map.mrc", "fitted.mrc", "compared.star", "compared.png", "report.html")
RESCALED_TOLD = 1e-3  # relative difference of the pixel size that was asked for
SYMMETRIC = 0.5  # correlation of a map with its mates, below which it hardly has the symmetry
HANDS_APART = 0.02  # of two correlations
SAME_MAP = 0.3  # correlation, below which two maps hardly show the same


@dataclass(frozen=True)
class Params(Computing):
    """The map and what is done with it; names are RELION's where RELION has them."""

    map: Path = argument("the map", flags=("--i",), path=MAP)
    o: Path = output("Map")
    angpix: float | None = option(None, "pixel size", derived="the header's", unit="A", low=0.01, high=100)
    lowpass: float | None = option(None, "low-pass, a raised cosine two shells wide", derived="not", unit="A", low=0.01)
    highpass: float | None = option(None, "high-pass, likewise", derived="not", unit="A", low=0.01)
    rescale_angpix: float | None = option(
        None,
        "resample to this pixel size by cutting or padding the transform",
        derived="as it is",
        unit="A",
        low=0.01,
        high=100,
    )
    new_box: int | None = option(
        None, "cut or pad to a box of so many voxels", derived="as it is", unit="px", low=8, high=4096
    )
    center: bool = option(False, "shift by whole voxels so that the mass is in the middle", flags=("--shift-com",))
    invert_hand: bool = option(False, "mirror the map in x")
    align_sym: str | None = option(None, "find the axes of this point group in the map, and turn it onto RELION's")
    sym: str | None = option(None, "average over this point group, its axes where RELION has them")
    compare: Path | None = option(None, "fit the map to this one, in rotation, shift and either hand; FSC of the two")
    fit: bool = option(True, "fit before comparing; without, the maps are compared as they lie")
    mask: Path | None = option(None, "compare within this mask, on the other map's grid")


def run(params: Params) -> None:
    """Change a map. Raises InputError for what cannot be used."""
    import torch

    from polarice.io.mrc import write_volume
    from polarice.project.outputs import claimed
    from polarice.project.params import as_dict, command_line
    from polarice.project.provenance import write_job_json
    from polarice.references.symmetry import operators
    from polarice.report.density import write_map_page
    from polarice.runs.density import read_map, require_folder
    from polarice.runs.resources import threads_of

    require_folder(params.o)
    for name in (params.sym, params.align_sym):
        if name is not None:
            operators(name)
    given = read_map(params.map, params.angpix)
    other = None if params.compare is None else read_map(params.compare)
    torch.set_num_threads(threads_of(params))
    inputs = [path for path in (params.map, params.compare, params.mask) if path is not None]
    with ExitStack() as held:
        kept = claimed("map", params.o, FILES, inputs, held)
        said: list[str] = []
        changed = change(params, given, said)
        compared = None if other is None else compare(params, changed, other, said)
        write_job_json(
            params.o, "map", as_dict(params), command_line("map", params), inputs=inputs, seed=0,
            more={"outputs": kept, "said": said, "figures": figures(compared)},
        )  # fmt: skip
        write_volume(params.o / "map.mrc", changed.density, changed.pixel_A)
        _write_comparison(params.o, compared)
        write_map_page(params, changed, compared, said)
    for each in said:
        print(each)
    print(f"{params.o / 'map.mrc'}: {changed.box_px} voxels of {changed.pixel_A:.5g} A")


def change(params: Params, given: Map, said: list[str]) -> Map:
    """The map after all that is asked for, in the order of the help. Raises InputError where that cannot be."""
    import torch

    from polarice.postprocessing.resample import centred, mirrored, symmetrised
    from polarice.postprocessing.spectrum import high_pass, low_pass
    from polarice.references.symmetry import operators

    density = torch.from_numpy(given.density)
    if params.lowpass is not None:
        density = low_pass(density, given.box_A / params.lowpass)
    if params.highpass is not None:
        density = high_pass(density, given.box_A / params.highpass)
    found = _resized(params, replace(given, density=density.numpy()), said)
    density = torch.from_numpy(found.density)
    if params.center:
        density, shift = centred(density)
        said.append("shifted by {:d}, {:d}, {:d} voxels along x, y, z".format(*map(int, shift)))
    if params.invert_hand:
        density = mirrored(density)
    if params.align_sym is not None:
        density = _aligned(params.align_sym, density, said)
    if params.sym is not None:
        density = symmetrised(density, operators(params.sym))
    return replace(found, density=density.numpy())


def _resized(params: Params, given: Map, said: list[str]) -> Map:
    """Rescaled and cut."""
    import torch

    from polarice.postprocessing.resample import rescaled
    from polarice.postprocessing.spectrum import boxed

    density, pixel_A = torch.from_numpy(given.density), given.pixel_A
    if params.rescale_angpix is not None:
        if params.rescale_angpix > given.box_A / 8:
            raise InputError(
                f"--rescale-angpix {params.rescale_angpix:g}: the box is {given.box_A:.0f} A wide; give less"
            )
        density, pixel_A = rescaled(density, pixel_A, params.rescale_angpix)
        if abs(pixel_A / params.rescale_angpix - 1) > RESCALED_TOLD:
            said.append(f"pixels are {pixel_A:.5g} A, as no box gives {params.rescale_angpix:g} A")
    if params.new_box is not None:
        density = boxed(density, params.new_box)
    return replace(given, density=density.numpy(), pixel_A=pixel_A)


def _aligned(name: str, density: Any, said: list[str]) -> Any:
    """The density (N, N, N) turned so that its axes lie where the group has them."""
    from polarice.postprocessing.fit import align_axes
    from polarice.postprocessing.resample import Interpolated
    from polarice.references.symmetry import generators, operators

    group = operators(name)
    if len(group) == 1:
        return density
    found = align_axes(density, group, generators(name))
    said.append(f"axes of {name}: the map correlates with its mates by {found.correlation:.2f}; {_move_words(found)}")
    if found.correlation < SYMMETRIC:
        said.append(f"warning: the map hardly has the symmetry {name}")
    return Interpolated(density).moved(found.move)


def _move_words(found: Fit) -> str:
    from scipy.spatial.transform import Rotation

    turn = np.degrees(Rotation.from_matrix(found.move.rotation).magnitude())
    shift = ", ".join(f"{each:.2f}" for each in found.move.shift_px)
    hand = ", mirrored" if found.move.mirrored else ""
    return f"turned by {turn:.2f} degrees, shifted by {shift} voxels{hand}"


def compare(params: Params, given: Map, other: Map, said: list[str]) -> Comparison:
    """The map on another one's grid, fitted to it, and their FSC. Raises InputError where a mask does not fit."""
    import torch

    from polarice.postprocessing.fit import fit
    from polarice.postprocessing.resample import Interpolated, Move
    from polarice.postprocessing.spectrum import low_pass
    from polarice.references.fsc import correlation, resolved_shell
    from polarice.runs.density import read_mask

    scale = other.pixel_A / given.pixel_A
    density = torch.from_numpy(given.density)
    if scale > 1 + 1e-6:  # coarser voxels: what they cannot hold is left out first
        density = low_pass(density, given.box_px / 2 / scale)
    ready, fixed, found, move = Interpolated(density), torch.from_numpy(other.density), None, Move()
    mask = None if params.mask is None else torch.from_numpy(read_mask(params.mask, other))
    if params.fit:
        found = fit(ready.moved(move, other.box_px, scale), fixed if mask is None else fixed * mask)
        move = found.move
        said.append(f"fitted to {other.path}: {_move_words(found)}; correlation {found.correlation:.3f}")
        if found.correlation < SAME_MAP:
            said.append("warning: the two maps hardly resemble each other")
        elif found.hands[0] - found.hands[1] < HANDS_APART:
            said.append(
                "warning: the other hand fits as well ({1:.3f} to {0:.3f}); it is not known".format(*found.hands)
            )
    fitted = ready.moved(move, other.box_px, scale)
    pair = (fitted, fixed) if mask is None else (fitted * mask, fixed * mask)
    fsc = correlation(*pair)
    half_A, low_A = (other.box_A / resolved_shell(fsc, threshold) for threshold in (0.5, 0.143))
    within = "" if mask is None else " within the mask"
    said.append(f"FSC with {other.path}{within}: 0.5 at {half_A:.2f} A, 0.143 at {low_A:.2f} A")
    return Comparison(fitted.numpy(), other, fsc.numpy(), found, half_A, low_A)


def figures(compared: Comparison | None) -> dict[str, Any]:
    """The numbers of job.json."""
    if compared is None:
        return {}
    found: dict[str, Any] = {"fsc_0.5_A": compared.at_half_A, "fsc_0.143_A": compared.at_143_A}
    if compared.fit is not None:
        move = compared.fit.move
        found |= {
            "correlation": compared.fit.correlation,
            "coarse_correlation_of_hands": list(compared.fit.hands),
            "rotation": move.rotation.tolist(),
            "shift_px": move.shift_px.tolist(),
            "mirrored": move.mirrored,
        }
    return found


def _write_comparison(folder: Path, compared: Comparison | None) -> None:
    from polarice.io.mrc import write_volume
    from polarice.io.relion_run.refine3d import write_fsc

    if compared is None:
        for name in FILES[1:4]:  # of a run before
            (folder / name).unlink(missing_ok=True)
        return
    write_volume(folder / "fitted.mrc", compared.fitted, compared.other.pixel_A)
    write_fsc(folder / "compared.star", compared.fsc, compared.other.box_A)

"""`polarice postprocess`: resolution within a mask, and the map sharpened to be looked at and built into."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.postprocessing.result import Halves, Map, Result, figures
from polarice.project.params import MAP, PathRole, argument, option, output
from polarice.runs.resources import Computing
from polarice.types import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from polarice.postprocessing.corrected import Curves
    from polarice.postprocessing.local import LocalResolution
    from polarice.postprocessing.sharpen import Sharpening
    from polarice.postprocessing.views import Cones, Sampling

SUMMARY = "tell a map's resolution within a mask, sharpen it, and say where and along which directions it is good"
EXAMPLE = "polarice postprocess Refine3D/job009 --o PostProcess/job011"
ROOT = "postprocess"
FILES = (
    "postprocess.mrc", "postprocess_masked.mrc", "postprocess_automask.mrc", "postprocess.star", "postprocess_fsc.xml",
    "postprocess_locres.mrc", "postprocess_locres_filtered.mrc", "postprocess_directions.star",
    "report.html", "report_fsc.png", "report_guinier.png", "report_slices.png", "report_surface.png",
    "report_directions.png", "report_locres.png", "report_locres_surface.png",
)  # fmt: skip
OFF_MAP = 0.1  # correlation of a mask with the map, below which it does not lie on it
SMOOTH_A = 20.0
BEYOND = 1.25  # shells of local and directional resolution, over that of the whole


@dataclass(frozen=True)
class Params(Computing):
    """The half maps, the mask and the sharpening; names are RELION's where RELION has them."""

    halves: tuple[Path, ...] = argument(
        "folder of refine3d or reconstruct, one half map (the other is found by its name), or two",
        flags=("--i",),
        path=PathRole("input", "any", "map"),
    )
    o: Path = output("PostProcess")
    angpix: float | None = option(None, "pixel size", derived="the headers'", unit="A", low=0.01, high=100)
    mask: Path | None = option(
        None, "solvent mask, 0 to 1", derived="made by itself", path=MAP, level="essential", flags=("--solvent-mask",)
    )
    auto_mask: bool = option(True, "without --mask, make one as polarice mask does")
    inimask_threshold: float | None = option(None, "level of the automatic mask", derived="Otsu's")
    extend_inimask: float = option(3.0, "pixels that the automatic mask grows by", unit="px", low=0, high=1000)
    width_mask_edge: float = option(6.0, "width of the automatic mask's edge", unit="px", low=0, high=1000)
    force_mask: bool = option(False, "keep the mask although the resolution is better without it")
    randomize_at_fsc: float = option(
        0.8, "phases are randomised from where the unmasked FSC falls below", low=0, high=1
    )
    auto_bfac: bool = option(True, "B-factor from the Guinier plot")
    autob_lowres: float = option(10.0, "the Guinier plot's line begins here", unit="A", low=0.1)
    autob_highres: float = option(0.0, "and ends here; 0: Nyquist", unit="A", low=0)
    adhoc_bfac: float | None = option(
        None, "B-factor to sharpen by, negative", derived="from the Guinier plot", unit="A^2", low=-1e5, high=1e5
    )
    mtf: Path | None = option(None, "the camera's MTF, a STAR file: divided out")
    mtf_angpix: float | None = option(
        None, "pixel size of the movies", derived="the maps'", needs=("mtf", True), unit="A", low=0.01, high=100
    )
    skip_fsc_weighting: bool = option(False, "do not weight by the FSC; low-pass instead")
    low_pass: float | None = option(
        None,
        "low-pass the map; 0: not, negative: at the resolution",
        derived="without FSC weights at the resolution, else not",
        unit="A",
    )
    locres: bool = option(False, "local resolution, and the map filtered by it")
    molweight: float | None = option(
        None,
        "mass of the particle, for the contour level",
        derived="the level from the map alone",
        unit="kDa",
        low=1e-3,
    )
    data: Path | None = option(None, "table with angles, for the sampling of views", derived="that of the folder")
    sym: str | None = option(None, "point group, for the views", derived="that of the folder's job, or C1")
    deposit: bool = option(False, "a folder `deposit` with what EMDB asks for, and a paragraph of methods")
    random_seed: int = option(0, "seed of the random phases", low=0, high=2**31, flags=("--seed",))


def run(params: Params) -> None:
    """Postprocess two half maps. Raises InputError for what cannot be used."""
    from polarice.project.outputs import claimed
    from polarice.project.params import as_dict, command_line
    from polarice.project.provenance import write_job_json
    from polarice.report.postprocess import write_page
    from polarice.runs.density import require_folder
    from polarice.runs.half_maps import read_halves
    from polarice.runs.map_sources import source_of
    from polarice.runs.resources import device_of

    require_folder(params.o)
    halves = read_halves(params.halves, params.angpix)
    source = source_of(halves.folder)
    _require_usable(params, halves.one)
    inputs = [halves.one.path, halves.other.path, *(each for each in (params.mask, params.mtf, params.data) if each)]
    files = (*FILES, *(f"deposit/{each}" for each in _deposited())) if params.deposit else FILES
    with ExitStack() as held:
        kept = claimed("postprocess", params.o, files, inputs, held)
        found = postprocessed(params, halves, device_of(params), source)
        write_job_json(
            params.o, "postprocess", as_dict(params), command_line("postprocess", params),
            inputs=inputs, seed=params.random_seed, more={"outputs": kept, "figures": figures(found)},
        )  # fmt: skip
        write(params, found)
        page = write_page(params, found)
        if params.deposit:
            from polarice.runs.deposit import write_deposit

            write_deposit(params.o / "deposit", found, source)
    for line in told(found):
        print(line)
    for each in found.said:
        print(f"warning: {each}")
    print(f"report: {page}")


def _require_usable(params: Params, given: Map) -> None:
    """InputError for a mask, an MTF, a group or a table that cannot be used, before anything is made."""
    from polarice.io.postprocess import read_mtf
    from polarice.references.symmetry import operators
    from polarice.runs.density import read_mask
    from polarice.runs.map_sources import angles_of_table

    if params.mask is not None:
        read_mask(params.mask, given, params.angpix)
    if params.mtf is not None:
        read_mtf(params.mtf)
    if params.sym is not None:
        operators(params.sym)
    if params.data is not None:
        angles_of_table(params.data)


def _deposited() -> tuple[str, ...]:
    from polarice.runs.deposit import FILES as deposited

    return deposited


def postprocessed(params: Params, halves: Halves, device: torch.device, source: Any) -> Result:
    """All that is asked for. Raises InputError where the mask or the MTF cannot be used."""
    from polarice.postprocessing.corrected import curves
    from polarice.postprocessing.sharpen import sharpen
    from polarice.postprocessing.surface import contour
    from polarice.postprocessing.views import cones
    from polarice.runs.half_maps import filter_warnings

    one, other = halves.tensors(device)
    box_A, pixel_A = halves.one.box_A, halves.one.pixel_A
    joined, said = (one + other) / 2, list(halves.said)
    mask, mask_from = _mask(params, halves.one, joined, said)
    soft = None if mask is None else _tensor(mask, device)
    found = curves((one, other), soft, params.random_seed, params.randomize_at_fsc)
    said += filter_warnings((one, other), found.unmasked.cpu().numpy(), box_A)
    bare = curves((one, other), None)
    if soft is not None and bare.shell > found.shell and not params.force_mask:
        said.append(f"the resolution is {box_A / found.shell:.2f} A with the mask, {box_A / bare.shell:.2f} A without; "
                    "it is left aside, --force-mask keeps it")  # fmt: skip
        found, mask, soft, mask_from = bare, None, None, "none, as it made the resolution worse"
    if found.is_tight:
        said.append("the mask is too tight: much of the masked FSC is of the mask itself; "
                    "grow it (--extend-inimask) or give it a wider edge (--width-mask-edge)")  # fmt: skip
    asked = _sharpening(params, found, halves.one)
    sharpened, guinier, bfactor = sharpen(joined, pixel_A, asked)
    if asked.auto and guinier.line is None:
        said.append("no line can be put through the Guinier plot, so the map is not sharpened; fit from a coarser "
                    f"resolution (--autob-lowres, now {params.autob_lowres:g} A) or give --adhoc-bfac")  # fmt: skip
    inside = one if soft is None else soft
    masked = (one, other) if soft is None else (one * inside, other * inside)
    last = round(BEYOND * found.shell) + 1
    local = _local(params, (one, other), sharpened, last, pixel_A)
    surface = _for_surface(sharpened if local is None else local.filtered, soft, found.shell)
    sampled = _sampling(params, source, said)
    cone = cones(masked, last)
    _warn_of_views(cone, sampled, said)
    return Result(
        halves, mask, mask_from, found, asked, sharpened, guinier, bfactor,
        contour(surface, pixel_A, params.molweight), surface, cone, sampled, local, tuple(said),
    )  # fmt: skip


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    import torch

    return torch.from_numpy(values).to(device)


def _mask(params: Params, given: Map, joined: Tensor, said: list[str]) -> tuple[np.ndarray | None, str]:
    """The mask and where it is from; None without one."""
    from polarice.jobs import mask as masks
    from polarice.postprocessing.mask import figures
    from polarice.postprocessing.spectrum import low_pass
    from polarice.runs.density import read_mask

    if params.mask is None and not params.auto_mask:
        return None, "none"
    if params.mask is not None:
        mask, mask_from = read_mask(params.mask, given, params.angpix), str(params.mask)
        smooth = low_pass(joined, min(given.box_px / 2, given.box_A / SMOOTH_A)).cpu().numpy()
        on_map = float(np.corrcoef(smooth.ravel(), mask.ravel())[0, 1])
        if on_map < OFF_MAP:
            said.append(
                f"{params.mask} does not lie on the map (correlation {on_map:.2f}); is it of another map or hand?"
            )
    else:
        asked = masks.Params(
            given.path, ini_threshold=params.inimask_threshold, extend_inimask=params.extend_inimask,
            width_soft_edge=params.width_mask_edge,
        )  # fmt: skip
        try:
            mask, level, rule = masks.made(asked, Map(given.path, joined.cpu().numpy(), given.pixel_A))
        except InputError:
            said.append("no particle stands out of the solvent, so no mask is made (give --mask); this may be noise")
            return None, "none, as no particle stands out"
        mask_from = f"automatic (level {level:.4g}, {rule})"
    said += masks.warnings(figures(mask), False)
    return mask, mask_from


def _sharpening(params: Params, found: Curves, given: Map) -> Sharpening:
    from polarice.io.postprocess import read_mtf
    from polarice.postprocessing.sharpen import Sharpening, Transfer

    transfer = None
    if params.mtf is not None:
        transfer = Transfer(*read_mtf(params.mtf), params.mtf_angpix or given.pixel_A)
    low_pass_A = params.low_pass
    if low_pass_A is None:
        low_pass_A = -1.0 if params.skip_fsc_weighting else 0.0
    if low_pass_A < 0:
        low_pass_A = given.box_A / found.shell
    return Sharpening(
        fsc=None if params.skip_fsc_weighting else found.corrected,
        transfer=transfer,
        auto=params.auto_bfac and params.adhoc_bfac is None,
        bfactor_A2=params.adhoc_bfac or 0.0,
        fit_from_A=params.autob_lowres,
        fit_to_A=params.autob_highres,
        low_pass_A=low_pass_A,
    )


def _local(
    params: Params, halves: tuple[Tensor, Tensor], sharpened: Tensor, last: int, pixel_A: float
) -> LocalResolution | None:
    from polarice.postprocessing.local import local_resolution

    return local_resolution(halves, sharpened, last, pixel_A) if params.locres else None


def _for_surface(sharpened: Tensor, mask: Tensor | None, shell: int) -> Tensor:
    """Low-passed at the resolution and within the mask, as one looks at it."""
    from polarice.postprocessing.spectrum import low_pass

    smooth = low_pass(sharpened, shell)
    return (smooth if mask is None else smooth * mask).cpu()


def _sampling(params: Params, source: Any, said: list[str]) -> Sampling | None:
    """How views sample the transform; None where no table has angles."""
    from polarice.postprocessing.views import sampling
    from polarice.references.directions import directions_of
    from polarice.references.symmetry import operators
    from polarice.runs.map_sources import angles_of_table

    table = params.data or source.table
    if table is None:
        return None
    group = operators(params.sym or source.sym or "C1")
    try:
        rot_deg, tilt_deg = angles_of_table(table)
    except InputError as error:
        if params.data is not None:
            raise
        said.append(f"views are not shown: {error}")
        return None
    return sampling(directions_of(rot_deg, tilt_deg), group)


def _warn_of_views(cone: Cones, sampled: Sampling | None, said: list[str]) -> None:
    from polarice.postprocessing.views import BIASED_RATIO, BIASED_SCF

    low = cone.ratio < BIASED_RATIO
    if sampled is not None and sampled.scf < BIASED_SCF:
        more = " and the FSC differs by direction" if low else ", though the FSC hardly shows it"
        said.append(f"preferred views: the sampling figure SCF is {sampled.scf:.2f} (even views: 1){more}")
    elif low:
        said.append(f"the FSC differs by direction (worst over best area {cone.ratio:.2f}), unlike the views: "
                    "particles that do not belong, or views assigned wrongly")  # fmt: skip


def told(found: Result) -> list[str]:
    """What is printed at the end."""
    numbers = figures(found)
    lines = [
        f"resolution {found.resolution_A:.2f} A (FSC 0.143, corrected; without a mask "
        f"{numbers['resolution_unmasked_A']:.2f} A); mask: {found.mask_from}",
        f"B-factor {found.bfactor_A2:.0f} A^2; "
        f"open in ChimeraX at level {found.contour.level:.4g} ({found.contour.rule})",
        f"by direction {numbers['best_direction_A']:.2f} to {numbers['worst_direction_A']:.2f} A"
        + (f"; sampling figure SCF {found.sampling.scf:.2f}" if found.sampling else ""),
    ]
    if found.local is not None:
        low, middle, high = numbers["local_resolution_A"]
        lines.append(f"local resolution {low:.1f} to {high:.1f} A, median {middle:.1f} A")
    return lines


def write(params: Params, found: Result) -> None:
    """Maps and tables, as RELION names them; those of a run before that are not made now are removed."""
    from polarice.runs.postprocess_files import write_files

    write_files(params.o, found)

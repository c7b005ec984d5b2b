"""What `polarice postprocess` writes beside its page: maps, RELION's STAR file, EMDB's XML, FSC by direction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from polarice.postprocessing.result import Result


def write_files(folder: Path, found: Result) -> None:
    """All of them; those of a run before that are not made now are removed."""
    from polarice.io.mrc import write_volume
    from polarice.io.postprocess import write_fsc_xml

    pixel_A, box_A = found.map.pixel_A, found.map.box_A
    sharpened = found.sharpened.cpu().numpy()
    automatic = found.mask is not None and found.mask_from.startswith("automatic")
    maps: dict[str, np.ndarray | None] = {
        "postprocess": sharpened,
        "postprocess_masked": None if found.mask is None else sharpened * found.mask,
        "postprocess_automask": found.mask if automatic else None,
        "postprocess_locres": None if found.local is None else found.local.resolution_A.cpu().numpy(),
        "postprocess_locres_filtered": None if found.local is None else found.local.filtered.cpu().numpy(),
    }
    for name, density in maps.items():
        path = folder / f"{name}.mrc"
        if density is None:
            path.unlink(missing_ok=True)
        else:
            write_volume(path, density, pixel_A)
    _write_star(folder, found, automatic)
    fsc = found.curves.corrected.cpu().numpy()
    write_fsc_xml(folder / "postprocess_fsc.xml", np.arange(len(fsc)) / box_A, fsc, "Polarice masked-corrected FSC")
    _write_directions(folder / "postprocess_directions.star", found)


def _write_star(folder: Path, found: Result, automatic: bool) -> None:
    from polarice.io.postprocess import write_postprocess

    curves, guinier, line, box_A = found.curves, found.guinier, found.guinier.line, found.map.box_A
    general: dict[str, Any] = {
        "rlnFinalResolution": found.resolution_A,
        "rlnBfactorUsedForSharpening": found.bfactor_A2,
        "rlnUnfilteredMapHalf1": str(found.halves.one.path),
        "rlnUnfilteredMapHalf2": str(found.halves.other.path),
    }
    if found.mask is not None:
        general["rlnParticleBoxFractionSolventMask"] = found.mask.size / float(found.mask.sum(dtype=np.float64))
        general["rlnMaskName"] = str(folder / "postprocess_automask.mrc") if automatic else found.mask_from
        general["rlnRandomiseFrom"] = box_A / curves.from_shell
    if line is not None:
        general["rlnFittedSlopeGuinierPlot"] = line.slope
        general["rlnFittedInterceptGuinierPlot"] = line.intercept
        general["rlnCorrelationFitGuinierPlot"] = abs(line.correlation)
    by_shell = {name: getattr(curves, name) for name in ("corrected", "part", "unmasked", "masked", "randomised")}
    intercept = np.full(len(guinier.squared), line.intercept if line else 0.0)
    plot = {name: getattr(guinier, name) for name in ("squared", "original", "weighted", "sharpened")}
    fsc = {name: values.cpu().numpy() for name, values in by_shell.items() if values is not None}
    write_postprocess(folder / "postprocess.star", general, fsc, plot | {"intercept": intercept}, box_A)


def _write_directions(path: Path, found: Result) -> None:
    """Resolution along every direction of half a sphere."""
    from polarice.io.star import Block, Table, write_star
    from polarice.references.directions import angles_of

    rot_deg, tilt_deg = angles_of(found.cones.directions)
    columns = {
        "rlnAngleRot": rot_deg,
        "rlnAngleTilt": tilt_deg,
        "rlnAngstromResolution": found.map.box_A / found.cones.shell,
    }
    write_star(path, [Block("directions", table=Table.of(columns))])

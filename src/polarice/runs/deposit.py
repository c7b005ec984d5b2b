"""A folder with what EMDB asks for of a single-particle map, and a paragraph of methods with the numbers in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.runs.map_sources import MOST_JOBS, Source, source_of
from polarice.types import InputError

if TYPE_CHECKING:
    from polarice.postprocessing.result import Result

FILES = ("primary_map.mrc", "half_map_1.mrc", "half_map_2.mrc", "mask.mrc", "fsc.xml", "picture.png", "methods.txt")
PICTURE_PX = 500


def write_deposit(folder: Path, found: Result, source: Source) -> None:
    """Write the folder; InputError where it cannot be."""
    from PIL import Image

    from polarice.io.atomic import replacing
    from polarice.io.mrc import write_volume
    from polarice.postprocessing.surface import picture
    from polarice.report.density import write_picture
    from polarice.report.montage import png_bytes

    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder ({error.strerror})") from error
    pixel_A = found.map.pixel_A
    write_volume(folder / "primary_map.mrc", found.sharpened.cpu().numpy(), pixel_A)
    write_volume(folder / "half_map_1.mrc", found.halves.one.density, pixel_A)
    write_volume(folder / "half_map_2.mrc", found.halves.other.density, pixel_A)
    if found.mask is None:
        (folder / "mask.mrc").unlink(missing_ok=True)
    else:
        write_volume(folder / "mask.mrc", found.mask, pixel_A)
    with replacing(folder / "fsc.xml") as stream, open(folder.parent / "postprocess_fsc.xml", "rb") as given:
        shutil.copyfileobj(given, stream)
    shown = picture(found.surface, found.contour.level, PICTURE_PX, faces=("front",))
    write_picture(folder / "picture.png", png_bytes(Image.fromarray(shown)))
    with replacing(folder / "methods.txt", "w") as stream:
        stream.write(methods(found, source))


def chain(source: Source) -> list[Source]:
    """The jobs that came before, the first one first, as far as their folders are found."""
    found, seen = [source], {source.folder.resolve()}
    while len(found) < MOST_JOBS:
        last = found[-1]
        base = Path(str(last.record.get("working_directory", ".")))
        before = [_folder(base, last.param(name)) for name in ("particles", "classes", "micrographs", "inputs")]
        new = [
            each for each in before if each is not None and each.resolve() not in seen and (each / "job.json").is_file()
        ]
        if not new:
            break
        seen.add(new[0].resolve())
        found.append(source_of(new[0]))
    return found[::-1]


def _folder(base: Path, given: Any) -> Path | None:
    if isinstance(given, list) and given:
        given = given[0]
    if not isinstance(given, str):
        return None
    path = base / given
    return path if path.is_dir() else path.parent


def methods(found: Result, source: Source) -> str:
    """The paragraph, and what is still to be filled in."""
    import polarice
    from polarice.postprocessing.result import figures, local_quantiles

    numbers = figures(found)
    version, random_A = polarice.__version__, numbers["randomised_from_A"]
    text = [f"Images were processed in Polarice {version}."]
    text += [sentence for each in chain(source) if (sentence := _sentence(each))]
    text.append(
        f"The half maps have boxes of {found.map.box_px} voxels of {found.map.pixel_A:.4g} A. "
        f"The resolution is {found.resolution_A:.2f} A by the criterion of FSC = 0.143"
        + (
            f", within a soft mask of {float(found.mask.sum(dtype=np.float64)) * found.map.pixel_A**3:,.0f} A^3 and "
            f"corrected by random phases beyond {random_A:.1f} A; without a mask it is "
            f"{numbers['resolution_unmasked_A']:.2f} A."
            if found.mask is not None
            else ", without a mask."
        )
    )
    weighted = "weighted by the FSC and " if found.asked.fsc is not None else ""
    how = "from the Guinier plot" if found.asked.auto and found.guinier.line else "given"
    if found.bfactor_A2:
        text.append(f"The map was {weighted}sharpened by a B-factor of {found.bfactor_A2:.0f} A^2 ({how}).")
    elif weighted:
        text.append("The map was weighted by the FSC and not sharpened.")
    if found.local is not None:
        low, middle, high = local_quantiles(found)
        text.append(
            f"Local resolution runs from {low:.1f} to {high:.1f} A (5th to 95th percentile; median {middle:.1f} A)."
        )
    best, worst = numbers["best_direction_A"], numbers["worst_direction_A"]
    direction = f"By direction, the resolution lies between {best:.1f} and {worst:.1f} A"
    scf = f"; the sampling compensation factor is {found.sampling.scf:.2f}" if found.sampling else ""
    text.append(f"{direction}{scf}.")
    left = (
        f"Contour level recommended for the primary map: {found.contour.level:.4g} ({found.contour.rule}).\n"
        "Still to be given: microscope, camera, dose, grid, sample, and the hand, which the map does not tell.\n"
    )
    return " ".join(text) + "\n\n" + left


def _sentence(source: Source) -> str:
    """What a job did, with its numbers; "" where there is nothing to say."""
    given, job = source.param, source.job
    sym = str(given("sym") or "C1")
    imposed = "without symmetry" if sym.upper() == "C1" else f"with symmetry {sym} imposed"
    if job == "refine3d":
        start = f" from {Path(given('ref')).name}, low-passed at {given('ini_high'):g} A," if given("ref") else ""
        count = _particles(source.table)
        return f"{count} were refined in two independent halves{start} {imposed}."
    if job == "reconstruct":
        return f"{_particles(source.table)} were reconstructed {imposed} from known angles."
    if job in ("class2d", "align2d"):
        classes = f" into {given('k')} classes" if given("k") else ""
        return f"Particles were classified in 2D{classes}."
    if job == "extract" and given("box"):
        return f"Particles were extracted in boxes of {given('box')} pixels."
    return {
        "motion": "Movies were aligned and summed by dose.",
        "ctf": "Defocus was estimated from the micrographs.",
        "pick": "Particles were picked automatically.",
    }.get(job, "")


def _particles(table: Path | None) -> str:
    """How many, in words."""
    from polarice.runs.map_sources import angles_of_table

    if table is None:
        return "Particles"
    try:
        return f"{len(angles_of_table(table)[0]):,} particles"
    except InputError:
        return "Particles"

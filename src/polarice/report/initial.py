"""The report of a first map: its slices and projections, and what every random start came to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polarice.project.params import Parameters, command_line
from polarice.project.provenance import versions
from polarice.report import parameters_of
from polarice.report.index import Chapter, Picture, Rows, write_index
from polarice.report.montage import png_bytes
from polarice.report.refinement import AXES, map_sheet, stretched

if TYPE_CHECKING:
    from torch import Tensor

    from polarice.references.abinitio import ClassImages, Start

MOST_PAIRS = 60
SIDE_PX = 96


def write_page(
    folder: Path, params: Parameters, made: tuple[Tensor, float, str], starts: Sequence[Start], images: ClassImages
) -> Path:
    """Write report.html into the job's folder; InputError where that cannot be.

    made: the map (N, N, N) as it is written, its pixel size in Angstrom, and what is to be said of its symmetry.
    """
    from polarice.postprocessing.surface import contour
    from polarice.report.surface import surface_png

    density, pixel_A, said = made
    level = contour(density, pixel_A)
    agree = sum(each.same for each in starts)
    numbers = [
        (f"of {len(starts)} starts found this map, hand apart", f"{agree}"),
        ("classes", f"{len(images.number)}"),
    ]
    rows = [
        (("n", f"{each.seed}"), ("n", f"{each.found.log_likelihood:,.0f}"), ("n", f"{each.apart_deg:.1f}"),
         "mirrored" if each.mirrored else "same", "yes" if each.same else "no", ("n", f"{each.seconds:.1f}"))
        for each in starts
    ]  # fmt: skip
    heads = ("seed", "log likelihood", "apart from the best (°)", "hand", "same map", "s")
    plain = [(each.name, ("v", each.value), each.unit, ("h", each.help)) for each in parameters_of(params)]
    chapters = [
        Chapter("Map", ("Above: central slices. Below: projections along the same axes. The hand is not known: the map "
                        "may be the mirror image of the molecule.",
                        *([f"{said[0].upper()}{said[1:]}."] if said else ())), numbers,
                [Picture(map_sheet(density.cpu().numpy()), f"The best of all starts, along {AXES}."),
                 Picture(surface_png(density, level.level), f"Its surface at {level.level:.4g}.")]),
        Chapter("Starts", ("The best by likelihood first. Starts that end with the same views of the classes found "
                           "one map; where few do, more classes or particles are needed.",),
                tables=[Rows(heads, rows)]),
        Chapter("Classes", ("Left of each pair: the class average, low-passed as compared. Right: the projection of "
                            "the map that fits it best.",),
                gallery=[Picture(each, f"class {number + 1}") for number, each in _pairs(images, starts)]),
        Chapter("Parameters", tables=[Rows(("parameter", "value", "unit", ""), plain)]),
        Chapter("Run again", commands=[("The same again:", command_line("initial3d", params))]),
        Chapter("Versions", tables=[Rows(("", ""), [(name, ("v", value)) for name, value in versions().items()])]),
    ]  # fmt: skip
    subtitle = f"{len(starts)} starts · {len(images.number)} classes"
    return write_index(folder / "report.html", f"initial3d: {folder}", subtitle, chapters, cell_px=2 * SIDE_PX)


def _pairs(images: ClassImages, starts: Sequence[Start]) -> list[tuple[int, bytes]]:
    """Pictures of some classes beside the projections that fit them best, by their numbers."""
    from PIL import Image

    from polarice.references.abinitio import projections

    found = []
    averages, fitting = projections(images, starts[0].found)
    for place in range(min(MOST_PAIRS, len(averages))):
        sheet = Image.new("L", (2 * SIDE_PX + 2, SIDE_PX), 255)
        for column, each in enumerate((averages[place], fitting[place])):
            picture = Image.fromarray(stretched(np.asarray(each))).resize((SIDE_PX, SIDE_PX))
            sheet.paste(picture, (column * (SIDE_PX + 2), 0))
        found.append((int(images.number[place]), png_bytes(sheet)))
    return found

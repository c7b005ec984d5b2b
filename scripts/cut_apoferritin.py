"""Cut the apoferritin particles of EMPIAR-10146 out of their micrographs.

    python scripts/cut_apoferritin.py MICROGRAPHS --o apoferritin            # every particle, 96 px, float32
    python scripts/cut_apoferritin.py MICROGRAPHS --bundle                   # the few that the package carries

MICROGRAPHS is a folder with `micrographs/*.mrc` (1.5 A/px, 300 kV, Cs 0.001 mm, protein dark) and
`coords/*_joac1137.star`. CTFs are fitted and images made as `polarice ctf` and `polarice extract` do.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from polarice.contrast_transfer.estimate import Fit, estimate
from polarice.contrast_transfer.spectrum import spectrum_of
from polarice.extraction.boxes import inside
from polarice.extraction.images import Recipe, images_of
from polarice.io.coordinates import read_coordinates
from polarice.io.mrc import open_stack, write_stack
from polarice.io.star import Block, Table, write_star
from polarice.types import Optics

HERE = Path(__file__).parents[1]
MICROGRAPH_OPTICS = Optics("opticsGroup1", 1.5, 300.0, 0.001, 0.07, 0)
BUNDLE_LEVELS = 24  # grey levels per standard deviation of the noise, in the bundle's int8 images
BUNDLE_PARTICLES = 550


@dataclass(frozen=True)
class Cut:
    """The particles of one micrograph."""

    micrograph: str
    xy_px: np.ndarray  # (n, 2) in the micrograph, first pixel (0, 0)
    images: np.ndarray  # (n, scaled, scaled) float32
    inside: np.ndarray  # (n,) bool: the whole box lies within the micrograph
    fit: Fit


def cut_micrograph(path: Path, picks: Path, box_px: int, scaled_px: int) -> Cut:
    micrograph = open_stack(path)[0]
    xy = read_coordinates(picks).xy_px
    images = images_of(micrograph, xy, Recipe.usual(box_px, scaled_px))
    fit = estimate(spectrum_of(micrograph, MICROGRAPH_OPTICS.pixel_size_A), MICROGRAPH_OPTICS)
    return Cut(path.name, xy, images, inside(xy, (micrograph.shape[0], micrograph.shape[1]), box_px), fit)


def cuts(folder: Path, box_px: int, scaled_px: int) -> Iterator[Cut]:
    """Every micrograph that has picks, in the order of their names."""
    for picks in sorted((folder / "coords").glob("*_joac1137.star")):
        path = folder / "micrographs" / picks.name.replace("_joac1137.star", ".mrc")
        yield cut_micrograph(path, picks, box_px, scaled_px)


# ------------------------------------------------------------------------------------------------- out


def optics_table(box_px: int, pixel_size_A: float) -> Table:
    optics = MICROGRAPH_OPTICS
    return Table.of(
        {
            "rlnOpticsGroupName": [optics.name],
            "rlnOpticsGroup": np.array([1]),
            "rlnMicrographOriginalPixelSize": np.array([optics.pixel_size_A]),
            "rlnVoltage": np.array([optics.voltage_kV]),
            "rlnSphericalAberration": np.array([optics.cs_mm]),
            "rlnAmplitudeContrast": np.array([optics.amplitude_contrast]),
            "rlnImagePixelSize": np.array([pixel_size_A]),
            "rlnImageSize": np.array([box_px]),
            "rlnImageDimensionality": np.array([2]),
        }
    )


def particle_table(parts: list[Cut], stack: str) -> Table:
    xy = np.concatenate([part.xy_px for part in parts])
    counts = [len(part.images) for part in parts]

    def of_micrograph(values: list) -> np.ndarray:
        return np.repeat(np.array(values), counts)

    return Table.of(
        {
            "rlnImageName": [f"{row:06d}@{stack}" for row in range(1, sum(counts) + 1)],
            "rlnMicrographName": of_micrograph([part.micrograph for part in parts]),
            "rlnCoordinateX": xy[:, 0],
            "rlnCoordinateY": xy[:, 1],
            "rlnOpticsGroup": np.ones(sum(counts), int),
            "rlnDefocusU": of_micrograph([part.fit.defocus_u_A for part in parts]),
            "rlnDefocusV": of_micrograph([part.fit.defocus_v_A for part in parts]),
            "rlnDefocusAngle": of_micrograph([part.fit.defocus_angle_deg for part in parts]),
            "rlnCtfFigureOfMerit": of_micrograph([part.fit.correlation for part in parts]),
        }
    )


def write(folder: Path, parts: list[Cut], box_px: int, levels: int | None) -> None:
    """particles.star and particles.mrcs into `folder`: float32, or int8 with `levels` grey levels per deviation."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.concatenate([part.images for part in parts])
    scaled = images.shape[-1]
    pixel_size_A = MICROGRAPH_OPTICS.pixel_size_A * box_px / scaled
    if levels is not None:
        images = np.clip(images * levels, -127, 127)
    write_stack(folder / "particles.mrcs", images, pixel_size_A, np.float32 if levels is None else np.int8)
    blocks = [
        Block("optics", table=optics_table(scaled, pixel_size_A)),
        Block("particles", table=particle_table(parts, "particles.mrcs")),
    ]
    write_star(folder / "particles.star", blocks)
    print(f"{folder}/particles.star: {len(images)} particles, {scaled} px of {pixel_size_A:g} A")


def selection(part: Cut, n: int) -> Cut:
    """`n` particles of a micrograph, evenly spread over those whose box lies within it."""
    rows = np.flatnonzero(part.inside)
    rows = rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int)]
    return replace(part, xy_px=part.xy_px[rows], images=part.images[rows], inside=part.inside[rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("micrographs", type=Path, help="folder with micrographs/ and coords/")
    parser.add_argument("--o", type=Path, default=Path("apoferritin"), help="output folder")
    parser.add_argument("--box", type=int, default=144, help="box in the micrograph, px")
    parser.add_argument("--scaled", type=int, help="box of the images, px (default 96; 64 for the bundle)")
    parser.add_argument("--bundle", action="store_true", help="a few hundred as int8 into the package's data")
    asked = parser.parse_args()
    parts = []
    for part in cuts(asked.micrographs, asked.box, asked.scaled or (64 if asked.bundle else 96)):
        fit = part.fit
        print(
            f"{part.micrograph}: {len(part.images)} particles, {part.inside.sum()} whole; "
            f"defocus {fit.defocus_u_A:.0f} {fit.defocus_v_A:.0f} A "
            f"at {fit.defocus_angle_deg:.0f} deg, correlation {fit.correlation:.2f}"
        )
        parts.append(part)
    if not parts:
        raise SystemExit(f"{asked.micrographs}: no coords/*_joac1137.star there")
    if asked.bundle:
        few = [selection(part, BUNDLE_PARTICLES // len(parts)) for part in parts]
        write(HERE / "src/polarice/data/apoferritin", few, asked.box, BUNDLE_LEVELS)
    else:
        write(asked.o, parts, asked.box, None)


if __name__ == "__main__":
    main()

"""Cut the apoferritin particles of EMPIAR-10146 out of their micrographs, with a plain CTF fit per micrograph.

    python scripts/cut_apoferritin.py MICROGRAPHS --o apoferritin            # every particle, 96 px, float32
    python scripts/cut_apoferritin.py MICROGRAPHS --bundle                   # the few that the package carries

MICROGRAPHS is a folder with `micrographs/*.mrc` (1.5 A/px, 300 kV, Cs 0.001 mm, protein dark) and
`coords/*_joac1137.star`. Boxes of 144 px are cut, contrast inverted, scaled in Fourier space, a ramp taken off and the
background outside a circle of 75 % of the box brought to mean 0 and standard deviation 1, as RELION's extraction does.
What of a box lies outside of the micrograph is noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.optimize import minimize

from polarice.ctf import ctf, frequency_grid
from polarice.fourier import centred_fft2, centred_grid, rescale, shell_mean, shell_of
from polarice.io.mrc import open_stack, write_stack
from polarice.io.star import Block, Table, read_star, write_star
from polarice.types import CTFParameters, Optics

HERE = Path(__file__).parents[1]
MICROGRAPH_OPTICS = Optics("opticsGroup1", 1.5, 300.0, 0.001, 0.07, 0)
TILE_PX = 512  # of the power spectrum
FIT_A = (18.0, 4.5)  # resolution range of the CTF fit
DEFOCUS_A = (8_000.0, 40_000.0)  # searched
BUNDLE_LEVELS = 24  # grey levels per standard deviation of the noise, in the bundle's int8 images
BUNDLE_PARTICLES = 550


@dataclass(frozen=True)
class CTFFit:
    """Defocus of one micrograph, and how well its CTF explains the Thon rings."""

    defocus_u_A: float
    defocus_v_A: float
    defocus_angle_deg: float
    correlation: float  # of the fitted CTF^2 with the power spectrum, in two dimensions

    def parameters(self) -> CTFParameters:
        one, zero = np.ones(1), np.zeros(1)
        return CTFParameters(
            self.defocus_u_A * one, self.defocus_v_A * one, self.defocus_angle_deg * one, zero, zero, one
        )


@dataclass(frozen=True)
class Cut:
    """The particles of one micrograph."""

    micrograph: str
    xy_px: np.ndarray  # (n, 2) in the micrograph, first pixel (0, 0)
    images: np.ndarray  # (n, scaled, scaled) float32
    inside: np.ndarray  # (n,) bool: the whole box lies within the micrograph
    fit: CTFFit


# ------------------------------------------------------------------------------------------------- the plain CTF fit


def power_spectrum(micrograph: np.ndarray) -> np.ndarray:
    """Log of the mean power of half-overlapping tiles under a Hann window, (TILE_PX, TILE_PX), centred."""
    window = np.hanning(TILE_PX)[:, None] * np.hanning(TILE_PX)
    total, tiles = np.zeros((TILE_PX, TILE_PX)), 0
    rows, columns = (np.linspace(0, size - TILE_PX, 2 * size // TILE_PX, dtype=int) for size in micrograph.shape)
    for y in rows:
        for x in columns:
            tile = micrograph[y : y + TILE_PX, x : x + TILE_PX].astype(np.float64)
            total += np.abs(centred_fft2((tile - tile.mean()) * window)) ** 2
            tiles += 1
    return np.log(total / tiles)


def rings(values: np.ndarray, width_px: float = 8.0) -> np.ndarray:
    """What is left of a spectrum, along its last axis or axes, once its smooth background is taken off."""
    smooth = gaussian_filter1d if values.ndim == 1 else gaussian_filter
    return values - smooth(values, width_px, mode="nearest")


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of two arrays."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def ctf_squared(fit: CTFFit, fx: np.ndarray, fy: np.ndarray) -> np.ndarray:
    return ctf(MICROGRAPH_OPTICS, fit.parameters(), fx, fy)[0] ** 2


def fit_round(profile: np.ndarray) -> CTFFit:
    """The round defocus whose CTF^2 correlates best with a radial profile of log power, every 50 A."""
    s = np.arange(len(profile)) / (TILE_PX * MICROGRAPH_OPTICS.pixel_size_A)
    used = (s > 1 / FIT_A[0]) & (s < 1 / FIT_A[1])
    measured, best = rings(profile)[used], CTFFit(0, 0, 0, -1)
    for defocus in np.arange(*DEFOCUS_A, 50.0):
        tried = CTFFit(defocus, defocus, 0, 0)
        score = correlation(measured, rings(ctf_squared(tried, s, np.zeros_like(s)))[used])
        best = max(best, replace(tried, correlation=score), key=lambda fit: fit.correlation)
    return best


def fit_ctf(micrograph: np.ndarray) -> CTFFit:
    """Defocus and astigmatism of a micrograph: round first, then all three by simplex on the plane."""
    power = power_spectrum(micrograph)
    start = fit_round(shell_mean(power, shell_of(TILE_PX)))
    fx, fy = frequency_grid(TILE_PX, MICROGRAPH_OPTICS.pixel_size_A)
    s = np.hypot(fx, fy)
    used = (s > 1 / FIT_A[0]) & (s < 1 / FIT_A[1]) & (fx >= 0) & (np.abs(fx) > 0.002) & (np.abs(fy) > 0.002)
    measured = rings(gaussian_filter(power, 1.0))[used]
    fx, fy = fx[used], fy[used]

    def unpack(x: np.ndarray) -> CTFFit:  # mean, and the difference as a vector of twice the angle
        half, angle = np.hypot(x[1], x[2]), np.rad2deg(np.arctan2(x[2], x[1])) / 2 % 180
        return CTFFit(x[0] + half, x[0] - half, angle, 0)

    def cost(x: np.ndarray) -> float:
        return -correlation(measured, ctf_squared(unpack(x), fx, fy))

    mean = start.defocus_u_A
    simplex = np.array([[mean, 0, 0], [mean + 150, 0, 0], [mean, 200, 0], [mean, 0, 200]], float)
    found = minimize(cost, simplex[0], method="Nelder-Mead", options={"initial_simplex": simplex, "xatol": 2.0})
    return replace(unpack(found.x), correlation=-found.fun)


# ------------------------------------------------------------------------------------------------- cutting


def surrounded(micrograph: np.ndarray, margin_px: int) -> np.ndarray:
    """The micrograph with a margin of its local grey level and white noise.

    A mirrored margin would double the particles at the border, and a repeated border pixel would draw streaks.
    """
    padded = np.pad(micrograph.astype(np.float32), margin_px, mode="reflect")
    level = gaussian_filter(padded, 40.0)
    noise_sd = (micrograph - gaussian_filter(micrograph.astype(np.float32), 3.0)).std()
    surroundings = level + np.random.default_rng(0).normal(0, noise_sd, padded.shape)
    surroundings[margin_px:-margin_px, margin_px:-margin_px] = micrograph
    return surroundings.astype(np.float32)


def cut_boxes(micrograph: np.ndarray, xy_px: np.ndarray, box_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, box, box) centred on `xy_px` (n, 2), and which of them (n,) lie wholly within the micrograph."""
    half = box_px // 2
    padded = surrounded(micrograph, half)
    corner = np.rint(xy_px).astype(int)  # box's first pixel in the padded micrograph
    boxes = np.stack([padded[y : y + box_px, x : x + box_px] for x, y in corner])
    height, width = micrograph.shape
    inside = np.all((corner >= half) & (corner + half <= [width, height]), axis=1)
    return boxes, inside


def normalise(images: np.ndarray) -> np.ndarray:
    """Take a plane, fitted outside a circle of 75 % of the box, off every image and divide by the deviation there."""
    box = images.shape[-1]
    y, x = centred_grid(box)
    outside = np.hypot(y, x) > 0.375 * box
    plane = np.stack([np.ones_like(x), x, y], axis=-1)
    slopes = np.linalg.lstsq(plane[outside], images[:, outside].T, rcond=None)[0]
    flat = images - np.moveaxis(plane @ slopes, -1, 0)
    return (flat / flat[:, outside].std(axis=1)[:, None, None]).astype(np.float32)


def cut_micrograph(path: Path, picks: Path, box_px: int, scaled_px: int) -> Cut:
    micrograph = open_stack(path)[0]
    table = read_star(picks).table("")
    xy = np.stack([table.numbers("rlnCoordinateX"), table.numbers("rlnCoordinateY")], axis=1)
    boxes, inside = cut_boxes(micrograph, xy, box_px)
    images = normalise(-rescale(boxes, scaled_px))
    return Cut(path.name, xy, images, inside, fit_ctf(micrograph))


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

#!/usr/bin/env python3
"""How far class averages agree between halves of their particles, for any program's data.star, and what of it is noise.

usage: measure_resolution.py frc DATA.star ... [--o OUT.json] [--particle-diameter A]
       measure_resolution.py substitute PARTICLES.star FOLDER --beyond A

frc         averages each class twice, from random halves of its particles at the poses that the table states, and
            correlates the two on rings (Fourier ring correlation). The same arithmetic for every program's table.
substitute  the same particles, but with random phases beyond a resolution (Chen et al. 2013, Ultramicroscopy 135): a
            program that is run on these can only fit noise there. What `frc` then finds beyond is what fitting noise
            makes of nothing; of an honest run, (frc - noise) / (1 - noise) is left.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polarice.align.images import ParticleImages
from polarice.align.polar import PolarBasis
from polarice.align.prepare import Preparation
from polarice.io.mrc import write_stack
from polarice.io.particles import StackSource, read_particles, write_particles
from polarice.references.manifold.aligned import AlignedImages, PackedHarmonics
from polarice.types import Particles

BATCH = 256
SMOOTHED_RINGS = 3
MAX_GAP_RINGS = 2  # a hollow particle's transform has zeros


def aligned(particles: Particles, source: StackSource, diameter_A: float) -> Iterator[tuple[np.ndarray, AlignedImages]]:
    """(rows, images in the frames of their classes)."""
    pixel_A = particles.optics[0].pixel_size_A
    preparation = Preparation(source.box_px, diameter_A / 2 / pixel_A)
    images = ParticleImages(particles, source, preparation, torch.device("cpu"))
    packed = PackedHarmonics(PolarBasis(source.box_px, preparation.radius_px, source.box_px // 2 - 2, slack_px=4.0))
    pose, even = particles.pose, images.even_harmonics(packed.basis)
    assert pose is not None
    for rows, pixels in images.raw(np.arange(len(particles)), BATCH):
        crop_centre_px = np.rint(pose.shift_px[rows])
        fields = images.fields(packed.basis, pixels, crop_centre_px)
        polar = images.polar(packed.basis, rows, fields, crop_centre_px, pose.shift_px[rows])
        yield rows, AlignedImages.of(packed, polar, torch.from_numpy(np.deg2rad(pose.psi_deg[rows])), even)


def ring_correlation(table: Path, diameter_A: float) -> dict[str, Any]:
    """Half-set correlation (class, ring) of a table's classes, and what follows from it."""
    particles = read_particles(table, Path.cwd()).particles
    if particles.pose is None or particles.pose.class_of.min() < 0:
        raise SystemExit(f"{table}: some particles have no class; give the data.star of a 2D classification")
    source = StackSource(particles, False, table)
    class_of = particles.pose.class_of
    half = np.random.default_rng(0).permutation(len(particles)) % 2
    sums: list[np.ndarray] = []
    for rows, images in aligned(particles, source, diameter_A):
        ctf_power = images.ctf_power[..., 0].double().numpy()
        if not sums:
            shape = (2, class_of.max() + 1)
            sums = [np.zeros((*shape, images.vector.shape[1])), np.zeros((*shape, ctf_power.shape[1]))]
        np.add.at(sums[0], (half[rows], class_of[rows]), images.vector.double().numpy())
        np.add.at(sums[1], (half[rows], class_of[rows]), ctf_power)
    optics = particles.optics[0]
    basis = PolarBasis(source.box_px, diameter_A / 2 / optics.pixel_size_A, source.box_px // 2 - 2)
    ring_of = PackedHarmonics(basis).ring_of.numpy()
    one, other = sums[0] / np.maximum(sums[1], 1e-9)[..., ring_of]

    def on_rings(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(ring_of, row) for row in values])

    norm = np.sqrt(on_rings(one * one) * on_rings(other * other))
    correlation = np.divide(on_rings(one * other), norm, out=np.zeros_like(norm), where=norm > 0)
    box_A = source.box_px * optics.pixel_size_A
    count = np.bincount(class_of, minlength=len(correlation))
    pooled = (count[:, None] * correlation).sum(axis=0) / count.sum()
    return {
        "table": f"{table.parent.name}/{table.name}",
        "particles_in_class": count.tolist(),
        "resolution_A_at_0.5": [crossing_A(each, 0.5, box_A) for each in correlation],
        "pooled": {f"{box_A / (r + 1):.1f}": round(float(v), 3) for r, v in enumerate(smoothed(pooled)) if r > 5},
        "pooled_A_at_0.5": crossing_A(pooled, 0.5, box_A),
        "pooled_A_at_0.143": crossing_A(pooled, 0.143, box_A),
    }


def smoothed(values: np.ndarray) -> np.ndarray:
    return np.convolve(values, np.full(SMOOTHED_RINGS, 1 / SMOOTHED_RINGS), "same")


def crossing_A(correlation: np.ndarray, threshold: float, box_A: float) -> float:
    """Resolution of the last ring before the correlation stays below the threshold for longer than a gap."""
    last = 0
    for ring in np.flatnonzero(smoothed(correlation) >= threshold) + 1:
        if ring - last > MAX_GAP_RINGS + 1:
            break
        last = int(ring)
    return round(box_A / max(1, last), 1)


def substitute(table: Path, folder: Path, beyond_A: float) -> None:
    """Write the particles with the phases of white noise beyond a resolution, their amplitudes kept."""
    particles = read_particles(table)
    source = StackSource(particles.particles, False, table)
    box, pixel_A = source.box_px, particles.particles.optics[0].pixel_size_A
    frequency = np.hypot(np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box)) / pixel_A
    rng = np.random.default_rng(0)

    def changed(images: np.ndarray) -> np.ndarray:
        spectrum = np.fft.rfft2(images)
        noise = np.fft.rfft2(rng.standard_normal(images.shape))
        spectrum = np.where(frequency > 1 / beyond_A, np.abs(spectrum) * noise / np.abs(noise), spectrum)
        return np.fft.irfft2(spectrum, s=(box, box)).astype(np.float32)

    rows = np.arange(len(particles.particles))
    stack = np.concatenate([changed(source.read(part)) for part in np.array_split(rows, max(1, len(rows) // BATCH))])
    folder.mkdir(parents=True, exist_ok=True)
    write_stack(folder / "particles.mrcs", stack, pixel_A)
    names = [f"{row + 1:06d}@particles.mrcs" for row in rows]
    write_particles(folder / "particles.star", particles, columns={"rlnImageName": names})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    frc = actions.add_parser("frc")
    frc.add_argument("tables", type=Path, nargs="+")
    frc.add_argument("--o", type=Path)
    frc.add_argument("--particle-diameter", type=float, default=150.0)
    noise = actions.add_parser("substitute")
    noise.add_argument("particles", type=Path)
    noise.add_argument("folder", type=Path)
    noise.add_argument("--beyond", type=float, required=True)
    given = parser.parse_args()
    if given.action == "substitute":
        substitute(given.particles, given.folder, given.beyond)
        return
    found = [ring_correlation(table, given.particle_diameter) for table in given.tables]
    for each in found:
        print(json.dumps(each))
    if given.o:
        given.o.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

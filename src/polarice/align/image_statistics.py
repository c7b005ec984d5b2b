"""Before the first iteration: every image is looked at once, and the first references are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from polarice.align.images import ParticleImages
from polarice.align.outliers import clipped, outliers
from polarice.align.polar import PolarBasis
from polarice.align.prepare import background
from polarice.align.sums import Sums
from polarice.cluster import SERIAL, Comm, part
from polarice.fourier import shell_mean, shell_of
from polarice.workers import in_turn

SPECTRUM_IMAGES = 1000  # enough for a noise spectrum; the rest is only checked
SPECTRA_AT_ONCE = 32
NEARLY_CONSTANT = 1e-3  # deviation of a background over its mean, below which all pixels are compared
START_IMAGES = 400  # per first reference


@dataclass(frozen=True)
class Survey:
    """What one look at the images found."""

    noise_power: np.ndarray  # (G, S) float64 mean power of the masked images per shell, over the mask's share
    background_sd: np.ndarray  # (n,) float64 grey values' deviation outside the particle
    bad: dict[int, str]  # row -> why its image cannot be used
    clipped: dict[int, str]  # row -> what of its image is clipped


def survey(
    images: ParticleImages,
    rows: np.ndarray,
    seed: int,
    batch: int,
    workers: int = 1,
    comm: Comm = SERIAL,
    outlier_images: Literal["exclude", "clip", "keep"] = "exclude",
) -> Survey:
    """Check every image, in the order of `rows`, and measure the spectrum of some; each rank looks at its part."""
    rng = np.random.default_rng([seed, 0])
    measured = np.zeros(len(images), bool)
    measured[rng.permutation(rows)[:SPECTRUM_IMAGES]] = True
    shell = shell_of(images.source.box_px)
    power = np.zeros((images.groups, images.source.box_px // 2 + 1))
    count = np.zeros(images.groups)
    background_sd = np.ones(len(images))
    bad: dict[int, str] = {}
    mended: dict[int, str] = {}
    own = rows[part(images.particles.stack_of[rows], comm.rank, comm.size)]

    def look(_worker: int, item: tuple[np.ndarray, np.ndarray]) -> _Look:
        chunk, pixels = item
        mean, sd = (each.numpy() for each in background(torch.from_numpy(pixels), images.preparation.radius_px))
        faults = _faults(pixels, ~(sd > NEARLY_CONSTANT * np.abs(mean)))
        far = {} if outlier_images == "keep" else outliers(pixels, mean, sd)
        far = {i: reason for i, reason in far.items() if i not in faults}
        if outlier_images == "exclude":
            faults, far = faults | far, {}
        for i in far:
            pixels[i] = clipped(pixels[i])
        pixels = images.plain(chunk, pixels)
        if far or images.multiplied:
            sd = background(torch.from_numpy(pixels), images.preparation.radius_px)[1].numpy()
        good = np.setdiff1d(np.flatnonzero(measured[chunk]), list(faults))
        return _Look(chunk, sd, faults, far, chunk[good], _spectra(images, pixels[good], shell))

    for seen in in_turn(images.stored(own, batch), look, workers):
        bad.update({int(seen.rows[i]): reason for i, reason in seen.faults.items()})
        mended.update({int(seen.rows[i]): reason for i, reason in seen.clipped.items()})
        background_sd[seen.rows] = seen.background_sd
        groups = images.particles.optics_of[seen.measured]
        np.add.at(power, groups, seen.spectra)
        np.add.at(count, groups, 1)
    power, count = comm.sum((power, count))
    background_sd[rows] = comm.all_gather(background_sd[own])
    bad, mended = (_gathered(each, comm) for each in (bad, mended))
    mean = power.sum(axis=0) / max(1.0, count.sum())
    power = np.where(count[:, None] > 0, power / np.maximum(count[:, None], 1), mean)
    return Survey(np.maximum(power / images.preparation.mask_fraction, 1e-12), background_sd, bad, mended)


@dataclass(frozen=True)
class _Look:
    """What a batch showed."""

    rows: np.ndarray  # (batch,)
    background_sd: np.ndarray  # (batch,)
    faults: dict[int, str]  # place in the batch -> why the image cannot be used
    clipped: dict[int, str]  # likewise -> what has been clipped
    measured: np.ndarray  # (m,) rows of the images whose spectrum was measured
    spectra: np.ndarray  # (m, S)


def _gathered(reasons: dict[int, str], comm: Comm) -> dict[int, str]:
    """Those of all ranks, in the order of the table."""
    return dict(sorted(pair for each in comm.collect(reasons) for pair in each.items()))


def _faults(pixels: np.ndarray, suspect: np.ndarray) -> dict[int, str]:
    """Images of a batch (n, N, N) that cannot be used, by their place in it; of constant ones only the suspects."""
    flat = pixels.reshape(len(pixels), -1)
    faults = {}
    for i in np.flatnonzero(suspect | ~np.isfinite(flat.sum(axis=1))).tolist():
        if not np.isfinite(flat[i]).all():
            faults[i] = "not a number (NaN or infinite pixels)"
        elif flat[i].max() == flat[i].min():
            faults[i] = "constant (every pixel has the same value)"
    return faults


def _spectra(images: ParticleImages, pixels: np.ndarray, shell: np.ndarray) -> np.ndarray:
    """Power per shell of masked images, (n, S) float64."""
    found = [np.zeros((0, images.source.box_px // 2 + 1))]
    for start in range(0, len(pixels), SPECTRA_AT_ONCE):
        part_of = torch.from_numpy(pixels[start : start + SPECTRA_AT_ONCE]).to(images.device, torch.float32)
        masked = images.preparation(part_of, torch.zeros(len(part_of), 2))
        transform = torch.fft.fftshift(torch.fft.fft2(masked), dim=(1, 2)) / images.source.box_px
        power = transform.abs().square().cpu().numpy()
        found.append(shell_mean(power, shell, images.source.box_px // 2 + 1))
    return np.concatenate(found).astype(np.float64)


def random_sums(
    images: ParticleImages,
    basis: PolarBasis,
    references: int,
    noise: Tensor,
    draw: tuple[np.ndarray, int, int],
    workers: int = 1,
    comm: Comm = SERIAL,
) -> Sums:
    """Sums of a blind expectation, over all ranks: each of some images dealt to one reference, unaligned.

    noise (G, ring); draw = (rows to choose from, seed, batch size).
    """
    rows, seed, batch = draw
    rng = np.random.default_rng([seed, 1])
    chosen = rows[np.sort(rng.permutation(len(rows))[: references * START_IMAGES])]  # in the order of the disk
    dealt = rng.permutation(np.arange(len(chosen)) % references)
    own = part(images.particles.stack_of[chosen], comm.rank, comm.size)
    chosen, dealt = chosen[own], dealt[own]
    total = Sums.of_none((basis.n_q, 1, basis.r_max, references), images.groups, images.device)
    basis.prepare()
    starts = range(0, len(chosen), batch)

    def blind(_worker: int, item: tuple[int, tuple[np.ndarray, Tensor]]) -> Sums:
        start, (chunk, pixels) = item
        centre_px = images.particles.pose.shift_px[chunk]
        crop_centre_px = np.rint(centre_px)
        batch_images = images.polar(
            basis, chunk, images.fields(basis, pixels, crop_centre_px), crop_centre_px, centre_px
        )
        scale = (basis.weight / noise)[batch_images.optics_of][:, :, None]
        data = basis.harmonics(batch_images.field * batch_images.ctf * scale)
        power = (batch_images.ctf.square() * scale).sum(dim=2)
        member = torch.zeros(references, len(chunk), device=images.device)
        member[torch.from_numpy(dealt[start : start + len(chunk)]), torch.arange(len(chunk))] = 1
        return Sums.of_batch(
            batch_images.field,
            batch_images.ctf,
            (batch_images.optics_of, images.groups),
            numerator=torch.einsum("bi,irq->qrb", member.to(data.dtype), data),
            denominator=torch.einsum("bi,ir->rb", member, power)[None].to(torch.complex64),
            class_weight=member.sum(dim=1),
        )

    for sums in in_turn(zip(starts, images.batches(chosen, batch), strict=True), blind, workers):
        total.include(sums)
    return comm.sum(total)

"""Before the first iteration: every image is looked at once, and the first references are made."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polarice.align.images import Clock, ParticleImages
from polarice.align.polar import PolarBasis
from polarice.align.prepare import background
from polarice.align.sums import Sums
from polarice.cluster import SERIAL, Comm, part
from polarice.fourier import shell_mean, shell_of

SPECTRUM_IMAGES = 5000  # enough for a noise spectrum; the rest is only checked
START_IMAGES = 1000  # per first reference


@dataclass(frozen=True)
class Survey:
    """What one look at the images found."""

    noise_power: np.ndarray  # (G, S) float64 mean power of the masked images per shell, over the mask's share
    background_sd: np.ndarray  # (n,) float64 grey values' deviation outside the particle
    bad: dict[int, str]  # row -> why its image cannot be used


def survey(
    images: ParticleImages, rows: np.ndarray, seed: int, batch: int, clock: Clock, comm: Comm = SERIAL
) -> Survey:
    """Check every image, in the order of `rows`, and measure the spectrum of some; each rank looks at its part."""
    rng = np.random.default_rng([seed, 0])
    measured = np.zeros(len(images), bool)
    measured[rng.permutation(rows)[:SPECTRUM_IMAGES]] = True
    shell = shell_of(images.source.box_px)
    shells = images.source.box_px // 2 + 1
    power = np.zeros((images.groups, shells))
    count = np.zeros(images.groups)
    background_sd = np.ones(len(images))
    bad: dict[int, str] = {}
    own = rows[part(images.particles.stack_of[rows], comm.rank, comm.size)]
    since = time.perf_counter()
    for chunk, pixels in images.raw(own, batch):
        since = clock.add("reading", since)
        reasons = _faults(pixels)
        bad.update({int(chunk[i]): reason for i, reason in reasons.items()})
        background_sd[chunk] = background(torch.from_numpy(pixels), images.preparation.radius_px)[1].numpy()
        good = np.setdiff1d(np.flatnonzero(measured[chunk]), list(reasons))
        if len(good):
            spectra = _spectra(images, pixels[good], shell)
            groups = images.particles.optics_of[chunk[good]]
            np.add.at(power, groups, spectra)
            np.add.at(count, groups, 1)
        since = clock.add("preparation", since)
    power, count = comm.sum((power, count))
    background_sd[rows] = comm.join(background_sd[own])
    bad = dict(sorted(pair for faults in comm.collect(bad) for pair in faults.items()))
    mean = power.sum(axis=0) / max(1.0, count.sum())
    power = np.where(count[:, None] > 0, power / np.maximum(count[:, None], 1), mean)
    return Survey(np.maximum(power / images.preparation.mask_fraction, 1e-12), background_sd, bad)


def _faults(pixels: np.ndarray) -> dict[int, str]:
    """Images of a batch (n, N, N) that cannot be used, by their place in it."""
    flat = pixels.reshape(len(pixels), -1)
    finite = np.isfinite(flat).all(axis=1)
    constant = flat.max(axis=1) == flat.min(axis=1)
    faults = {int(i): "not a number (NaN or infinite pixels)" for i in np.flatnonzero(~finite)}
    faults.update({int(i): "constant (every pixel has the same value)" for i in np.flatnonzero(finite & constant)})
    return faults


def _spectra(images: ParticleImages, pixels: np.ndarray, shell: np.ndarray) -> np.ndarray:
    """Power per shell of masked images, (n, S) float64."""
    tensor = torch.from_numpy(pixels).to(images.device, torch.float32)
    masked = images.preparation(tensor, torch.zeros(len(tensor), 2, device=images.device))
    transform = torch.fft.fftshift(torch.fft.fft2(masked), dim=(1, 2)) / images.source.box_px
    power = transform.abs().square().cpu().numpy()
    return np.asarray(shell_mean(power, shell, images.source.box_px // 2 + 1), np.float64)


def random_sums(
    images: ParticleImages,
    basis: PolarBasis,
    references: int,
    noise: Tensor,
    draw: tuple[np.ndarray, int, int],
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
    place = 0
    for chunk, pixels in images.raw(chosen, batch):
        centre_px = images.particles.pose.shift_px[chunk]
        cut_px = np.rint(centre_px)
        batch_images = images.polar(basis, chunk, images.fields(basis, pixels, cut_px), cut_px, centre_px)
        scale = (basis.weight / noise)[batch_images.optics_of][:, :, None]
        data = basis.harmonics(batch_images.field * batch_images.ctf * scale)
        power = (batch_images.ctf.square() * scale).sum(dim=2)
        member = torch.zeros(references, len(chunk), device=images.device)
        member[torch.from_numpy(dealt[place : place + len(chunk)]), torch.arange(len(chunk))] = 1
        place += len(chunk)
        sums = Sums.of_batch(
            batch_images.field,
            batch_images.ctf,
            (batch_images.optics_of, images.groups),
            numerator=torch.einsum("bi,irq->qrb", member.to(data.dtype), data),
            denominator=torch.einsum("bi,ir->rb", member, power)[None].to(torch.complex64),
            class_weight=member.sum(dim=1),
        )
        total.include(sums)
    return comm.sum(total)

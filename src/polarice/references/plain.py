"""Plain averages of posed particles by label: what the classes of another job, or nodes by themselves, look like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polarice.align.images import Clock
from polarice.references.manifold.aligned_particles import AlignedParticles
from polarice.references.snr import smooth_ssnr
from polarice.types import Pose2D

BATCH = 1024  # images summed at once


@dataclass(frozen=True)
class PlainAverages:
    """One for each label, each Wiener-filtered by its own signal-to-noise ratio; zero where there is no particle."""

    vector: Tensor  # (label, d) float64, in the triangle's numbers
    ssnr: Tensor  # (label, ring) float64
    count: np.ndarray  # (label,) particles

    @staticmethod
    def of(
        images: AlignedParticles, pose: Pose2D, label: np.ndarray, how: tuple[int, Tensor, float], clock: Clock
    ) -> PlainAverages:
        """Averages of all ranks' images by label (n,) of the whole table, from 0; where it is negative, left out.

        how = (labels, w / sigma^2 (G, ring), share of the noise that the mask lets through). The CTF's power is taken
        to be round, as the map's equations take it.
        """
        labels, scale, mask_fraction = how
        packed = images.packed
        numerator = torch.zeros(labels, packed.d, dtype=torch.float64, device=scale.device)
        weight = torch.zeros(labels, packed.basis.r_max, dtype=torch.float64, device=scale.device)
        for rows, part in images.batches(pose, BATCH, clock):
            used = torch.from_numpy(np.flatnonzero(label[rows] >= 0)).to(scale.device)
            of = torch.from_numpy(label[rows].astype(np.int64)).to(scale.device)[used]
            each = scale[part.optics_of].float()[used]
            numerator.index_add_(0, of, (part.vector[used] * each[:, packed.ring_of]).double())
            weight.index_add_(0, of, (part.mean_ctf_power(packed.basis.n_theta)[used] * each).double())
        numerator, weight = images.comm.sum((numerator, weight))
        error = mask_fraction * packed.basis.weight.double() / weight  # infinite where there is nothing
        average = numerator / weight.clamp_min(1e-30)[:, packed.ring_of]
        ssnr = smooth_ssnr(packed.ring_sums(average.square()) / packed.basis.n_theta, error)
        known = label[images.rows]
        return PlainAverages(
            vector=average * (ssnr / (1 + ssnr))[:, packed.ring_of],
            ssnr=ssnr,
            count=np.bincount(known[known >= 0], minlength=labels),
        )

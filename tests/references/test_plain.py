"""Plain averages by label, of images whose CTFs and averages are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from polarice.align.images import Clock
from polarice.align.polar import PolarBasis
from polarice.cluster import SERIAL, Comm
from polarice.references.manifold.aligned import AlignedImages, PackedHarmonics
from polarice.references.manifold.aligned_particles import AlignedParticles
from polarice.references.plain import PlainAverages
from polarice.types import Pose2D

TRIANGLE = PackedHarmonics(PolarBasis(32, 10.0, 8))
NOISE, SHARE = 0.5, 0.3  # variance, and what the mask lets through of it
POWER = 2.0  # of every average on every ring


@dataclass(frozen=True)
class Ready:
    """Images that have been posed."""

    rows: np.ndarray
    images: AlignedImages
    packed: PackedHarmonics = TRIANGLE
    comm: Comm = SERIAL

    def batches(self, *_: Any) -> Iterator[tuple[np.ndarray, AlignedImages]]:
        for part in np.array_split(np.arange(len(self.rows)), 3):
            yield self.rows[part], self.images.take(torch.from_numpy(part))


def average(seed: int) -> torch.Tensor:
    """(d,) of the same mean square on every ring."""
    vector = torch.from_numpy(np.random.default_rng(seed).standard_normal(TRIANGLE.d))
    mean_square = TRIANGLE.ring_sums(vector.square()) / TRIANGLE.basis.n_theta
    return vector * (POWER / mean_square).sqrt()[TRIANGLE.ring_of]


def test_each_is_divided_by_its_ctfs_and_filtered_by_its_own_signal_to_noise_ratio():
    """SSNR = POWER * sum C^2 / (share * noise) - 1, the filter SSNR / (1 + SSNR); nothing of what has no label."""
    rng, n, basis = np.random.default_rng(0), 12, TRIANGLE.basis
    label = np.array([0, 0, 2, 2, 2, -1, 0, 2, 2, 0, -1, 2, 0, 0])  # of the table: rows 12 and 13 cannot be used
    averages, ctf_power = {0: average(1), 2: average(2), -1: average(3)}, rng.uniform(0.02, 0.2, n)
    seen = torch.stack([averages[label[i]] * ctf_power[i] for i in range(n)]).float()
    power = torch.from_numpy(np.repeat(ctf_power[:, None], basis.r_max, axis=1) * basis.n_theta**0.5).float()
    images = AlignedImages(seen, power[..., None], torch.ones(n, basis.r_max), torch.zeros(n, dtype=torch.int64))
    scale = basis.weight.double()[None] / NOISE
    posed = cast(AlignedParticles, Ready(np.arange(n), images))
    found = PlainAverages.of(posed, Pose2D.unknown(len(label)), label, (3, scale, SHARE), Clock())
    assert found.count.tolist() == [4, 0, 6] and not found.vector[1].any() and not found.ssnr[1].any()
    for k in (0, 2):
        ssnr = POWER * ctf_power[label[:n] == k].sum() / (SHARE * NOISE) - 1
        assert 2 < ssnr < 12
        torch.testing.assert_close(found.ssnr[k], torch.full((8,), ssnr, dtype=torch.float64), rtol=1e-5, atol=0)
        torch.testing.assert_close(found.vector[k], averages[k] * ssnr / (1 + ssnr), rtol=1e-5, atol=1e-6)

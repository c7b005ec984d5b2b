"""The noise that a model's references leave: what of the images' power they do not explain."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Powers(Protocol):
    """Sums over images, for each optics group."""

    @property
    def image_power(self) -> Tensor: ...  # (G, ring) of mean_theta X^2
    @property
    def ctf_power(self) -> Tensor: ...  # (G, ring) of mean_theta C^2
    @property
    def group_count(self) -> Tensor: ...  # (G,) images


def noise_left(noise_power: Tensor, sums: Powers, explained: Tensor, mask_fraction: float) -> Tensor:
    """Noise power (G, shell) float64 anew, on the rings that the sums know; elsewhere as it was.

    The explained power (ring,), a mean over the circle, is known summed over groups, in units of each one's noise;
    it is shared out by the CTF power that each group put in. The mask leaves `mask_fraction` of the noise.
    """
    rings = slice(1, len(explained) + 1)
    old = noise_power[:, rings]
    share = sums.ctf_power / old
    share = share / share.sum(dim=0).clamp_min(1e-30)
    count = sums.group_count[:, None].clamp_min(1e-9)
    residual = (sums.image_power - explained * share * old) / count / mask_fraction
    noise = noise_power.clone()
    seen = sums.group_count > 0
    noise[seen, rings] = torch.maximum(residual, 1e-3 * sums.image_power / count)[seen]
    return noise

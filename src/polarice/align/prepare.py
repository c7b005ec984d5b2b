"""From particle images to polar fields: background, centre, mask, rings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MASK_EDGE_PX = 5.0


def soft_mask(box_px: int, radius_px: float, device: torch.device, edge_px: float = MASK_EDGE_PX) -> Tensor:
    """(N, N) float32 disc: 1 inside the radius, falling as a raised cosine to 0 over `edge_px` beyond it."""
    x = torch.arange(box_px, device=device, dtype=torch.float32) - box_px // 2
    r = torch.hypot(x[:, None], x)
    return 0.5 + 0.5 * torch.cos(math.pi * ((r - radius_px) / edge_px).clamp(0, 1))


def background(images: Tensor, radius_px: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each image (batch, N, N) outside the particle: each (batch,).

    The region is what lies beyond the radius, or beyond 0.47 N where the particle fills the box.
    """
    box = images.shape[-1]
    x = torch.arange(box, device=images.device) - box // 2
    outside = (torch.hypot(x[:, None].float(), x.float()) > min(radius_px, 0.47 * box)).to(images.dtype).view(-1)
    count = outside.sum()
    flat = images.flatten(1)
    mean = flat @ outside / count
    centred = (flat - mean[:, None]).mul_(outside)
    return mean, torch.linalg.vector_norm(centred, dim=1) / (count - 1).sqrt()


def recentre(images: Tensor, centre_px: Tensor) -> Tensor:
    """Move each image by whole pixels so that `centre_px` (batch, 2; x, y; integers) comes to the box's centre.

    What comes from outside of the box is zero. Centres that lie on the processor are looked at there, so that nobody
    waits for the images' device.
    """
    box = images.shape[-1]
    reach = max(1, min(box, int(centre_px.abs().max())))
    wide = torch.nn.functional.pad(images, (reach,) * 4)
    windows = wide.unfold(1, box, 1).unfold(2, box, 1)  # (batch, row, column, N, N)
    start = (centre_px.long() + reach).clamp(0, 2 * reach).to(images.device, non_blocking=True)
    return windows[torch.arange(len(images), device=images.device), start[:, 1], start[:, 0]]


@dataclass(frozen=True)
class Preparation:
    """How images are brought to the engine: normalised to their background, centred, masked."""

    box_px: int
    radius_px: float  # of the particle
    normalise: bool = True

    def __call__(self, images: Tensor, centre_px: Tensor) -> Tensor:
        """(batch, N, N) images and whole-pixel centres (batch, 2) -> masked images (batch, N, N)."""
        if self.normalise:
            mean, sd = background(images, self.radius_px)
            sd = torch.where(sd > 0, sd, torch.ones_like(sd))
            images = (images - mean[:, None, None]).div_(sd[:, None, None])
        return recentre(images, centre_px).mul_(self.mask(images.device))

    def mask(self, device: torch.device) -> Tensor:
        return soft_mask(self.box_px, self.radius_px, device)

    @property
    def mask_fraction(self) -> float:
        """Share of the noise power that the mask lets through."""
        return float(self.mask(torch.device("cpu")).square().mean())

"""Fourier shell correlation of two densities, and what it says of resolution and signal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

THRESHOLD = 0.143  # of half maps (Rosenthal and Henderson 2003, J Mol Biol 333, 721)
SAME = 0.9999  # on every shell: two halves of their own would hold ten thousand times more signal than noise


def soft_sphere(box_px: int, radius_px: float, edge_px: float, device: torch.device) -> Tensor:
    """(N, N, N) float32: 1 inside the radius, falling as a raised cosine to 0 over `edge_px` beyond it."""
    x = torch.arange(box_px, device=device, dtype=torch.float32) - box_px // 2
    r = (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2).sqrt_()
    return 0.5 + 0.5 * torch.cos(math.pi * ((r - radius_px) / edge_px).clamp_(0, 1))


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """(N // 2 + 1,) float64 FSC of two densities (N, N, N); 0 where one of them has nothing."""
    a, b = torch.fft.rfftn(one), torch.fft.rfftn(other)
    cross, power, its = (shell_sum(each, len(one)) for each in ((a * b.conj()).real, a.abs() ** 2, b.abs() ** 2))
    size = (power * its).sqrt()
    return torch.where(size > 0, cross / size.clamp_min(1e-300), 0.0)


def shell_sum(values: Tensor, box_px: int) -> Tensor:
    """(N // 2 + 1,) float64 sums over Fourier shells of values (N, N, N // 2 + 1) of a half transform."""
    n = box_px
    whole = torch.fft.fftfreq(n, 1 / n, device=values.device)
    half = torch.fft.rfftfreq(n, 1 / n, device=values.device)
    shell = (whole[:, None, None] ** 2 + whole[:, None] ** 2 + half**2).sqrt().round().long()
    shell.clamp_(max=n // 2 + 1)
    twice = torch.where((half == 0) | (half == n / 2), 1.0, 2.0).double()
    sums = torch.zeros(n // 2 + 2, dtype=torch.float64, device=values.device)
    return sums.index_add_(0, shell.flatten(), (values.double() * twice).flatten())[:-1]


def power_of(density: Tensor) -> Tensor:
    """(N // 2 + 1,) float64 mean square of a density's transform, over N, by shell."""
    n = len(density)
    squared = torch.fft.rfftn(density).abs().square()
    return shell_sum(squared, n) / shell_sum(torch.ones_like(squared), n) / n**2


def resolved_shell(fsc: Tensor, threshold: float = THRESHOLD) -> int:
    """The last shell before the first, from 1 on, on which the FSC falls below a threshold; at least 1."""
    below = (fsc[1:] < threshold).nonzero()
    return max(1, int(below[0]) if len(below) else len(fsc) - 1)


def of_one_map(fsc: Tensor, limit: int) -> bool:
    """Whether two densities agree on all shells up to `limit` as only a map with itself does.

    The strongest signal has noise beside it far from the origin: fewer shells than half of all say nothing.
    """
    return 2 * limit >= len(fsc) - 1 and bool((fsc[1 : limit + 1] > SAME).all())


def ssnr_of(fsc: Tensor) -> Tensor:
    """Signal-to-noise ratio of one of two halves."""
    bounded = fsc.clamp(0.001, 0.999)
    return bounded / (1 - bounded)


def low_passed(density: Tensor, shell: float, edge: float = 2.0) -> Tensor:
    """The density (N, N, N) without what lies beyond a Fourier shell, by a raised cosine of so many shells."""
    n = len(density)
    whole = torch.fft.fftfreq(n, 1 / n, device=density.device)
    half = torch.fft.rfftfreq(n, 1 / n, device=density.device)
    radius = (whole[:, None, None] ** 2 + whole[:, None] ** 2 + half**2).sqrt()
    keep = 0.5 + 0.5 * torch.cos(math.pi * ((radius - shell) / edge + 0.5).clamp(0, 1))
    return torch.fft.irfftn(torch.fft.rfftn(density) * keep, s=density.shape)

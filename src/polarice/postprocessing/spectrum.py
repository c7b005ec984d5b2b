"""Densities and their transforms: radius of every Fourier voxel, radial filters, means over shells.

Densities are (N, N, N), z, y, x; half transforms (N, N, N // 2 + 1); a shell is a whole number of Fourier pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from polarice.references.fsc import shell_sum

FILTER_EDGE = 2.0  # shells, of the raised cosine of low-pass and high-pass filters


def radius(box_px: int, device: torch.device) -> Tensor:
    """(N, N, N // 2 + 1) float32 distance from the origin, in Fourier pixels."""
    whole = torch.fft.fftfreq(box_px, 1 / box_px, device=device)
    half = torch.fft.rfftfreq(box_px, 1 / box_px, device=device)
    return (whole[:, None, None] ** 2 + whole[:, None] ** 2 + half**2).sqrt_()


def multiplied(density: Tensor, curve: Callable[[Tensor], Tensor]) -> Tensor:
    """The density whose transform is multiplied by a curve of the radius in Fourier pixels."""
    transform = torch.fft.rfftn(density) * curve(radius(len(density), density.device))
    return torch.fft.irfftn(transform, s=density.shape)


def weighted(density: Tensor, weight: Tensor) -> Tensor:
    """The density whose shells are multiplied by weights (S,); what lies beyond the last shell becomes 0."""
    return multiplied(density, lambda r: over_shells(weight, r))


def over_shells(values: Tensor, r: Tensor) -> Tensor:
    """Values (S,) by shell, at every radius; 0 beyond."""
    padded = torch.nn.functional.pad(values.float(), (0, 1))
    return padded[r.round().long().clamp_(max=len(values))]


def low_pass_curve(shell: float, edge: float = FILTER_EDGE) -> Callable[[Tensor], Tensor]:
    """1 inside, 0 beyond, one half at the shell, a raised cosine between."""
    return lambda r: 0.5 + 0.5 * torch.cos(math.pi * ((r - shell) / edge + 0.5).clamp(0, 1))


def low_pass(density: Tensor, shell: float, edge: float = FILTER_EDGE) -> Tensor:
    """The density without what lies beyond a shell."""
    return multiplied(density, low_pass_curve(shell, edge))


def high_pass(density: Tensor, shell: float, edge: float = FILTER_EDGE) -> Tensor:
    """The density without what lies inside a shell; its mean becomes 0."""
    return density - multiplied(density, low_pass_curve(shell, edge))


def shell_counts(box_px: int, device: torch.device) -> Tensor:
    """(N // 2 + 1,) float64 Fourier voxels of each shell, both halves of the transform."""
    return shell_sum(torch.ones(box_px, box_px, box_px // 2 + 1, device=device), box_px)


def mean_amplitude(density: Tensor) -> Tensor:
    """(N // 2 + 1,) float64 mean of |F| over each shell, F over the number of voxels."""
    n = len(density)
    return shell_sum(torch.fft.rfftn(density).abs(), n) / shell_counts(n, density.device) / n**3


def resampled(density: Tensor, box_px: int) -> Tensor:
    """The same density on a box of the same width with other voxels, origin at N // 2; Fourier cropped or padded."""
    n, m = len(density), box_px
    if n == m:
        return density
    origin = (n // 2,) * 3
    full = torch.fft.fftn(density.roll(tuple(-c for c in origin), (0, 1, 2)))
    found = torch.zeros(m, m, m, dtype=full.dtype, device=full.device)
    keep = (min(n, m) - 1) // 2  # Nyquist of the coarser one, which has no partner, is left out
    whole = torch.arange(-keep, keep + 1, device=full.device)
    ours, theirs = whole % n, whole % m
    found[theirs[:, None, None], theirs[:, None], theirs] = full[ours[:, None, None], ours[:, None], ours]
    back = torch.fft.ifftn(found).real * (m / n) ** 3
    return back.roll((m // 2,) * 3, (0, 1, 2)).to(density.dtype)


def boxed(density: Tensor, box_px: int, fill: float = 0.0) -> Tensor:
    """The middle of a density, or the density in the middle of a larger box; voxel N // 2 stays the origin."""
    n, m = len(density), box_px
    found = density.new_full((m, m, m), fill)
    size = min(n, m)
    ours, theirs = n // 2 - size // 2, m // 2 - size // 2
    inner, outer = (slice(ours, ours + size),) * 3, (slice(theirs, theirs + size),) * 3
    found[outer] = density[inner]
    return found

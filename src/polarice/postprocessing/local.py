"""Local resolution of two half maps, and a map filtered by it.

The transform is cut into bands of shells whose weights add up to 1. In each band the halves' products are averaged over
a window about every voxel:

    FSC(band, voxel) = <a b> / sqrt(<a a> <b b>)

Windows are Gaussian and several wavelengths of the band wide, so that fine bands are seen in small windows, coarse ones
in large (Cardone, Heymann and Steven 2013, J Struct Biol 184, 226: at least seven resolutions across). Bands are taken
before the window, so that a window makes no correlation of its own. What noise alone reaches in so few independent
points is asked for on top: a band counts where its FSC exceeds both 0.143 and twice 1 / sqrt(points).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polarice.postprocessing.spectrum import radius
from polarice.references.fsc import THRESHOLD

WINDOW_WAVES = 1.5  # standard deviation of the window, in wavelengths: as wide as a ball seven across
LEAST_WINDOW_PX = 3.0
MOST_BANDS = 48
NOISE_SIGMA = 2.0
LOWEST_SHELL = 3  # coarser bands are taken to agree


@dataclass(frozen=True)
class LocalResolution:
    """By voxel (N, N, N) float32: the resolution in Angstrom, and the map filtered by the local FSC."""

    resolution_A: Tensor
    filtered: Tensor
    window_A: tuple[float, float]  # standard deviation of the smallest and the largest window


def local_resolution(
    halves: tuple[Tensor, Tensor], sharpened: Tensor, last_shell: int, pixel_A: float
) -> LocalResolution:
    """Of two densities (N, N, N), shells up to `last_shell`; `sharpened` is what is filtered."""
    n, device = len(sharpened), sharpened.device
    last = min(last_shell, n // 2 - 1)
    edges = _edges(last)
    transforms = [torch.fft.rfftn(each) for each in (*halves, sharpened)]
    r = radius(n, device)
    reached = torch.full((n, n, n), float(LOWEST_SHELL), device=device)
    open_ = torch.ones(n, n, n, dtype=torch.bool, device=device)  # every band so far agreed
    filtered = torch.fft.irfftn(transforms[2] * _low(r, edges[0]), s=sharpened.shape)
    before, centre_before, windows = torch.ones_like(filtered), edges[0], []
    for low, high in itertools.pairwise(edges):
        weight = _low(r, high) - _low(r, low)
        bands = [torch.fft.irfftn(each * weight, s=sharpened.shape) for each in transforms]
        sigma = max(LEAST_WINDOW_PX, WINDOW_WAVES * n / ((low + high) / 2))
        windows.append(sigma * pixel_A)
        smooth = _window(r, n, sigma)
        product, one, other = (
            torch.fft.irfftn(torch.fft.rfftn(each) * smooth, s=sharpened.shape)
            for each in (bands[0] * bands[1], bands[0] ** 2, bands[1] ** 2)
        )
        fsc = product / (one * other).clamp_min(1e-30).sqrt()
        least = max(THRESHOLD, NOISE_SIGMA / math.sqrt(_points(low, high, sigma, n)))
        agree, centre = fsc > least, (low + high) / 2
        share = ((before - least) / (before - fsc).clamp_min(1e-6)).clamp(0, 1)
        crossed = centre_before + (centre - centre_before) * share
        reached = torch.where(open_, torch.where(agree, high if high == edges[-1] else centre, crossed), reached)
        before, centre_before = fsc, centre
        open_ &= agree
        filtered = filtered + bands[2] * torch.where(open_, (2 * fsc / (1 + fsc)).clamp(0, 1).sqrt(), 0.0)
    found = n * pixel_A / reached.clamp_min(LOWEST_SHELL)
    return LocalResolution(found, filtered, (min(windows), max(windows)))


def _edges(last: int) -> list[float]:
    """Shells between which bands lie."""
    step = max(1.0, (last - LOWEST_SHELL) / MOST_BANDS)
    count = max(1, round((last - LOWEST_SHELL) / step))
    return [LOWEST_SHELL + (last - LOWEST_SHELL) * i / count for i in range(count + 1)]


def _low(r: Tensor, shell: float) -> Tensor:
    """1 below the shell, 0 above, a raised cosine two shells wide between."""
    return 0.5 + 0.5 * torch.cos(math.pi * ((r - shell) / 2 + 0.5).clamp(0, 1))


def _window(r: Tensor, box_px: int, sigma_px: float) -> Tensor:
    """The transform of a Gaussian window whose values add up to 1."""
    return torch.exp(-2 * (math.pi * sigma_px * r / box_px) ** 2)


def _points(low: float, high: float, sigma_px: float, box_px: int) -> float:
    """Independent Fourier points of a band in a window: of the whole box, times the window's share of it."""
    middle, width = (low + high) / 2, max(high - low, 1.0)
    whole = 2 * math.pi * middle**2 * width  # of the half transform
    share = min(1.0, (2 * math.sqrt(math.pi) * sigma_px / box_px) ** 3)
    return max(4.0, 2 * whole * share)

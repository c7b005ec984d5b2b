"""Scores over all angles, their maximum and their sum in one kernel on a card: weights never reach memory.

A coarse level asks one number of every pair of image, shift and reference, the log of the sum of its weights over
angles. PyTorch's operations write those weights (pair, angle) and read them again seven times. Here a program holds the
harmonics of some pairs, makes the weights of a tile of angles by matrix products with cosines and sines, and keeps the
running maximum and sum of each pair, as attention kernels do (Dao et al. 2022). Cosines serve an angle and its opposite
in sign alike, and sines but for their sign, so that products are made for half of the circle.

Written in Triton, which comes with PyTorch's builds for CUDA; without it, or where the kernel is wrong on a card,
`works_on` says so, and the plain operations do the same.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["plain", "fused"]
PAIRS, HARMONICS, ANGLES = 32, 16, 64  # of a tile; the fastest of those tried on an H100
WARPS = 4
PRODUCTS = "tf32x3"  # three products of tensor cores, as exact as float32
SELF_TEST_ERROR = 1e-3  # of a log sum


def log_sums(spectrum: Tensor, columns: Tensor | None, prior: Tensor, n_theta: int, angles: int) -> Tensor:
    """(pair,) log of the sum over angles of exp(weight + prior), where weights are those that irfft makes.

    spectrum (q, column) complex64: harmonics of the weights, times n_theta; columns (pair,): where each pair stands in
    it, or None: pair i in column i; prior (pair,) float32. angles: at which the weights are taken, n_theta or more.
    ImportError where there is no Triton.
    """
    from polarice.align.fused_kernel import log_sum_tile

    cosine, sine = _waves(len(spectrum), n_theta, angles, spectrum.device)
    found = torch.empty_like(prior)
    listed = columns is not None
    log_sum_tile[(-(-len(prior) // PAIRS),)](
        torch.view_as_real(spectrum.contiguous()),
        columns if listed else prior,
        prior,
        cosine,
        sine,
        found,
        len(prior),
        spectrum.shape[1],
        len(spectrum),
        angles,
        listed=listed,
        pair_tile=PAIRS,
        harmonic_tile=HARMONICS,
        angle_tile=ANGLES,
        harmonic_tiles=-(-len(spectrum) // HARMONICS),
        angle_tiles=-(-(angles // 2 + 1) // ANGLES),
        products=PRODUCTS,
        num_warps=WARPS,
    )
    return found


def plain_log_sums(spectrum: Tensor, columns: Tensor | None, prior: Tensor, n_theta: int, angles: int) -> Tensor:
    """What `log_sums` gives, in float64 and by PyTorch's own operations."""
    picked = spectrum if columns is None else spectrum.index_select(1, columns)
    cells = torch.zeros(angles // 2 + 1, picked.shape[1], dtype=torch.complex128, device=spectrum.device)
    cells[: len(picked)] = picked
    return (torch.fft.irfft(cells, n=angles, dim=0) * (angles / n_theta)).logsumexp(dim=0) + prior


@cache
def works_on(device: torch.device) -> str:
    """Why the kernel cannot be used on a device: what is missing, or how far off it is; "": nothing."""
    if device.type != "cuda":
        return f"a card is needed, and this is {device.type}"
    try:
        error = self_test(device)
    except Exception as raised:  # whatever Triton's compiler, the driver or the C compiler have to say
        return f"it failed its test ({type(raised).__name__}: {str(raised).splitlines()[0] if str(raised) else ''})"
    return "" if error < SELF_TEST_ERROR else f"its log sums are off by {error:.1g}"


def self_test(device: torch.device) -> float:
    """The largest error of log sums of a few hundred random pairs, dense and listed; NaN counts as infinite."""
    generator = torch.Generator().manual_seed(1)
    largest = 0.0
    for n_q, n_theta, angles in ((21, 64, 64), (33, 64, 64), (8, 15, 15), (49, 100, 100), (101, 200, 400)):
        spectrum = 10 * n_theta * torch.randn(n_q, 333, dtype=torch.complex64, generator=generator) / n_q
        spectrum = spectrum.to(device)
        listed = torch.randint(333, (500,), generator=generator).to(device)
        for columns in (None, listed):
            prior = torch.randn(333 if columns is None else 500, generator=generator).to(device)
            given = (spectrum, columns, prior, n_theta, angles)
            error = (log_sums(*given) - plain_log_sums(*given)).abs().nan_to_num(nan=math.inf)
            largest = max(largest, float(error.max()))
    return largest


@cache
def _waves(n_q: int, n_theta: int, angles: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What real and imaginary parts of the harmonics are multiplied with, each (q, angle) float32."""
    q = torch.arange(n_q, dtype=torch.float64)[:, None]
    phase = 2 * math.pi / angles * ((q * torch.arange(angles)) % angles)
    once = (q == 0) | (2 * q == angles)  # irfft counts all others twice
    scale = torch.where(once, 1.0, 2.0) / n_theta
    cosine, sine = scale * phase.cos(), torch.where(once, 0.0, -scale * phase.sin())
    return cosine.float().to(device), sine.float().to(device)

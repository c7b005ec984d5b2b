"""FSC of two half maps inside a mask, and what of it the mask alone has made.

    FSC_true = FSC_t                               up to two shells beyond where phases are randomised
             = (FSC_t - FSC_n) / (1 - FSC_n)       from there on

FSC_t is that of the masked halves, FSC_n that of masked halves whose phases were random beyond the shell on which the
unmasked FSC falls below 0.8 (Chen et al. 2013, Ultramicroscopy 135, 24).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polarice.postprocessing.spectrum import radius
from polarice.references.fsc import correlation, resolved_shell

RANDOMISED_BELOW = 0.8  # of the unmasked FSC
KEPT_SHELLS = 2  # beyond where phases are randomised
DRAWS = 4  # of random phases, whose mean FSC is taken
TIGHT_NOISE = 0.1  # FSC of randomised halves, at the resolution found, from which a mask is too tight
TIGHT_SHARE = 0.85  # of the masked resolution that the corrected one reaches, below which it is too
ALIKE = 0.999  # FSC on all shells that no two independent halves have
EMPTY = 1e-6  # of the strongest shell's amplitude: a shell without anything


@dataclass(frozen=True)
class Curves:
    """FSC by shell, each (S,) float64; without a mask, those of it are None and the corrected is the unmasked one."""

    unmasked: Tensor
    masked: Tensor | None
    randomised: Tensor | None
    corrected: Tensor
    part: Tensor | None  # f F / (1 + (f - 1) F) of the unmasked F, f the box's volume over the mask's
    from_shell: int  # phases are random from here

    @property
    def shell(self) -> int:
        """Up to which the halves agree."""
        return resolved_shell(self.corrected)

    @property
    def is_tight(self) -> bool:
        """Whether the mask makes correlation of its own there."""
        if self.masked is None or self.randomised is None:
            return False
        noise = float(self.randomised[min(self.shell, len(self.randomised) - 1)])
        return noise > TIGHT_NOISE or self.shell < TIGHT_SHARE * resolved_shell(self.masked)


def curves(
    halves: tuple[Tensor, Tensor], mask: Tensor | None, seed: int = 0, below: float = RANDOMISED_BELOW
) -> Curves:
    """All FSC curves of two densities (N, N, N), without and within a mask (N, N, N)."""
    one, other = halves
    unmasked = correlation(one, other)
    unmasked[0] = 1
    under = (unmasked[1:] < below).nonzero()
    start = 1 + int(under[0]) if len(under) else len(unmasked)
    if mask is None:
        return Curves(unmasked, None, None, unmasked, None, start)
    masked = correlation(one * mask, other * mask)
    draws = [
        correlation(*(randomised(each, start, 2 * (seed + draw) + h) * mask for h, each in enumerate(halves)))
        for draw in range(DRAWS)
    ]
    noise = torch.stack(draws).mean(dim=0)
    true = torch.where(noise > masked, 0.0, (masked - noise) / (1 - noise).clamp_min(1e-9))
    kept = torch.arange(len(masked), device=masked.device) < start + KEPT_SHELLS
    f = mask.numel() / float(mask.sum(dtype=torch.float64).clamp_min(1e-9))
    part = f * unmasked / (1 + (f - 1) * unmasked)
    for each in (masked, noise, true, part):
        each[0] = 1
    return Curves(unmasked, masked, noise, torch.where(kept, masked, true), part, start)


def randomised(density: Tensor, shell: int, seed: int) -> Tensor:
    """The density (N, N, N) with phases drawn anew from a shell on; the same seed draws the same, on any device."""
    n = len(density)
    transform = torch.fft.rfftn(density)
    phase = 2 * math.pi * torch.rand(transform.shape, generator=torch.Generator().manual_seed(seed))
    drawn = torch.polar(transform.abs(), phase.to(density.device))
    beyond = radius(n, density.device) >= shell
    return torch.fft.irfftn(torch.where(beyond, drawn, transform), s=density.shape)


def filtered_from(density: Tensor) -> int:
    """The first shell from which on a density (N, N, N) holds nothing more; N // 2 + 1 where it is not filtered."""
    from polarice.postprocessing.spectrum import mean_amplitude

    amplitude = mean_amplitude(density)[:-1]  # Nyquist may be left out by what made the map
    there = (amplitude > EMPTY * amplitude.max()).nonzero()
    last = int(there[-1]) if len(there) else 0
    return last + 1 if last + 1 < len(amplitude) else len(density) // 2 + 1


def are_masked(density: Tensor) -> float:
    """Share of a density's voxels that are exactly 0: of a map that was masked before."""
    return float((density == 0).double().mean())


def is_one_everywhere(fsc: Tensor) -> bool:
    """Whether no shell tells the halves apart."""
    return bool((fsc[1:-1] > ALIKE).all())

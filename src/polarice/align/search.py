"""The search: which poses are tried, and at which resolutions, coarse before fine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polarice.align.fused import Kernel
from polarice.align.polar import PolarBasis
from polarice.align.products import Precision

FEWEST_RINGS = 5  # a level of fewer parts nothing
PHASE_OFF_RAD = 0.4  # on a level's last ring, between a shift and the nearest that the level tries


@dataclass(frozen=True)
class Level:
    """One resolution of a search: the first rings of the basis, at every `stride`-th of its angles.

    Inner rings carry few harmonics, so that fewer angles hold all that is on them; and they hardly tell near shifts
    apart, so that fewer shifts do.
    """

    stride: int
    rings: int
    n_theta: int  # angles left
    psi_count: int  # rotations scored, from 0 to 360 degrees
    n_q: int  # harmonics on the last of the rings
    shifts_px: Tensor  # (shift, 2) x, y
    phases: tuple[Tensor, Tensor]  # cos and sin that undo them, each (shift, ring, angle)
    nearest: Tensor  # (shift,) which shift of the level before is nearest to each


@dataclass(frozen=True)
class Search:
    """The poses that are tried: every shift of the grid around each image's centre, every angle of the circle."""

    shifts_px: Tensor  # (shift, 2) x, y
    levels: tuple[Level, ...]  # the last is the whole basis; those before it tell what need not be looked at there
    shift_sigma_px: float  # width of the Gaussian prior on the whole shift, per axis
    precision: Precision = "float32"  # of the products of images and references
    kernel: Kernel = "plain"  # what sums the weights of coarse levels
    between_px: float = 0.0  # the best pose is looked for up to so far beside the grid's points, 0: only on them

    @property
    def psi_count(self) -> int:
        return self.levels[-1].psi_count

    @staticmethod
    def over(
        basis: PolarBasis, shifts_px: Tensor, psi_count: int, shift_sigma_px: float, coarse_to_fine: bool = False
    ) -> Search:
        """The plan for these shifts (shift, 2) on this basis."""
        cos, sin = basis.shift_phases(shifts_px)
        levels: list[Level] = []
        for stride in (*(_coarse_strides(basis) if coarse_to_fine else ()), 1):
            n_theta = basis.n_theta // stride
            rings = basis.rings_within(n_theta) if stride > 1 else basis.r_max
            reach_px = PHASE_OFF_RAD * basis.box_px / (2 * math.pi * rings) if stride > 1 else 0.0
            shifts = _covering(shifts_px, reach_px)
            before = shifts_px[shifts] if not levels else levels[-1].shifts_px
            levels.append(
                Level(
                    stride=stride,
                    rings=rings,
                    n_theta=n_theta,
                    psi_count=n_theta if stride > 1 else psi_count,
                    n_q=int(basis.harmonics_of_ring[rings - 1]) + 1,
                    shifts_px=shifts_px[shifts],
                    phases=(cos[shifts, :rings, ::stride].contiguous(), sin[shifts, :rings, ::stride].contiguous()),
                    nearest=torch.cdist(shifts_px[shifts], before).argmin(dim=1),
                )
            )
        return Search(shifts_px, tuple(levels), shift_sigma_px)


def _coarse_strides(basis: PolarBasis) -> list[int]:
    """Strides of the levels before the last: about a quarter and a half of the rings, where those are any."""
    strides = [3 if basis.n_theta % 3 == 0 else 4, 2]
    return [stride for stride in strides if basis.rings_within(basis.n_theta // stride) >= FEWEST_RINGS]


def _covering(shifts_px: Tensor, reach_px: float) -> Tensor:
    """Indices of some of the shifts (shift, 2), ascending, so that each is within reach of one: from the middle out."""
    points = shifts_px.double().cpu().numpy()
    chosen: list[int] = []
    for i in np.argsort(np.linalg.norm(points - points.mean(axis=0), axis=1), kind="stable"):
        if not chosen or np.linalg.norm(points[chosen] - points[i], axis=1).min() > reach_px:
            chosen.append(int(i))
    return torch.tensor(sorted(chosen), device=shifts_px.device)

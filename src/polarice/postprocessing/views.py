"""Resolution by direction, and how evenly views sample the transform.

Cones: the FSC of the Fourier voxels within 20 degrees of a direction, both ways (Tan et al. 2017, Nat Methods 14, 793).
Sampling: a view samples the plane across its direction. With S the number of views that pass near a direction of the
transform, over its mean on the sphere, the sampling compensation factor is

    SCF = 1 / <1 / S>               (Baldwin and Lyumkis 2020, Prog Biophys Mol Biol 150, 160)

1 for even views, 8 / pi^2 = 0.81 for side views about one axis, towards 0 where directions are not seen at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polarice.references.directions import healpix
from polarice.references.fsc import resolved_shell

CONE_DEG = 20.0
CONE_ORDER, SAMPLE_ORDER = 2, 3
FEW_BELOW = 6  # shells of which a cone holds hardly a voxel are taken to agree
NEAR = 0.05  # of the sphere's radius: planes so near to a direction sample it
BIASED_SCF = 0.81  # of side views; below, views are missing
BIASED_RATIO = 0.5  # of the worst cone's FSC area over the best one's


@dataclass(frozen=True)
class Cones:
    """FSC by direction."""

    directions: np.ndarray  # (d, 3) unit vectors of half a sphere
    fsc: np.ndarray  # (d, S)
    shell: np.ndarray  # (d,) up to which it stays above 0.143

    @property
    def area(self) -> np.ndarray:
        """(d,) sum of the FSC over shells from 1 on, as far as the best direction reaches."""
        return self.fsc[:, 1 : int(self.shell.max()) + 1].clip(0, 1).sum(axis=1)

    @property
    def ratio(self) -> float:
        """The least area over the largest."""
        return float(self.area.min() / max(self.area.max(), 1e-9))


@dataclass(frozen=True)
class Sampling:
    """How views sample the transform."""

    directions: np.ndarray  # (d, 3) of the transform
    density: np.ndarray  # (d,) S, its mean 1
    scf: float
    empty: float  # share of directions that no view comes near


def cones(halves: tuple[Tensor, Tensor], last_shell: int) -> Cones:
    """FSC of two densities (N, N, N) by direction, shells up to `last_shell`."""
    n, device = len(halves[0]), halves[0].device
    last = min(last_shell, n // 2)
    whole = torch.fft.fftfreq(n, 1 / n, device=device)
    half = torch.fft.rfftfreq(n, 1 / n, device=device)
    x, y, z = (
        half.expand(n, n, -1),
        whole[:, None].expand(n, n, n // 2 + 1),
        whole[:, None, None].expand(n, n, n // 2 + 1),
    )
    r = (x**2 + y**2 + z**2).sqrt()
    shell = r.round().long()
    inside = (shell >= 1) & (shell <= last) & ((half > 0) & (half < n / 2))
    a, b = (torch.fft.rfftn(each)[inside] for each in halves)
    unit = torch.stack([x[inside], y[inside], z[inside]], dim=1) / r[inside, None]
    values = torch.stack([(a * b.conj()).real, a.abs() ** 2, b.abs() ** 2], dim=1).double()
    directions = healpix(CONE_ORDER)
    directions = directions[directions @ (0.001, 0.01, 1.0) > 0]
    found = []
    limit = float(np.cos(np.radians(CONE_DEG)))
    for each in directions:
        to_device = (unit @ torch.tensor(each, dtype=torch.float32, device=device)).abs() > limit
        sums = torch.zeros(last + 1, 3, dtype=torch.float64, device=device)
        sums.index_add_(0, shell[inside][to_device], values[to_device])
        found.append(sums[:, 0] / (sums[:, 1] * sums[:, 2]).sqrt().clamp_min(1e-300))
    fsc = torch.stack(found)
    fsc[:, 0] = 1
    fsc[:, 1:FEW_BELOW] = fsc[:, 1:FEW_BELOW].clamp_min(0.5)
    fsc[:, 1:-1] = (fsc[:, :-2] + fsc[:, 1:-1] + fsc[:, 2:]) / 3  # a cone holds few voxels: noise crosses early
    return Cones(directions, fsc.cpu().numpy(), np.array([resolved_shell(each) for each in fsc]))


def sampling(directions: np.ndarray, group: np.ndarray) -> Sampling:
    """Of views along unit vectors (n, 3) of a particle with the rotations (g, 3, 3).

    A direction that no view comes near counts as if one view in ten did.
    """
    seen = np.einsum("gij,nj->gni", group, directions).reshape(-1, 3)
    points = healpix(SAMPLE_ORDER)
    points = points[points @ (0.001, 0.01, 1.0) > 0]
    count = np.zeros(len(points))
    for start in range(0, len(seen), 4096):
        count += (np.abs(points @ seen[start : start + 4096].T) < NEAR).sum(axis=1)
    density = count / max(count.mean(), 1e-12)
    least = 0.1 * len(group) / max(count.mean(), 1e-12)
    return Sampling(points, density, float(1 / (1 / np.maximum(density, least)).mean()), float((count == 0).mean()))

"""Between the grid's points: each image's best shift and angle, by the shape of the log weights about the best cell.

Along the angle a parabola through the best cell and its neighbours; along the shift one Newton step. With P(r, theta)
the product of the weighted image's field, moved to the best shift, with the turned reference, Q that of its opposite
(`PolarBasis.opposite`), and kappa = 2 pi k / N,

    score(t + d) = sum P cos(kappa.d) + Q sin(kappa.d),   gradient sum Q kappa,   curvature -sum P kappa kappa^T

so that a shift costs one more product of two fields, and not a finer grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from polarice.align.polar import PolarBasis

REACH = 0.75  # of a step of the grid, along either axis


def between_angles(weights: Tensor, best: Tensor) -> Tensor:
    """(image,) where in units of cells, within half a cell of `best`, each row of log weights (image, angle) peaks."""
    row, count = torch.arange(len(best), device=best.device), weights.shape[1]
    before, at, after = (weights[row, (best + step) % count] for step in (-1, 0, 1))
    bend = (2 * at - before - after).clamp_min(1e-6)
    return best + (0.5 * (after - before) / bend).clamp(-0.5, 0.5)


def between_shifts(basis: PolarBasis, field: Tensor, reference: Tensor, prior: tuple[Tensor, float]) -> Tensor:
    """(image, 2) px by which the best shift lies from where images were moved to: a Newton step, not yet bounded.

    field (image, ring, angle): w / sigma^2 C X, moved; reference (image, ring, angle): turned to each image's angle;
    prior: the whole shift (image, 2) px, and its Gaussian's width.
    """
    shift_px, sigma_px = prior
    half = basis.n_theta // 2
    kx, ky = (k[:, :half].float() * (2 * math.pi / basis.box_px) for k in basis.frequency)
    to_device, far = field[..., :half], field[..., half:]
    near_reference, far_reference = reference[..., :half], reference[..., half:]
    odd = far * near_reference
    odd.addcmul_(to_device, far_reference, value=-1)
    even = to_device * near_reference
    even.addcmul_(far, far_reference)
    odd, even = odd.flatten(1), even.flatten(1)
    slope = odd @ torch.stack([kx, ky], dim=-1).view(-1, 2) - shift_px / sigma_px**2
    bend = even @ torch.stack([kx * kx, ky * ky, kx * ky], dim=-1).view(-1, 3)
    a, d, b = bend[:, 0] + sigma_px**-2, bend[:, 1] + sigma_px**-2, bend[:, 2]
    determinant = a * d - b * b
    step = torch.stack([d * slope[:, 0] - b * slope[:, 1], a * slope[:, 1] - b * slope[:, 0]], dim=1)
    peaked = (a > 0) & (d > 0) & (determinant > 0)
    return torch.where(peaked[:, None], step / determinant.clamp_min(1e-30)[:, None], 0.0)

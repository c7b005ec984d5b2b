"""One density fitted to another, and a density turned so that its symmetry axes lie where a group has them.

First all rotations of a grid (HEALPix directions 15 degrees apart, with as many turns), coarse densities, all shifts at
once by the transform of their cross-correlation; then the best of them by BFGS on the correlation, in rotation and
shift together, coarse first, then fine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polarice.postprocessing.resample import Interpolated, Move, centre_of_mass, mirrored
from polarice.postprocessing.spectrum import low_pass, resampled
from polarice.references.directions import angles_of, healpix, posed_views

GRID_ORDER, TURNS = 2, 24  # 192 directions, each 15 degrees
COARSE_PX, MIDDLE_PX, FINE_PX = 20, 32, 128
COARSE_SHELL = 7.0  # finer details change within 15 degrees
KEPT, APART_DEG = 8, 20.0  # candidates of each hand, and how far they are from each other
AT_ONCE = 96
AS_GOOD = 0.005  # a map whose axes lie well so nearly is not turned to others as good
FEW_STEPS, STEPS = 12, 40  # of BFGS, on coarse densities and fine ones
Score = Callable[[Tensor, Tensor], Tensor]  # of a rotation (3, 3) and a shift (3,)


@dataclass(frozen=True)
class Fit:
    """How one density is moved to lie on another; shift in voxels of the box that was fitted."""

    move: Move
    correlation: float
    hands: tuple[float, float]  # best correlations of coarse densities, of this hand and of the other


def fit(moving: Tensor, fixed: Tensor, resolved_px: float = 0.0) -> Fit:
    """Rotation, shift and hand that bring one density (N, N, N) onto another of the same box and voxels.

    resolved_px: finer details than so many voxels are not looked at.
    """
    n = len(fixed)
    found = []
    for hand in (False, True):
        given = mirrored(moving) if hand else moving
        coarse = _smallest(given), _smallest(fixed)
        pair = _smaller(given, MIDDLE_PX), _smaller(fixed, MIDDLE_PX)
        size = len(pair[0])
        score = _correlation(*pair)
        starts = [(rotation, shift * size / len(coarse[0])) for rotation, shift in _candidates(*coarse)]
        best = max((_climbed(score, *each, FEW_STEPS) for each in starts), key=lambda each: each[2])
        found.append((best[2], hand, given, best[0], best[1] / size))
    found.sort(key=lambda each: -each[0])
    _, hand, given, rotation, shift = found[0]
    pair = _smaller(given, FINE_PX, resolved_px), _smaller(fixed, FINE_PX, resolved_px)
    size = len(pair[0])
    rotation, shift, correlation = _climbed(_correlation(*pair), rotation, shift * size)
    return Fit(Move(rotation, shift * n / size, hand), correlation, (found[0][0], found[1][0]))


def align_axes(density: Tensor, group: np.ndarray, generators: np.ndarray) -> Fit:
    """The move that brings a density's symmetry axes to those of a group (g, 3, 3), of which the generators (1 or 2, 3,
    3) make all others; correlation: with its mates."""
    n = len(density)
    mass_px = centre_of_mass(density)
    small = _smallest(Interpolated(density).moved(Move(shift_px=-mass_px)))
    rotations = _grid(axis_alone=len(generators) == 1)
    values = _symmetry_scores(small, rotations, generators)
    middle = _smaller(density, MIDDLE_PX)
    size = len(middle)
    score = _symmetry(middle, generators)
    starts = [np.eye(3), *(rotations[each] for each in _apart(rotations, values, group))]
    climbed = [_climbed(score, each, -each @ mass_px * size / n, FEW_STEPS) for each in starts]
    best = max(climbed, key=lambda each: each[2])
    if climbed[0][2] > best[2] - AS_GOOD:
        best = climbed[0]
    fine = _smaller(density, FINE_PX)
    rotation, shift, correlation = _climbed(_symmetry(fine, generators), best[0], best[1] * len(fine) / size)
    return Fit(Move(rotation, shift * n / len(fine)), correlation, (best[2], 0.0))


def _grid(axis_alone: bool = False) -> np.ndarray:
    """(n, 3, 3) rotations; turns about the third axis are left out where they do not matter."""
    order = GRID_ORDER + 1 if axis_alone else GRID_ORDER
    rot_deg, tilt_deg = angles_of(healpix(order))
    psi_deg = np.zeros(1) if axis_alone else np.arange(TURNS) * 360.0 / TURNS
    many = len(psi_deg)
    return posed_views(np.repeat(rot_deg, many), np.repeat(tilt_deg, many), np.tile(psi_deg, len(rot_deg)))


def _smaller(density: Tensor, box_px: int, resolved_px: float = 0.0) -> Tensor:
    """The density with its mean taken off, in a box of so many voxels, or as it is where that is smaller."""
    plain = (density - density.mean()).float().cpu()
    n = len(plain)
    if n > box_px:
        plain = low_pass(resampled(plain, box_px), 0.45 * box_px)
    if resolved_px > 2 * n / len(plain):
        plain = low_pass(plain, n / resolved_px)
    return plain


def _smallest(density: Tensor) -> Tensor:
    """As the grid of rotations tells densities apart."""
    small = _smaller(density, COARSE_PX)
    return low_pass(small, min(COARSE_SHELL, len(small) / 2))


def _ball(box_px: int) -> tuple[Tensor, Tensor]:
    """(n, 3) points within the box's sphere, and (N^3,) bool which they are."""
    points = _points(box_px)
    inside = points.norm(dim=1) < box_px / 2
    return points[inside], inside


def _points(box_px: int) -> Tensor:
    """(N^3, 3) x, y, z from N // 2."""
    x = torch.arange(box_px, dtype=torch.float32) - box_px // 2
    z, y, x = torch.meshgrid(x, x, x, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


def _read(density: Tensor, points: Tensor) -> Tensor:
    """Values at points (..., 3), linear between voxels, 0 outside; can be differentiated by the points."""
    n = len(density)
    unit = (points + n // 2) * (2 / (n - 1)) - 1
    flat = unit.reshape(1, 1, 1, -1, 3)
    return torch.nn.functional.grid_sample(density[None, None], flat, align_corners=True).reshape(points.shape[:-1])


def _candidates(moving: Tensor, fixed: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """The best rotations of the grid, each with its best shift, apart from each other."""
    n, rotations = len(fixed), _grid()
    points, target = _points(n), torch.fft.rfftn(fixed)
    values, places = [], []
    for some in torch.from_numpy(rotations).float().split(AT_ONCE):
        turned = _read(moving, points @ some).reshape(-1, n, n, n)  # rows r^T R: R^T r
        size = turned.flatten(1).norm(dim=1).clamp_min(1e-20) * fixed.norm()
        spectrum = torch.fft.rfftn(turned, dim=(1, 2, 3)).conj() * target
        cells = torch.fft.irfftn(spectrum, s=(n, n, n), dim=(1, 2, 3)).flatten(1)
        best, place = cells.max(dim=1)
        values.append(best / size)
        places.append(place)
    value, place = torch.cat(values).numpy(), torch.cat(places).numpy()
    shift = np.stack(np.unravel_index(place, (n, n, n))[::-1], axis=1).astype(float)
    shift = np.where(shift > n / 2, shift - n, shift)
    return [(rotations[each], shift[each]) for each in _apart(rotations, value, np.eye(3)[None])]


def _apart(rotations: np.ndarray, value: np.ndarray, group: np.ndarray) -> list[int]:
    """Places of the best values whose rotations (n, 3, 3), and their mates in a group (g, 3, 3), are far from those of
    all better ones."""
    kept: list[int] = []
    to_device = 1 + 2 * math.cos(math.radians(APART_DEG))
    for place in np.argsort(-value):
        mates = group @ rotations[place]
        if all(np.einsum("gij,ij->g", mates, rotations[each]).max() < to_device for each in kept):
            kept.append(int(place))
        if len(kept) == KEPT:
            break
    return kept


def _symmetry_scores(density: Tensor, rotations: np.ndarray, generators: np.ndarray) -> np.ndarray:
    """(n,) mean correlation of a centred density with its mates, when turned by each of the rotations (n, 3, 3)."""
    points, size = _points(len(density)), density.square().sum()
    found = np.zeros(len(rotations))
    for one in generators:
        mates = torch.from_numpy(np.swapaxes(rotations, 1, 2) @ one @ rotations).float()
        parts = [_read(density, points @ some) @ density.flatten() for some in mates.split(AT_ONCE)]
        found += (torch.cat(parts) / size).numpy() / len(generators)
    return found


def _correlation(moving: Tensor, fixed: Tensor) -> Score:
    """The correlation of a fixed density with a moved one."""
    points, inside = _ball(len(fixed))
    target = fixed.flatten()[inside]
    target, ready = target / target.norm().clamp_min(1e-20), _finer(moving)

    def score(rotation: Tensor, shift: Tensor) -> Tensor:
        found = _read(ready, 2 * ((points - shift) @ rotation))
        return found @ target / found.norm().clamp_min(1e-20)

    return score


def _finer(density: Tensor) -> Tensor:
    """The density on a grid twice as fine, so that to interpolate linearly hardly blurs."""
    return resampled(density, 2 * len(density))


def _symmetry(density: Tensor, generators: np.ndarray) -> Score:
    """The mean correlation of a moved density with its mates."""
    points, inside = _ball(len(density))
    own, ready = density.flatten()[inside], _finer(density)
    size, mates = own.square().sum(), torch.from_numpy(generators).float()

    def score(rotation: Tensor, shift: Tensor) -> Tensor:
        total = torch.zeros(())
        for one in mates:  # r -> where its mate lies, in the frame of the density as given
            there = (points @ rotation.T + shift) @ one.T - shift
            found = _read(ready, 2 * (there @ rotation))
            total = total + found @ own / size / len(mates)
        return total

    return score


def _climbed(
    score: Score, rotation: np.ndarray, shift: np.ndarray, steps: int = STEPS
) -> tuple[np.ndarray, np.ndarray, float]:
    """Rotation, shift and score after BFGS from a start."""
    from scipy.optimize import minimize
    from scipy.spatial.transform import Rotation

    base = torch.from_numpy(np.ascontiguousarray(rotation)).float()
    scale = 10.0  # a radian moves the rim by some ten voxels

    def down(x: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(x, dtype=torch.float32, requires_grad=True)
        turn = torch.linalg.matrix_exp(_cross(free[:3] / scale))
        value = -score(turn @ base, free[3:])
        value.backward()
        assert free.grad is not None
        return float(value.detach()), free.grad.double().numpy()

    found = minimize(
        down, np.concatenate([np.zeros(3), shift]), jac=True, method="L-BFGS-B", options={"maxiter": steps}
    )
    turn = Rotation.from_rotvec(found.x[:3] / scale).as_matrix()
    return turn @ rotation, found.x[3:], -float(found.fun)


def _cross(vector: Tensor) -> Tensor:
    """(3, 3) the matrix of the cross product with a vector (3,)."""
    x, y, z = vector
    nothing = torch.zeros(())
    rows = [torch.stack(each) for each in ([nothing, -z, y], [z, nothing, -x], [-y, x, nothing])]
    return torch.stack(rows)

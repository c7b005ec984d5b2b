"""Classes brought into register: each class average of an earlier job stands in an in-plane frame of its own.

    A_c = Shift(u_c) Rotate(alpha_c) B_c        B_c: the same class in the frame that all share

Every pair of averages is compared at all angles and some shifts. The frames then follow the tree of the strongest
correlations, so that each class is turned to the one that it resembles most; then each is turned a few times more, to
the mean of those that resemble it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from polarice.align.polar import PolarBasis
from polarice.align.schedule import shift_grid
from polarice.types import Pose2D

PERIODS = 16  # across the particle: the resolution up to which averages are compared
RANGE_PX, STEP_PX = 6.0, 2.0  # of the shifts between two averages
FINE_STEPS = (1.0, 0.25)  # px, of the searches around what was found
FINER_ANGLES = 4  # angles tried for each of the basis's
SWEEPS = 3
NEIGHBOURS = 5  # whose mean a class is turned to
PAIRS_AT_ONCE = 1 << 24  # cells of pairs, shifts and angles


@dataclass(frozen=True)
class Frames:
    """How each class's frame lies in the common one."""

    psi_deg: np.ndarray  # (class,) alpha
    shift_px: np.ndarray  # (class, 2) u, x then y
    correlation: np.ndarray  # (class,) of each average with the mean of its neighbours, in register

    def pose(self, pose: Pose2D, frame_of: np.ndarray) -> Pose2D:
        """Poses towards the common frame; frame_of (n,) is each particle's class here, -1 leaves it as it is."""
        known = frame_of >= 0
        psi_deg, shift_px = pose.psi_deg.copy(), pose.shift_px.copy()
        of = frame_of[known]
        shift_px[known] += _turned(self.shift_px[of], np.deg2rad(psi_deg[known]))
        psi_deg[known] += self.psi_deg[of]
        return replace(pose, psi_deg=psi_deg, shift_px=shift_px)


def register_basis(box_px: int, radius_px: float, r_max: int, device: torch.device) -> PolarBasis:
    """The basis that averages are compared in: few rings, room for shifts."""
    rings = min(r_max, max(4, round(PERIODS * box_px / (2 * radius_px))))
    return PolarBasis(box_px, radius_px, rings, RANGE_PX + STEP_PX, device)


def register(basis: PolarBasis, field: Tensor, noise: Tensor, count: np.ndarray) -> Frames:
    """Frames of averages (class, ring, angle) float32, of which each is the mean of `count` particles.

    noise (ring,) is the variance by which rings are weighted. The class that resembles the others most keeps its frame.
    """
    scaled = field * (basis.weight / noise).sqrt()[:, None]
    psi, shift, correlation = _compared(basis, scaled)
    psi, shift = _along_tree(basis, scaled, psi, shift, correlation * np.sqrt(np.minimum.outer(count, count)))
    for _ in range(SWEEPS):
        psi, shift, agreed = _settled(basis, scaled, psi, shift, count)
    return Frames(np.rad2deg(psi), shift, agreed)


def _compared(basis: PolarBasis, field: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every pair (a, b): the angle and shift that b takes to lie as a, and the correlation there."""
    shifts = shift_grid(RANGE_PX, STEP_PX, np.zeros(2))
    phases = basis.shift_phases(torch.from_numpy(shifts))
    norm = field.flatten(1).norm(dim=1).clamp_min(1e-30)
    references = basis.harmonics(field).permute(2, 1, 0).conj()  # (q, ring, b)
    size = max(1, PAIRS_AT_ONCE // (len(shifts) * len(field) * basis.n_theta))
    found = []
    for block in field.split(size):
        moved = basis.harmonics(basis.unshift(block[:, None], phases))  # (a, shift, ring, q)
        spectrum = torch.bmm(moved.permute(3, 0, 1, 2).flatten(1, 2), references)
        cells = torch.fft.irfft(spectrum.permute(1, 2, 0), n=basis.n_theta)  # (a and shift, b, angle)
        best, angle = cells.max(dim=2)
        best, place = best.view(len(block), len(shifts), -1).max(dim=1)
        angle = angle.view(len(block), len(shifts), -1).gather(1, place[:, None])[:, 0]
        found.append((angle, place, best))
    angle, place, best = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    value = (best / torch.outer(norm, norm).cpu()).double().numpy()
    return angle.numpy() * (2 * math.pi / basis.n_theta), shifts[place.numpy()], value


def _along_tree(
    basis: PolarBasis, field: Tensor, psi: np.ndarray, shift: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Frames by the tree of largest weights, the pairs on it compared finely."""
    weight = np.maximum(weight, weight.T)
    np.fill_diagonal(weight, 0)
    root = int(weight.sum(axis=1).argmax())
    child, parent = _tree(weight, root)
    fine_psi, fine_shift, _ = _finely(basis, field[child], field[parent], psi[child, parent], shift[child, parent])
    alpha, u = np.zeros(len(field)), np.zeros((len(field), 2))
    for place, (c, p) in enumerate(zip(child, parent, strict=True)):
        alpha[c] = fine_psi[place] + alpha[p]
        u[c] = fine_shift[place] + _turned(u[p][None], fine_psi[place : place + 1])[0]
    return alpha, u


def _tree(weight: np.ndarray, root: int) -> tuple[list[int], list[int]]:
    """Children and their parents in the order in which they join: always the strongest link to those that are in."""
    inside = np.zeros(len(weight), bool)
    inside[root] = True
    child, parent = [], []
    for _ in range(len(weight) - 1):
        links = np.where(inside[:, None] & ~inside, weight, -np.inf)
        p, c = np.unravel_index(int(links.argmax()), links.shape)
        inside[c] = True
        child.append(int(c))
        parent.append(int(p))
    return child, parent


def _settled(
    basis: PolarBasis, field: Tensor, psi: np.ndarray, shift: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames after each class was turned to the mean of its neighbours in the common frame; and their correlation."""
    common = _in_frame(basis, field, psi, shift)
    flat = common.flatten(1)
    unit = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-30)
    likeness = (unit @ unit.T).cpu().double().numpy()
    np.fill_diagonal(likeness, -1)
    mean = torch.zeros_like(common)
    for c in range(len(field)):
        to_device = np.argsort(-likeness[c])[: min(NEIGHBOURS, len(field) - 1)]
        weights = np.maximum(likeness[c, to_device], 0) ** 2 * np.sqrt(count[to_device])
        mean[c] = torch.einsum("b,brt->rt", torch.from_numpy(weights).to(common), common[to_device])
    turn, move, value = _finely(basis, common, mean, np.zeros(len(field)), np.zeros((len(field), 2)))
    # A = Shift(u) Rotate(alpha) common and common = Shift(move) Rotate(turn) B
    return psi + turn, shift + _turned(move, psi), value


def _in_frame(basis: PolarBasis, field: Tensor, psi: np.ndarray, shift: np.ndarray) -> Tensor:
    """Fields moved by -shift and turned by -psi."""
    harmonics = basis.harmonics(basis.unshifted(field, torch.from_numpy(shift).float().to(field.device)))
    q = torch.arange(basis.n_q, device=field.device)
    turn = torch.from_numpy(psi).to(field.device)[:, None] * q
    return basis.field(harmonics * torch.polar(torch.ones_like(turn), turn).to(harmonics.dtype)[:, None])


def _finely(
    basis: PolarBasis, image: Tensor, reference: Tensor, psi: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Angle and shift that each reference takes to lie as its image, around what is known, and their correlation."""
    conjugate = basis.harmonics(reference).conj()
    psi, shift = psi.copy(), shift.copy()
    value = np.zeros(len(psi))
    norm = (image.flatten(1).norm(dim=1) * reference.flatten(1).norm(dim=1)).clamp_min(1e-30)
    n_psi = FINER_ANGLES * basis.n_theta
    for step in FINE_STEPS:
        around = shift_grid(1.5 * step, step, np.zeros(2))
        phases = basis.shift_phases(torch.from_numpy(around))
        moved = basis.unshifted(image, torch.from_numpy(shift).float().to(image.device))
        data = basis.harmonics(basis.unshift(moved[:, None], phases))  # (image, shift, ring, q)
        spectrum = torch.einsum("isrq,irq->isq", data, conjugate)
        cells = torch.fft.irfft(spectrum, n=n_psi) * FINER_ANGLES
        best, place = cells.flatten(1).max(dim=1)
        which, angle = (place // n_psi).cpu().numpy(), (place % n_psi).cpu().numpy()
        psi, shift = angle * (2 * math.pi / n_psi), shift + around[which]
        value = (best / norm).cpu().double().numpy()
    return psi, shift, value


def _turned(vectors: np.ndarray, angle_rad: np.ndarray) -> np.ndarray:
    """Vectors (n, 2; x, y) turned by angles (n,), x towards y."""
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.stack([cos * vectors[:, 0] - sin * vectors[:, 1], sin * vectors[:, 0] + cos * vectors[:, 1]], axis=1)

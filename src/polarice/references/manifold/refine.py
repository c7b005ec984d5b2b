"""Poses moved, locally, to where the map explains the images best.

With R_ik the shares of the nodes in an image, the expected log likelihood of a pose is, for a round CTF and up to what
does not depend on it, the product of the posed image with its posterior mean reference,

    sum_k R_ik <C'X', Y_k> = <C'X', sum_k R_ik Y_k>,

so a sweep that takes the best pose of each image is a step of a generalised expectation maximization: together with the
prior on how far a pose may go, the log posterior does not fall (Meng and Rubin, Biometrika 80, 267, 1993).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from polarice.align.expect import PolarImages
from polarice.align.images import Clock
from polarice.align.schedule import shift_grid
from polarice.references.manifold.aligned import AlignedImages
from polarice.references.manifold.aligned_particles import AlignedParticles
from polarice.references.manifold.model import Manifold
from polarice.references.manifold.nodes import Nodes, log_weights
from polarice.types import Pose2D

FINER_ANGLES = 4  # angles tried for each of the basis's
STEP_PX = 0.5  # a sweep tries shifts one step around each image's own
FARTHEST_SD = 2.0  # no pose goes farther than so many standard deviations of its prior


@dataclass(frozen=True)
class PosePrior:
    """How far poses may go from where they were at first: standard deviations of a Gaussian prior."""

    psi_sd_deg: float = 4.0
    shift_sd_px: float = 0.75


def refined(
    images: AlignedParticles, model: Manifold, poses: tuple[Pose2D, Pose2D], pose_prior: PosePrior, clock: Clock
) -> Pose2D:
    """Poses after one sweep over all ranks' images; poses = (as they are, as they were at first)."""
    pose, anchor = poses
    nodes = model.nodes(images.even)
    psi_deg, shift_px = pose.psi_deg.copy(), pose.shift_px.copy()

    def work(rows: np.ndarray, polar: PolarImages, posed: AlignedImages) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        share = log_weights(images.packed, nodes, posed).softmax(dim=1)
        mean = images.packed.harmonics(nodes.mean(share))
        local = _Local(images, nodes, pose.psi_deg[rows], pose.shift_px[rows])
        turn, move = local.best(polar, mean, anchor.psi_deg[rows], anchor.shift_px[rows], pose_prior)
        return rows, turn, move

    for rows, turn, move in images.each(pose, work, clock):
        psi_deg[rows] += turn
        shift_px[rows] += move
    psi_deg[images.rows], shift_px[images.rows] = images.comm.all_gather((psi_deg[images.own], shift_px[images.own]))
    return replace(pose, psi_deg=psi_deg, shift_px=shift_px)


@dataclass(frozen=True)
class _Local:
    """The poses near those of a batch."""

    images: AlignedParticles
    nodes: Nodes
    psi_deg: np.ndarray
    shift_px: np.ndarray

    def best(
        self, polar: PolarImages, mean: Tensor, anchor_psi_deg: np.ndarray, anchor_px: np.ndarray, pose_prior: PosePrior
    ) -> tuple[np.ndarray, np.ndarray]:
        """By how much to turn (n,), degrees, and to shift (n, 2), px."""
        steps = shift_grid(1.5 * STEP_PX, STEP_PX, np.zeros(2))
        angles_deg = self._angles(pose_prior)
        score = self._scores(polar, mean, steps, angles_deg)
        psi = self.psi_deg[:, None] + angles_deg - anchor_psi_deg[:, None]
        away_deg = (psi + 180) % 360 - 180
        away_px = np.linalg.norm(self.shift_px[:, None] + steps - anchor_px[:, None], axis=2)
        cost = 0.5 * (away_deg / pose_prior.psi_sd_deg)[:, None] ** 2
        cost = cost + 0.5 * (away_px / pose_prior.shift_sd_px)[..., None] ** 2
        far = (np.abs(away_deg) > FARTHEST_SD * pose_prior.psi_sd_deg)[:, None]
        far = far | (away_px > FARTHEST_SD * pose_prior.shift_sd_px)[..., None]
        far[:, np.flatnonzero(~steps.any(axis=1))[0], np.flatnonzero(angles_deg == 0)[0]] = False  # staying is allowed
        total = np.where(far, -np.inf, score - cost).reshape(len(score), -1)
        which = total.argmax(axis=1)
        return angles_deg[which % len(angles_deg)], steps[which // len(angles_deg)]

    def _angles(self, pose_prior: PosePrior) -> np.ndarray:
        """(angle,) turns that are tried, degrees, 0 among them."""
        step = 360 / (FINER_ANGLES * self.images.basis.n_theta)
        reach = math.ceil(FARTHEST_SD * pose_prior.psi_sd_deg / step)
        return step * np.arange(-reach, reach + 1)

    def _scores(self, polar: PolarImages, mean: Tensor, steps: np.ndarray, angles_deg: np.ndarray) -> np.ndarray:
        """(n, shift, angle) product of the images, moved and turned on from where they are, with their references."""
        basis = self.images.basis
        scale = self.nodes.scale[polar.optics_of][:, None, :, None]
        phases = basis.shift_phases(torch.from_numpy(steps))
        moved = basis.unshift(polar.field[:, None], phases) * (polar.ctf[:, None] * scale)
        spectrum = torch.einsum("nsrq,nrq->nsq", basis.harmonics(moved), mean.conj())
        q = torch.arange(basis.n_q, device=spectrum.device, dtype=torch.float64)
        angles = torch.from_numpy(np.deg2rad(self.psi_deg[:, None] + angles_deg)).to(spectrum.device)
        turn = torch.polar(torch.ones_like(angles)[..., None].expand(-1, -1, len(q)), angles[..., None] * q)
        turn = turn.to(spectrum.dtype) * torch.where(q > 0, 2.0, 1.0).to(spectrum.real.dtype)
        return (torch.einsum("nsq,naq->nsa", spectrum, turn).real / basis.n_theta).double().cpu().numpy()

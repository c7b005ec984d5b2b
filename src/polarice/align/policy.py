"""The policy of classes: all K stay populated, since the largest are split; and they stay centred."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic

import numpy as np
import torch
from torch import Tensor

from polarice.align.classify import FARTHEST_FROM_CUT_PX, Cuts
from polarice.align.fit import Expected, State
from polarice.align.model import M
from polarice.align.polar import PolarBasis
from polarice.align.prepare import soft_mask
from polarice.align.schedule import RESOLUTION_MARGIN_RINGS, Step
from polarice.types import Assignment

UNDERPOPULATED = 0.1  # classes with less than this share of an equal one are reseeded
CENTRE_PSEUDOCOUNT = 5.0  # particles
SETTLED_SHARE = 0.9  # of the particles; the ring that only the others' averages still reach sets the resolution


@dataclass(frozen=True)
class ClassPolicy(Generic[M]):
    """Split, reseed, centre, and widen the basis with what is resolved."""

    centre_classes: bool = True

    def before(self, state: State[M, Cuts], step: Step, rng: np.random.Generator) -> M:
        """As many classes as the step asks for, on the step's basis."""
        model = state.model
        return split_largest(model, step, rng).on(_basis(model.basis, step, _resolved_px(model)))

    def after(
        self, model: M, found: Expected[M, Cuts], step: Step, rng: np.random.Generator
    ) -> tuple[M, Assignment, tuple[int, ...]]:
        """Centred, where the step is one of settling, and underpopulated classes reseeded."""
        assignment = found.assignment
        if self.centre_classes and step.settling:
            model, assignment = centred(model, assignment, found.used)
        model, reseeded = reseed(model, _shares(assignment, found.used, step.references), step, rng)
        return model, assignment, reseeded


def split_largest(model: M, step: Step, rng: np.random.Generator) -> M:
    """The model with as many classes as the step asks for: the largest are split."""
    missing = step.references - len(model.weights)
    if missing <= 0:
        return model
    weights = model.weights.tolist()
    into = list(range(len(weights)))
    for _ in range(missing):
        largest = int(np.argmax(weights))
        weights[largest] /= 2
        weights.append(weights[largest])
        into.append(into[largest])
    return model.split(torch.tensor(into, device=model.weights.device), _perturbation(model, len(into), rng))


def _shares(assignment: Assignment, used: np.ndarray, k: int) -> np.ndarray:
    """(K,) share of the particles whose best class each one is."""
    return np.bincount(assignment.pose.class_of[used], minlength=k) / len(used)


def reseed(model: M, shares: np.ndarray, step: Step, rng: np.random.Generator) -> tuple[M, tuple[int, ...]]:
    """Classes of little weight, or best of few particles, take over half of the largest ones."""
    weights = model.weights.tolist()
    k = len(weights)
    underpopulated = [c for c in range(k) if min(weights[c], shares[c]) * k < UNDERPOPULATED]
    if not underpopulated or len(underpopulated) == k or step.number == step.total:
        return model, ()
    into = list(range(k))
    for c in underpopulated:
        largest = int(np.argmax(weights))
        weights[largest] /= 2
        weights[c] = weights[largest]
        into[c] = into[largest]
    split = model.split(torch.tensor(into, device=model.weights.device), _perturbation(model, k, rng))
    return split, tuple(underpopulated)


def _perturbation(model: M, count: int, rng: np.random.Generator) -> Tensor:
    """(count, ring, angle): polar fields of white noise within the basis's radius, unit variance on every ring."""
    basis = model.basis
    noise = torch.from_numpy(rng.standard_normal((count, basis.box_px, basis.box_px), np.float32)).to(basis.device)
    field = basis.sample(noise * soft_mask(basis.box_px, basis.radius_px, basis.device))
    return field / field.square().mean(dim=2, keepdim=True).sqrt()


def _resolved_px(model: M) -> int:
    """The ring beyond which the class averages of most particles (SETTLED_SHARE) hold no signal."""
    rings, order = model.resolution_px().sort()
    share = model.weights[order].cumsum(dim=0)
    at = int(torch.searchsorted(share, torch.tensor(SETTLED_SHARE, dtype=share.dtype, device=share.device)))
    return int(rings[min(at, len(rings) - 1)])


def _basis(now: PolarBasis, step: Step, resolved_px: int) -> PolarBasis:
    """The basis of this step: rings up to the ramp, but not far beyond what is resolved; none is given back.

    The last iteration adds none: images stay prepared, and the rings that there are lie beyond what is resolved.
    """
    margin = RESOLUTION_MARGIN_RINGS if step.number < step.total else 0
    wanted = min(step.ramp_px, resolved_px + margin)
    r_max = max(step.whole_rings(wanted), min(now.r_max, step.whole_rings(step.ramp_px)))
    slack = step.shift_range_px + step.shift_step_px + FARTHEST_FROM_CUT_PX
    same = r_max == now.r_max and slack <= now.slack_px
    return now if same else replace(now, r_max=r_max, slack_px=max(slack, now.slack_px))


def centred(model: M, assignment: Assignment, used: np.ndarray) -> tuple[M, Assignment]:
    """Class averages shifted so that their particles were, on the average, picked at their centres.

    Unlike the centre of mass this does not move when a neighbour looks in at the mask's edge. Of a class with few
    particles only a part of the way is gone. Every particle's shift moves with its class.
    """
    pose = assignment.pose
    k = len(model.weights)
    class_of = pose.class_of[used]
    in_frame = _rotated(pose.shift_px[used], -np.deg2rad(pose.psi_deg[used]))
    count = np.bincount(class_of, minlength=k)
    total = np.stack([np.bincount(class_of, in_frame[:, axis], minlength=k) for axis in (0, 1)], axis=1)
    offset = -total / (count + CENTRE_PSEUDOCOUNT)[:, None]
    model = model.recentred(torch.from_numpy(offset).to(model.weights.device))
    known = pose.class_of >= 0
    back = _rotated(offset[np.maximum(pose.class_of, 0)] * known[:, None], np.deg2rad(pose.psi_deg))
    return model, replace(assignment, pose=replace(pose, shift_px=pose.shift_px + back))


def _rotated(vectors: np.ndarray, angle_rad: np.ndarray) -> np.ndarray:
    """Vectors (n, 2; x, y) rotated by angles (n,), x towards y."""
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.stack([cos * vectors[:, 0] - sin * vectors[:, 1], sin * vectors[:, 0] + cos * vectors[:, 1]], axis=1)

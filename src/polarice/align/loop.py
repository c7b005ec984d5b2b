"""The loop: expect, sum, maximize, yield."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic

import numpy as np
import torch
from torch import Tensor

from polarice.align.expect import Posterior, Search, expect
from polarice.align.images import Clock, ParticleImages
from polarice.align.model import M, Prior
from polarice.align.polar import PolarBasis
from polarice.align.prepare import soft_mask
from polarice.align.schedule import RESOLUTION_MARGIN_RINGS, Schedule, Step, shift_grid
from polarice.align.sums import Sums
from polarice.cluster import Comm, Serial
from polarice.types import Assignment, Pose2D

STARVED = 0.1  # classes with less than this share of an equal one are started anew
CENTRE_PSEUDOCOUNT = 5.0  # particles
SERIAL = Serial()
SETTLED_SHARE = 0.9  # of the particles; the ring that only the others' averages still reach sets the resolution


@dataclass(frozen=True)
class Settings:
    """How a run goes about its steps."""

    tau2_fudge: float = 2.0
    seed: int = 0
    batch_bytes: int = 128 << 20  # memory of one batch's weights
    centre_classes: bool = True


@dataclass(frozen=True)
class State(Generic[M]):
    """All that the next iteration needs, and what the last one found."""

    number: int  # iterations done
    model: M
    assignment: Assignment


@dataclass(frozen=True)
class Turn(Generic[M]):
    """One iteration's outcome."""

    state: State[M]
    step: Step
    search: Search
    used: np.ndarray  # rows of the particles compared
    log_likelihood: float  # mean over them
    max_probability: float
    changed: tuple[float, float, float]  # share of changed classes, median change of psi (deg) and of the shift (px)
    revived: tuple[int, ...]
    clock: Clock


def fit(
    images: ParticleImages,
    state: State[M],
    schedule: Schedule,
    rows: np.ndarray,
    settings: Settings,
    comm: Comm = SERIAL,
) -> Iterator[Turn[M]]:
    """Go on from `state` to the end of the schedule; rows are the particles to use, in the order of the disk."""
    for number in range(state.number + 1, schedule.iterations + 1):
        step, clock = schedule.step(number), Clock()
        rng = np.random.default_rng([settings.seed, 2, number])
        model = _grown(state.model, step, rng).on(_basis(images, state.model.basis, step, _resolved_px(state.model)))
        search = _search(model, step, rng)
        used = rows if step.batch >= len(rows) else np.sort(rng.choice(len(rows), step.batch, replace=False))
        used = used if used is rows else rows[used]
        assignment, sums = expect_all(images, model, search, (used, state.assignment), settings, clock)
        since = time.perf_counter()
        sums = comm.sum(sums)
        model = model.maximize(sums, Prior(settings.tau2_fudge, step.balance, step.min_ssnr, step.min_shift_sigma_px))
        changed = _changes(state.assignment.pose, assignment.pose, used)
        if settings.centre_classes and step.settling:
            model, assignment = _centred(model, assignment, used)
        model, revived = _revived(model, _shares(assignment, used, step.references), step, rng)
        clock.add("maximization", since)
        state = State(number, model, assignment)
        yield Turn(
            state=state,
            step=step,
            search=search,
            used=used,
            log_likelihood=float(sums.log_likelihood) / sums.count,
            max_probability=float(sums.max_probability) / sums.count,
            changed=changed,
            revived=revived,
            clock=clock,
        )


def expect_all(
    images: ParticleImages,
    model: M,
    search: Search,
    particles: tuple[np.ndarray, Assignment],
    settings: Settings,
    clock: Clock,
) -> tuple[Assignment, Sums]:
    """The expectation of many images in batches: their new assignments (others keep theirs) and their sums."""
    used, before = particles
    even = images.even_harmonics(model.basis)
    references = model.references(even)
    size = batch_size(model.basis, len(model.weights), search, settings.batch_bytes)
    centre_px = before.pose.shift_px
    assignment = _writable(before)
    total: Sums | None = None
    for rows, batch in images.batches(model.basis, used, centre_px, size, clock):
        since = time.perf_counter()
        posterior, sums = expect(model.basis, references, batch, search, model.ring_noise)
        total = sums if total is None else total + sums
        _store(assignment, rows, posterior)
        images.progress(len(rows))
        clock.add("expectation", since)
    assert total is not None
    return assignment, total


def batch_size(basis: PolarBasis, references: int, search: Search, batch_bytes: int) -> int:
    """Images whose weights, and what is made on the way to them, fit into `batch_bytes`."""
    shifts = len(search.shifts_px)
    weights = 4 * 3 * shifts * references * (search.psi_count + 2)
    data = 8 * 3 * shifts * basis.r_max * (basis.n_theta // 2 + 1)
    preparation = 64 * basis.box_px**2  # padded twofold, its transform, and their copies (PolarBasis.sample)
    return max(1, int(batch_bytes / max(weights + data, preparation)))


def _grown(model: M, step: Step, rng: np.random.Generator) -> M:
    """The model with as many classes as the step asks for: the fullest ones are split."""
    missing = step.references - len(model.weights)
    if missing <= 0:
        return model
    weights = model.weights.tolist()
    into = list(range(len(weights)))
    for _ in range(missing):
        fullest = int(np.argmax(weights))
        weights[fullest] /= 2
        weights.append(weights[fullest])
        into.append(into[fullest])
    return model.split(torch.tensor(into, device=model.weights.device), _perturbation(model, len(into), rng))


def _shares(assignment: Assignment, used: np.ndarray, k: int) -> np.ndarray:
    """(K,) share of the particles whose best class each one is."""
    return np.bincount(assignment.pose.class_of[used], minlength=k) / len(used)


def _revived(model: M, shares: np.ndarray, step: Step, rng: np.random.Generator) -> tuple[M, tuple[int, ...]]:
    """Classes starved of weight, or of particles whose best class they are, take over half of the fullest ones."""
    weights = model.weights.tolist()
    k = len(weights)
    starved = [c for c in range(k) if min(weights[c], shares[c]) * k < STARVED]
    if not starved or len(starved) == k or step.number == step.total:
        return model, ()
    into = list(range(k))
    for c in starved:
        fullest = int(np.argmax(weights))
        weights[fullest] /= 2
        weights[c] = weights[fullest]
        into[c] = into[fullest]
    return model.split(torch.tensor(into, device=model.weights.device), _perturbation(model, k, rng)), tuple(starved)


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


def _basis(images: ParticleImages, now: PolarBasis, step: Step, resolved_px: int) -> PolarBasis:
    """The basis of this step: rings up to the ramp, but not far beyond what is resolved; none is given back."""
    wanted = min(step.ramp_px, resolved_px + RESOLUTION_MARGIN_RINGS)
    r_max = max(wanted, min(now.r_max, step.ramp_px))
    slack = step.shift_range_px + step.shift_step_px
    same = r_max == now.r_max and slack <= now.slack_px
    return now if same else replace(now, r_max=r_max, slack_px=max(slack, now.slack_px))


def _search(model: M, step: Step, rng: np.random.Generator) -> Search:
    """The step's grid, moved at random within one grid step (but not in the last iteration)."""
    last = step.number == step.total
    perturbation = np.zeros(2) if last else rng.uniform(-0.5, 0.5, 2)
    shifts = shift_grid(step.shift_range_px, step.shift_step_px, perturbation)
    finest = model.basis.n_theta
    count = finest if step.psi_step_deg is None else max(finest, 2 * math.ceil(180 / step.psi_step_deg))
    shifts_px = torch.from_numpy(shifts).float().to(model.basis.device)
    return Search.over(model.basis, shifts_px, count, model.shift_sigma_px)


def _writable(assignment: Assignment) -> Assignment:
    pose = assignment.pose
    return Assignment(
        pose=Pose2D(pose.class_of.copy(), pose.psi_deg.copy(), pose.shift_px.copy()),
        log_likelihood=assignment.log_likelihood.copy(),
        max_probability=assignment.max_probability.copy(),
        significant=assignment.significant.copy(),
    )


def _store(assignment: Assignment, rows: np.ndarray, posterior: Posterior) -> None:
    """Write a batch's posterior into arrays that this iteration owns."""
    assignment.pose.class_of[rows] = posterior.class_of.cpu().numpy()
    assignment.pose.psi_deg[rows] = np.rad2deg(posterior.psi_rad.double().cpu().numpy())
    assignment.pose.shift_px[rows] = posterior.shift_px.double().cpu().numpy()
    assignment.log_likelihood[rows] = posterior.log_likelihood.double().cpu().numpy()
    assignment.max_probability[rows] = posterior.max_probability.cpu().numpy()
    assignment.significant[rows] = posterior.significant.cpu().numpy()


def _centred(model: M, assignment: Assignment, used: np.ndarray) -> tuple[M, Assignment]:
    """Class averages moved so that their particles were, on the average, picked at their centres.

    Unlike the centre of mass this does not move when a neighbour looks in at the mask's edge. Of a class with few
    particles only a part of the way is gone. Every particle's shift moves with its class.
    """
    pose = assignment.pose
    k = len(model.weights)
    class_of = pose.class_of[used]
    in_frame = _turned(pose.shift_px[used], -np.deg2rad(pose.psi_deg[used]))
    count = np.bincount(class_of, minlength=k)
    total = np.stack([np.bincount(class_of, in_frame[:, axis], minlength=k) for axis in (0, 1)], axis=1)
    offset = -total / (count + CENTRE_PSEUDOCOUNT)[:, None]
    model = model.moved(torch.from_numpy(offset).to(model.weights.device))
    known = pose.class_of >= 0
    back = _turned(offset[np.maximum(pose.class_of, 0)] * known[:, None], np.deg2rad(pose.psi_deg))
    return model, replace(assignment, pose=replace(pose, shift_px=pose.shift_px + back))


def _turned(vectors: np.ndarray, angle_rad: np.ndarray) -> np.ndarray:
    """Vectors (n, 2; x, y) turned by angles (n,), x towards y."""
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.stack([cos * vectors[:, 0] - sin * vectors[:, 1], sin * vectors[:, 0] + cos * vectors[:, 1]], axis=1)


def _changes(before: Pose2D, after: Pose2D, used: np.ndarray) -> tuple[float, float, float]:
    rows = used[before.class_of[used] >= 0]
    if not len(rows):
        return 1.0, 180.0, 0.0
    turn = np.abs((after.psi_deg[rows] - before.psi_deg[rows] + 180) % 360 - 180)
    moved = np.linalg.norm(after.shift_px[rows] - before.shift_px[rows], axis=1)
    switched = float((after.class_of[rows] != before.class_of[rows]).mean())
    return switched, float(np.median(turn)), float(np.median(moved))

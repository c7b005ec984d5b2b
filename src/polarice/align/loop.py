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

from polarice.align.images import Clock, ParticleImages
from polarice.align.model import M
from polarice.align.polar import PolarBasis
from polarice.align.prepare import soft_mask
from polarice.align.products import Precision
from polarice.align.schedule import RESOLUTION_MARGIN_RINGS, Schedule, Step, shift_grid
from polarice.align.search import Search
from polarice.align.store import PolarStore, Room
from polarice.align.sweep import Sweep, batch_size
from polarice.cluster import SERIAL, Comm, part
from polarice.types import Assignment, Pose2D

STARVED = 0.1  # classes with less than this share of an equal one are started anew
CENTRE_PSEUDOCOUNT = 5.0  # particles
FARTHEST_FROM_CUT_PX = 2.0  # images are cut anew when their centre is farther than this, along x or y
CONCENTRATED = 0.02  # share of the cells that images had significant, below which coarse levels come first
SETTLED_SHARE = 0.9  # of the particles; the ring that only the others' averages still reach sets the resolution


@dataclass(frozen=True)
class Settings:
    """How a run goes about its steps."""

    tau2_fudge: float = 2.0
    seed: int = 0
    batch_bytes: int = 64 << 20  # memory of one batch's weights
    workers: int = 1  # threads that each work on a batch
    room: Room = Room()  # for polar fields
    centre_classes: bool = True
    precision: Precision = "float32"  # of the products of images and references


@dataclass(frozen=True)
class State(Generic[M]):
    """All that the next iteration needs, and what the last one found."""

    number: int  # iterations done
    model: M
    assignment: Assignment
    cut_px: np.ndarray  # (n, 2) whole pixels around which images were cut last
    changed_class: float = 1.0  # share of the particles compared that changed their class in the last iteration


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
    """Go on from `state` to the end of the schedule; rows are the particles to use, in the order of the disk.

    Every rank of `comm` compares those of its own part of the rows, and knows what all have found.
    """
    own = part(images.particles.stack_of[rows], comm.rank, comm.size)
    store = PolarStore(rows[own], settings.room)
    while (number := schedule.after(state.number, state.changed_class)) <= schedule.iterations:
        step, clock = schedule.step(number), Clock()
        rng = np.random.default_rng([settings.seed, 2, number])
        model = _grown(state.model, step, rng).on(_basis(images, state.model.basis, step, _resolved_px(state.model)))
        search = replace(_search(model, step, state.assignment, rng), precision=settings.precision)
        drawn = _drawn(len(rows), step.batch, rng)
        used, mine = rows[drawn], rows[drawn[slice(*np.searchsorted(drawn, (own.start, own.stop)))]]
        size = batch_size(model.basis, len(model.weights), search, settings.batch_bytes)
        sweep = Sweep(images, model, search, size, settings.workers)
        cut_px = _cut(state.cut_px, state.assignment.pose.shift_px)
        assignment, sums = sweep.run(mine, state.assignment, cut_px, store, clock)
        since = time.perf_counter()
        if comm.size > 1:
            sums = comm.sum(sums.light())
            assignment = assignment.put(used, comm.join(assignment.take(mine)))
            since = clock.add("communication", since)
        model = model.maximize(sums, step.prior(settings.tau2_fudge))
        changed = changes(state.assignment.pose, assignment.pose, used)
        if settings.centre_classes and step.settling:
            model, assignment = _centred(model, assignment, used)
        model, revived = _revived(model, _shares(assignment, used, step.references), step, rng)
        clock.add("maximization", since)
        state = State(number, model, assignment, cut_px, changed[0])
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


def _drawn(count: int, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted places (batch,) among `count`: one at random in each of `batch` even stretches, the first of which begins
    anywhere (the end is joined to the beginning). So every part of the rows has its share of every mini-batch."""
    if batch >= count:
        return np.arange(count)
    edges = ((np.arange(batch + 1) + rng.random()) * count / batch).astype(np.int64)
    return np.sort(rng.integers(edges[:-1], edges[1:]) % count)


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


def _cut(cut_px: np.ndarray, centre_px: np.ndarray) -> np.ndarray:
    """Where to cut images (n, 2): where they were cut before, or anew where their centre has gone too far from it."""
    far = np.abs(centre_px - cut_px).max(axis=1) > FARTHEST_FROM_CUT_PX
    return np.where(far[:, None], np.rint(centre_px), cut_px)


def _resolved_px(model: M) -> int:
    """The ring beyond which the class averages of most particles (SETTLED_SHARE) hold no signal."""
    rings, order = model.resolution_px().sort()
    share = model.weights[order].cumsum(dim=0)
    at = int(torch.searchsorted(share, torch.tensor(SETTLED_SHARE, dtype=share.dtype, device=share.device)))
    return int(rings[min(at, len(rings) - 1)])


def _basis(images: ParticleImages, now: PolarBasis, step: Step, resolved_px: int) -> PolarBasis:
    """The basis of this step: rings up to the ramp, but not far beyond what is resolved; none is given back.

    The last iteration adds none: images stay prepared, and the rings that there are lie beyond what is resolved.
    """
    margin = RESOLUTION_MARGIN_RINGS if step.number < step.total else 0
    wanted = min(step.ramp_px, resolved_px + margin)
    r_max = max(step.whole_rings(wanted), min(now.r_max, step.whole_rings(step.ramp_px)))
    slack = step.shift_range_px + step.shift_step_px + FARTHEST_FROM_CUT_PX
    same = r_max == now.r_max and slack <= now.slack_px
    return now if same else replace(now, r_max=r_max, slack_px=max(slack, now.slack_px))


def _search(model: M, step: Step, before: Assignment, rng: np.random.Generator) -> Search:
    """The step's grid, moved at random within one grid step while poses are those of the grid."""
    on_grid = step.between_px == 0 and step.number < step.total
    perturbation = rng.uniform(-0.5, 0.5, 2) if on_grid else np.zeros(2)
    shifts = shift_grid(step.shift_range_px, step.shift_step_px, perturbation)
    finest = model.basis.n_theta
    count = finest if step.psi_step_deg is None else max(finest, 2 * math.ceil(180 / step.psi_step_deg))
    shifts_px = torch.from_numpy(shifts).float().to(model.basis.device)
    cells = len(shifts) * len(model.weights) * count
    known = before.significant[before.pose.class_of >= 0]
    concentrated = len(known) > 0 and known.mean() < CONCENTRATED * cells
    search = Search.over(model.basis, shifts_px, count, model.shift_sigma_px, coarse_to_fine=bool(concentrated))
    return replace(search, between_px=step.between_px)


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


def changes(before: Pose2D, after: Pose2D, used: np.ndarray) -> tuple[float, float, float]:
    """Share of changed classes, median change of psi (deg) and of the shift (px), of the rows `used`."""
    rows = used[before.class_of[used] >= 0]
    if not len(rows):
        return 1.0, 180.0, 0.0
    turn = np.abs((after.psi_deg[rows] - before.psi_deg[rows] + 180) % 360 - 180)
    moved = np.linalg.norm(after.shift_px[rows] - before.shift_px[rows], axis=1)
    switched = float((after.class_of[rows] != before.class_of[rows]).mean())
    return switched, float(np.median(turn)), float(np.median(moved))

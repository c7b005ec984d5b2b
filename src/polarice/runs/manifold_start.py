"""Before the first iteration of a map: the images posed, the map laid out."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polarice.cluster import SERIAL, Comm
from polarice.runs.memory_estimate import aligned_basis, held_bytes, preparing
from polarice.runs.particle_job import CheckedParticles
from polarice.runs.resources import batch_bytes, cache_budget_of, store_bytes
from polarice.types import InputError, Pose2D

if TYPE_CHECKING:
    from polarice.align.images import ParticleImages
    from polarice.references.manifold.aligned import AlignedImages
    from polarice.references.manifold.aligned_particles import AlignedParticles
    from polarice.references.manifold.class_registration import Frames
    from polarice.references.manifold.mapping import ManifoldState, Plan
    from polarice.references.manifold.model import Manifold
    from polarice.runs.manifold_job import ManifoldJob

SUBSET_IMAGES = 4000  # that the principal components are taken from
BATCH = (256, 4096)  # images that meet the nodes at once, least and most
BATCHES = 8  # for the products' sake a batch is worth so many of a search's
PARTS = 4  # of the memory that is left to images; one is for the batch, the others are for those that are kept
FRAME_IMAGES = 300  # of each class, whose average brings it into register
EQUAL_SHARES = 1.5  # equal shares that every node's weight is granted: learned alone, weights settle on a few nodes
RANDOM_LABELS = 50  # averages of random images that a random start is laid out by


def aligned_particles(
    images: ParticleImages, looked: CheckedParticles, params: ManifoldJob, comm: Comm = SERIAL
) -> AlignedParticles:
    """All usable images, each rank's part; what fits is kept."""
    from polarice.references.manifold.aligned_particles import AlignedParticles

    basis, device = aligned_basis(images, params), images.device
    room = cache_budget_of(params, device, len(comm.node_ranks), held_bytes(images, params), PARTS)
    return AlignedParticles(images, basis, looked.order, room, preparing(images, params), comm)


def plan_of(posed: AlignedParticles, params: ManifoldJob) -> Plan:
    """How the iterations go about it."""
    from polarice.references.manifold.mapping import Plan
    from polarice.references.manifold.model import ManifoldPrior
    from polarice.references.manifold.refine import PosePrior

    each = 4 * (4 * params.classes + 2 * posed.packed.d)  # shares, their transpose, and scaled vectors
    room = BATCHES * batch_bytes(params, posed.basis.device, BATCHES, held_bytes(posed.images, params), PARTS)
    batch = int(np.clip(room // each, *BATCH))
    pose_prior = PosePrior(params.refine_psi, params.refine_shift) if params.refine_poses else None
    return Plan(
        params.iterations, ManifoldPrior(tau2_fudge=params.tau2_fudge, equal_shares=EQUAL_SHARES), batch, pose_prior
    )


def first_map(posed: AlignedParticles, looked: CheckedParticles, plan: Plan, params: ManifoldJob) -> ManifoldState:
    """The map before the first iteration. Raises InputError where there is nothing to lay it out by."""
    import torch

    from polarice.references.manifold.latent import LatentGrid
    from polarice.references.manifold.mapping import first_state
    from polarice.references.manifold.model import Manifold

    noise = torch.from_numpy(looked.noise_power).to(posed.basis.device)
    grid = LatentGrid.of(params.shape, device=posed.basis.device)
    empty = Manifold.empty(posed.basis, grid, noise, posed.images.preparation.mask_fraction)
    pose = registered(posed, looked, params) if params.register else looked.table.particles.pose
    try:
        model, first = _laid_out(empty, posed, pose, plan, params)
    except ValueError as error:
        raise InputError(f"{params.particles}: {error}; try another --start") from error
    return first_state(model, pose, first)


def registered(all_of_them: AlignedParticles, looked: CheckedParticles, params: ManifoldJob) -> Pose2D:
    """The table's poses, towards one frame for all classes; register.star says how each class's own lies in it.

    Where all particles have one class, or come from a map, they share a frame already.
    """
    from polarice.align.images import Clock
    from polarice.align.store import CacheBudget
    from polarice.references.manifold.aligned_particles import AlignedParticles
    from polarice.references.manifold.class_registration import register, register_basis
    from polarice.references.plain import PlainAverages

    images, comm = all_of_them.images, all_of_them.comm
    table, pose = looked.table, looked.table.particles.pose
    classes = np.unique(pose.class_of[looked.order])
    if len(classes) < 2 or "polariceLatent1" in table.table:
        return pose
    frame_of = _places(pose.class_of, classes)
    some = _some_of_each(frame_of, looked.order, np.random.default_rng([params.seed, 4]))
    plan = aligned_basis(images, params)
    basis = register_basis(plan.box_px, plan.radius_px, plan.r_max, images.device)
    posed = AlignedParticles(
        replace(images, progress=int), basis, some, CacheBudget(0), preparing(images, params), comm
    )
    noise = looked.noise_power[:, 1 : basis.r_max + 1]
    scale = basis.weight.double() / basis.weight.double().new_tensor(noise)
    how = (len(classes), scale, images.preparation.mask_fraction)
    plain = PlainAverages.of(posed, pose, frame_of, how, Clock())
    field = posed.packed.field(plain.vector.float())

    def found() -> Frames:
        frames = register(basis, field, basis.weight.new_tensor(noise.mean(axis=0)), plain.count)
        _write_frames(params.o / "register.star", classes, frames, images.pixel_size_A)
        print(
            f"{len(classes)} classes brought into register: correlation with those that they resemble "
            f"{np.median(frames.correlation):.2f} (median), {frames.correlation.min():.2f} (least)",
            file=sys.stderr,
        )
        return frames

    return comm.on_root(found).pose(pose, frame_of)


def _places(class_of: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Where each class stands among the sorted `classes`; -1 where it does not. Numbers may have gaps."""
    place = np.searchsorted(classes, class_of).astype(np.int32)
    place[~np.isin(class_of, classes)] = -1
    return place


def _some_of_each(frame_of: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Up to FRAME_IMAGES rows of each frame, in the order of the disk."""
    shuffled = rng.permutation(len(rows))
    by_frame = shuffled[np.argsort(frame_of[rows][shuffled], kind="stable")]
    sorted_frames = frame_of[rows][by_frame]
    place = np.arange(len(rows)) - np.searchsorted(sorted_frames, sorted_frames)
    return rows[np.sort(by_frame[place < FRAME_IMAGES])]


def _write_frames(path: Path, classes: np.ndarray, frames: Frames, pixel_A: float) -> None:
    from polarice.io.particles import pose_columns
    from polarice.io.star import Block, Table, write_star

    pose = pose_columns(Pose2D(classes, frames.psi_deg, frames.shift_px), pixel_A)
    write_star(path, [Block("classes", table=Table.of({**pose, "rlnParticleFigureOfMerit": frames.correlation}))])


def _laid_out(
    empty: Manifold, posed: AlignedParticles, pose: Pose2D, plan: Plan, params: ManifoldJob
) -> tuple[Manifold, int]:
    """The map as --start says, and on how many rings its iterations begin."""
    from polarice.align.images import Clock
    from polarice.references.manifold.model import first_rings
    from polarice.references.plain import PlainAverages
    from polarice.references.starts import from_averages

    rng = np.random.default_rng([params.seed, 3])
    if params.start == "pca":
        some = np.sort(rng.permutation(len(posed))[: posed.comm.on_root(lambda: _subset(posed, params))])
        return _grown(empty, posed, posed.subset(posed.rows[some], pose, Clock()), plan, params), posed.basis.r_max
    label = _places(pose.class_of, np.unique(pose.class_of[pose.class_of >= 0]))
    if params.start == "random":
        label = rng.integers(0, min(RANDOM_LABELS, max(2, len(posed) // 20)), len(label)).astype(np.int32)
    elif len(np.unique(label[posed.rows])) < 2:
        raise InputError(
            f"{params.particles}: all particles are in one class, and --start classes needs at least two "
            "(rlnClassNumber); take --start pca"
        )
    how = (int(label.max()) + 1, empty.scale, empty.mask_fraction)
    plain = PlainAverages.of(posed, pose, label, how, Clock())
    used = plain.count > 0
    field = empty.packed.field(plain.vector[used].float())
    weights = empty.weights.new_tensor(plain.count[used] / plain.count.sum())
    return from_averages(empty, field, weights), first_rings(empty.basis)


def _grown(
    empty: Manifold, posed: AlignedParticles, subset: AlignedImages, plan: Plan, params: ManifoldJob
) -> Manifold:
    """A map that grew on a subset of the images, and varies in as many ways as --rank says or unseen images confirm."""
    from polarice.references.manifold.component_count import pca_start, unseen_rank

    how = (subset, posed.even, plan.prior, params.seed, posed.comm)
    rank = params.rank if params.rank is not None else unseen_rank(empty, len(posed), *how)
    model = pca_start(empty, *how)
    if posed.comm.rank == 0:
        ways = f"{rank} ways, as images that it had not seen say" if params.rank is None else f"{rank} ways"
        print(f"the map varies in {ways if rank else 'all ways'}", file=sys.stderr)
    return model.cut(rank) if rank else model


def _subset(posed: AlignedParticles, params: ManifoldJob) -> int:
    """How many images the components are taken from: at most what --memory leaves room for, four copies of each."""
    room = store_bytes(params, posed.basis.device, held=held_bytes(posed.images, params), parts=PARTS)
    fits = room // (16 * posed.packed.d)
    return int(min(len(posed), SUBSET_IMAGES, max(256, fits)))

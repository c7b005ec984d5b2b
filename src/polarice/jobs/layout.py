"""Before the first iteration of a map: the images posed, the map laid out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.jobs.intake import Looked, last_ring
from polarice.jobs.resources import batch_bytes, store_bytes, threads_of
from polarice.types import InputError, Pose2D

if TYPE_CHECKING:
    from polarice.align.images import ParticleImages
    from polarice.references.manifold import Manifold
    from polarice.references.mapping import MapState, Plan
    from polarice.references.posed import PosedImages

SLACK_PX = 1.0  # images are cut at whole pixels and moved the rest of the way
SUBSET_IMAGES = 4000  # that the principal components are taken from
BATCH = (256, 4096)  # images that meet the nodes at once, least and most
RANDOM_LABELS = 50  # averages of random images that a random start is laid out by


def posed_images(images: ParticleImages, looked: Looked, params: Any) -> PosedImages:
    """All usable images; what fits is kept."""
    from polarice.align.polar import PolarBasis
    from polarice.align.prepare import MASK_EDGE_PX
    from polarice.references.posed import PosedImages

    preparation, device = images.preparation, images.device
    radius_px = min(preparation.box_px / 2, preparation.radius_px + MASK_EDGE_PX / 2)
    basis = PolarBasis(preparation.box_px, radius_px, last_ring(images, params), SLACK_PX, device)
    workers = threads_of(params) if device.type == "cpu" else 1
    return PosedImages(images, basis, looked.order, store_bytes(params, device), params.scratch, workers)


def plan_of(posed: PosedImages, params: Any) -> Plan:
    """How the iterations go about it."""
    from polarice.references.manifold import ManifoldPrior
    from polarice.references.mapping import Plan

    each = 4 * (4 * params.classes + 2 * posed.triangle.d)  # shares, their transpose, and scaled vectors
    room = 8 * batch_bytes(params, posed.basis.device, 1)
    batch = int(np.clip(room // each, *BATCH))
    return Plan(params.iter, ManifoldPrior(tau2_fudge=params.tau2_fudge), batch)


def first_map(posed: PosedImages, looked: Looked, plan: Plan, params: Any) -> MapState:
    """The map before the first iteration. Raises InputError where there is nothing to lay it out by."""
    import torch

    from polarice.references.latent import LatentGrid
    from polarice.references.manifold import Manifold
    from polarice.references.mapping import MapState, Placement

    noise = torch.from_numpy(looked.noise_power).to(posed.basis.device)
    grid = LatentGrid.of(params.shape, device=posed.basis.device)
    empty = Manifold.empty(posed.basis, grid, noise, posed.images.preparation.mask_fraction)
    pose = looked.table.particles.pose
    try:
        model, first = _laid_out(empty, posed, pose, plan, params)
    except ValueError as error:
        raise InputError(f"{params.particles}: {error}; try another --start") from error
    return MapState(0, model, Placement.unknown(pose, len(grid.shape)), first)


def _laid_out(empty: Manifold, posed: PosedImages, pose: Pose2D, plan: Plan, params: Any) -> tuple[Manifold, int]:
    """The map as --start says, and on how many rings its iterations begin."""
    from polarice.align.images import Clock
    from polarice.references.manifold import first_rings
    from polarice.references.mapping import pca_start
    from polarice.references.plain import PlainAverages
    from polarice.references.starts import from_averages

    rng = np.random.default_rng([params.seed, 3])
    if params.start == "pca":
        some = np.sort(rng.permutation(len(posed))[: _subset(posed, params)])
        subset = posed.subset(posed.rows[some], pose, Clock())
        model, first = pca_start(empty, subset, posed.even, plan.prior, params.seed)
        print(f"laid out by the principal components of {len(some)} images on {first} rings", file=sys.stderr)
        return model, first
    label = pose.class_of
    if params.start == "random":
        label = rng.integers(0, min(RANDOM_LABELS, max(2, len(posed) // 20)), len(label)).astype(np.int32)
    elif len(np.unique(label[posed.rows])) < 2:
        raise InputError(f"{params.particles}: --start classes needs classes (rlnClassNumber); take --start pca")
    how = (int(label.max()) + 1, empty.scale, empty.mask_fraction)
    plain = PlainAverages.of(posed, pose, label, how, Clock())
    used = plain.count > 0
    field = empty.triangle.field(plain.vector[used].float())
    weights = empty.weights.new_tensor(plain.count[used] / plain.count.sum())
    return from_averages(empty, field, weights), first_rings(empty.basis)


def _subset(posed: PosedImages, params: Any) -> int:
    """How many images the components are taken from: at most what --memory leaves room for, three copies of each."""
    fits = store_bytes(params, posed.basis.device) // (12 * posed.triangle.d)
    return int(min(len(posed), SUBSET_IMAGES, max(256, fits)))

"""What a map takes of memory, however many images there are; what is left is the images' (`layout`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polarice.runs.particle_job import last_ring
from polarice.runs.resources import memory_bytes, require_room, workers_of

if TYPE_CHECKING:
    from polarice.align.images import ParticleImages
    from polarice.align.polar import PolarBasis
    from polarice.runs.manifold_job import ManifoldJob

SLACK_PX = 1.0  # images are cut at whole pixels and moved the rest of the way
PREPARED_BYTES = 120  # of a pixel, while its image is prepared and posed, as measured
READ_AHEAD = 4  # portions that are read, wait and are handed on
PREPARING = 4  # one part in so many of --memory is, at the most, for what prepares images
REST_BYTES = 64 << 20  # for tables of the basis, and pieces of freed memory too small for anything ...
REST = 8  # ... but no more than one part in so many of --memory


def aligned_basis(images: ParticleImages, params: ManifoldJob) -> PolarBasis:
    """All rings that --strict-highres-exp allows."""
    from polarice.align.polar import PolarBasis
    from polarice.align.prepare import MASK_EDGE_PX
    from polarice.references.manifold.refine import STEP_PX

    preparation = images.preparation
    radius_px = min(preparation.box_px / 2, preparation.radius_px + MASK_EDGE_PX / 2)
    slack_px = SLACK_PX + (STEP_PX if params.refine_poses else 0)
    return PolarBasis(preparation.box_px, radius_px, last_ring(images, params), slack_px, images.device)


def require_room_for_map(images: ParticleImages, params: ManifoldJob) -> None:
    """Raise InputError where the map alone takes all memory."""
    what = f"{params.classes} nodes of {images.preparation.box_px} px"
    require_room(params, images.device, held_bytes(images, params), what)


def held_bytes(images: ParticleImages, params: ManifoldJob) -> int:
    """Memory at the most that a map and the preparation of images take, however many images there are.

    d numbers for each of K nodes: their images before and after maximization, a batch's sums and, in double precision,
    the sums now, before, and as they are looked at; for each of M functions the coefficients before and after, and
    what they are solved for. What belongs to pairs of functions, to one ring's equations, and to pictures, of which two
    copies are written while the next iteration is made, comes to that.
    """
    from polarice.align.sweep import PREPARED_AT_ONCE
    from polarice.references.manifold.aligned import PackedHarmonics
    from polarice.references.manifold.latent import LatentGrid

    basis, grid = aligned_basis(images, params), LatentGrid.of(params.shape, device=images.device)
    d = PackedHarmonics(basis).d + basis.r_max * (2 * images.even_harmonics(basis) - 1)
    equations = 8 * grid.m * (5 * grid.m + 3 * (grid.bandwidth + 2 * basis.n_q))
    read = 4 * READ_AHEAD * PREPARED_AT_ONCE[images.device.type] * basis.box_px**2
    prepared = read + preparing(images, params) * _preparation_bytes(images)
    rest = min(REST_BYTES, memory_bytes(params, images.device) // REST)
    return 36 * grid.k * d + 24 * grid.m * d + equations + 8 * grid.k * basis.box_px**2 + prepared + rest


def preparing(images: ParticleImages, params: ManifoldJob) -> int:
    """Threads that prepare images: fewer than there are where --memory is short."""
    fit = memory_bytes(params, images.device) // PREPARING // _preparation_bytes(images)
    return max(1, min(workers_of(params, images.device), fit))


def _preparation_bytes(images: ParticleImages) -> int:
    """Of one thread, with what waits for it."""
    from polarice.align.sweep import PREPARED_AT_ONCE
    from polarice.workers import WAITING

    each = PREPARED_BYTES + 4 * WAITING
    return each * PREPARED_AT_ONCE[images.device.type] * images.preparation.box_px**2

"""Posed images, kept from one iteration to the next: with fixed poses a vector is made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from polarice.align.expect import PolarImages
from polarice.align.images import Clock, ParticleImages
from polarice.align.memory_chunks import Portions
from polarice.align.polar import PolarBasis
from polarice.align.store import CacheBudget, allocate_or_halve, mapped
from polarice.align.sweep import PREPARED_AT_ONCE
from polarice.align.transfer import to_device
from polarice.cluster import SERIAL, Comm, part
from polarice.references.manifold.aligned import AlignedImages, PackedHarmonics
from polarice.types import Pose2D
from polarice.workers import in_turn

R = TypeVar("R")
Work = Callable[[np.ndarray, PolarImages, AlignedImages], R]


class AlignedParticles:
    """Some rows of a table as `AlignedImages`: the first ones kept in memory or a scratch file, the rest streamed.

    Which rows are kept depends on the rows, the basis and the room alone. Sums over the batches do not depend on it
    beyond rounding. Each rank of `comm` has its own part of the rows.
    """

    def __init__(
        self,
        images: ParticleImages,
        basis: PolarBasis,
        rows: np.ndarray,
        room: CacheBudget,
        workers: int = 1,
        comm: Comm = SERIAL,
    ) -> None:
        """rows: those used by all ranks, in the order of the disk; workers: threads."""
        self.images, self.rows, self.packed, self.comm = images, rows, PackedHarmonics(basis), comm
        self.own = self.share(rows)
        self.even = images.even_harmonics(basis)
        self._workers = workers
        basis.prepare()
        self.packed.vectors(torch.zeros(1, basis.r_max, basis.n_q, dtype=torch.complex64, device=basis.device))
        self._chunk = PREPARED_AT_ONCE[basis.device.type]  # always as many, so that a run that goes on repeats the bits
        own = len(self.own)
        capacity = min(own, room.memory_bytes // (4 * self._width))
        capacity -= capacity % self._chunk if capacity < own else 0
        if room.scratch is None:
            self._block = allocate_or_halve(
                lambda count: torch.empty(count, self._width, device=basis.device), capacity
            )
        else:
            self._block = mapped(room.scratch, 4 * own * self._width).view(own, self._width)
        self._of: Pose2D | None = None  # the poses that the block was made for

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def all_kept(self) -> bool:
        """Whether every rank keeps all of its images; asked by all of them together."""
        return not self.comm.sum(int(len(self._block) < len(self.own)))

    def share(self, rows: np.ndarray) -> np.ndarray:
        """Those of some rows, in the order of the disk, that are this rank's."""
        return rows[part(self.images.particles.stack_of[rows], self.comm.rank, self.comm.size)]

    @property
    def basis(self) -> PolarBasis:
        return self.packed.basis

    @property
    def _parts(self) -> list[int]:
        """Numbers of an image: its vector, its CTF's powers, its own power, and what fills up a cache line."""
        rings = self.basis.r_max
        used = [self.packed.d, rings * (2 * self.even - 1), rings]
        return [*used, -sum(used) % 16]

    @property
    def _width(self) -> int:
        return sum(self._parts)

    def batches(self, pose: Pose2D, size: int, clock: Clock) -> Iterator[tuple[np.ndarray, AlignedImages]]:
        """This rank's rows and their images under these poses (of the whole table), `size` at a time, in order.

        The images are views: of those that are not kept, a batch is written over the one before.
        """
        kept = len(self._block)
        if not self._holds(pose):
            self._fill(self._block, self.own[:kept], pose, clock)
            self._of = pose
        places = [slice(start, min(start + size, kept)) for start in range(0, kept, size)]
        for place, block in zip(places, self._blocks(places), strict=True):
            yield self.own[place], self._images(self.own[place], block)
        yield from self._streamed(pose, size, clock)

    def subset(self, rows: np.ndarray, pose: Pose2D, clock: Clock) -> AlignedImages:
        """This rank's share of some rows as one batch, not kept."""
        own = self.share(rows)
        block = torch.empty(len(own), self._width, device=self.basis.device)
        self._fill(block, own, pose, clock)
        return self._images(own, block)

    def _holds(self, pose: Pose2D) -> bool:
        kept, of = self.own[: len(self._block)], self._of
        return of is not None and all(
            np.array_equal(getattr(of, name)[kept], getattr(pose, name)[kept]) for name in ("psi_deg", "shift_px")
        )

    def _fill(self, block: Tensor, rows: np.ndarray, pose: Pose2D, clock: Clock) -> None:
        """Put the images of some rows into a block (row, width)."""
        place = 0
        for some, images in self._prepared(rows, pose, clock):
            self._write(images, block[place : place + len(some)])
            place += len(some)

    def _write(self, images: AlignedImages, block: Tensor) -> None:
        """Put images into a block (image, width)."""
        parts = [images.vector, images.ctf_power.flatten(1), images.image_power]
        for target, values in zip(block.split(self._parts, dim=1), parts, strict=False):
            target.copy_(values)

    def _streamed(self, pose: Pose2D, size: int, clock: Clock) -> Iterator[tuple[np.ndarray, AlignedImages]]:
        """Rows that are not kept and their images, as many at a time as whole chunks make up `size`, in one block."""
        start = len(self._block)
        size = min(len(self.own) - start, size + -size % self._chunk)
        block = torch.empty(size, self._width, device=self.basis.device)
        filled = 0
        for rows, images in self._prepared(self.own[start:], pose, clock):
            self._write(images, block[filled : filled + len(rows)])
            filled += len(rows)
            if filled == size or start + filled == len(self.own):
                whole = self.own[start : start + filled]
                yield whole, self._images(whole, block[:filled])
                start, filled = start + filled, 0

    def _blocks(self, places: list[slice]) -> Iterator[Tensor]:
        """What is kept in these places, on the device: brought there ahead where it is kept elsewhere."""
        blocks = (self._block[place] for place in places)
        return blocks if self._block.device.type == self.basis.device.type else self.images.sent(blocks)

    def _images(self, rows: np.ndarray, block: Tensor) -> AlignedImages:
        """Those that a block (row, width) holds, as views."""
        vector, ctf_power, image_power, _ = block.split(self._parts, dim=1)
        return AlignedImages(
            vector=vector,
            ctf_power=ctf_power.unflatten(1, (self.basis.r_max, -1)),
            image_power=image_power,
            optics_of=to_device(self.images.particles.optics_of[rows].astype(np.int64), self.basis.device),
        )

    def _prepared(self, rows: np.ndarray, pose: Pose2D, clock: Clock) -> Iterator[tuple[np.ndarray, AlignedImages]]:
        """Rows and images, a chunk at a time."""
        return self._each(rows, pose, lambda rows, polar, posed: (rows, posed), clock)

    def each(self, pose: Pose2D, work: Work[R], clock: Clock) -> Iterator[R]:
        """work(rows, images before they are turned, posed images) for a chunk of this rank's images at a time."""
        return self._each(self.own, pose, work, clock)

    def _each(self, rows: np.ndarray, pose: Pose2D, work: Work[R], clock: Clock) -> Iterator[R]:
        clocks = [Clock() for _ in range(self._workers)]
        portions = [Portions() for _ in clocks]

        def done(worker: int, item: tuple[np.ndarray, Tensor]) -> list[R]:
            chunk, pixels = item
            with clocks[worker].counting("preparation"):
                return portions[worker].each(
                    lambda some: work(chunk[some], *self._posed(chunk[some], pixels[some], pose)), len(chunk)
                )

        for results in in_turn(clock.waiting("reading", self.images.batches(rows, self._chunk)), done, self._workers):
            yield from results
        clock.share(clocks)

    def _posed(self, rows: np.ndarray, pixels: Tensor, pose: Pose2D) -> tuple[PolarImages, AlignedImages]:
        """Images (batch, N, N) of `rows`, moved to their centres, and in the frame that their poses lead to."""
        centre_px = pose.shift_px[rows]
        crop_centre_px = np.rint(centre_px)
        field = self.images.fields(self.basis, pixels, crop_centre_px)
        polar = self.images.polar(self.basis, rows, field, crop_centre_px, centre_px)
        psi_rad = to_device(np.deg2rad(pose.psi_deg[rows]), self.basis.device)
        return polar, AlignedImages.of(self.packed, polar, psi_rad, self.even)

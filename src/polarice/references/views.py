"""The expectation of densities: images meet slices along directions of a grid, at all in-plane angles and some shifts.

    global    every image meets every direction
    local     images are sorted into cells of the sphere by their last direction; those of a cell meet the directions
              near it, in one dense product

A grid of directions is common to all images, so that what belongs to one direction is summed as an average of 2D
classification is, and put into the density's transform once: what per-image back-projection gives, at the cost of the
directions. The sphere is gone over region by region, so that sums of all directions never stand in memory at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polarice.align.expect import Posterior, References, expect
from polarice.align.images import Clock, ParticleImages
from polarice.align.polar import PolarBasis
from polarice.align.search import Search
from polarice.align.store import PolarStore
from polarice.align.sums import Sums
from polarice.align.sweep import batch_size, fill
from polarice.references.directions import healpix, nearest, step_deg, turned_at_random, views_along
from polarice.references.halfmaps import HALVES, HalfMaps, VolumeSums
from polarice.references.slices import FourierGrid
from polarice.types import Assignment, Pose2D
from polarice.workers import in_turn

CELL_ORDERS = 1  # cells are coarser than the grid by so many HEALPix orders
REGION_ORDER = 1  # 48 regions
REACH_STEPS = 2.5  # of the grid, beyond the image of a cell that lies farthest from its centre
LEAST_WEIGHT = 1e-6  # of images, below which a direction is not put into the density


@dataclass(frozen=True)
class ViewGrid:
    """The directions of one iteration, and whether all of them are tried."""

    order: int  # HEALPix
    local: bool
    directions: np.ndarray  # (D, 3)

    @staticmethod
    def drawn(order: int, local: bool, rng: np.random.Generator) -> ViewGrid:
        """The grid under a random rotation."""
        return ViewGrid(order, local, turned_at_random(healpix(order), rng))


@dataclass(frozen=True)
class _Region:
    """A part of the sphere: its directions and the images that meet some of them."""

    ids: np.ndarray  # (d,) into the grid's directions
    groups: list[tuple[np.ndarray, np.ndarray | None]]  # rows, and which of `ids` they meet; None: all


def regions_of(grid: ViewGrid, rows: np.ndarray, last: np.ndarray) -> list[_Region]:
    """The work of a pass; last (n, 3) directions of all particles, by row."""
    if not grid.local:
        return [_Region(np.arange(len(grid.directions)), [(rows, None)])] if len(rows) else []
    centres = healpix(grid.order - CELL_ORDERS)
    cell_of = nearest(last[rows], centres)
    region_of = nearest(centres, healpix(REGION_ORDER))
    margin = np.radians(REACH_STEPS * step_deg(grid.order))
    regions = []
    for region in range(12 * 4**REGION_ORDER):
        groups: list[tuple[np.ndarray, np.ndarray]] = []
        for cell in np.flatnonzero(region_of == region):
            mine = rows[cell_of == cell]
            if len(mine):
                farthest = np.arccos(np.clip(last[mine] @ centres[cell], -1, 1)).max()
                near = grid.directions @ centres[cell] > np.cos(min(np.pi, farthest + margin))
                groups.append((mine, np.flatnonzero(near)))
        if groups:
            ids = np.unique(np.concatenate([near for _, near in groups]))
            regions.append(_Region(ids, [(mine, np.searchsorted(ids, near)) for mine, near in groups]))
    return regions


@dataclass
class Found:
    """The posterior of every particle, summed up; arrays by row of the table, of which a pass fills its own."""

    direction: np.ndarray  # (n, 3) unit vectors; 0 where unknown
    psi_deg: np.ndarray
    shift_px: np.ndarray  # (n, 2)
    log_likelihood: np.ndarray
    max_probability: np.ndarray
    significant: np.ndarray

    @staticmethod
    def of(assignment: Assignment, direction: np.ndarray) -> Found:
        pose = assignment.pose
        plain = (assignment.log_likelihood, assignment.max_probability, assignment.significant)
        return Found(direction, pose.psi_deg, pose.shift_px, *plain)

    def assignment(self, rows: np.ndarray) -> Assignment:
        """The same as of one class, that of the particles `rows`."""
        class_of = np.full(len(self.psi_deg), -1, np.int32)
        class_of[rows] = 0
        pose = Pose2D(class_of, self.psi_deg, self.shift_px)
        return Assignment(pose, self.log_likelihood, self.max_probability, self.significant)

    def copied(self) -> Found:
        return Found(**{name: value.copy() for name, value in vars(self).items()})

    def put(self, rows: np.ndarray, directions: np.ndarray, posterior: Posterior) -> None:
        """Write a batch's posterior; directions (d, 3) are those that it calls classes."""
        table = posterior.table().cpu().numpy()
        self.direction[rows] = directions[table[0].astype(np.int64)]
        self.psi_deg[rows] = np.rad2deg(table[1])
        self.shift_px[rows] = table[2:4].T
        self.log_likelihood[rows], self.max_probability[rows], self.significant[rows] = table[4:]


@dataclass(frozen=True)
class Pass:
    """A pass over the images of both halves."""

    images: ParticleImages
    basis: PolarBasis
    search: Search
    batch_bytes: int
    workers: int = 1

    def run(
        self,
        model: HalfMaps,
        grid: ViewGrid,
        halves: tuple[np.ndarray, ...],
        before: Found,
        cut_px: np.ndarray,
        store: PolarStore,
        clock: Clock,
    ) -> tuple[Found, VolumeSums]:
        """New poses of the rows in `halves`, and their sums; images are cut around cut_px (n, 2)."""
        basis = self.basis
        basis.prepare()
        store.suit(basis)
        kept, _ = store.parted(np.concatenate(halves))
        fill(store, self.images, basis, store.missing(kept, cut_px[kept]), cut_px, self.workers, clock)
        found = before.copied()
        total = _Total.empty(self.images, FourierGrid(basis.box_px, basis.r_max, basis.device))
        noise = model.ring_noise(basis.r_max)
        for half, rows in enumerate(halves):
            since = time.perf_counter()
            transform = total.grid.transform(model.densities[half])
            clock.add("slicing", since)
            for region in regions_of(grid, rows, before.direction):
                self._region(region, grid, (half, transform), noise, (before, found), cut_px, (store, total), clock)
        return found, total.sums()

    def _region(
        self,
        region: _Region,
        grid: ViewGrid,
        of: tuple[int, Tensor],
        noise: Tensor,
        poses: tuple[Found, Found],
        cut_px: np.ndarray,
        held: tuple[PolarStore, _Total],
        clock: Clock,
    ) -> None:
        """All images of a region."""
        basis, (before, found), (store, total) = self.basis, poses, held
        since = time.perf_counter()
        directions = grid.directions[region.ids]
        views = views_along(directions)
        field = total.grid.slices(of[1], basis, views)
        even = self.images.even_harmonics(basis)
        references = References.of_fields(basis, field, even, torch.zeros(len(field), device=basis.device))
        clock.add("slicing", since)
        sums = _DirectionSums.empty(self, len(field), min(even, (self.search.levels[-1].n_q + 1) // 2))
        clocks = [Clock() for _ in range(self.workers)]

        def work(worker: int, item: tuple[np.ndarray, np.ndarray | None]) -> tuple[Posterior, Sums]:
            rows, ids = item
            with clocks[worker].counting("expectation"):
                mine = references if ids is None else references.take(torch.from_numpy(ids).to(basis.device))
                fields = self._fields(store, rows, cut_px)
                polar = self.images.polar(basis, rows, fields, cut_px[rows], before.shift_px[rows])
                return expect(basis, mine, polar, self.search, noise)

        batches = list(self._batches(region))
        for (rows, ids), (posterior, some) in zip(batches, in_turn(batches, work, self.workers), strict=True):
            found.put(rows, directions if ids is None else directions[ids], posterior)
            sums.include(some, ids)
            self.images.progress(len(rows))
        clock.share(clocks)
        since = time.perf_counter()
        total.include(of[0], sums, field, basis, views)
        clock.add("insertion", since)

    def _batches(self, region: _Region) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for rows, ids in region.groups:
            size = batch_size(self.basis, len(region.ids if ids is None else ids), self.search, self.batch_bytes)
            for start in range(0, len(rows), size):
                yield rows[start : start + size], ids

    def _fields(self, store: PolarStore, rows: np.ndarray, cut_px: np.ndarray) -> Tensor:
        if not len(store.parted(rows)[1]):
            return store.take(rows).to(self.basis.device)
        return self.images.fields(self.basis, self.images.read(rows), cut_px[rows])


@dataclass(frozen=True)
class _DirectionSums:
    """Sums of the images of a region, by direction."""

    numerator: Tensor  # (q, ring, direction) complex64
    denominator: Tensor  # (even q, ring, direction) complex64
    weight: Tensor  # (direction,)
    rest: list[Sums]  # whose sums by direction are not looked at

    @staticmethod
    def empty(of: Pass, directions: int, even: int) -> _DirectionSums:
        rings, device = of.basis.r_max, of.basis.device
        shapes = ((of.search.levels[-1].n_q, rings, directions), (even, rings, directions))
        numerator, denominator = (torch.zeros(shape, dtype=torch.complex64, device=device) for shape in shapes)
        return _DirectionSums(numerator, denominator, torch.zeros(directions, device=device), [])

    def include(self, sums: Sums, ids: np.ndarray | None) -> None:
        pairs = (
            (self.numerator, sums.numerator), (self.denominator, sums.denominator), (self.weight, sums.class_weight)
        )  # fmt: skip
        for mine, other in pairs:
            if ids is None:
                mine.add_(other)
            else:
                mine.index_add_(mine.ndim - 1, torch.from_numpy(ids).to(mine.device), other)
        self.rest.append(sums)


@dataclass
class _Total:
    """What a pass has found so far."""

    grid: FourierGrid
    cubes: Tensor  # (half, 3, point, point, point): as `FourierGrid.spread` gives them
    cross: Tensor
    power: Tensor
    rest: dict[str, Tensor]

    @staticmethod
    def empty(images: ParticleImages, grid: FourierGrid) -> _Total:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=grid.device)

        rings = grid.r_max
        rest = {
            "image_power": zeros(images.groups, rings), "ctf_power": zeros(images.groups, rings),
            "group_count": zeros(images.groups), "squared_shift": zeros(), "log_likelihood": zeros(),
            "max_probability": zeros(),
        }  # fmt: skip
        cubes = torch.zeros(HALVES, 3, *grid.shape, device=grid.device)
        return _Total(grid, cubes, zeros(rings), zeros(rings), rest)

    def include(self, half: int, sums: _DirectionSums, field: Tensor, basis: PolarBasis, views: np.ndarray) -> None:
        """Put the sums of some directions, of which the references were `field`, where they belong."""
        for each in sums.rest:
            for name, value in self.rest.items():
                value += getattr(each, name)
        used = (sums.weight > LEAST_WEIGHT).nonzero()[:, 0]
        numerator = torch.fft.irfft(sums.numerator.index_select(2, used).permute(2, 1, 0), n=basis.n_theta)
        even = sums.denominator.index_select(2, used).permute(2, 1, 0)
        harmonics = even.new_zeros(*even.shape[:2], 2 * even.shape[2] - 1)
        harmonics[..., ::2] = even
        denominator = torch.fft.irfft(harmonics, n=basis.n_theta).clamp_min_(0)
        old = field.index_select(0, used)
        weight = basis.weight.double() * basis.n_theta
        self.cross += (old * numerator).sum(dim=(0, 2), dtype=torch.float64) / weight
        self.power += (old.square() * denominator).sum(dim=(0, 2), dtype=torch.float64) / weight
        self.cubes[half] += self.grid.spread(numerator, denominator, basis, views[used.cpu().numpy()])

    def sums(self) -> VolumeSums:
        numerators, denominators = zip(*map(self.grid.whole, self.cubes), strict=True)
        return VolumeSums(torch.stack(numerators), torch.stack(denominators), self.cross, self.power, **self.rest)

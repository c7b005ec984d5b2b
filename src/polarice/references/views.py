"""The expectation of densities: images meet slices along directions of a grid, at all in-plane angles and some shifts.

    global    every image meets every direction
    local     images are sorted into cells of the sphere by their last direction; those of a cell meet the directions
              near it, in one dense product
    own       every image meets nine directions of its own, its last and those a step around it

A grid of directions is common to all images, so that what belongs to one direction is summed as an average of 2D
classification is, and put into the density's transform once: what per-image back-projection gives, at the cost of the
directions. The sphere is gone over region by region, so that sums of all directions never stand in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from polarice.align.expect import Posterior, References, expect
from polarice.align.images import Clock, ParticleImages
from polarice.align.polar import PolarBasis
from polarice.align.search import Search
from polarice.align.store import PolarStore
from polarice.align.sums import Sums, on_circle
from polarice.align.sweep import batch_size, fill
from polarice.references.directions import around, healpix, nearest, step_deg, turned_at_random, views_along
from polarice.references.halfmaps import HALVES, HalfMaps, VolumeSums
from polarice.references.slices import FourierGrid
from polarice.references.symmetry import in_one_unit, operators
from polarice.types import Assignment, Pose2D
from polarice.workers import in_turn

CELL_ORDERS = 1  # cells are coarser than the grid by so many HEALPix orders
REGION_BYTES = 256 << 20  # of the sums of a region's directions, more or less
REACH_STEPS = 2.5  # of the grid, beyond the image of a cell that lies farthest from its centre
OWN = 9  # directions of an image's own
LEAST_WEIGHT = 1e-6  # of images, below which a direction is not put into the density


@dataclass(frozen=True)
class ViewGrid:
    """The directions of one iteration, and whether all of them are tried."""

    order: int  # HEALPix
    local: bool
    directions: np.ndarray  # (D, 3)
    own: bool = False  # nine for each particle, one after another

    @staticmethod
    def around(last: np.ndarray, rows: np.ndarray, order: int, step_deg: float) -> ViewGrid:
        """Nine directions for each of `rows`, around their last (n, 3), a step apart."""
        return ViewGrid(order, True, around(last[rows], step_deg), own=True)

    @staticmethod
    def drawn(order: int, local: bool, rng: np.random.Generator, group: np.ndarray | None = None) -> ViewGrid:
        """The grid under a random rotation; of a global one, those in one unit of a point group."""
        directions = turned_at_random(healpix(order), rng)
        if group is not None and not local:
            directions = directions[in_one_unit(directions, group)]
        return ViewGrid(order, local, directions)


@dataclass(frozen=True)
class _Region:
    """A part of the sphere: its directions and the images that meet some of them."""

    ids: np.ndarray  # (d,) into the grid's directions
    groups: list[tuple[np.ndarray, np.ndarray | None]]  # rows, and which of `ids` they meet; None: all


def regions_of(
    grid: ViewGrid, rows: np.ndarray, last: np.ndarray, direction_bytes: int, region_bytes: int = REGION_BYTES
) -> list[_Region]:
    """The work of a pass; last (n, 3) directions of all particles, by row.

    Regions are as large as the sums of their directions, of so many bytes each, may be.
    """
    if grid.own:
        return _own_regions(rows, max(1, region_bytes // (OWN * direction_bytes)))
    if not grid.local:
        return [_Region(np.arange(len(grid.directions)), [(rows, None)])] if len(rows) else []
    centres = healpix(grid.order - CELL_ORDERS)
    cell_of = nearest(last[rows], centres)
    order = 0
    while len(grid.directions) * direction_bytes > 12 * 4**order * region_bytes and order < grid.order - CELL_ORDERS:
        order += 1
    region_of = nearest(centres, healpix(order))
    margin = np.radians(REACH_STEPS * step_deg(grid.order))
    regions = []
    for region in range(12 * 4**order):
        groups: list[tuple[np.ndarray, np.ndarray]] = []
        for cell in np.flatnonzero(region_of == region):
            mine = rows[cell_of == cell]
            if len(mine):
                farthest = np.arccos(np.clip(last[mine] @ centres[cell], -1, 1)).max()
                to_device = grid.directions @ centres[cell] > np.cos(min(np.pi, farthest + margin))
                groups.append((mine, np.flatnonzero(to_device)))
        if groups:
            ids = np.unique(np.concatenate([to_device for _, to_device in groups]))
            regions.append(_Region(ids, [(mine, np.searchsorted(ids, to_device)) for mine, to_device in groups]))
    return regions


def _own_regions(rows: np.ndarray, at_once: int) -> list[_Region]:
    """Images that meet directions of their own, some at a time."""
    regions = []
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        groups: list[tuple[np.ndarray, np.ndarray | None]] = [
            (some[i : i + 1], np.arange(OWN * i, OWN * (i + 1))) for i in range(len(some))
        ]
        regions.append(_Region(np.arange(OWN * start, OWN * (start + len(some))), groups))
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

    def of_rows(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Every array, of some rows."""
        return tuple(value[rows] for value in vars(self).values())

    def put_all(self, rows: np.ndarray, values: tuple[np.ndarray, ...]) -> Found:
        """The same with what `of_rows` gave of some rows."""
        found = self.copied()
        for array, some in zip(vars(found).values(), values, strict=True):
            array[rows] = some
        return found

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
class Halves:
    """The particles of both halves as a pass finds them."""

    rows: tuple[np.ndarray, ...]  # of each half
    before: Found
    crop_centre_px: np.ndarray  # (n, 2) where images are cut
    store: PolarStore


@dataclass(frozen=True)
class Pass:
    """A pass over the images of both halves."""

    images: ParticleImages
    basis: PolarBasis
    search: Search
    batch_bytes: int
    workers: int = 1
    temperature: float = 1.0  # times the noise that images are compared with; well below 1, best poses take all
    group: np.ndarray = field(
        default_factory=lambda: operators("C1")
    )  # (g, 3, 3) rotations: the density stays the same

    def run(
        self,
        model: HalfMaps,
        grids: tuple[ViewGrid, ...],
        halves: Halves,
        clock: Clock,
    ) -> tuple[Found, VolumeSums]:
        """New poses of the particles, and their sums; grids: of each half."""
        basis, store, crop_centre_px = self.basis, halves.store, halves.crop_centre_px
        basis.prepare()
        store.reset(basis)
        kept, _ = store.parted(np.concatenate(halves.rows))
        fill(store, self.images, basis, store.missing(kept, crop_centre_px[kept]), crop_centre_px, self.workers, clock)
        found = halves.before.copied()
        total = _Total.empty(self.images, FourierGrid(basis.box_px, basis.r_max, basis.device), self.group)
        work = _Round(self, grids, self.temperature * model.ring_noise(basis.r_max), halves, found, total, clock)
        for half, rows in enumerate(halves.rows):
            with clock.counting("slicing"):
                transform = total.grid.transform(model.densities[half])
            for region in regions_of(grids[half], rows, halves.before.direction, 8 * basis.n_q * basis.r_max):
                work.on(region, half, transform)
        return found, total.sums(self.temperature)


@dataclass(frozen=True)
class _Round:
    """A pass at work."""

    of: Pass
    grids: tuple[ViewGrid, ...]  # of each half
    noise: Tensor  # (G, ring)
    halves: Halves
    found: Found
    total: _Total
    clock: Clock

    def on(self, region: _Region, half: int, transform: Tensor) -> None:
        """Compare the images of a region with slices of their half's map, and put their sums into it."""
        basis, search, halves = self.of.basis, self.of.search, self.halves
        images, even = self.of.images, self.of.images.even_harmonics(basis)
        directions = self.grids[half].directions[region.ids]
        views = views_along(directions)
        with self.clock.counting("slicing"):
            field = self.total.grid.slices(transform, basis, views)
            references = References.of_fields(basis, field, even, torch.zeros(len(field), device=basis.device))
        sums = _DirectionSums.empty(self.of, len(field), min(even, (search.levels[-1].n_q + 1) // 2))
        clocks = [Clock() for _ in range(self.of.workers)]

        def work(worker: int, item: tuple[np.ndarray, np.ndarray | None]) -> tuple[Posterior, Sums]:
            rows, ids = item
            with clocks[worker].counting("expectation"):
                mine = references if ids is None else references.take(torch.from_numpy(ids).to(basis.device))
                polar = images.polar(
                    basis, rows, self._fields(rows), halves.crop_centre_px[rows], halves.before.shift_px[rows]
                )
                return expect(basis, mine, polar, search, self.noise)

        batches = list(self._batches(region))
        for (rows, ids), (posterior, some) in zip(batches, in_turn(batches, work, self.of.workers), strict=True):
            self.found.put(rows, directions if ids is None else directions[ids], posterior)
            sums.include(some, ids)
            images.progress(len(rows))
        self.clock.share(clocks)
        with self.clock.counting("insertion"):
            self.total.include(half, sums, field, basis, views)

    def _batches(self, region: _Region) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for rows, ids in region.groups:
            count = len(region.ids if ids is None else ids)
            size = batch_size(self.of.basis, count, self.of.search, self.of.batch_bytes)
            for start in range(0, len(rows), size):
                yield rows[start : start + size], ids

    def _fields(self, rows: np.ndarray) -> Tensor:
        """Fields of images, kept or made anew."""
        basis = self.of.basis
        if not len(self.halves.store.parted(rows)[1]):
            return self.halves.store.take(rows).to(basis.device)
        return self.of.images.fields(basis, self.of.images.read(rows), self.halves.crop_centre_px[rows])


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
    group: np.ndarray

    @staticmethod
    def empty(images: ParticleImages, grid: FourierGrid, group: np.ndarray) -> _Total:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=grid.device)

        rings = grid.r_max
        rest = {
            "image_power": zeros(images.groups, rings), "ctf_power": zeros(images.groups, rings),
            "group_count": zeros(images.groups), "squared_shift": zeros(), "log_likelihood": zeros(),
            "max_probability": zeros(),
        }  # fmt: skip
        cubes = torch.zeros(HALVES, 3, *grid.shape, device=grid.device)
        return _Total(grid, cubes, zeros(rings), zeros(rings), rest, group)

    def include(self, half: int, sums: _DirectionSums, field: Tensor, basis: PolarBasis, views: np.ndarray) -> None:
        """Put the sums of some directions, of which the references were `field`, where they belong."""
        for each in sums.rest:
            for name, value in self.rest.items():
                value += getattr(each, name)
        used = (sums.weight > LEAST_WEIGHT).nonzero()[:, 0]
        chosen = (sums.numerator.index_select(2, used), sums.denominator.index_select(2, used))
        numerator, denominator = on_circle(*chosen, basis.n_theta)
        denominator.clamp_min_(0)
        old = field.index_select(0, used)
        weight = basis.weight.double() * basis.n_theta
        self.cross += (old * numerator).sum(dim=(0, 2), dtype=torch.float64) / weight
        self.power += (old.square() * denominator).sum(dim=(0, 2), dtype=torch.float64) / weight
        seen = views[used.cpu().numpy()]
        self.cubes[half] += self.grid.spread(numerator, denominator, basis, seen, self.group)

    def sums(self, temperature: float) -> VolumeSums:
        """In units of the noise itself."""
        numerators, denominators = zip(*map(self.grid.whole, self.cubes), strict=True)
        cubes = (temperature * torch.stack(numerators), temperature * torch.stack(denominators))
        return VolumeSums(*cubes, temperature * self.cross, temperature * self.power, **self.rest)

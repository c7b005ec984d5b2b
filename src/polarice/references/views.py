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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from polarice.align.expect import PolarImages, Posterior, References, expect
from polarice.align.images import Clock, ParticleImages
from polarice.align.polar import PolarBasis
from polarice.align.search import Search
from polarice.align.store import PolarStore
from polarice.align.sums import Sums, on_circle
from polarice.align.sweep import batch_size, fill
from polarice.references.directions import around, healpix, nearest, step_deg, turned_at_random, views_along
from polarice.references.halfmaps import VolumeSums
from polarice.references.slices import FourierGrid
from polarice.references.symmetry import in_one_unit, operators
from polarice.types import Assignment, Pose2D
from polarice.workers import in_turn

CELL_ORDERS = 1  # cells are coarser than the grid by so many HEALPix orders
REGION_BYTES = 256 << 20  # of the sums of a region's directions, more or less
REACH_STEPS = 2.5  # of the grid, beyond the image of a cell that lies farthest from its centre
OWN = 9  # directions of an image's own
LEAST_WEIGHT = 1e-6  # of images, below which a direction is not put into the density


class Maps(Protocol):
    """What a pass asks of a model: densities that particles are compared with."""

    @property
    def densities(self) -> Tensor: ...  # (map, N, N, N)
    @property
    def class_of_map(self) -> tuple[int, ...]: ...  # what a particle's class is, where a map is its best
    @property
    def log_prior(self) -> Tensor: ...  # (map,) of the maps that a particle chooses among
    def ring_noise(self, r_max: int) -> Tensor: ...  # (G, ring)


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

    class_of: np.ndarray  # (n,) int32; -1: takes no part
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
        return Found(pose.class_of, direction, pose.psi_deg, pose.shift_px, *plain)

    @property
    def assignment(self) -> Assignment:
        pose = Pose2D(self.class_of, self.psi_deg, self.shift_px)
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

    def put(self, rows: np.ndarray, views: _Views, ids: np.ndarray | None, posterior: Posterior) -> None:
        """Write a batch's posterior; it calls classes what `ids` says of the views, or all of them."""
        table = posterior.table().cpu().numpy()
        place = table[0].astype(np.int64)
        which, direction = np.divmod(place if ids is None else ids[place], len(views.directions))
        self.class_of[rows] = views.class_of[which]
        self.direction[rows] = views.directions[direction]
        self.psi_deg[rows] = np.rad2deg(table[1])
        self.shift_px[rows] = table[2:4].T
        self.log_likelihood[rows], self.max_probability[rows], self.significant[rows] = table[4:]


@dataclass(frozen=True)
class _Views:
    """What images of a region may be: a map seen along a direction, all directions of one map first."""

    directions: np.ndarray  # (d, 3)
    class_of: np.ndarray  # (maps of the part,)

    def of_all_maps(self, ids: np.ndarray | None) -> np.ndarray | None:
        """Places of some directions, those of the first map, then of the next; None: all."""
        if ids is None:
            return None
        return (np.arange(len(self.class_of))[:, None] * len(self.directions) + ids).ravel()


@dataclass(frozen=True)
class Parts:
    """The particles as a pass finds them, in parts that are compared with different maps: halves, say."""

    rows: tuple[np.ndarray, ...]  # of each part
    maps: tuple[tuple[int, ...], ...]  # that each part is compared with
    before: Found
    crop_centre_px: np.ndarray  # (n, 2) where images are cut
    store: PolarStore

    def fields(self, images: ParticleImages, basis: PolarBasis, rows: np.ndarray) -> Tensor:
        """Fields of images, kept or made anew."""
        if not len(self.store.parted(rows)[1]):
            return self.store.take(rows).to(basis.device)
        return images.fields(basis, images.read(rows), self.crop_centre_px[rows])


@dataclass(frozen=True)
class Pass:
    """A pass over the images."""

    images: ParticleImages
    basis: PolarBasis
    search: Search
    batch_bytes: int
    workers: int = 1
    group: np.ndarray = field(
        default_factory=lambda: operators("C1")
    )  # (g, 3, 3) rotations: the density stays the same

    def run(
        self,
        model: Maps,
        grids: tuple[ViewGrid, ...],
        parts: Parts,
        clock: Clock,
        temperature: float = 1.0,
    ) -> tuple[Found, VolumeSums]:
        """New poses of the particles, and their sums; grids: of each part.

        Images are compared with the noise times the temperature: well below 1, best poses take all.
        """
        basis, store, crop_centre_px = self.basis, parts.store, parts.crop_centre_px
        basis.prepare()
        store.reset(basis)
        kept, _ = store.parted(np.concatenate(parts.rows))
        fill(store, self.images, basis, store.missing(kept, crop_centre_px[kept]), crop_centre_px, self.workers, clock)
        found = parts.before.copied()
        grid = FourierGrid(basis.box_px, basis.r_max, basis.device)
        total = Total.empty(self.images, grid, len(model.densities), self.group)
        noise = temperature * model.ring_noise(basis.r_max)
        work = _Round(self, (model, noise), grids, parts, found, total, clock)
        for part, rows in enumerate(parts.rows):
            if not len(rows):
                continue
            maps = parts.maps[part]
            with clock.counting("slicing"):
                transforms = [grid.transform(model.densities[each]) for each in maps]
            direction_bytes = len(maps) * 8 * basis.n_q * basis.r_max
            for region in regions_of(grids[part], rows, parts.before.direction, direction_bytes):
                work.on(region, part, transforms)
        return found, total.sums(temperature)


@dataclass(frozen=True)
class _Round:
    """A pass at work."""

    of: Pass
    model: tuple[Maps, Tensor]  # and the noise (G, ring) that images are compared with
    grids: tuple[ViewGrid, ...]  # of each part
    parts: Parts
    found: Found
    total: Total
    clock: Clock

    def on(self, region: _Region, part: int, transforms: list[Tensor]) -> None:
        """Compare the images of a region with slices of their part's maps, and put their sums into these."""
        basis, search, parts = self.of.basis, self.of.search, self.parts
        images, even = self.of.images, self.of.images.even_harmonics(basis)
        model, noise = self.model
        maps = parts.maps[part]
        seen = _Views(self.grids[part].directions[region.ids], np.array([model.class_of_map[each] for each in maps]))
        views = views_along(seen.directions)
        with self.clock.counting("slicing"):
            slices = torch.cat([self.total.grid.slices(each, basis, views) for each in transforms])
            log_prior = model.log_prior[list(maps)].repeat_interleave(len(views))
            references = References.of_fields(basis, slices, even, log_prior)
        sums = _DirectionSums.empty(self.of, len(slices), min(even, (search.levels[-1].n_q + 1) // 2))
        clocks = [Clock() for _ in range(self.of.workers)]

        def work(worker: int, item: tuple[np.ndarray, np.ndarray | None]) -> tuple[Posterior, Sums]:
            rows, ids = item
            with clocks[worker].counting("expectation"):
                mine = references if ids is None else references.take(torch.from_numpy(ids).to(basis.device))
                field = parts.fields(images, basis, rows)
                polar = images.polar(basis, rows, field, parts.crop_centre_px[rows], parts.before.shift_px[rows])
                return expect(basis, mine, polar, search, noise)

        batches = list(self._batches(region, seen))
        for (rows, ids), (posterior, some) in zip(batches, in_turn(batches, work, self.of.workers), strict=True):
            self.found.put(rows, seen, ids, posterior)
            sums.include(some, ids)
            images.progress(len(rows))
        self.clock.share(clocks)
        with self.clock.counting("insertion"):
            self.total.include(maps, sums, slices, basis, views)

    def _batches(self, region: _Region, seen: _Views) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for rows, some in region.groups:
            ids = seen.of_all_maps(some)
            count = len(region.ids) * len(seen.class_of) if ids is None else len(ids)
            size = batch_size(self.of.basis, count, self.of.search, self.of.batch_bytes)
            for start in range(0, len(rows), size):
                yield rows[start : start + size], ids


@dataclass(frozen=True)
class _DirectionSums:
    """Sums of the images of a region, by direction."""

    numerator: Tensor  # (q, ring, direction) complex64
    denominator: Tensor  # (even q, ring, direction) complex64
    weight: Tensor  # (direction,)
    rest: dict[str, Tensor]  # of all directions together

    @staticmethod
    def empty(of: Pass, directions: int, even: int) -> _DirectionSums:
        rings, device = of.basis.r_max, of.basis.device
        shapes = ((of.search.levels[-1].n_q, rings, directions), (even, rings, directions))
        numerator, denominator = (torch.zeros(shape, dtype=torch.complex64, device=device) for shape in shapes)
        weight, rest = torch.zeros(directions, device=device), _rest_of_none(of.images.groups, rings, device)
        return _DirectionSums(numerator, denominator, weight, rest)

    def include(self, sums: Sums, ids: np.ndarray | None) -> None:
        pairs = (
            (self.numerator, sums.numerator), (self.denominator, sums.denominator), (self.weight, sums.class_weight)
        )  # fmt: skip
        for mine, other in pairs:
            if ids is None:
                mine.add_(other)
            else:
                mine.index_add_(mine.ndim - 1, torch.from_numpy(ids).to(mine.device), other)
        for name, value in self.rest.items():
            value += getattr(sums, name)


def _rest_of_none(groups: int, rings: int, device: torch.device) -> dict[str, Tensor]:
    """Sums of no images of what is not by direction, as `Sums` names them."""
    shapes: dict[str, tuple[int, ...]] = {
        "image_power": (groups, rings), "ctf_power": (groups, rings), "group_count": (groups,), "squared_shift": (),
        "log_likelihood": (), "max_probability": (),
    }  # fmt: skip
    return {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}


@dataclass
class Total:
    """What a pass has found so far."""

    grid: FourierGrid
    cubes: Tensor  # (map, 3, point, point, point): as `FourierGrid.spread` gives them
    weight: Tensor  # (map,)
    cross: Tensor  # (map, ring)
    power: Tensor
    rest: dict[str, Tensor]
    group: np.ndarray

    @staticmethod
    def empty(images: ParticleImages, grid: FourierGrid, maps: int, group: np.ndarray) -> Total:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=grid.device)

        rings = grid.r_max
        rest = _rest_of_none(images.groups, rings, grid.device)
        cubes = torch.zeros(maps, 3, *grid.shape, device=grid.device)
        return Total(grid, cubes, zeros(maps), zeros(maps, rings), zeros(maps, rings), rest, group)

    def include(
        self, maps: tuple[int, ...], sums: _DirectionSums, field: Tensor, basis: PolarBasis, views: np.ndarray
    ) -> None:
        """Put the sums of some directions, of which the references were `field`, where they belong."""
        self._include_rest(sums.rest)
        for place, number in enumerate(maps):
            first = place * len(views)
            mine = sums.weight[first : first + len(views)]
            self.weight[number] += mine.sum(dtype=torch.float64)
            used = (mine > LEAST_WEIGHT).nonzero()[:, 0]
            if len(used):
                chosen = (sums.numerator.index_select(2, first + used), sums.denominator.index_select(2, first + used))
                numerator, denominator = on_circle(*chosen, basis.n_theta)
                old, seen = field.index_select(0, first + used), views[used.cpu().numpy()]
                self.include_fields(number, old, (numerator, denominator.clamp_min_(0)), basis, seen)

    def include_images(self, images: PolarImages, **scalars: Tensor) -> None:
        """What noise and priors are estimated from, of some images."""
        nothing = images.field.new_zeros(0)
        optics = (images.optics_of, len(self.rest["group_count"]))
        of_maps = {"numerator": nothing, "denominator": nothing, "class_weight": nothing}
        self._include_rest(vars(Sums.of_batch(images.field, images.ctf, optics, **of_maps, **scalars)))

    def _include_rest(self, sums: Mapping[str, Tensor]) -> None:
        for name, value in self.rest.items():
            value += sums[name]

    def include_fields(
        self, number: int, old: Tensor, sums: tuple[Tensor, Tensor], basis: PolarBasis, seen: np.ndarray
    ) -> None:
        """Put numerators and denominators (view, ring, angle) of one map, of which the references were `old`."""
        numerator, denominator = sums
        weight = basis.weight.double() * basis.n_theta
        self.cross[number] += (old * numerator).sum(dim=(0, 2), dtype=torch.float64) / weight
        self.power[number] += (old.square() * denominator).sum(dim=(0, 2), dtype=torch.float64) / weight
        self.cubes[number] += self.grid.spread(numerator, denominator, basis, seen, self.group)

    def sums(self, temperature: float) -> VolumeSums:
        """In units of the noise itself."""
        numerators, denominators = zip(*map(self.grid.whole, self.cubes), strict=True)
        cubes = (temperature * torch.stack(numerators), temperature * torch.stack(denominators))
        return VolumeSums(*cubes, self.weight, temperature * self.cross, temperature * self.power, **self.rest)

"""A first density from class averages: each class is one image of high signal, and its view is not known.

What a class knows of its reference are num and den, the sums of its particles. The log likelihood of all of them,
were they one view A, is num A - den A^2 / 2 summed over rings and angles: that of a single image X = num / sqrt(den)
with the transfer function sqrt(den) and noise 1. So some sixty classes are sixty images, and expectation maximization
over all directions costs next to nothing. From random directions it finds the density where noise is exaggerated at
first and brought down (simulated annealing), rings are added slowly, and density is kept from being negative.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from polarice.align.expect import PolarImages, Posterior, References, expect
from polarice.align.polar import PolarBasis
from polarice.align.prepare import MASK_EDGE_PX
from polarice.align.schedule import shift_grid
from polarice.align.search import Search
from polarice.align.sums import Sums, on_circle
from polarice.references.averages import Averages
from polarice.references.directions import angles_of, healpix, posed_views, turned_at_random, views_along
from polarice.references.fsc import soft_sphere
from polarice.references.slices import FourierGrid
from polarice.references.views import LEAST_WEIGHT

PERIODS = (4.0, 14.0)  # across the particle, on the last ring: at first and at the end
HOTTEST = 31.0  # times the noise, at first
ORDERS = (2, 3)  # HEALPix, at first and in the last LAST_SHARE of the iterations
LAST_SHARE = 0.3
SHIFT_RANGE_PX, SHIFT_STEP_PX = 3.0, 1.5
SHIFT_SIGMA_PX = 2.0
SSNR = 100.0  # that the prior takes every shell to hold: the less, the more the density stays a ball
CLASSES_AT_ONCE = 16
SAME_DEG = 12.0  # seeds whose class views lie so near to each other have found one map
FEWEST_CLASSES = 8


@dataclass(frozen=True)
class ClassImages:
    """Class sums as images: tensors of (class, ring, angle) on the basis of the classes."""

    basis: PolarBasis
    field: Tensor  # num / sqrt(den)
    ctf: Tensor  # sqrt(den)
    number: np.ndarray  # (class,) which classes of the run they are

    @staticmethod
    def of(model: Averages, least_weight: float = 0.0) -> ClassImages:
        """Those of classes that hold at least a share of the particles, and signal."""
        known = (model.error > 0).all(dim=1) & (model.weights >= least_weight)
        chosen = known.nonzero()[:, 0]
        den = model.mask_fraction / model.error[chosen]
        prior = model.mask_fraction / model.tau2[chosen].clamp_min(1e-30)
        num = model.field[chosen] * (den + prior)[..., None]
        root = den.sqrt()[..., None]
        ctf = root.expand_as(num).float().contiguous()
        return ClassImages(model.basis, (num / root).float(), ctf, chosen.cpu().numpy())

    def on(self, basis: PolarBasis) -> ClassImages:
        """The same on fewer rings of the same box."""
        r, n = basis.r_max, basis.n_theta
        harmonics = torch.fft.rfft(self.field[:, :r])[..., : min(n, self.basis.n_theta) // 2 + 1]
        field = torch.fft.irfft(harmonics * (n / self.basis.n_theta), n=n)
        return ClassImages(basis, field, self.ctf[:, :r, :1].expand(-1, -1, n).contiguous(), self.number)

    def batch(self, some: slice) -> PolarImages:
        """The engine's."""
        count = len(self.field[some])
        zeros = self.field.new_zeros(count)
        return PolarImages(self.field[some], self.ctf[some], zeros.long(), zeros[:, None].expand(-1, 2).contiguous())


@dataclass(frozen=True)
class AbInitio:
    """A density in the making; posterior and directions tell how the classes lie in it."""

    number: int
    rings: int  # on which classes were compared
    density: Tensor  # (N, N, N)
    direction: np.ndarray  # (class, 3)
    psi_deg: np.ndarray  # (class,)
    shift_px: np.ndarray  # (class, 2)
    log_likelihood: float


def densities(images: ClassImages, diameter_px: float, seed: int, iterations: int = 40) -> Iterator[AbInitio]:
    """The density after each iteration, from random directions that `seed` draws."""
    rng = np.random.default_rng([seed, 4])
    n, device = images.basis.box_px, images.basis.device
    sphere = soft_sphere(n, diameter_px / 2, MASK_EDGE_PX, device)
    whole = images.basis.r_max
    first, last = (min(whole, max(3, round(periods * n / diameter_px))) for periods in PERIODS)
    density: Tensor | None = None
    for number in range(1, iterations + 1):
        done = (number - 1) / max(1, iterations - 1)
        rings = round(first + (last - first) * min(1.0, done / 0.9))
        basis = replace(images.basis, r_max=rings, slack_px=SHIFT_RANGE_PX + SHIFT_STEP_PX)
        some, grid = images.on(basis), FourierGrid(n, rings, device)
        order = ORDERS[done > 1 - LAST_SHARE]
        directions = turned_at_random(healpix(order), rng)
        if density is None:
            density = _at_random(some, grid, rng) * sphere
        temperature = 1 + (HOTTEST - 1) * (1 - done) ** 2
        posterior, sums, views = _compared(some, grid, density, directions, temperature, rng)
        density = _solved(grid, basis, sums, views).clamp_min(0) * sphere
        table = posterior.table().cpu().numpy()
        yield AbInitio(
            number,
            rings,
            density,
            directions[table[0].astype(np.int64)],
            np.rad2deg(table[1]),
            table[2:4].T,
            float(posterior.log_likelihood.double().sum()),
        )


def _at_random(images: ClassImages, grid: FourierGrid, rng: np.random.Generator) -> Tensor:
    """The density of classes seen from anywhere."""
    from scipy.spatial.transform import Rotation

    views = Rotation.random(len(images.field), rng=rng).as_matrix()
    weight = images.basis.weight[:, None]
    spread = grid.spread(images.field * images.ctf * weight, images.ctf.square() * weight, images.basis, views)
    numerator, denominator = grid.whole(spread)
    return _density(grid, numerator, denominator)


def _density(grid: FourierGrid, numerator: Tensor, denominator: Tensor) -> Tensor:
    ssnr = torch.full((grid.r_max + 1,), SSNR, dtype=torch.float64, device=grid.device)
    return grid.density(grid.solved(numerator, denominator, ssnr))


def _compared(
    images: ClassImages,
    grid: FourierGrid,
    density: Tensor,
    directions: np.ndarray,
    temperature: float,
    rng: np.random.Generator,
) -> tuple[Posterior, Sums, np.ndarray]:
    """Posterior of all classes over all directions, and their sums."""
    basis, views = images.basis, views_along(directions)
    field = grid.slices(grid.transform(density), basis, views)
    references = References.of_fields(basis, field, 1, torch.zeros(len(field), device=basis.device))
    shifts = shift_grid(SHIFT_RANGE_PX, SHIFT_STEP_PX, rng.uniform(-0.5, 0.5, 2))
    shifts_px = torch.from_numpy(shifts).float().to(basis.device)
    search = Search.over(basis, shifts_px, basis.n_theta, SHIFT_SIGMA_PX)
    noise = torch.full((1, basis.r_max), temperature, device=basis.device)
    found: list[Posterior] = []
    total: Sums | None = None
    for start in range(0, len(images.field), CLASSES_AT_ONCE):
        some = slice(start, start + CLASSES_AT_ONCE)
        posterior, sums = expect(basis, references, images.batch(some), search, noise)
        found.append(posterior)
        total = sums.double() if total is None else total.include(sums)
    assert total is not None, "there are classes"
    return Posterior.joined(found), total, views


def _solved(grid: FourierGrid, basis: PolarBasis, sums: Sums, views: np.ndarray) -> Tensor:
    """The density that sums by direction speak for."""
    used = (sums.class_weight > LEAST_WEIGHT).nonzero()[:, 0]
    chosen = (sums.numerator.index_select(2, used), sums.denominator.index_select(2, used))
    numerator, denominator = (each.float() for each in on_circle(*chosen, basis.n_theta))
    return _density(grid, *grid.whole(grid.spread(numerator, denominator, basis, views[used.cpu().numpy()])))


def agreement_deg(one: AbInitio, other: AbInitio) -> tuple[float, bool]:
    """Median angle between the views of the classes in two densities, after the rotation that brings these together;
    and whether one of them had to be mirrored for it."""
    best, mirrored = math.inf, False
    for hand in (False, True):
        a, b = _rotations(one, False), _rotations(other, hand)
        turns = np.einsum("nji,njk->nik", a, b)  # turns the second's object into the first's
        for turn in turns:
            cosine = (np.einsum("ij,nij->n", turn, turns) - 1) / 2
            angle = float(np.degrees(np.median(np.arccos(np.clip(cosine, -1, 1)))))
            if angle < best:
                best, mirrored = angle, hand
    return best, mirrored


def _rotations(of: AbInitio, mirrored: bool) -> np.ndarray:
    """(class, 3, 3) matrices A(rot, tilt, psi) of the classes' views, in the density or in its mirror image (z)."""
    found = posed_views(*angles_of(of.direction), -of.psi_deg)
    mirror = np.diag([1.0, 1.0, -1.0])
    return mirror @ found @ mirror if mirrored else found


def projections(images: ClassImages, found: AbInitio) -> tuple[np.ndarray, np.ndarray]:
    """Class averages (class, N, N), low-passed as they were compared, and the density's projections where they lie."""
    rings = found.rings
    basis = replace(images.basis, r_max=rings, slack_px=0.0)
    some, grid = images.on(basis), FourierGrid(basis.box_px, rings, basis.device)
    field = grid.slices(grid.transform(found.density), basis, views_along(found.direction))
    psi_rad = torch.from_numpy(np.radians(found.psi_deg)).float().to(basis.device)
    conjugate = basis.harmonics(field).conj().permute(2, 1, 0).contiguous().resolve_conj()
    turned = basis.turned(conjugate, torch.arange(len(field), device=basis.device), psi_rad)
    back = basis.unshifted(turned, torch.from_numpy(-found.shift_px).float().to(basis.device))
    averages = some.field / some.ctf.clamp_min(1e-6)
    return basis.to_images(averages).cpu().numpy(), basis.to_images(back).cpu().numpy()


@dataclass(frozen=True)
class Start:
    """What came of one random start."""

    seed: int
    found: AbInitio
    seconds: float
    apart_deg: float = 0.0  # median angle of the classes' views from the best start's, hand apart
    mirrored: bool = False  # against the best start's

    @property
    def same(self) -> bool:
        return self.apart_deg < SAME_DEG

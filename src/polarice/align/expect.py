"""Expectation: the posterior over (reference, angle, shift) of every image, and the sums it weighs, as matrix products.

With X_i the masked image's polar field, C_i its CTF, A_c a reference, and ^q the angular harmonic,

    score(i, t, c, psi) = sum_r w_r / sigma_r^2  sum_theta [C_i X_i moved by -t](r, theta)  A_c(r, theta - psi)
                        = irfft over q of  sum_r H_itq(r) conj A_cq(r)
    norm(i, c, psi)     = 1/2 sum_r w_r / sigma_r^2  sum_theta C_i^2(r, theta) A_c^2(r, theta - psi)

The second is the same product with the even harmonics of C^2 (one for a round CTF, a few with astigmatism) and is
subtracted before the inverse transform, where it costs nothing. What the models tie together never shows here.

Coarse to fine: a level with fewer rings (`search.Level`) scores every shift with every reference, or those that the
level before it left; what together holds less than PRUNED_MASS of an image's posterior is not looked at again. A
posterior is a martingale: what rings further out are expected to make of a share is that share, so this is also what
is expected to be lost, as far as the model is true (docs/design.md says what was measured).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from polarice.align.fused import log_sums
from polarice.align.peak import between_angles, between_shifts
from polarice.align.polar import PolarBasis
from polarice.align.products import Precision, product, product_over_rows
from polarice.align.search import Level, Search
from polarice.align.sums import Sums
from polarice.types import InputError

KEPT_MASS = 0.999  # share of each image's posterior that goes into the sums
PRUNED_MASS = 5e-5  # share of it that a coarse level may take out of the search
LOST_MASS = 1e-4  # share of it that is not exponentiated, at the most
FLOOR = -80.0  # log weights below this are as good as nothing, and their exponentials would be slow denormal numbers
SIGNIFICANT = 1e-3  # cells are counted as significant from this share of the best one's weight
HARMONIC_BLOCK = 32  # harmonics that share one matrix product; each block starts at its own first ring
CACHED_BYTES = {"cpu": 512 << 10, "cuda": 64 << 20}  # of weights that are exponentiated at once
CLASS_BLOCK_BYTES = {"cpu": 16 << 20, "cuda": 1 << 30}  # of weights that are made at once, where references are many


@dataclass(frozen=True)
class References:
    """What a model hands the expectation."""

    conjugate: Tensor  # (q, ring, reference) complex64: conj A_cq(r)
    power_conjugate: Tensor  # (even q, ring, reference) complex64: conjugate harmonics of the squared field
    log_prior: Tensor  # (reference,) log of the class weights

    def __len__(self) -> int:
        return len(self.log_prior)

    @staticmethod
    def of_fields(basis: PolarBasis, field: Tensor, even_harmonics: int, log_prior: Tensor) -> References:
        """Those of fields (reference, ring, angle); `even_harmonics` of the CTF's square are accounted for."""
        harmonics = basis.harmonics(field)
        power = torch.fft.rfft(field.square())[..., : 2 * even_harmonics : 2]
        return References(
            conjugate=harmonics.conj().permute(2, 1, 0).contiguous().resolve_conj(),
            power_conjugate=power.conj().permute(2, 1, 0).contiguous().resolve_conj(),
            log_prior=log_prior.float(),
        )

    def take(self, which: Tensor) -> References:
        """Some of them, by their numbers."""
        return References(
            self.conjugate.index_select(2, which),
            self.power_conjugate.index_select(2, which),
            self.log_prior.index_select(0, which),
        )


@dataclass(frozen=True)
class PolarImages:
    """A batch of images in the polar basis, masked and moved to their last known centre."""

    field: Tensor  # (image, ring, angle) float32
    ctf: Tensor  # (image, ring, angle) float32
    optics_of: Tensor  # (image,) int64
    centre_px: Tensor  # (image, 2) float32, what they were moved by (x, y)

    def __len__(self) -> int:
        return len(self.field)


@dataclass(frozen=True)
class Posterior:
    """The best pose of each image of a batch and how sure it is; tensors of (image,)."""

    class_of: Tensor
    psi_rad: Tensor
    shift_px: Tensor  # (image, 2) whole shift, x and y
    log_likelihood: Tensor  # log of the sum of all weights, up to the image's own power
    max_probability: Tensor
    significant: Tensor  # cells with more than SIGNIFICANT of the best one's weight

    def table(self) -> Tensor:
        """(7, image) float64: the fields in their order, the shift as two; every one of them exact."""
        class_of, psi_rad, shift_px, *rest = (getattr(self, each.name).double() for each in fields(self))
        return torch.stack([class_of, psi_rad, *shift_px.unbind(dim=1), *rest])

    @staticmethod
    def joined(parts: list[Posterior]) -> Posterior:
        """Posteriors of several batches as one."""
        return Posterior(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(Posterior)))


def expect(
    basis: PolarBasis, references: References, images: PolarImages, search: Search, noise_power: Tensor
) -> tuple[Posterior, Sums]:
    """Posterior of a batch and its share of the sums; noise_power is (optics group, ring)."""
    problem = _Problem.of(basis, references, images, search, noise_power)
    pairs: Tensor | None = None
    for level, finer in itertools.pairwise(search.levels):
        left = _holding(problem.mass_of_pairs(level, pairs), PRUNED_MASS).view(-1).nonzero()[:, 0]
        pairs = problem.refined(left, level, finer)
    compared = problem.compared(search.levels[-1], pairs)
    found, weights = problem.log_weights(compared)
    posterior, kept = _normalise(found, weights, problem)
    return posterior, _accumulate(problem, images, compared, kept, posterior, len(noise_power))


def log_weights(
    basis: PolarBasis, references: References, images: PolarImages, search: Search, noise_power: Tensor
) -> Tensor:
    """score - norm + log prior of every cell on the whole basis: (image, shift, reference, angle) float32."""
    problem = _Problem.of(basis, references, images, search, noise_power)
    level = search.levels[-1]
    _, weights = problem.log_weights(problem.compared(level, None))
    return weights.view(len(images.field), len(search.shifts_px), len(references), level.psi_count)


@dataclass(frozen=True)
class _Compared:
    """The images of a batch at one level, moved by the shifts that are left: what references are multiplied with."""

    level: Level
    pairs: Tensor | None  # (pair,) (image * shifts + shift) * references + reference, ascending; None: all there are
    rows: Tensor  # (row,) image * shifts + shift, ascending
    data: Tensor  # (q, row, ring) complex64
    ctf_power: Tensor  # (even q, image, ring) complex64


@dataclass(frozen=True)
class _Part:
    """The pairs of a block of references."""

    classes: slice
    pairs: Tensor  # (pair,)
    row_of: Tensor | None  # (pair,) places of their rows in _Compared.rows; None: all pairs are left


@dataclass(frozen=True)
class _Kept:
    """What goes into the sums, normalised so that each image's weights add up to 1."""

    rows: Tensor  # (row,) places in _Compared.rows, ascending
    row_of: Tensor  # (pair,) place in `rows`
    class_of: Tensor  # (pair,)
    weights: Tensor  # (pair, angle)


@dataclass(frozen=True)
class _Problem:
    """A batch, the references and the search, as all levels need them."""

    basis: PolarBasis
    references: References
    search: Search
    field: Tensor  # (image, ring, angle): w / sigma^2 C X
    ctf_power: Tensor  # (image, ring, angle): w / sigma^2 C^2
    centre_px: Tensor  # (image, 2)

    @staticmethod
    def of(
        basis: PolarBasis, references: References, images: PolarImages, search: Search, noise_power: Tensor
    ) -> _Problem:
        scale = (basis.weight / noise_power)[images.optics_of][:, :, None]
        weighted_ctf = images.ctf * scale
        return _Problem(
            basis=basis,
            references=references,
            search=search,
            field=images.field * weighted_ctf,
            ctf_power=images.ctf * weighted_ctf,
            centre_px=images.centre_px,
        )

    def squared_shift(self, level: Level) -> Tensor:
        """(image, shift) of the whole shift."""
        return (self.centre_px[:, None] + level.shifts_px).square().sum(-1)

    def shift_log_prior(self, level: Level) -> Tensor:
        """(image, shift)."""
        return self.squared_shift(level) / (-2 * self.search.shift_sigma_px**2)

    def pairs_of_image(self, level: Level) -> int:
        """Of a shift and a reference."""
        return len(level.shifts_px) * len(self.references)

    def refined(self, pairs: Tensor, level: Level, finer: Level) -> Tensor:
        """Pairs of a level as those of the next one: each shift as all those that it was nearest to."""
        if len(finer.shifts_px) == len(level.shifts_px):
            return pairs
        n_refs, n_shifts = len(self.references), len(level.shifts_px)
        reference, shift, image = pairs % n_refs, pairs // n_refs % n_shifts, pairs // (n_refs * n_shifts)
        which, child = (finer.nearest == shift[:, None]).nonzero(as_tuple=True)
        return ((image[which] * len(finer.shifts_px) + child) * n_refs + reference[which]).sort().values

    def compared(self, level: Level, pairs: Tensor | None) -> _Compared:
        """The batch at one level, for the pairs that are left."""
        n, n_shifts, n_refs = len(self.field), len(level.shifts_px), len(self.references)
        field = self.field[:, : level.rings, :: level.stride].contiguous()
        opposite = field.roll(level.n_theta // 2, -1)
        cos, sin = level.phases
        if pairs is None:
            rows = torch.arange(n * n_shifts, device=field.device)
            moved = (field[:, None] * cos).addcmul_(opposite[:, None], sin).flatten(0, 1)
        else:
            rows = torch.unique_consecutive(pairs // n_refs)
            image, shift = rows // n_shifts, rows % n_shifts
            moved = _picked(field, image).mul_(_picked(cos, shift))
            moved.addcmul_(_picked(opposite, image), _picked(sin, shift))
        data = torch.fft.rfft(moved)[..., : level.n_q].permute(2, 0, 1).contiguous()
        count = min(len(self.references.power_conjugate), (level.n_q + 1) // 2)
        power = torch.fft.rfft(self.ctf_power[:, : level.rings, :: level.stride])[..., : 2 * count : 2]
        return _Compared(level, pairs, rows, data, power.permute(2, 0, 1).contiguous())

    def log_weights(self, compared: _Compared) -> tuple[Tensor, Tensor]:
        """The pairs (pair,) that are left, and score - norm + log prior of them at every angle: (pair, angle)."""
        parts = list(self._parts(compared))
        weights = [self._log_weights_of(compared, part) for part in parts]
        if len(parts) == 1:
            return parts[0].pairs, weights[0]
        return torch.cat([part.pairs for part in parts]), torch.cat(weights)

    def mass_of_pairs(self, level: Level, pairs: Tensor | None) -> Tensor:
        """(image, pair of shift and reference) share of the image's posterior at one level, 0 for what is out."""
        table = self.field.new_full((len(self.field) * self.pairs_of_image(level),), -math.inf)
        compared = self.compared(level, pairs)
        for part in self._parts(compared):
            table[part.pairs] = self._log_sums(compared, part)
        return table.view(len(self.field), -1).softmax(dim=1)

    def best_pose(self, weights: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
        """Angle (image,) rad and whole shift (image, 2) px: of the best cell, or beside it where the search says so.

        weights (image, angle): log weights of each image's best pair, `best` (image,) shift * references + reference.
        """
        level, reach_px = self.search.levels[-1], self.search.between_px
        shift, reference = best // len(self.references), best % len(self.references)
        psi = weights.argmax(dim=1)
        shift_px = self.centre_px + level.shifts_px[shift]
        if reach_px == 0:
            return psi * (2 * torch.pi / weights.shape[1]), shift_px
        psi_rad = between_angles(weights, psi) * (2 * torch.pi / weights.shape[1])
        moved = self.basis.unshifted(self.field, level.shifts_px[shift])
        turned = self.basis.turned(self.references.conjugate, reference, psi_rad)
        beside = between_shifts(self.basis, moved, turned, (shift_px, self.search.shift_sigma_px))
        return psi_rad, shift_px + beside.clamp(-reach_px, reach_px)

    def _parts(self, compared: _Compared) -> Iterator[_Part]:
        """The pairs that are left, for a block of references at a time."""
        n_refs, rows = len(self.references), len(compared.rows)
        room = CLASS_BLOCK_BYTES[compared.rows.device.type]
        size = max(1, room // max(1, rows * 4 * compared.level.psi_count))
        for start in range(0, n_refs, size):
            stop = min(n_refs, start + size)
            pairs, row_of = self._pairs_of(compared, start, stop)
            if len(pairs) > 0:
                yield _Part(slice(start, stop), pairs, row_of)

    def _pairs_of(self, compared: _Compared, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Pairs of a block of references and the place of their rows in the level's, or None where all are left."""
        n_refs = len(self.references)
        if compared.pairs is None:
            classes = torch.arange(start, stop, device=compared.rows.device)
            return (compared.rows[:, None] * n_refs + classes).view(-1), None
        pairs = compared.pairs
        if stop - start < n_refs:
            class_of = pairs % n_refs
            pairs = pairs[(class_of >= start) & (class_of < stop)]
        return pairs, torch.searchsorted(compared.rows, pairs // n_refs)

    def _products(self, compared: _Compared, classes: slice) -> tuple[Tensor, Tensor]:
        """Harmonics of scores (q, row, reference) and of twice the norms (even q, image, reference)."""
        spectrum = _products(self.basis, compared, self.references.conjugate[:, :, classes], self.search.precision)
        power = self.references.power_conjugate[: len(compared.ctf_power), : compared.level.rings, classes]
        return spectrum, torch.bmm(compared.ctf_power, power)

    def _log_sums(self, compared: _Compared, part: _Part) -> Tensor:
        """(pair,) log of the sum of weights over angles."""
        if self.search.kernel == "plain":
            weights = self._log_weights_of(compared, part)
            return torch.cat([_log_sum(some) for some in weights.split(_at_once(weights))])
        level, n_refs, pairs = compared.level, len(self.references), part.pairs
        spectrum, norm = self._products(compared, part.classes)
        image_of_row = compared.rows // len(level.shifts_px)
        spectrum[: 2 * len(norm) : 2] -= 0.5 * norm.index_select(1, image_of_row)
        columns = None
        if part.row_of is not None:
            columns = part.row_of * spectrum.shape[2] + pairs % n_refs - part.classes.start
        prior = self.shift_log_prior(level).view(-1)[pairs // n_refs] + self.references.log_prior[pairs % n_refs]
        return log_sums(spectrum.flatten(1), columns, prior, level.n_theta, level.psi_count)

    def _log_weights_of(self, compared: _Compared, part: _Part) -> Tensor:
        """(pair, angle) log weights."""
        classes, pairs, row_of = part.classes, part.pairs, part.row_of
        level, n, n_refs = compared.level, len(self.field), len(self.references)
        spectrum, norm = self._products(compared, classes)
        even = len(norm)
        shift_prior, class_prior = self.shift_log_prior(level), self.references.log_prior
        cells = spectrum.new_zeros(len(pairs), level.psi_count // 2 + 1)
        if row_of is None:
            view = spectrum.view(level.n_q, n, len(level.shifts_px), -1)
            view[: 2 * even : 2] -= 0.5 * norm[:, :, None]
            view[0] += level.n_theta * (shift_prior[..., None] + class_prior[classes])
            cells[:, : level.n_q] = spectrum.flatten(1).T
        else:
            count = spectrum.shape[2]
            class_of = pairs % n_refs - classes.start
            image = pairs // self.pairs_of_image(level)
            cells[:, : level.n_q] = spectrum.flatten(1).index_select(1, row_of * count + class_of).T
            cells[:, : 2 * even : 2] -= 0.5 * norm.flatten(1).index_select(1, image * count + class_of).T
            cells[:, 0] += level.n_theta * (shift_prior.view(-1)[pairs // n_refs] + class_prior[pairs % n_refs])
        weights = torch.fft.irfft(cells, n=level.psi_count)
        return weights if level.psi_count == level.n_theta else weights * (level.psi_count / level.n_theta)


def _picked(fields: Tensor, which: Tensor) -> Tensor:
    """fields[which], by copying whole fields."""
    return fields.view(len(fields), -1).index_select(0, which).view(-1, *fields.shape[1:])


def _products(basis: PolarBasis, compared: _Compared, conjugate: Tensor, precision: Precision) -> Tensor:
    """sum over rings of data and references, (q, row, reference) complex64; conjugate (q, ring, reference)."""
    n_q, rows, rings = compared.data.shape
    spectrum = conjugate.new_empty(n_q, rows, conjugate.shape[2])
    for start in range(0, n_q, HARMONIC_BLOCK):
        block = slice(start, min(n_q, start + HARMONIC_BLOCK))
        ring = int(basis.first_ring[start])
        product(compared.data[block, :, ring:], conjugate[block, ring:rings], precision, out=spectrum[block])
    return spectrum


def _holding(mass: Tensor, lost: float) -> Tensor:
    """(image, pair) which pairs to keep so that at most `lost` of each image's mass, which adds up to 1, is not.

    By a threshold per image out of a few: below `lost` over the number of pairs, what is left out cannot hold more.
    """
    threshold = mass.new_full((len(mass),), lost / mass.shape[1])
    level = lost
    undecided = torch.ones_like(threshold, dtype=torch.bool)
    while level > lost / mass.shape[1]:
        outside = (mass * (mass < level)).sum(dim=1)
        now = undecided & (outside <= lost)
        threshold[now] = level
        undecided &= ~now
        level /= 4
    return mass >= threshold[:, None]


def _at_once(weights: Tensor) -> int:
    """Pairs whose weights (pair, angle) stay in a processor's cache while they are worked on, or fill a card."""
    return max(1, CACHED_BYTES[weights.device.type] // (4 * weights.shape[1]))


def _exponentiate(cells: Tensor, norm: Tensor) -> Tensor:
    """exp(cells - norm), in place: cells (pair, angle), norm (pair,)."""
    return cells.sub_(norm[:, None]).clamp_(min=FLOOR).exp_()


def _log_sum(cells: Tensor) -> Tensor:
    """(pair,) log of the sum of exp(cells) over angles; cells (pair, angle) are used up."""
    peak = cells.amax(dim=1)
    return peak + _exponentiate(cells, peak).sum(dim=1).log()


def _totals(weights: Tensor, rows: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """Of exp(weights - norm) in some rows: the sum, and how many are significant, each (row,); norm (row,)."""
    mass, above = torch.empty_like(norm), torch.empty_like(norm)
    size = _at_once(weights)
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        cells = _exponentiate(weights.index_select(0, rows[part]), norm[part])
        mass[part] = cells.sum(dim=1)
        above[part] = cells.gt_(SIGNIFICANT).sum(dim=1)  # of floats: to count booleans takes ten times as long
    return mass, above


def _normalise(pairs: Tensor, weights: Tensor, problem: _Problem) -> tuple[Posterior, _Kept]:
    """The posterior of log weights (pair, angle), and the part of it that goes into the sums.

    Pairs whose best cell lies so far below the image's best that all of them together hold less than LOST_MASS are
    never exponentiated; of the others, those that hold KEPT_MASS are kept.
    """
    level, n, n_refs, n_psi = problem.search.levels[-1], len(problem.field), len(problem.references), weights.shape[1]
    of_image = problem.pairs_of_image(level)
    image = pairs // of_image
    pair_peak = weights.amax(dim=1)
    table = pair_peak.new_full((n * of_image,), -math.inf)
    table[pairs] = pair_peak
    peak, best = table.view(n, -1).max(dim=1)
    at = (pairs == best[image] + image * of_image).nonzero()[:, 0]
    of_best = torch.empty_like(weights[:n]).index_copy_(0, image[at], weights.index_select(0, at))
    psi_rad, shift_px = problem.best_pose(of_best, best)

    to_device = (pair_peak > peak[image] - math.log(of_image * n_psi / LOST_MASS)).nonzero()[:, 0]
    of_pair, above = _totals(weights, to_device, peak[image[to_device]])
    mass = torch.zeros_like(table)
    mass[pairs[to_device]] = of_pair
    mass = mass.view(n, -1)
    total = mass.sum(dim=1)
    significant = torch.zeros_like(total).index_add_(0, image[to_device], above)
    posterior = Posterior(
        class_of=best % n_refs,
        psi_rad=psi_rad,
        shift_px=shift_px,
        log_likelihood=peak + total.log(),
        max_probability=1 / total,
        significant=significant.to(torch.int64),
    )
    keep = _holding(mass / total[:, None], 1 - KEPT_MASS)
    kept_total = (mass * keep).sum(dim=1)
    chosen = keep.view(-1)[pairs].nonzero()[:, 0]
    pairs, image = pairs[chosen], image[chosen]
    rows, row_of = torch.unique(pairs // n_refs, return_inverse=True)
    cells, norm = weights.index_select(0, chosen), (peak + kept_total.log())[image]
    for block, part in zip(cells.split(_at_once(cells)), norm.split(_at_once(cells)), strict=True):
        _exponentiate(block, part)
    return posterior, _Kept(rows, row_of, pairs % n_refs, cells)


def _accumulate(
    problem: _Problem, images: PolarImages, compared: _Compared, kept: _Kept, posterior: Posterior, groups: int
) -> Sums:
    """The batch's sums: numerator and denominator of every reference, and what noise and priors are estimated from."""
    n_q, n_refs, n_shifts = compared.level.n_q, len(problem.references), len(compared.level.shifts_px)
    if not len(kept.rows):
        raise InputError("no image fits any reference: some hold numbers beyond all measure; look at both")
    place = torch.searchsorted(compared.rows, kept.rows)
    turned = compared.data.new_zeros(n_q, len(kept.rows) * n_refs)
    harmonics = torch.fft.rfft(kept.weights)[:, :n_q].conj().resolve_conj()
    turned.index_copy_(1, kept.row_of * n_refs + kept.class_of, harmonics.T.contiguous())
    turned = turned.view(n_q, -1, n_refs)
    numerator = product_over_rows(compared.data[:, place], turned, problem.search.precision)  # (q, ring, reference)
    ctf_power = compared.ctf_power[:, kept.rows // n_shifts]
    denominator = product_over_rows(ctf_power, turned[: 2 * len(ctf_power) : 2], "float32")
    weight = kept.weights.sum(dim=1)
    squared_shift = problem.squared_shift(compared.level).view(-1)[kept.rows]
    return Sums.of_batch(
        images.field,
        images.ctf,
        (images.optics_of, groups),
        numerator=numerator,
        denominator=denominator,
        class_weight=weight.new_zeros(n_refs).index_add_(0, kept.class_of, weight),
        squared_shift=(weight * squared_shift[kept.row_of]).sum(),
        log_likelihood=posterior.log_likelihood.double().sum(),
        max_probability=posterior.max_probability.double().sum(),
    )

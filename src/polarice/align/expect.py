"""Expectation: the posterior over (reference, angle, shift) of every image, and the sums it weighs, as matrix products.

With X_i the masked image's polar field, C_i its CTF, A_c a reference, and ^q the angular harmonic,

    score(i, t, c, psi) = sum_r w_r / sigma_r^2  sum_theta [C_i X_i moved by -t](r, theta)  A_c(r, theta - psi)
                        = irfft over q of  sum_r H_itq(r) conj A_cq(r)
    norm(i, c, psi)     = 1/2 sum_r w_r / sigma_r^2  sum_theta C_i^2(r, theta) A_c^2(r, theta - psi)

The second is the same product with the even harmonics of C^2 (one for a round CTF, a few with astigmatism) and is
subtracted before the inverse transform, where it costs nothing. What the models tie together never shows here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polarice.align.polar import PolarBasis
from polarice.align.sums import Sums

KEPT_MASS = 0.999  # share of each image's posterior that goes into the sums
LOST_MASS = 1e-4  # share of it that is not looked at, at the most
FLOOR = -80.0  # log weights below this are as good as nothing, and their exponentials would be slow denormal numbers
SIGNIFICANT = 1e-3  # cells are counted as significant from this share of the best one's weight
HARMONIC_BLOCK = 32  # harmonics that share one matrix product; each block starts at its own first ring


@dataclass(frozen=True)
class References:
    """What a model hands the expectation."""

    conjugate: Tensor  # (q, ring, reference) complex64: conj A_cq(r)
    power_conjugate: Tensor  # (even q, ring, reference) complex64: conjugate harmonics of the squared field
    log_prior: Tensor  # (reference,) log of the class weights


@dataclass(frozen=True)
class PolarImages:
    """A batch of images in the polar basis, masked and moved by whole pixels to their last known centre."""

    field: Tensor  # (image, ring, angle) float32
    ctf: Tensor  # (image, ring, angle) float32
    optics_of: Tensor  # (image,) int64
    centre_px: Tensor  # (image, 2) float32, what they were moved by (x, y)


@dataclass(frozen=True)
class Search:
    """The poses that are tried: every shift of the grid around each image's centre, every angle of the circle."""

    shifts_px: Tensor  # (shift, 2) x, y
    phases: tuple[Tensor, Tensor]  # cos and sin that undo them, each (shift, ring, angle)
    psi_count: int
    shift_sigma_px: float  # width of the Gaussian prior on the whole shift, per axis

    @staticmethod
    def over(basis: PolarBasis, shifts_px: Tensor, psi_count: int, shift_sigma_px: float) -> Search:
        """The plan for these shifts (shift, 2) on this basis."""
        return Search(shifts_px, basis.shift_phases(shifts_px), psi_count, shift_sigma_px)


@dataclass(frozen=True)
class Posterior:
    """The best pose of each image of a batch and how sure it is; tensors of (image,)."""

    class_of: Tensor
    psi_rad: Tensor
    shift_px: Tensor  # (image, 2) whole shift, x and y
    log_likelihood: Tensor  # log of the sum of all weights, up to the image's own power
    max_probability: Tensor
    significant: Tensor  # cells with more than SIGNIFICANT of the best one's weight


def expect(
    basis: PolarBasis, references: References, images: PolarImages, search: Search, noise_power: Tensor
) -> tuple[Posterior, Sums]:
    """Posterior of a batch and its share of the sums; noise_power is (optics group, ring)."""
    scale = (basis.weight / noise_power)[images.optics_of]  # (image, ring)
    data = _moved_harmonics(basis, images.field * images.ctf * scale[:, :, None], search.phases)
    ctf_power = _even_harmonics(images.ctf.square() * scale[:, :, None], len(references.power_conjugate))
    log_prior, shift2 = _log_prior(references, images, search)
    weights = log_weights(basis, references, data, ctf_power, log_prior, search.psi_count)
    posterior, rows, kept = _normalise(weights, images, search)
    return posterior, _accumulate(basis, images, data, ctf_power, (rows, kept, shift2), posterior, len(noise_power))


def log_weights(
    basis: PolarBasis, references: References, data: Tensor, ctf_power: Tensor, log_prior: Tensor, psi_count: int
) -> Tensor:
    """score - norm + log prior of every cell: (image, shift, reference, angle) float32.

    data (q, image*shift, ring), ctf_power (even q, image, ring), log_prior (image, shift, reference).
    """
    n_q, rows, _ = data.shape
    n_refs = log_prior.shape[2]
    spectrum = torch.empty(n_q, rows, n_refs, dtype=torch.complex64, device=data.device)
    for start in range(0, n_q, HARMONIC_BLOCK):
        block = slice(start, start + HARMONIC_BLOCK)
        ring = int(basis.first_ring[start])
        torch.bmm(data[block, :, ring:], references.conjugate[block, ring:], out=spectrum[block])
    norm = torch.bmm(ctf_power, references.power_conjugate)  # (even q, image, reference)
    view = spectrum.view(n_q, *log_prior.shape)
    view[: 2 * len(norm) : 2] -= 0.5 * norm[:, :, None, :]
    view[0] += basis.n_theta * log_prior
    cells = spectrum.new_zeros(rows, n_refs, psi_count // 2 + 1)
    cells[..., :n_q] = spectrum.permute(1, 2, 0)
    weights = torch.fft.irfft(cells, n=psi_count)
    if psi_count != basis.n_theta:
        weights *= psi_count / basis.n_theta
    return weights.view(*log_prior.shape, psi_count)


def _moved_harmonics(basis: PolarBasis, field: Tensor, phases: tuple[Tensor, Tensor]) -> Tensor:
    """Harmonics of every image moved by every shift: (q, image*shift, ring) complex64, contiguous."""
    cos, sin = phases
    moved = field[:, None] * cos  # (image, shift, ring, angle)
    moved.addcmul_(basis.opposite(field)[:, None], sin)
    harmonics = basis.harmonics(moved)
    return harmonics.permute(3, 0, 1, 2).reshape(basis.n_q, -1, basis.r_max)


def _even_harmonics(field: Tensor, count: int) -> Tensor:
    """Harmonics 0, 2, 4, ... of a real field (image, ring, angle): (even q, image, ring) complex64, contiguous."""
    return torch.fft.rfft(field)[..., : 2 * count : 2].permute(2, 0, 1).contiguous()


def _log_prior(references: References, images: PolarImages, search: Search) -> tuple[Tensor, Tensor]:
    """Log prior (image, shift, reference) and the squared whole shifts (image, shift)."""
    whole = images.centre_px[:, None] + search.shifts_px
    shift2 = whole.square().sum(-1)
    return references.log_prior - shift2[..., None] / (2 * search.shift_sigma_px**2), shift2


def _normalise(weights: Tensor, images: PolarImages, search: Search) -> tuple[Posterior, Tensor, Tensor]:
    """The posterior, the (image*shift) rows that matter, and their weights (row, reference, angle), normalised.

    Rows whose best cell lies so far below the image's best that all of them together hold less than LOST_MASS are
    never exponentiated; of the others, those that hold KEPT_MASS are kept.
    """
    n, n_shifts, n_refs, n_psi = weights.shape
    row_peak = weights.flatten(2).amax(dim=2)  # (image, shift)
    peak, best_shift = row_peak.max(dim=1)
    reach = math.log(weights[0].numel() / LOST_MASS)
    rows = (row_peak > peak[:, None] - reach).view(-1).nonzero()[:, 0]
    cells = weights.view(n * n_shifts, -1)[rows]
    cells.sub_(peak[rows // n_shifts, None]).clamp_(min=FLOOR).exp_()
    mass = torch.zeros_like(row_peak).view(-1)
    mass[rows] = cells.sum(dim=1)
    mass = mass.view(n, n_shifts)
    count = torch.zeros_like(mass).view(-1)
    count[rows] = (cells > SIGNIFICANT).sum(dim=1, dtype=count.dtype)
    total = mass.sum(dim=1)
    best = weights.flatten(2)[torch.arange(n, device=rows.device), best_shift].argmax(dim=1)
    posterior = Posterior(
        class_of=best // n_psi,
        psi_rad=(best % n_psi) * (2 * torch.pi / n_psi),
        shift_px=images.centre_px + search.shifts_px[best_shift],
        log_likelihood=peak + total.log(),
        max_probability=1 / total,
        significant=count.view(n, n_shifts).sum(dim=1).to(torch.int64),
    )
    ordered, order = (mass / total[:, None]).sort(dim=1, descending=True)
    keep = torch.zeros_like(ordered, dtype=torch.bool)
    keep.scatter_(1, order, ordered.cumsum(dim=1) - ordered < KEPT_MASS)  # always the first
    kept_total = (mass * keep).sum(dim=1)
    chosen = keep.view(-1)[rows]
    rows = rows[chosen]
    kept = cells[chosen] / kept_total[rows // n_shifts, None]
    return posterior, rows, kept.view(-1, n_refs, n_psi)


def _accumulate(
    basis: PolarBasis,
    images: PolarImages,
    data: Tensor,
    ctf_power: Tensor,
    weighted: tuple[Tensor, Tensor, Tensor],
    posterior: Posterior,
    groups: int,
) -> Sums:
    """The batch's sums: numerator and denominator of every reference, and what noise and priors are estimated from."""
    rows, kept, shift2 = weighted
    image_of_row = rows // shift2.shape[1]
    turned = torch.fft.rfft(kept)[..., : basis.n_q].conj().permute(2, 0, 1).contiguous()  # (q, row, reference)
    chosen = data[:, rows].transpose(1, 2)  # (q, ring, row)
    numerator = torch.bmm(chosen, turned)
    even = turned[: 2 * len(ctf_power) : 2]
    denominator = torch.bmm(ctf_power[:, image_of_row].transpose(1, 2), even)
    row_weight = kept.sum(dim=(1, 2))
    return Sums.of_batch(
        images.field,
        images.ctf,
        (images.optics_of, groups),
        numerator=numerator,
        denominator=denominator,
        class_weight=kept.sum(dim=(0, 2)),
        squared_shift=(row_weight * shift2.reshape(-1)[rows]).sum(),
        log_likelihood=posterior.log_likelihood.double().sum(),
        max_probability=posterior.max_probability.double().sum(),
    )

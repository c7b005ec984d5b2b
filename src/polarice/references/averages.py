"""`averages`: K references, each with its own Gaussian prior and nothing else to tie them together (MAP, Scheres 2012).

    A_c(r, theta) = num_c / (den_c + f / tau_c^2(r))

`num` and `den` are the expectation's sums (den is exact for astigmatic CTFs: it varies over the circle), tau^2 the
prior's variance per ring and f the share of the noise power that the particle mask lets through: masked images carry
correlated noise, so a coefficient of num / den has error f / den, while the sum over all counts the noise rightly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polarice.align.expect import References
from polarice.align.model import Prior
from polarice.align.polar import PolarBasis
from polarice.align.sums import Sums, on_circle
from polarice.references.noise import noise_left
from polarice.references.snr import resolved_px, smooth_ssnr

GRANTED_RINGS = 3  # beyond the last that holds signal, on which the prior takes the SSNR to be 1
MIN_RELATIVE_WEIGHT = 0.02  # emptier classes are pulled as if they held this share of an equal one
MAX_PULL = 30.0  # in units of log likelihood


@dataclass(frozen=True)
class Averages:
    """The model; tensors on the engine's device."""

    basis: PolarBasis
    field: Tensor  # (K, ring, angle) float32
    weights: Tensor  # (K,) float64, sum 1: share of the images
    log_prior: Tensor  # (K,) float64: what the expectation adds to each class; log weights, or a pull to equal ones
    tau2: Tensor  # (K, ring) float64, the prior's variance
    error: Tensor  # (K, ring) float64, variance that noise puts into num / den; 0 where nothing is known yet
    ssnr: Tensor  # (K, ring) float64
    noise_power: Tensor  # (G, shell) float64, shells 0 .. N // 2
    shift_sigma_px: float
    mask_fraction: float

    @property
    def ring_noise(self) -> Tensor:
        """(G, ring) float32: the part of the noise spectrum that the basis sees."""
        return self.noise_power[:, 1 : self.basis.r_max + 1].float()

    def references(self, even_harmonics: int) -> References:
        """The references as the expectation takes them; `even_harmonics` of the CTF's square are accounted for."""
        return References.of_fields(self.basis, self.field, even_harmonics, self.log_prior)

    def maximize(self, sums: Sums, prior: Prior) -> Averages:
        """The model that the sums speak for."""
        sums = sums.double()
        seen_numerator, seen_denominator = _fields(self.basis, sums)
        numerator, denominator = self._remembered(seen_numerator, seen_denominator, prior.momentum)
        error, ssnr = _signal_to_noise(numerator, denominator, self.mask_fraction)
        floored = torch.maximum(ssnr, _ssnr_floor(ssnr).clamp_min(prior.min_ssnr))
        tau2 = prior.tau2_fudge * floored * error
        field = numerator * tau2[..., None] / (denominator * tau2[..., None] + self.mask_fraction)
        explained = (2 * field * seen_numerator - seen_denominator * field.square()).sum(dim=(0, 2))  # (ring,)
        weights = (sums.class_weight / sums.class_weight.sum() + prior.momentum * self.weights) / (1 + prior.momentum)
        return replace(
            self,
            field=field.float(),
            weights=weights,
            log_prior=self._log_prior(weights, prior),
            tau2=tau2,
            error=error,
            ssnr=ssnr,
            noise_power=noise_left(self.noise_power, sums, explained / self.basis.n_theta, self.mask_fraction),
            shift_sigma_px=max(prior.min_shift_sigma_px, _shift_sigma_px(sums)),
        )

    def _remembered(self, numerator: Tensor, denominator: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
        """The sums (K, ring, angle), and beside them the share `memory` of those that this model was made of.

        These are had from the model itself, its denominator taken to be round: den = f / error, and num by A's formula.
        """
        if momentum == 0:
            return numerator, denominator
        known = self.error > 0
        weight = momentum * torch.where(known, self.mask_fraction / self.error, 0.0)[..., None]
        prior = momentum * torch.where(known, self.mask_fraction / self.tau2.clamp_min(1e-30), 0.0)[..., None]
        return numerator + self.field * (weight + prior), denominator + weight

    @staticmethod
    def held_bytes(basis: PolarBasis, k: int, workers: int = 1) -> int:
        """What K classes take on the device at the most, whatever the number of images: references, every worker's
        sums, and what maximization makes of them; as multiples of a field in double precision, as measured."""
        return (12 + 2 * workers) * 8 * k * basis.r_max * basis.n_theta

    @staticmethod
    def empty(basis: PolarBasis, k: int, noise_power: Tensor, shift_sigma_px: float, mask_fraction: float) -> Averages:
        """K classes without structure; noise_power (G, S) float64."""
        rings = torch.zeros(k, basis.r_max, dtype=torch.float64, device=basis.device)
        weights = torch.full((k,), 1 / k, dtype=torch.float64, device=basis.device)
        return Averages(
            basis=basis,
            field=torch.zeros(k, basis.r_max, basis.n_theta, device=basis.device),
            weights=weights,
            log_prior=torch.zeros_like(weights),
            tau2=rings,
            error=rings,
            ssnr=rings,
            noise_power=noise_power,
            shift_sigma_px=shift_sigma_px,
            mask_fraction=mask_fraction,
        )

    def _log_prior(self, weights: Tensor, prior: Prior) -> Tensor:
        """Log class weights, or, while classes are being balanced, what makes crowded ones dearer step by step."""
        if prior.occupancy_penalty == 0:
            return weights.clamp_min(1e-12).log()
        relative = (weights * len(weights)).clamp_min(MIN_RELATIVE_WEIGHT)
        pulled = self.log_prior - prior.occupancy_penalty * relative.log()
        return (pulled - pulled.mean()).clamp(-MAX_PULL, MAX_PULL)

    def on(self, basis: PolarBasis) -> Averages:
        """The same model on another basis of the same box: rings are cut or filled with nothing."""
        rings = min(basis.r_max, self.basis.r_max)
        n_q = min(basis.n_q, self.basis.n_q)
        old = self.basis.harmonics(self.field)[:, :rings, :n_q]
        harmonics = old.new_zeros(len(self.field), basis.r_max, basis.n_theta // 2 + 1)
        harmonics[:, :rings, :n_q] = old * (basis.n_theta / self.basis.n_theta)

        def cut(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x[:, :rings], (0, basis.r_max - rings))

        return replace(
            self,
            basis=basis,
            field=basis.field(harmonics),
            tau2=cut(self.tau2),
            error=cut(self.error),
            ssnr=cut(self.ssnr),
        )

    def split(self, into: Tensor, perturbation: Tensor) -> Averages:
        """A model of len(into) classes, class j a copy of class into[j]; copies made twice or more are told apart.

        Each copy is moved by as much as noise could have moved its parent: `perturbation` (len(into), ring, angle),
        unit variance, scaled by the parent's error and its Wiener filter. The next expectations do the rest.
        """
        copies = torch.bincount(into, minlength=len(self.field))[into]
        width = (self.error.sqrt() * self.ssnr / (1 + self.ssnr))[into]
        width = width * (copies > 1)[:, None]
        weights = self.weights[into] / copies
        return replace(
            self,
            field=self.field[into] + (width[..., None] * perturbation).float(),
            weights=weights / weights.sum(),
            log_prior=self.log_prior[into] - self.log_prior[into].mean(),
            tau2=self.tau2[into],
            error=self.error[into] * copies[:, None],  # each has its part of the images
            ssnr=self.ssnr[into],
        )

    def recentred(self, offset_px: Tensor) -> Averages:
        """Every average moved by -offset_px (K, 2; x, y): what lay at the offset comes to the centre."""
        return replace(self, field=self.basis.unshift(self.field, self.basis.shift_phases(offset_px)))

    def resolution_px(self) -> Tensor:
        """(K,) ring up to which each average holds signal; at least 1."""
        return resolved_px(self.ssnr)

    def images(self) -> Tensor:
        """(K, N, N) float32 class averages in pixels."""
        return self.basis.to_images(self.field)


def _ssnr_floor(ssnr: Tensor) -> Tensor:
    """(K, ring) the SSNR that the prior grants the next few rings: an average that is zero there would stay so."""
    ring = torch.arange(1, ssnr.shape[1] + 1, device=ssnr.device)
    return (ring <= resolved_px(ssnr)[:, None] + GRANTED_RINGS).to(ssnr.dtype)


def _shift_sigma_px(sums: Sums) -> float:
    return float(sums.squared_shift / sums.class_weight.sum() / 2) ** 0.5


def _fields(basis: PolarBasis, sums: Sums) -> tuple[Tensor, Tensor]:
    """Numerator and denominator over the circle, without the quadrature's w_r: each (K, ring, angle) float64."""
    weight = basis.weight.double()[:, None]
    numerator, denominator = on_circle(sums.numerator, sums.denominator, basis.n_theta)
    return numerator / weight, (denominator / weight).clamp_min(0)


def _signal_to_noise(numerator: Tensor, denominator: Tensor, mask_fraction: float) -> tuple[Tensor, Tensor]:
    """Error variance of num / den and the SSNR beyond it, each (K, ring), the latter smoothed over rings."""
    weight = denominator.mean(dim=2)
    error = mask_fraction / weight.clamp_min(1e-30)
    power = (numerator / weight.clamp_min(1e-30)[..., None]).square().mean(dim=2)
    return error, smooth_ssnr(power, torch.where(weight > 0, error, torch.inf))

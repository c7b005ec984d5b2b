"""K densities of one set of particles, of which each particle is one: the model of 3D classification.

    V_k = num_k / (den_k + den-bar_k / (T SSNR_k)),   SSNR_k = 2 f FSC_k / (1 - FSC_k)   shell by shell

num and den are sums over the particles, each by its share in class k. They are kept for two random halves of the
particles, which meet the same map: unlike refinement's, these halves are no gold standard, as there is none in
RELION's Class3D (Scheres 2012, J Struct Biol 180, 519), which takes tau^2 from the power of the class's own map.
FSC_k is that of num / den of both halves inside the particle's sphere, which fills the share f of the box. So noise
that shares average out counts for what is left of it, where 1 / den, its size were all poses known, kept maps at what
they began with. T = 4 is RELION's, and makes up for the solvent, which the sphere keeps empty.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from polarice.align.prepare import MASK_EDGE_PX
from polarice.references.fsc import correlation, low_passed, soft_sphere, ssnr_of
from polarice.references.halfmaps import HALVES, ReferencePowers, VolumeSums
from polarice.references.noise import noise_left
from polarice.references.slices import PAD, FourierGrid
from polarice.references.snr import resolved_px

GRANTED_SHELLS = 3  # beyond the last that holds signal, on which the prior takes T SSNR to be 1
FEWEST_PARTICLES = 1e-3  # of a class that is not empty
LEAST_WEIGHT = 1e-6  # that the prior takes a class to have


@dataclass(frozen=True)
class Volumes:
    """The model; maps (K, N, N, N) float32 in pixels, z, y, x, their origin at N // 2."""

    maps: Tensor  # what references are slices of: regularised, inside the sphere
    weights: Tensor  # (K,) float64, sum 1: share of the particles
    tau2: Tensor  # (K, S) float64 power of each map's signal, shells 0 .. N // 2, transform over N
    ssnr: Tensor  # (K, S) float64, without T
    shells: Tensor  # (K,) int64 up to which each holds signal
    noise_power: Tensor  # (G, S) float64
    radius_px: float
    shift_sigma_px: float
    mask_fraction: float

    @property
    def densities(self) -> Tensor:
        """(half and class, N, N, N): the first half's classes, and the same again for the second, which has its own
        sums."""
        return self.maps.expand(HALVES, *self.maps.shape).flatten(0, 1)

    @property
    def box_px(self) -> int:
        return self.maps.shape[-1]

    @property
    def shell(self) -> int:
        """The finest that a map with particles holds signal on."""
        return int(self.shells[self.weights > 0].max())

    @property
    def class_of_map(self) -> tuple[int, ...]:
        return tuple(range(len(self.maps))) * HALVES

    @property
    def log_prior(self) -> Tensor:
        """(half and class,) log of the class weights."""
        return self.weights.clamp_min(LEAST_WEIGHT).log().float().repeat(HALVES)

    @staticmethod
    def begun(maps: Tensor, shell: float, noise_power: Tensor, radius_px: float, mask_fraction: float) -> Volumes:
        """From maps (K, N, N, N), low-passed at a Fourier shell and masked; classes are equally large."""
        k, n = maps.shape[:2]
        sphere = soft_sphere(n, radius_px, MASK_EDGE_PX, maps.device)
        masked = torch.stack([low_passed(each, shell) * sphere for each in maps])
        nothing = torch.zeros(k, n // 2 + 1, dtype=torch.float64, device=maps.device)
        weights = torch.full((k,), 1 / k, dtype=torch.float64, device=maps.device)
        shells = torch.full((k,), max(1, round(shell)), device=maps.device)
        return Volumes(masked, weights, nothing, nothing, shells, noise_power, radius_px, 3.0, mask_fraction)

    def scaled(self, factors: list[float]) -> Volumes:
        """Of other grey scales: one factor for each half and class, of which the mean over halves is taken."""
        of_class = self.maps.new_tensor(factors).view(HALVES, -1).mean(dim=0)
        return replace(self, maps=self.maps * of_class[:, None, None, None])

    def fitted(self, powers: ReferencePowers) -> Volumes:
        """Each map in the grey scale that explains its images best."""
        return self.scaled(powers.scale_of_map.clamp_min(1e-6).tolist())

    def ring_noise(self, r_max: int) -> Tensor:
        """(G, ring) float32."""
        return self.noise_power[:, 1 : r_max + 1].float()

    def maximize(self, sums: VolumeSums, grid: FourierGrid, tau2_fudge: float) -> Volumes:
        """The maps and shares that the sums speak for."""
        weight = sums.weight.view(HALVES, -1).sum(dim=0)
        maps, tau2, ssnr = (
            torch.stack(each)
            for each in zip(*(self._solved(sums, k, grid, tau2_fudge) for k in range(len(self.maps))), strict=True)
        )
        return replace(
            self,
            maps=maps,
            weights=weight / weight.sum(),
            tau2=tau2,
            ssnr=ssnr,
            shells=resolved_px(tau2_fudge * ssnr[:, 1:]).clamp_max(grid.r_max),
            noise_power=noise_left(self.noise_power, sums, sums.explained, self.mask_fraction),
            shift_sigma_px=max(1.0, float(sums.squared_shift / sums.count / 2) ** 0.5),
        )

    def pooled(self, sums: VolumeSums) -> VolumeSums:
        """The same with the sums of all classes together in the place of each one's."""

        def together(values: Tensor) -> Tensor:
            of_half = values.view(HALVES, -1, *values.shape[1:]).sum(dim=1, keepdim=True)
            return of_half.expand(HALVES, len(self.maps), *values.shape[1:]).flatten(0, 1)

        numerator, denominator = together(sums.numerator), together(sums.denominator)
        return replace(sums, numerator=numerator, denominator=denominator)

    def _solved(self, sums: VolumeSums, k: int, grid: FourierGrid, tau2_fudge: float) -> tuple[Tensor, Tensor, Tensor]:
        """Map (N, N, N), tau2 and SSNR (S,) of one class; nothing of an empty one."""
        sphere = soft_sphere(self.box_px, self.radius_px, MASK_EDGE_PX, self.maps.device)
        nothing = torch.zeros(self.box_px // 2 + 1, dtype=torch.float64, device=sphere.device)
        both = [k + half * len(self.maps) for half in range(HALVES)]
        if not sums.weight[both].sum() > FEWEST_PARTICLES:
            return torch.zeros_like(sphere), nothing, nothing
        halves = [grid.density(grid.solved(sums.numerator[m], sums.denominator[m])) * sphere for m in both]
        known = slice(0, grid.r_max + 1)
        share = float(sphere.square().mean())
        ssnr = HALVES * share * ssnr_of(correlation(*halves)[known])
        ssnr[0] = ssnr[1]  # k = 0 is on no ring
        shell = torch.arange(grid.r_max + 1, device=ssnr.device)
        reach = int(resolved_px(tau2_fudge * ssnr[None, 1:])[0])
        prior = torch.maximum(tau2_fudge * ssnr, (shell <= reach + GRANTED_SHELLS).double())
        numerator, denominator = sums.numerator[both].sum(dim=0), sums.denominator[both].sum(dim=0)
        weight = grid.shell_mean(denominator)
        found, tau2 = nothing.clone(), nothing.clone()
        found[known] = ssnr
        tau2[known] = torch.where(weight > 0, ssnr / (PAD**3 * weight.clamp_min(1e-30)), 0.0)
        return grid.density(grid.solved(numerator, denominator, prior)) * sphere, tau2, found


def random_sets(rows: np.ndarray, classes: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) int16 half and class that each of `rows` begins in, half * classes + class, drawn; -1 for the others."""
    found = np.full(count, -1, np.int16)
    found[rows] = rng.permutation(np.arange(len(rows)) % (HALVES * classes))
    return found

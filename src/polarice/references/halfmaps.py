"""Two densities, each of its own half of the particles, and what both agree on.

    V_h = num_h / (den_h + den-bar / SSNR),   SSNR = T FSC / (1 - FSC)   shell by shell

num and den are the sums of CTF-weighted fields and of CTF^2, spread on a Fourier grid (`slices`); FSC is that of the
two maps without a prior, inside the sphere of the particle (Scheres 2012, J Struct Biol 180, 519).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polarice.align.prepare import MASK_EDGE_PX
from polarice.references.fsc import correlation, low_passed, of_one_map, resolved_shell, soft_sphere, ssnr_of
from polarice.references.noise import noise_left
from polarice.references.slices import FourierGrid

HALVES = 2

HALVES_ARE_ONE = (
    "both half maps are the same on every shell, as no two sets of particles make them: nothing is known of the "
    "map's resolution; look for copies of particles in both halves (rlnRandomSubset)"
)


@dataclass(frozen=True)
class ReferencePowers:
    """How strong references are in the images, and by themselves; as in `VolumeSums`."""

    cross: Tensor
    power: Tensor

    @property
    def scale(self) -> float:
        """By how much references would have to be larger to explain the images best, poses as they are."""
        return float(self.cross.sum() / self.power.sum().clamp_min(1e-30))

    @property
    def scale_of_map(self) -> Tensor:
        """(map,) the same of each map by itself."""
        return self.cross.sum(dim=1) / self.power.sum(dim=1).clamp_min(1e-30)


@dataclass(frozen=True)
class VolumeSums:
    """What a pass over the particles adds up to, for every map; rings r = 1 .. r_max, G optics groups."""

    numerator: Tensor  # (map, re and im, point, point, point) float32
    denominator: Tensor  # (map, point, point, point) float32
    weight: Tensor  # (map,) particles
    cross: Tensor  # (map, ring) mean over the circle of references times numerators, without the ring's weight, summed
    power: Tensor  # (map, ring) the same of squared reference times denominator
    image_power: Tensor  # (G, ring) as in `Sums`
    ctf_power: Tensor  # (G, ring)
    group_count: Tensor  # (G,)
    squared_shift: Tensor  # ()
    log_likelihood: Tensor  # ()
    max_probability: Tensor  # ()

    @property
    def count(self) -> float:
        return float(self.group_count.sum())

    @property
    def powers(self) -> ReferencePowers:
        return ReferencePowers(self.cross, self.power)

    @property
    def explained(self) -> Tensor:
        """(ring,) power of the images that the references explain, poses as they are."""
        return (2 * self.cross - self.power).sum(dim=0)


@dataclass(frozen=True)
class Solvent:
    """What lies outside of the particle, and what half maps are compared within."""

    mask: Tensor  # (N, N, N), 0 to 1; references are multiplied by it
    fsc: Callable[[Tensor, Tensor], Tensor] | None = None  # of two densities (N, N, N): (S,); None: inside the sphere


@dataclass(frozen=True)
class HalfMaps:
    """The model; densities (half, N, N, N) float32 in pixels, z, y, x, their origin at N // 2."""

    densities: Tensor  # what references are slices of: regularised, low-passed, inside the sphere
    unfiltered: Tensor  # without a prior
    joined: Tensor  # (N, N, N) of both halves together, regularised
    fsc: Tensor  # (S,) float64 of the unfiltered ones inside the sphere, shells 0 .. N // 2
    noise_power: Tensor  # (G, S) float64
    radius_px: float
    shift_sigma_px: float
    mask_fraction: float
    shell: int  # up to which both halves agree

    @property
    def box_px(self) -> int:
        return self.densities.shape[-1]

    @property
    def halves_are_one(self) -> bool:
        """Whether the maps are more alike than those of two sets of particles are."""
        known = int((self.fsc != 0).nonzero().max()) if bool((self.fsc != 0).any()) else 0
        return of_one_map(self.fsc, known)

    @property
    def class_of_map(self) -> tuple[int, ...]:
        """Both halves are of one class."""
        return (0,) * HALVES

    @property
    def log_prior(self) -> Tensor:
        """(map,) no particle has a choice."""
        return torch.zeros(HALVES, device=self.densities.device)

    @staticmethod
    def begun(density: Tensor, shell: float, noise_power: Tensor, radius_px: float, mask_fraction: float) -> HalfMaps:
        """Both halves from one density (N, N, N), low-passed at a Fourier shell and masked."""
        n = len(density)
        masked = low_passed(density, shell) * soft_sphere(n, radius_px, MASK_EDGE_PX, density.device)
        both = masked.expand(HALVES, n, n, n)
        nothing = torch.zeros(n // 2 + 1, dtype=torch.float64, device=density.device)
        return HalfMaps(both, both, masked, nothing, noise_power, radius_px, 3.0, mask_fraction, max(1, round(shell)))

    def scaled(self, factors: list[float]) -> HalfMaps:
        """Of other grey scales, one factor a half."""
        return replace(self, densities=self.densities * self.densities.new_tensor(factors)[:, None, None, None])

    def fitted(self, powers: ReferencePowers) -> HalfMaps:
        """In the grey scale that explains the images best."""
        return self.scaled([powers.scale] * HALVES)

    def ring_noise(self, r_max: int) -> Tensor:
        """(G, ring) float32."""
        return self.noise_power[:, 1 : r_max + 1].float()

    def maximize(
        self, sums: VolumeSums, grid: FourierGrid, tau2_fudge: float, join_shell: int, solvent: Solvent | None = None
    ) -> HalfMaps:
        """The maps that the sums speak for; shells up to `join_shell` are of both halves together."""
        n, device = self.box_px, self.densities.device
        sphere = soft_sphere(n, self.radius_px, MASK_EDGE_PX, device)
        inside = sphere if solvent is None else solvent.mask
        halves = range(HALVES)
        unfiltered = torch.stack([grid.density(grid.solved(sums.numerator[h], sums.denominator[h])) for h in halves])
        if solvent is None or solvent.fsc is None:
            fsc = correlation(unfiltered[0] * sphere, unfiltered[1] * sphere)
        else:
            fsc = solvent.fsc(unfiltered[0], unfiltered[1]).to(torch.float64)
        fsc[0] = 1
        fsc[grid.r_max + 1 :] = 0
        ssnr = tau2_fudge * ssnr_of(fsc[: grid.r_max + 1])
        both = (sums.numerator.sum(dim=0), sums.denominator.sum(dim=0))
        low = grid.radius <= join_shell
        densities = []
        for h in halves:
            own = (sums.numerator[h], sums.denominator[h])
            numerator, denominator = (torch.where(low, joint / 2, mine) for joint, mine in zip(both, own, strict=True))
            densities.append(grid.density(grid.solved(numerator, denominator, ssnr)) * inside)
        return replace(
            self,
            densities=torch.stack(densities),
            unfiltered=unfiltered,
            joined=grid.density(grid.solved(both[0], both[1], 2 * ssnr)),
            fsc=fsc,
            noise_power=noise_left(self.noise_power, sums, sums.explained, self.mask_fraction),
            shift_sigma_px=max(1.0, float(sums.squared_shift / sums.count / 2) ** 0.5),
            shell=min(grid.r_max, resolved_shell(fsc)),
        )

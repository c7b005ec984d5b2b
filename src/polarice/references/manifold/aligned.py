"""Images in the frame of the references, as the plain vectors that a model with fixed poses multiplies.

A ring of a particle carries few angular harmonics; those that it does (a triangle in ring and q) are written out as
real numbers, scaled so that the product of two vectors is the sum over theta of the product of their fields. Posing is
exact: a shift is a phase per sample (`PolarBasis.moved`), a rotation a phase per harmonic, of C^2 one per even
harmonic. Nothing is interpolated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from polarice.align.expect import PolarImages
from polarice.align.polar import PolarBasis

IMAGE_BLOCK = 64  # vectors turned into images at once


@dataclass(frozen=True)
class PackedHarmonics:
    """The plan of the vectors; d is their length, the sum over rings of 2 q_max + 1. Rings lie one after the other."""

    basis: PolarBasis

    @property
    def d(self) -> int:
        return int(self.bounds[-1])

    @cached_property
    def bounds(self) -> np.ndarray:
        """(ring + 1,) where each ring starts, and the end."""
        return np.concatenate([[0], np.cumsum(2 * self.basis.harmonics_of_ring + 1)])

    @cached_property
    def ring_of(self) -> Tensor:
        """(d,) int64 index of the ring that each number belongs to."""
        counts = torch.from_numpy(np.diff(self.bounds))
        return torch.repeat_interleave(counts).to(self.basis.device)

    @cached_property
    def _kept(self) -> tuple[Tensor, Tensor]:
        """(d,) places in (ring, q, real and imaginary part), and the factor of each."""
        q = np.arange(self.basis.n_q)
        kept = np.repeat((q <= self.basis.harmonics_of_ring[:, None])[..., None], 2, axis=2)
        kept[:, 0, 1] = False
        place = np.flatnonzero(kept)
        factor = np.where(place // 2 % len(q) == 0, 1.0, math.sqrt(2)) / math.sqrt(self.basis.n_theta)
        device = self.basis.device
        return torch.from_numpy(place).to(device), torch.from_numpy(factor).to(device)

    def vectors(self, harmonics: Tensor) -> Tensor:
        """(n, ring, n_q) complex -> (n, d) real."""
        place, factor = self._kept
        flat = torch.view_as_real(harmonics).flatten(1)
        return flat.index_select(1, place).mul_(factor.to(flat.dtype))

    def harmonics(self, vectors: Tensor) -> Tensor:
        """The inverse of `vectors`: (n, d) -> (n, ring, n_q) complex."""
        place, factor = self._kept
        flat = vectors.new_zeros(len(vectors), 2 * self.basis.r_max * self.basis.n_q)
        flat.index_copy_(1, place, vectors / factor.to(vectors.dtype))
        return torch.view_as_complex(flat.view(len(vectors), self.basis.r_max, self.basis.n_q, 2))

    def field(self, vectors: Tensor) -> Tensor:
        """(n, d) -> (n, ring, n_theta)."""
        return self.basis.field(self.harmonics(vectors))

    def images(self, vectors: Tensor) -> Tensor:
        """(n, d) -> (n, N, N) float32 pixels; only some fields are held at a time."""
        return torch.cat([self.basis.to_images(self.field(block)) for block in vectors.split(IMAGE_BLOCK)])

    def ring_sums(self, values: Tensor) -> Tensor:
        """Sums over each ring's numbers: (..., d) -> (..., ring)."""
        return torch.stack([ring.sum(dim=-1) for ring in values.split(np.diff(self.bounds).tolist(), dim=-1)], dim=-1)

    def ring_squares(self, values: Tensor, rings: slice) -> Tensor:
        """(n, ring) sums of squares over some rings' numbers (n, those of the rings), some vectors at a time."""
        counts = np.diff(self.bounds)[rings].tolist()
        found = values.new_empty(len(values), len(counts))
        for block, into in zip(values.split(IMAGE_BLOCK), found.split(IMAGE_BLOCK), strict=True):
            for ring, each in enumerate(block.split(counts, dim=1)):
                into[:, ring] = each.square().sum(dim=1)
        return found

    def ring_products(self, values: Tensor) -> Tensor:
        """(ring, n, n) products of vectors (n, d) with each other, ring by ring."""
        return torch.stack([ring @ ring.T for ring in values.split(np.diff(self.bounds).tolist(), dim=1)])


def power_vectors(harmonics: Tensor, n_theta: int) -> Tensor:
    """Even harmonics of squared fields (n, ring, e) complex -> (n, ring, 2 e - 1) real.

    Products of these are sums over theta, as those of the triangle's vectors.
    """
    rest = harmonics[..., 1:] * math.sqrt(2)
    return torch.cat([harmonics[..., :1].real, rest.real, rest.imag], dim=-1) / math.sqrt(n_theta)


@dataclass(frozen=True)
class AlignedImages:
    """A batch, posed; float32."""

    vector: Tensor  # (image, d) of C'X'
    ctf_power: Tensor  # (image, ring, 2 e - 1) of C'^2, see `power_vectors`
    image_power: Tensor  # (image, ring) mean over theta of X^2
    optics_of: Tensor  # (image,) int64

    def __len__(self) -> int:
        return len(self.vector)

    @staticmethod
    def of(packed: PackedHarmonics, images: PolarImages, psi_rad: Tensor, even_harmonics: int = 1) -> AlignedImages:
        """Images, moved by -shift already (`PolarImages`), turned by -psi (image,) radians with their CTFs.

        even_harmonics of C^2 are kept (`ParticleImages.even_harmonics`); 1 is exact for round CTFs.
        """
        basis = packed.basis
        turn = torch.polar(torch.ones_like(psi_rad, dtype=torch.float64), psi_rad.double())[:, None]
        phase = turn ** torch.arange(basis.n_q, device=psi_rad.device)
        turned = basis.harmonics(images.field * images.ctf) * phase.to(torch.complex64)[:, None]
        power = torch.fft.rfft(images.ctf.square())[..., : 2 * even_harmonics : 2]
        power = power * phase[:, : 2 * even_harmonics : 2].to(torch.complex64)[:, None]
        return AlignedImages(
            vector=packed.vectors(turned),
            ctf_power=power_vectors(power, basis.n_theta),
            image_power=torch.linalg.vector_norm(images.field, dim=2).square_().div_(basis.n_theta),
            optics_of=images.optics_of,
        )

    def mean_ctf_power(self, n_theta: int) -> Tensor:
        """(image, ring) mean over theta of C^2."""
        return self.ctf_power[..., 0] / math.sqrt(n_theta)

    def take(self, rows: slice | Tensor) -> AlignedImages:
        """The images `rows`."""
        return AlignedImages(*(getattr(self, each.name)[rows] for each in fields(self)))

    @staticmethod
    def joined(parts: list[AlignedImages]) -> AlignedImages:
        """Several batches as one."""
        return AlignedImages(*(torch.cat([getattr(p, each.name) for p in parts]) for each in fields(AlignedImages)))

"""The sums of an expectation step: they add over batches, ranks and restarts, and that is the only law they obey."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sums:
    """Weighted sums over images, in double precision; rings r = 1 .. r_max, K references, G optics groups."""

    numerator: Tensor  # (q, ring, K) complex128: sum gamma w/sigma^2 C X, moved and turned into the reference's frame
    denominator: Tensor  # (even q, ring, K) complex128: sum gamma w/sigma^2 C^2, turned likewise
    class_weight: Tensor  # (K,) sum of gamma
    image_power: Tensor  # (G, ring) sum over images of mean_theta X^2
    ctf_power: Tensor  # (G, ring) sum over images of mean_theta C^2
    group_count: Tensor  # (G,) images
    squared_shift: Tensor  # () sum gamma |t|^2, px^2
    log_likelihood: Tensor  # ()
    max_probability: Tensor  # ()

    @staticmethod
    def of_batch(
        field: Tensor,
        ctf: Tensor,
        optics: tuple[Tensor, int],
        *,
        numerator: Tensor,
        denominator: Tensor,
        class_weight: Tensor,
        **scalars: Tensor,
    ) -> Sums:
        """Sums of one batch; field and ctf (image, ring, angle), optics = (group of each image, number of groups)."""
        group_of, groups = optics
        member = torch.nn.functional.one_hot(group_of, groups).to(field.dtype)
        zero = torch.zeros((), dtype=torch.float64, device=field.device)
        return Sums(
            numerator=numerator.to(torch.complex128),
            denominator=denominator.to(torch.complex128),
            class_weight=class_weight.double(),
            image_power=(member.T @ field.square().mean(dim=2)).double(),
            ctf_power=(member.T @ ctf.square().mean(dim=2)).double(),
            group_count=member.sum(dim=0).double(),
            squared_shift=scalars.get("squared_shift", zero).double(),
            log_likelihood=scalars.get("log_likelihood", zero).double(),
            max_probability=scalars.get("max_probability", zero).double(),
        )

    def __add__(self, other: Sums) -> Sums:
        return Sums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __mul__(self, factor: float) -> Sums:
        return Sums(**{f.name: getattr(self, f.name) * factor for f in fields(self)})

    @property
    def count(self) -> float:
        """Images summed (or, of averaged sums, represented)."""
        return float(self.group_count.sum())

"""The sums of an expectation step: they add over batches, ranks and restarts, and that is the only law they obey."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Additive:
    """Tensors that are sums over images, so that those of two parts of the data add up to those of the whole."""

    def __add__(self, other: Self) -> Self:
        return self._made(lambda name: getattr(self, name) + getattr(other, name))

    def include(self, other: Self) -> Self:
        """Add other sums to these, in place."""
        for each in fields(self):
            getattr(self, each.name).add_(getattr(other, each.name))
        return self

    def double(self) -> Self:
        """The same in double precision, of its own."""
        return self._made(lambda name: _doubled(getattr(self, name)))

    def _made(self, value: Callable[[str], Tensor]) -> Self:
        return type(self)(**{each.name: value(each.name) for each in fields(self)})


@dataclass(frozen=True)
class Sums(Additive):
    """Weighted sums over images; rings r = 1 .. r_max, K references, G optics groups.

    A batch's are in single precision, `double` what many batches are added into.
    """

    numerator: Tensor  # (q, ring, K) complex: sum gamma w/sigma^2 C X, moved and turned into the reference's frame
    denominator: Tensor  # (even q, ring, K) complex: sum gamma w/sigma^2 C^2, turned likewise
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
            numerator=numerator,
            denominator=denominator,
            class_weight=class_weight,
            image_power=member.T @ torch.linalg.vector_norm(field, dim=2).square_().div_(field.shape[2]),
            ctf_power=member.T @ torch.linalg.vector_norm(ctf, dim=2).square_().div_(ctf.shape[2]),
            group_count=member.sum(dim=0),
            squared_shift=scalars.get("squared_shift", zero).double(),
            log_likelihood=scalars.get("log_likelihood", zero).double(),
            max_probability=scalars.get("max_probability", zero).double(),
        )

    def light(self) -> Sums:
        """The same with what is large in single precision, in which it was computed: half to send."""
        return replace(
            self, numerator=self.numerator.to(torch.complex64), denominator=self.denominator.to(torch.complex64)
        )

    @staticmethod
    def of_none(shape: tuple[int, int, int, int], groups: int, device: torch.device) -> Sums:
        """Those of no images; shape = (harmonics, even harmonics of the denominator, rings, references)."""
        q, even, rings, references = shape

        def zeros(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        return Sums(
            numerator=zeros(q, rings, references, dtype=torch.complex128),
            denominator=zeros(even, rings, references, dtype=torch.complex128),
            class_weight=zeros(references),
            image_power=zeros(groups, rings),
            ctf_power=zeros(groups, rings),
            group_count=zeros(groups),
            squared_shift=zeros(),
            log_likelihood=zeros(),
            max_probability=zeros(),
        )

    def __mul__(self, factor: float) -> Sums:
        return self._made(lambda name: getattr(self, name) * factor)

    @property
    def count(self) -> float:
        """Images summed (or, of averaged sums, represented)."""
        return float(self.group_count.sum())


def on_circle(numerator: Tensor, denominator: Tensor, n_theta: int) -> tuple[Tensor, Tensor]:
    """Fields, each (reference, ring, angle) and times the ring's weight, of sums by harmonic: numerator (q, ring,
    reference), denominator (even q, ring, reference)."""
    even = denominator.permute(2, 1, 0)
    harmonics = even.new_zeros(*even.shape[:2], 2 * even.shape[2] - 1)
    harmonics[..., ::2] = even
    return torch.fft.irfft(numerator.permute(2, 1, 0), n=n_theta), torch.fft.irfft(harmonics, n=n_theta)


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64, copy=True)

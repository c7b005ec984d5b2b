"""What the loop asks of a model, whatever ties its references together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from polarice.align.expect import References
from polarice.align.polar import PolarBasis
from polarice.align.sums import Sums

M = TypeVar("M", bound="Model")


@dataclass(frozen=True)
class Prior:
    """How strongly maximization holds the references down."""

    tau2_fudge: float = 2.0
    occupancy_penalty: float = 0.0  # how fast classes are pulled to equal occupancy; 0: the prior is the class weights
    min_ssnr: float = 0.0  # the prior takes every ring to hold at least so much signal: else one at zero stays there
    momentum: float = 0.0  # share of the sums that the model was made of that stays beside the new ones
    min_shift_sigma_px: float = 0.5  # the width of the shift prior does not shrink below this


class Model(Protocol):
    """References in the polar basis, made from sums."""

    @property
    def basis(self) -> PolarBasis: ...
    @property
    def weights(self) -> Tensor:
        """(K,) share of the images in each class."""
        ...

    @property
    def ring_noise(self) -> Tensor:
        """(optics group, ring) float32 variance of the noise."""
        ...

    @property
    def shift_sigma_px(self) -> float: ...

    def references(self, even_harmonics: int) -> References: ...
    def maximize(self: M, sums: Sums, prior: Prior) -> M: ...
    def on(self: M, basis: PolarBasis) -> M: ...
    def split(self: M, into: Tensor, perturbation: Tensor) -> M: ...
    def recentred(self: M, offset_px: Tensor) -> M: ...
    def resolution_px(self) -> Tensor: ...

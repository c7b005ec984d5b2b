"""Half maps whose truth is known: the bundled ribosome, blurred, with noise of its own in each half."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from polarice.bench.folder import DATA
from polarice.io.mrc import read_volume, write_volume
from polarice.postprocessing.spectrum import boxed, multiplied, resampled

BOX = 64
BFACTOR_A2 = 1500.0


@dataclass(frozen=True)
class Made:
    """Densities (N, N, N) float32."""

    truth: torch.Tensor
    one: torch.Tensor
    other: torch.Tensor
    pixel_A: float

    def write(self, folder: Path) -> None:
        """run_half1_class001_unfil.mrc, run_half2_ and truth.mrc."""
        for name, density in (
            ("run_half1_class001_unfil", self.one), ("run_half2_class001_unfil", self.other), ("truth", self.truth),
        ):  # fmt: skip
            write_volume(folder / f"{name}.mrc", density.numpy(), self.pixel_A)


def ribosome(box_px: int = BOX) -> tuple[torch.Tensor, float]:
    """The bundled map in a box of so many pixels, and their size."""
    density, pixel_A = read_volume(DATA / "ribosome70S.mrc")
    whole = boxed(torch.from_numpy(density), len(density) + len(density) % 2)
    return resampled(whole, box_px), pixel_A * len(whole) / box_px


def made(noise: float = 0.25, seed: int = 1) -> Made:
    """The ribosome fallen off by a B-factor, and two halves with white noise of so many of its standard deviations."""
    truth, pixel_A = ribosome()
    density = multiplied(truth, lambda r: torch.exp(-BFACTOR_A2 / 4 * (r / (BOX * pixel_A)) ** 2))
    rng = np.random.default_rng(seed)
    one, other = (
        density + noise * float(density.std()) * torch.from_numpy(rng.standard_normal(density.shape).astype(np.float32))
        for _ in range(2)
    )
    return Made(density, one, other, pixel_A)

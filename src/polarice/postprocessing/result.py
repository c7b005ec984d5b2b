"""What postprocessing finds, and the maps that it is about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from polarice.postprocessing.corrected import Curves
    from polarice.postprocessing.fit import Fit
    from polarice.postprocessing.local import LocalResolution
    from polarice.postprocessing.sharpen import Guinier, Sharpening
    from polarice.postprocessing.surface import Contour
    from polarice.postprocessing.views import Cones, Sampling


@dataclass(frozen=True)
class Map:
    """A density (N, N, N) float32, z, y, x, as a file has it."""

    path: Path
    density: np.ndarray
    pixel_A: float

    @property
    def box_px(self) -> int:
        return len(self.density)

    @property
    def box_A(self) -> float:
        return self.box_px * self.pixel_A


@dataclass(frozen=True)
class Halves:
    """Two half maps on one grid, and what is to be said about them."""

    one: Map
    other: Map
    said: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.one.path.parent

    def tensors(self, device: object = "cpu") -> tuple[Tensor, Tensor]:
        """Both densities (N, N, N)."""
        import torch

        one, other = (torch.from_numpy(each.density).to(device) for each in (self.one, self.other))  # type: ignore[call-overload]
        return one, other


@dataclass(frozen=True)
class Result:
    """All that is found; maps (N, N, N)."""

    halves: Halves
    mask: np.ndarray | None
    mask_from: str  # a file, "automatic (...)", or "none"
    curves: Curves
    asked: Sharpening
    sharpened: Tensor
    guinier: Guinier
    bfactor_A2: float
    contour: Contour
    surface: Tensor  # what pictures of the surface are made of
    cones: Cones
    sampling: Sampling | None
    local: LocalResolution | None
    said: tuple[str, ...]  # warnings

    @property
    def map(self) -> Map:
        return self.halves.one

    @property
    def resolution_A(self) -> float:
        return self.map.box_A / self.curves.shell


@dataclass(frozen=True)
class Comparison:
    """A map beside another one, on its grid; fsc (S,)."""

    fitted: np.ndarray
    other: Map
    fsc: np.ndarray
    fit: Fit | None
    at_half_A: float
    at_143_A: float


def figures(found: Result) -> dict[str, Any]:
    """The numbers of job.json."""
    line, local = found.guinier.line, found.local
    some: dict[str, Any] = {
        "resolution_A": found.resolution_A,
        "resolution_unmasked_A": found.map.box_A / _resolved(found.curves.unmasked),
        "randomised_from_A": found.map.box_A / found.curves.from_shell,
        "bfactor_A2": found.bfactor_A2,
        "guinier_correlation": line.correlation if line else None,
        "contour": found.contour.level,
        "best_direction_A": found.map.box_A / int(found.cones.shell.max()),
        "worst_direction_A": found.map.box_A / int(found.cones.shell.min()),
        "cone_area_ratio": found.cones.ratio,
        "scf": found.sampling.scf if found.sampling else None,
    }
    if local is not None:
        some["local_resolution_A"] = local_quantiles(found)
    return some


def _resolved(fsc: Tensor) -> int:
    from polarice.references.fsc import resolved_shell

    return resolved_shell(fsc)


def local_quantiles(found: Result) -> list[float]:
    """5th, 50th and 95th percentile of the local resolution inside the mask."""
    assert found.local is not None
    values = found.local.resolution_A.cpu().numpy()
    inside = values[found.mask > 0.5] if found.mask is not None else values.ravel()
    return [float(each) for each in np.percentile(inside, (5, 50, 95))]

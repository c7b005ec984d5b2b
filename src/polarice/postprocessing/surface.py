"""Pictures of a density's surface, made without a display: rays are followed until the density reaches a level.

Rays run parallel to a view's third axis. Where a ray enters, the gradient is the surface's normal: light falls from the
upper left, hollows are darker (a point that lies deeper than what surrounds it in the picture gets less light), far
parts fade into the white ground. Every pixel is the mean of four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polarice.postprocessing.mask import threshold
from polarice.postprocessing.spectrum import low_pass, resampled

A3_OF_DALTON = 1.23  # of protein: 0.81 Da in a cubic Angstrom
ENVELOPE_A, SHARE_OF_ENVELOPE = 15.0, 0.75  # what Otsu's level encloses is 1.2 to 1.4 times the molecule
FINE_PX, COARSE_PX = 160, 224  # boxes below are made finer by two, boxes above coarser
OVERSAMPLED = 2
SKIPPED = 4  # pixels a side for which one ray is followed first
POINTS_AT_ONCE = 1 << 21
DUST, DIM = 0.02, 0.9  # pieces smaller than this share of the largest are lowered to so much of the level
MARGIN = 1.06  # of the molecule's radius
LIGHT = (-0.45, 0.55, 0.70)
AMBIENT, DIFFUSE, GLOSS, FADE, HOLLOW = 0.46, 0.66, 0.12, 0.28, 0.5
PLAIN = (0.55, 0.68, 0.84)
FACES = {
    "front": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "side": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    "top": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
}  # rows: right, up and towards the eye, each (x, y, z)
Colours = Callable[[Tensor], Tensor]  # points (n, 3; x, y, z in voxels from N // 2) to (n, 3) red, green, blue


@dataclass(frozen=True)
class Contour:
    """A level, and how it was chosen."""

    level: float
    rule: str


def contour(density: Tensor, pixel_A: float, mass_kDa: float | None = None) -> Contour:
    """The level at which a map's surface is shown: that which encloses the volume of the molecule's mass.

    Without a mass, it encloses 0.75 of what Otsu's level encloses in the map low-passed at 15 A.
    """
    n = len(density)
    if mass_kDa:
        volume, rule = A3_OF_DALTON * 1000 * mass_kDa, f"encloses {mass_kDa:g} kDa at {A3_OF_DALTON} A^3 a dalton"
    else:
        smooth = low_pass(density, min(n / 2, n * pixel_A / ENVELOPE_A)).cpu().numpy()
        volume = SHARE_OF_ENVELOPE * float((smooth > threshold(smooth)).sum()) * pixel_A**3
        rule = f"encloses {volume:,.0f} A^3, 0.75 of what Otsu's level encloses at 15 A"
    voxels = int(np.clip(volume / pixel_A**3, 1, n**3 - 1))
    values = density.flatten().cpu().numpy()
    return Contour(float(np.partition(values, n**3 - voxels)[n**3 - voxels]), rule)


def picture(
    density: Tensor, level: float, side_px: int, colours: Colours | None = None, faces: Sequence[str] = tuple(FACES)
) -> np.ndarray:
    """(side, side * faces, 3) uint8 views of the surface of a density (N, N, N) on white, side by side."""
    n = len(density)
    fine = density.float().cpu()
    fine = resampled(fine, 2 * n if n <= FINE_PX else min(n, COARSE_PX))
    fine = _without_dust(fine, level)
    scale = len(fine) / n
    frame = _frame(fine, level)
    scene = _Scene(fine, level, frame[0], frame[1])
    shown = [scene.shaded(np.array(FACES[name], float), side_px, scale, colours) for name in faces]
    return np.concatenate(shown, axis=1)


def by_value(values: Tensor, limits: tuple[float, float], colours: Callable[[np.ndarray], np.ndarray]) -> Colours:
    """Colours of a density of values (N, N, N) on the surface; `colours` maps 0 .. 1 to red, green, blue."""

    def found(points: Tensor) -> Tensor:
        at = _sampled(values.float().cpu(), points)
        share = ((at - limits[0]) / max(limits[1] - limits[0], 1e-9)).clamp(0, 1)
        return torch.from_numpy(np.asarray(colours(share.numpy()))[:, :3]).float()

    return found


def _without_dust(density: Tensor, level: float) -> Tensor:
    """The density, pieces of the surface much smaller than the largest one taken away."""
    from scipy import ndimage

    pieces, count = ndimage.label((density >= level).numpy())
    if count < 2:
        return density
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    dust = (sizes < DUST * sizes.max())[pieces] & (pieces > 0)
    low = torch.as_tensor(min(DIM * level, level - 1e-6))
    return torch.where(torch.from_numpy(ndimage.binary_dilation(dust)) & (density >= low), low, density)


def _frame(density: Tensor, level: float) -> tuple[Tensor, float]:
    """The middle (3; x, y, z from N // 2) of what is above the level, and the radius about it."""
    places = (density > level).nonzero().float()
    if not len(places):
        return torch.zeros(3), len(density) / 2
    places = (places - len(density) // 2).flip(1)
    middle = (places.amin(dim=0) + places.amax(dim=0)) / 2
    return middle, float(MARGIN * (places - middle).norm(dim=1).max()) + 2


def _sampled(density: Tensor, points: Tensor) -> Tensor:
    """(n,) linear interpolation at points (n, 3; x, y, z in voxels from N // 2); the outside is 0."""
    n = len(density)
    unit = (points + n // 2) * (2 / (n - 1)) - 1
    found = [
        torch.nn.functional.grid_sample(density[None, None], some[None, None, None], align_corners=True).flatten()
        for some in unit.split(POINTS_AT_ONCE)
    ]
    return torch.cat(found) if found else torch.zeros(0)


@dataclass(frozen=True)
class _Scene:
    """A surface, the middle and the radius of what is shown of it."""

    density: Tensor
    level: float
    middle: Tensor
    radius: float

    def shaded(self, view: np.ndarray, side_px: int, scale: float, colours: Colours | None) -> np.ndarray:
        """(side, side, 3) uint8 seen along a view's third row."""
        side = OVERSAMPLED * side_px
        axes = torch.from_numpy(view).float()
        start = self._rays(side, axes)
        first = self._nearest(self._entered(self._rays(side // SKIPPED, axes), axes[2]), side)
        depth = self._entered(start, axes[2], first)
        hit = torch.isfinite(depth)
        points = start[hit] + depth[hit, None] * axes[2]
        normal = self._normal(points) @ axes.T
        base = torch.tensor(PLAIN).expand(len(points), 3) if colours is None else colours(points / scale)
        light = torch.tensor(LIGHT) / torch.tensor(LIGHT).norm()
        facing = (normal @ light).clamp_min(0)
        gloss = (2 * facing * normal[:, 2] - light[2]).clamp(0, 1) ** 24
        open_ = _openness(depth.reshape(side, side), self.radius).flatten()[hit]
        lit = base * (AMBIENT + DIFFUSE * facing)[:, None] * open_[:, None] + GLOSS * gloss[:, None]
        far = FADE * ((self.radius - depth[hit]) / (2 * self.radius)).clamp(0, 1)[:, None]
        image = torch.ones(side * side, 3)
        image[hit] = (lit * (1 - far) + far).clamp(0, 1)
        image = image.reshape(side_px, OVERSAMPLED, side_px, OVERSAMPLED, 3).mean(dim=(1, 3))
        return np.rint(255 * image.numpy()).astype(np.uint8)

    def _rays(self, side: int, axes: Tensor) -> Tensor:
        """(side * side, 3) where rays pass the plane through the middle."""
        place = (torch.arange(side) - (side - 1) / 2) * (2 * self.radius / side)
        up, right = torch.meshgrid(-place, place, indexing="ij")
        return self.middle + right.reshape(-1, 1) * axes[0] + up.reshape(-1, 1) * axes[1]

    def _nearest(self, coarse: Tensor, side: int) -> Tensor:
        """(side * side,) a depth before the surface, by what a coarser picture shows; -inf where it shows nothing."""
        image = coarse.reshape(1, 1, side // SKIPPED, side // SKIPPED)
        nearest = torch.nn.functional.max_pool2d(image, 3, stride=1, padding=1)
        return torch.nn.functional.interpolate(nearest, size=(side, side)).flatten() + 2

    def _entered(self, start: Tensor, towards: Tensor, first: Tensor | None = None) -> Tensor:
        """(n,) how far towards the eye each ray, followed from a depth, enters the surface; -inf where it does not."""
        depth = torch.full((len(start),), -torch.inf)
        at = torch.full((len(start),), self.radius) if first is None else first.clone()
        before = torch.full((len(start),), -torch.inf)
        waiting = (at > -self.radius).nonzero().flatten()
        while len(waiting):
            value = _sampled(self.density, start[waiting] + at[waiting, None] * towards)
            inside = value >= self.level
            rays = waiting[inside]
            last = torch.where(torch.isfinite(before[rays]), before[rays], value[inside] - 1)
            share = ((self.level - last) / (value[inside] - last).clamp_min(1e-20)).clamp(0, 1)
            depth[rays] = at[rays] + 1 - share
            before[waiting] = value
            at[waiting] -= 1
            waiting = waiting[~inside & (at[waiting] > -self.radius)]
        return depth

    def _normal(self, points: Tensor) -> Tensor:
        """(n, 3) unit normals, out of the surface."""
        sides = []
        for axis in range(3):
            step = torch.zeros(3)
            step[axis] = 1.2
            sides.append(_sampled(self.density, points - step) - _sampled(self.density, points + step))
        normal = torch.stack(sides, dim=1)
        return normal / normal.norm(dim=1, keepdim=True).clamp_min(1e-20)


def _openness(depth: Tensor, radius: float) -> Tensor:
    """(side, side) 1 where light comes from everywhere, less where what surrounds a point stands nearer to the eye."""
    hit = torch.isfinite(depth)
    filled = torch.where(hit, depth, -radius)
    side, total = len(depth), torch.ones_like(depth)
    for share in (0.006, 0.02, 0.05):
        reach = max(1, round(share * side))
        around = _blurred(_blurred(filled, reach), reach)
        nearer = ((around - filled) / (2.2 * share * 2 * radius)).clamp(0, 1)
        total = total * (1 - HOLLOW * nearer)
    return total


def _blurred(image: Tensor, reach: int) -> Tensor:
    """Means over squares of 2 reach + 1 pixels."""
    padded = torch.nn.functional.pad(image[None, None], (reach,) * 4, mode="replicate")
    rows = torch.nn.functional.avg_pool2d(padded, (2 * reach + 1, 1), stride=1)
    return torch.nn.functional.avg_pool2d(rows, (1, 2 * reach + 1), stride=1)[0, 0]

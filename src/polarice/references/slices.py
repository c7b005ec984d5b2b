"""Slices of a density's transform on the rings of a polar basis, and fields on rings put back into a transform.

The central slice theorem: the transform of a projection along the third row of A is the density's on the plane
k = A^T (kx, ky, 0). Densities are real, so that of a slice one half circle tells the other: a polar field holds
Re F + Im F, and on the far half Re F - Im F.

The transform lies on a grid twice as fine as the box asks for. Between its points slices are interpolated linearly
along each axis and fields are spread by the same weights, which multiplies densities with a sinc^2 along each axis: it
is divided out before slicing and after spreading (RELION's choice of kernel; Scheres 2012).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from polarice.align.polar import PolarBasis

PAD = 2
POINTS_AT_ONCE = 1 << 21
SPREAD_AT_ONCE = 1 << 23  # each call has an empty grid made and added, which is to cost less than its points
IDENTITY = np.eye(3)[None]
FEWEST_OF_SHELL = 1e-3  # share of its shell's mean that the weight of a point is taken to be at least
POINTS_OF_PART, MOST_PARTS = 1 << 18, 4  # of the points, each with a grid of its own to be spread on


@dataclass(frozen=True)
class FourierGrid:
    """Where the transform of a density (N, N, N) stands: Fourier pixels up to r_max along each axis, and one beyond."""

    box_px: int
    r_max: int
    device: torch.device = torch.device("cpu")

    @property
    def reach(self) -> int:
        """Points from the origin to the edge."""
        return PAD * self.r_max + 2

    @property
    def shape(self) -> tuple[int, int, int]:
        return (2 * self.reach + 1,) * 3

    @cached_property
    def radius(self) -> Tensor:
        """(point, point, point) float32 distance from the origin, in Fourier pixels."""
        x = torch.arange(-self.reach, self.reach + 1, device=self.device, dtype=torch.float32) / PAD
        return (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2).sqrt_()

    @cached_property
    def shell(self) -> Tensor:
        """(point, point, point) int64 nearest shell, 0 to r_max; r_max + 1 for all beyond."""
        return self.radius.round().long().clamp_(max=self.r_max + 1)

    @cached_property
    def _envelope(self) -> Tensor:
        """(N,) what the interpolation multiplies densities with along an axis."""
        x = torch.arange(self.box_px, device=self.device, dtype=torch.float64) - self.box_px // 2
        return torch.sinc(x / (PAD * self.box_px)).square().float()

    def _compensated(self, density: Tensor) -> Tensor:
        e = self._envelope
        return density / (e[:, None, None] * e[:, None] * e)

    def transform(self, density: Tensor) -> Tensor:
        """The transform, over N, of a density (N, N, N; z, y, x) with its origin at N // 2: (re and im, *shape)."""
        n, c, wide = self.box_px, self.box_px // 2, PAD * self.box_px
        padded = torch.nn.functional.pad(self._compensated(density.float()), (0, wide - n) * 3)
        half = torch.fft.rfftn(padded.roll((-c, -c, -c), (0, 1, 2))) / n
        span = torch.arange(-self.reach, self.reach + 1, device=self.device) % wide
        columns = torch.arange(self.reach + 1, device=self.device)
        right = half[span][:, span][:, :, columns.clamp(max=self.box_px)]  # beyond Nyquist nothing is asked for
        left = right.conj().flip(0, 1, 2)[:, :, :-1]
        return torch.view_as_real(torch.cat([left, right], dim=2)).permute(3, 0, 1, 2).contiguous()

    def density(self, transform: Tensor) -> Tensor:
        """The density (N, N, N) float32 of a transform (re and im, *shape); what lies beyond r_max is left out."""
        n, c, wide, reach = self.box_px, self.box_px // 2, PAD * self.box_px, self.reach
        inside = torch.where(self.radius <= self.r_max, transform, 0.0)[..., reach:]
        half = torch.complex(inside[0], inside[1])
        spectrum = half.new_zeros(wide, wide, wide // 2 + 1)
        span = torch.arange(-reach, reach + 1, device=self.device)
        kept = (span.abs() < self.box_px).nonzero()[:, 0]
        columns = min(reach + 1, self.box_px)
        places = span[kept] % wide
        spectrum[places[:, None], places[None, :], :columns] = half[kept][:, kept, :columns]
        found = torch.fft.irfftn(spectrum, s=(wide, wide, wide)) * n
        return self._compensated(found.roll((c, c, c), (0, 1, 2))[:n, :n, :n])

    def slices(self, transform: Tensor, basis: PolarBasis, views: np.ndarray) -> Tensor:
        """Fields (view, ring, angle) float32 of the projections along views (n, 3, 3), of a basis of this box."""
        found = torch.empty(len(views), basis.r_max, 2, basis.n_theta // 2, device=self.device)
        for block in self._blocks(basis, len(views)):
            points, parts = self._points(basis, views[block])
            cube = transform.expand(parts, 2, *self.shape)
            sampled = torch.nn.functional.grid_sample(cube, points, align_corners=True)  # (part, 2, 1, 1, point)
            target = found[block]
            flat = sampled.transpose(0, 1).reshape(2, -1)[:, : target.numel() // 2]
            real, imaginary = flat.view(2, len(target), basis.r_max, -1)
            torch.add(real, imaginary, out=target[:, :, 0])
            torch.sub(real, imaginary, out=target[:, :, 1])
        return found.flatten(2)

    def spread(
        self,
        numerator: Tensor,
        denominator: Tensor,
        basis: PolarBasis,
        views: np.ndarray,
        group: np.ndarray = IDENTITY,
    ) -> Tensor:
        """(re, im and denominator, *shape) float32 sums of fields (view, ring, angle) put where slices would be taken.

        Only on the half sphere that the near half circles are on: `whole` adds what mirrors it. The denominator is the
        same on both halves of the circle. group (g, 3, 3): rotations under which the density is the same; all mates of
        a view get its fields.
        """
        total = numerator.new_zeros(3, *self.shape)
        to_device, far = numerator.unflatten(2, (2, -1)).unbind(dim=2)
        even = denominator[..., : basis.n_theta // 2]
        for block in self._blocks(basis, len(views), SPREAD_AT_ONCE // len(group)):
            mates = np.einsum("vij,gjk->gvik", views[block], group).reshape(-1, 3, 3)
            points, parts = self._points(basis, mates)
            fields = (
                torch.stack([to_device[block] + far[block], to_device[block] - far[block], 2 * even[block]]).flatten(1)
                / 2
            )
            fields = fields.repeat(1, len(group))
            padded = torch.nn.functional.pad(fields, (0, points.shape[3] * parts - fields.shape[1]))
            each = padded.view(3, parts, 1, 1, -1).transpose(0, 1).contiguous()
            empty = total.new_zeros(()).expand(parts, 3, *self.shape)
            added = torch.ops.aten.grid_sampler_3d_backward(each, empty, points, 0, 0, True, (True, False))[0]
            for part in added:
                total += part
        return total

    @staticmethod
    def whole(spread: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator (re and im, *shape) and denominator, `shape`, with what lies opposite: F(-k) = conj F(k)."""
        opposite = spread.flip(1, 2, 3)
        opposite[1].neg_()
        both = spread + opposite
        return both[:2], both[2]

    def empty(self) -> Tensor:
        """What `spread` gives of no views."""
        return torch.zeros(3, *self.shape, device=self.device)

    def _blocks(self, basis: PolarBasis, views: int, at_once: int = POINTS_AT_ONCE) -> list[slice]:
        size = max(1, at_once // (basis.r_max * basis.n_theta // 2))
        return [slice(start, min(views, start + size)) for start in range(0, views, size)]

    def _points(self, basis: PolarBasis, views: np.ndarray) -> tuple[Tensor, int]:
        """(part, 1, 1, point, 3) x, y, z of the half circles' samples, -1 to 1 over the grid, in so many parts."""
        unit = PAD / self.reach * self.box_px / basis.box_px  # the basis may be of a larger box, with rings between
        kx, ky = (k[:, : basis.n_theta // 2].float() * unit for k in basis.frequency)
        rows = torch.from_numpy(np.ascontiguousarray(views[:, :2])).float().to(self.device)
        points = kx[None, ..., None] * rows[:, 0, None, None] + ky[None, ..., None] * rows[:, 1, None, None]
        flat = points.flatten(0, 2)
        many = min(MOST_PARTS, max(1, len(flat) // POINTS_OF_PART))  # not by the threads: bits do not depend on these
        parts = many if self.device.type == "cpu" else 1
        each = math.ceil(len(flat) / parts)
        flat = torch.nn.functional.pad(flat, (0, 0, 0, each * parts - len(flat)))
        return flat.view(parts, 1, 1, each, 3), parts

    def shell_sum(self, values: Tensor) -> Tensor:
        """(r_max + 1,) float64 sums of values, `shape`, over shells."""
        sums = torch.zeros(self.r_max + 2, dtype=torch.float64, device=self.device)
        return sums.index_add_(0, self.shell.flatten(), values.flatten().double())[:-1]

    @cached_property
    def points_of_shell(self) -> Tensor:
        """(r_max + 1,) float64."""
        return self.shell_sum(torch.ones(self.shape, device=self.device))

    def shell_mean(self, values: Tensor) -> Tensor:
        """(r_max + 1,) float64 means of values, `shape`, over shells."""
        return self.shell_sum(values) / self.points_of_shell

    def over_shells(self, values: Tensor) -> Tensor:
        """Values (r_max + 1,) at every point, float32; 0 beyond."""
        return torch.nn.functional.pad(values.float(), (0, 1))[self.shell]

    def solved(self, numerator: Tensor, denominator: Tensor, ssnr: Tensor | None = None) -> Tensor:
        """numerator / (denominator + prior), (re and im, *shape).

        The prior of a shell that holds ssnr (r_max + 1,) times the noise is its mean denominator over that; without
        ssnr, there is none.
        """
        mean = self.shell_mean(denominator)
        least = self.over_shells(FEWEST_OF_SHELL * mean).clamp_min(1e-30)
        floored = torch.maximum(denominator, least)
        if ssnr is not None:
            floored = floored + self.over_shells(mean / ssnr.clamp_min(1e-6))
        return torch.where(denominator > 0, numerator / floored, 0.0)

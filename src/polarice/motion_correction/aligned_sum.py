"""The micrograph: frames moved back along their motion, weighted by dose, and summed, tile by tile.

A tile is a window that follows the motion of its centre by whole pixels in every frame; the rest of the way is a
phase. So shift, dose weight and sum are one pass over transforms, exact to the Nyquist frequency, and there is one
inverse transform for each tile, not for each frame. Tiles overlap by a raised cosine. Within a tile the motion is that
of its centre: local motion of 3 px across 4,000 is off by 0.1 px RMS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from polarice.motion_correction.dose import Dose, dose_weights
from polarice.motion_correction.exposure import Exposure
from polarice.types import Motion
from polarice.workers import in_turn, workers_on

TILE_PX, OVERLAP_PX, MARGIN_PX = 512, 64, 8


@dataclass(frozen=True)
class AlignedSum:
    """What a movie becomes; images are (ny, nx) float32, in the scale of the sum of corrected frames."""

    plain: np.ndarray  # every frame the same
    weighted: np.ndarray | None  # by dose, where one was given
    spectrum: np.ndarray | None  # (side, side // 2 + 1): power of sums over groups of frames, frequencies as rfft2 has
    halves: tuple[np.ndarray, ...] = ()  # of the even frames and of the odd ones, from 1, weighted as the sum is


def sum_frames(
    exposure: Exposure,
    motion: Motion,
    pixel_size_A: float,
    dose: Dose | None = None,
    spectrum_group: int = 0,
    device: torch.device | None = None,
    halves: bool = False,
) -> AlignedSum:
    """Sum the frames of an exposure along `motion`.

    spectrum_group: frames that are summed before their power spectrum is taken (windowed by a Hann window, a mean over
    tiles); 0: no spectrum. The weighted sum is scaled so that its mean is that of the plain one. `halves` add up to the
    weighted sum, or to the plain one where no dose is given: two pictures of one specimen with independent noise.
    """
    device = device or torch.device("cpu")
    side = min(TILE_PX, *(length - length % 2 for length in exposure.shape))
    weights = None if dose is None else torch.from_numpy(_weights(exposure, dose, side, pixel_size_A)).to(device)
    window = torch.from_numpy(_window(side)).to(device)
    parities = [torch.from_numpy(exposure.numbers % 2 == parity).to(device) for parity in (1, 0)] if halves else []
    kinds = 1 + (dose is not None) + len(parities)
    blank = [torch.zeros(exposure.shape, device=device) for _ in range(kinds)]
    covered = torch.zeros(exposure.shape, device=device)
    spectrum = torch.zeros((side, side // 2 + 1), device=device) if spectrum_group else None
    gain = None if exposure.gain is None else torch.from_numpy(exposure.gain)
    tiles = list(_tiles(exposure.shape, side))

    def sums_of(_: int, tile: tuple[int, int]) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        aligned = _aligned(exposure, gain, motion, (*tile, side), device)
        weighted = aligned if weights is None else aligned * weights
        sums = [aligned.sum(0)] if weights is None else [aligned.sum(0), weighted.sum(0)]
        sums += [weighted[parity].sum(0) for parity in parities]
        images = [torch.fft.irfft2(total, s=(side, side)) * window for total in sums]
        return images, _power(aligned, spectrum_group) if spectrum_group else None

    for (y, x), (images, power) in zip(tiles, in_turn(tiles, sums_of, workers_on(device)), strict=True):
        here = (slice(max(y, 0), y + side), slice(max(x, 0), x + side))
        inside = (slice(max(-y, 0), exposure.shape[0] - y), slice(max(-x, 0), exposure.shape[1] - x))
        for total, image in zip(blank, images, strict=True):
            total[here] += image[inside]
        covered[here] += window[inside]
        if spectrum is not None and power is not None:
            spectrum += power / len(tiles)
    plain, *rest = ((image / covered).cpu().numpy() for image in blank)
    first = rest.pop(0) if weights is not None else None
    return AlignedSum(plain, first, None if spectrum is None else spectrum.cpu().numpy(), tuple(rest))


def _weights(exposure: Exposure, dose: Dose, side: int, pixel_size_A: float) -> np.ndarray:
    """(n, side, side // 2 + 1); times sqrt(n), so that frequency 0, and the noise, are those of a plain sum."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) / pixel_size_A
    return dose_weights(frequency, dose, exposure.numbers) * np.float32(math.sqrt(len(exposure.numbers)))


def _tiles(shape: tuple[int, int], side: int) -> Iterator[tuple[int, int]]:
    """Corners (y, x) of tiles that cover the frame with their inner parts; some begin before it and end behind it."""
    step, first = side - OVERLAP_PX, -OVERLAP_PX // 2
    for y in range(first, shape[0] - OVERLAP_PX // 2, step):
        for x in range(first, shape[1] - OVERLAP_PX // 2, step):
            yield y, x


def _window(side: int) -> np.ndarray:
    """(side, side): neighbouring tiles' windows add up to 1; 0 along a margin, where shifts have wrapped around."""
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(OVERLAP_PX - 2 * MARGIN_PX) + 0.5) / (OVERLAP_PX - 2 * MARGIN_PX))
    along = np.ones(side)
    along[:MARGIN_PX] = along[side - MARGIN_PX :] = 0
    along[MARGIN_PX : OVERLAP_PX - MARGIN_PX] = ramp
    along[side - OVERLAP_PX + MARGIN_PX : side - MARGIN_PX] = ramp[::-1]
    return np.outer(along, along).astype(np.float32)


def _aligned(
    exposure: Exposure, gain: torch.Tensor | None, motion: Motion, tile: tuple[int, int, int], device: torch.device
) -> torch.Tensor:
    """Transforms (n, side, side // 2 + 1) of a tile (y, x, side) of all frames, moved back to where it began."""
    y, x, side = tile
    moved = motion.at(exposure.numbers, x + side / 2, y + side / 2)  # (n, 2)
    whole = np.rint(moved).astype(int)
    frames = torch.empty((len(moved), side, side))
    for number, (dx, dy) in enumerate(whole.tolist()):
        rows, columns = _within(y + dy, side, exposure.shape[0]), _within(x + dx, side, exposure.shape[1])
        piece = torch.from_numpy(np.ascontiguousarray(exposure.raw[number][rows][:, columns])).float()
        frames[number] = piece if gain is None else piece * gain[rows][:, columns]
    rest = torch.from_numpy((moved - whole).astype(np.float32)).to(device)
    transforms = torch.fft.rfft2(frames.to(device))
    fy, fx = torch.fft.fftfreq(side, device=device), torch.fft.rfftfreq(side, device=device)
    transforms *= torch.exp(2j * math.pi * rest[:, 1, None] * fy)[:, :, None]
    transforms *= torch.exp(2j * math.pi * rest[:, 0, None] * fx)[:, None]
    return transforms


def _within(start: int, side: int, length: int) -> slice | np.ndarray:
    """Places start .. start + side; those outside of the frame are mirrored into it."""
    if 0 <= start and start + side <= length:
        return slice(start, start + side)
    places = np.arange(start, start + side) % (2 * length)
    return np.where(places < length, places, 2 * length - 1 - places)


def _power(aligned: torch.Tensor, group: int) -> torch.Tensor:
    """Power (side, side // 2 + 1) of sums over groups of a tile's transforms; frames that fill no group are left."""
    starts = range(0, len(aligned) - len(aligned) % group or len(aligned), group)
    return torch.stack([_hann(aligned[start : start + group].sum(0)).abs() ** 2 for start in starts]).sum(0)


def _hann(transform: torch.Tensor) -> torch.Tensor:
    """The half transform (side, side // 2 + 1) of the same tile under a Hann window: neighbours subtracted."""
    side = transform.shape[0]
    down = transform / 2 - (torch.roll(transform, 1, 0) + torch.roll(transform, -1, 0)) / 4
    mirrored = torch.roll(down.flip(0), 1, 0).conj()  # the transform at -ky
    before = torch.cat([mirrored[:, 1:2], down[:, :-1]], 1)
    last = mirrored[:, -2:-1] if side % 2 == 0 else mirrored[:, -1:]
    return down / 2 - (before + torch.cat([down[:, 1:], last], 1)) / 4

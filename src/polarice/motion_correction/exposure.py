"""The frames of one movie as the stage works on them: which are usable, which pixels are bad, gain, binning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from polarice.types import InputError

HOT_SIGMA = 6.0  # a pixel that differs so much from its neighbours in the sum of all frames is bad
MOST_HOT = 0.01  # share of pixels beyond which these are not defects of a camera
BATCH = 2  # frames binned at a time


@dataclass(frozen=True)
class Exposure:
    """The usable frames, bad pixels replaced, and what they are to be multiplied with."""

    raw: np.ndarray  # (frames, ny, nx) in the camera's type
    gain: np.ndarray | None  # (ny, nx) float32
    numbers: np.ndarray  # (frames,) int: which frame of the movie each one is, from 0
    mean: float  # of the corrected frames: electrons per pixel and frame where the camera counts
    bad: np.ndarray  # (n, 2) int: x, y of the bad pixels

    @property
    def shape(self) -> tuple[int, int]:
        return self.raw.shape[1], self.raw.shape[2]


def usable_frames(frames: np.ndarray) -> dict[int, str]:
    """What is wrong with frames (n, ny, nx), by their number from 0; those that are not named are sound."""
    wrong = {}
    for number, frame in enumerate(frames):
        if frame.dtype.kind == "f" and not np.isfinite(frame).all():
            wrong[number] = "holds values that are no numbers"
        elif not frame.any():
            wrong[number] = "is zero everywhere"
    return wrong


def expose(
    frames: np.ndarray,
    gain: np.ndarray | None = None,
    defects: np.ndarray | None = None,
    find_hot: bool = True,
    first_frame: int = 1,
) -> tuple[Exposure, dict[int, str]]:
    """The exposure that frames (n, ny, nx) make, and what was wrong with frames that are left out.

    The frames are taken over, not copied: their bad pixels are overwritten. `gain` (ny, nx) multiplies, 0 a defect;
    `defects` (ny, nx) bool. Raises InputError where fewer than two frames, or less than half of them, are usable;
    the message counts from `first_frame`, what is handed out from 0.
    """
    wrong = usable_frames(frames)
    numbers = np.array([number for number in range(len(frames)) if number not in wrong])
    if len(numbers) < max(2, len(frames) / 2):
        number, what = next(iter(wrong.items()), (0, "is the only one"))
        raise InputError(f"{len(numbers)} of {len(frames)} frames can be used; frame {number + first_frame} {what}")
    raw = frames if not wrong else frames[numbers]
    total = np.zeros(raw.shape[1:], np.float32)
    for frame in raw:
        total += frame
    bad = np.zeros(total.shape, bool) if defects is None else defects.copy()
    if gain is not None:
        bad |= gain <= 0
        total *= gain
    if find_hot:
        bad |= hot_pixels(total, bad)
    good = total[~bad]
    if good.size == 0 or not good.any():
        raise InputError("no dose: every pixel that is no defect is zero in all frames")
    gain = _mend(raw, gain, bad)
    return Exposure(raw, gain, numbers, float(good.mean(dtype=np.float64)) / len(raw), np.argwhere(bad)[:, ::-1]), wrong


def hot_pixels(total: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Pixels (ny, nx) bool of the sum of all frames that stand out from the mean of their eight neighbours.

    `known` are defects already: they count as their surroundings. The spread is the median absolute deviation's.
    """
    image = np.where(known, np.float32(np.median(total[::7, ::7])), total)
    padded = np.pad(image, 1, mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    around = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] - image) / 8
    apart = image - around
    spread = 1.4826 * float(np.median(np.abs(apart[::3, ::3])))
    found = np.abs(apart) > HOT_SIGMA * max(spread, 1e-12)
    found &= ~_beside(found, apart)
    return found if found.mean() < MOST_HOT else np.zeros_like(found)


def _beside(found: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """Pixels that stand out only because a neighbour does, more than themselves and the other way."""
    size = np.pad(np.abs(apart) * found, 1)
    most = np.zeros_like(apart)
    ny, nx = apart.shape
    for dy in range(3):
        for dx in range(3):
            if (dy, dx) != (1, 1):
                np.maximum(most, size[dy : dy + ny, dx : dx + nx], out=most)
    return found & (most > 4 * np.abs(apart))


def _mend(raw: np.ndarray, gain: np.ndarray | None, bad: np.ndarray) -> np.ndarray | None:
    """Overwrite bad pixels of all frames by a good pixel nearby, drawn at random; the gain goes with it."""
    places = np.flatnonzero(bad)
    if not len(places):
        return gain
    rng = np.random.default_rng(len(places))
    ny, nx = bad.shape
    source, open_ = places.copy(), np.arange(len(places))
    radius = 2.0
    while len(open_):
        y, x = np.divmod(places[open_], nx)
        reach = int(radius)
        there = np.clip(y + rng.integers(-reach, reach + 1, len(y)), 0, ny - 1) * nx
        there += np.clip(x + rng.integers(-reach, reach + 1, len(x)), 0, nx - 1)
        fine = ~bad.ravel()[there]
        source[open_[fine]] = there[fine]
        open_, radius = open_[~fine], min(radius * 1.3, float(max(ny, nx)))
    for frame in raw:
        flat = frame.reshape(-1)
        flat[places] = flat[source]
    if gain is None:
        return None
    gain = gain.copy()
    gain.reshape(-1)[places] = gain.reshape(-1)[source]
    return gain


def binned(exposure: Exposure, factor: int, device: torch.device) -> torch.Tensor:
    """Corrected frames averaged over blocks of factor x factor pixels: (frames, ny // factor, nx // factor) float32."""
    gain = None if exposure.gain is None else torch.from_numpy(exposure.gain).to(device)
    ny, nx = (length // factor for length in exposure.shape)
    small = torch.empty((len(exposure.raw), ny, nx), device=device)
    for start in range(0, len(exposure.raw), BATCH):
        frames = torch.from_numpy(np.ascontiguousarray(exposure.raw[start : start + BATCH])).to(device).float()
        frames = frames if gain is None else frames * gain
        small[start : start + BATCH] = torch.nn.functional.avg_pool2d(frames[:, None], factor)[:, 0]
    return small

"""Where the specimen went: frames against the mean of all others, as a whole and in patches.

Whole frames: cross-correlation of every frame with the mean of the others as they are aligned at present, its peak,
and again until nothing moves (Grant & Grigorieff 2015, eLife 4, e06980; Zheng et al. 2017, Nat Methods 14, 331).
Frequencies are weighted by what the movie itself says: the power that frames have in common, S, and the rest, N, on
every ring (`Rings`), make the correlation a log likelihood with the mean of the others for the specimen,
S / (S + N / (n - 1)) / N. As long as frames lie apart only slow waves agree, so the search goes from coarse to fine by
itself. A B factor, exp(-B s^2 / 4), may damp fast waves beyond that.

Patches see little, so no patch and frame is given a shift of its own: the correlations of all patches and frames
are kept as small maps about their present place, and one smooth motion (the polynomial of `types.Motion`, and a shift
for every frame) is fitted to all maps at once, where their sum and the priors are highest.

All shifts here are in pixels of binned frames unless said otherwise; `Motion` is in pixels of the camera.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import next_fast_len

from polarice.types import Motion
from polarice.workers import in_turn, workers_on

ALIGN_PIXEL_A = 4.0  # frames are binned to pixels of at most this before they are aligned
TAPER = 0.06  # of the width, along each edge
LOWEST = 3  # periods across a frame: slower waves are illumination
SETTLED_PX = 0.02
LOCAL_A = 1.0  # prior: width of the local motion; strong only where the movie says little
JERK_A = 0.4  # prior: how far a frame lies from the middle of its neighbours; its tails let jumps pass
START_BFACTOR_PX2 = 300.0  # of the first two turns, binned pixels: broad peaks
FIRST_JERK_A = 5.0  # while frames are still being found
FAINT = 1e-3  # rings with a smaller share of the greatest weight are left out
RING = 1 / 256  # width of a ring, periods per pixel
MAP_STEPS_PX = (0.5, 0.5, 0.25, 0.25, 0.125, 0.125)  # pitch of the patches' correlation maps, round by round, binned
MAP_SIDE = 33  # samples: what is found in one round is looked at from nearer in the next
PATCH_PX = 250  # of the camera: patches are about so wide where their number is not given; one motion is fitted to all
MOST_PATCHES = 7
OVERLAP = 1.2  # width of a patch, in its share of the frame


@dataclass(frozen=True)
class Alignment:
    """How to align."""

    pixel_size_A: float  # of the camera
    bfactor_px2: float = 0.0
    patches: tuple[int, int] | None = None  # along x and y; None: from the size; (1, 1): whole frames only
    iterations: int = 10

    @property
    def factor(self) -> int:
        """How many pixels of the camera make one of the frames that are aligned."""
        return max(1, math.floor(ALIGN_PIXEL_A / self.pixel_size_A))

    def patches_of(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Patches along x and y for frames of (ny, nx) pixels of the camera."""
        if self.patches is not None:
            return self.patches
        ny, nx = (min(MOST_PATCHES, max(1, round(length / PATCH_PX))) for length in shape)
        return nx, ny

    def binned_px(self, length_A: float) -> float:
        return length_A / self.pixel_size_A / self.factor


def align(frames: torch.Tensor, numbers: np.ndarray, shape: tuple[int, int], alignment: Alignment) -> Motion:
    """The motion of a movie from its binned frames (n, h, w), which are the frames `numbers` of it.

    `shape` is (ny, nx) of the camera's frames, binned by `alignment.factor`. Shifts of frames that are left out
    between others are interpolated; the first frame has shift 0.
    """
    shifts, rings = align_whole(frames, alignment)
    local, shifts = _Patches(frames, numbers, shifts, alignment.patches_of(shape), rings).fit(
        alignment.binned_px(LOCAL_A), alignment.binned_px(JERK_A)
    )
    every = np.arange(int(numbers[-1]) + 1)
    whole = np.stack([np.interp(every, numbers, shifts[:, axis]) for axis in range(2)], -1)
    return Motion((whole - whole[0]) * alignment.factor, shape, local * alignment.factor)


@dataclass(frozen=True)
class Rings:
    """Power per ring of frequency, RING wide, of what frames have in common and of the rest of each."""

    signal: np.ndarray
    noise: np.ndarray
    frames: int
    bfactor_px2: float

    @staticmethod
    def of(total: torch.Tensor, power: torch.Tensor, frames: int, width: int, bfactor_px2: float) -> Rings:
        """From the sum of aligned transforms (h, w // 2 + 1) and the sum of the frames' own power, `width` = w."""
        h = len(total)
        index, spot = _ring_of(h, width, total.device), (total.abs() ** 2).ravel()
        size = int(index.max()) + 1
        count = torch.bincount(index, minlength=size).clamp(min=1)
        together = (torch.bincount(index, spot, size) / count).cpu().numpy()
        alone = (torch.bincount(index, power.ravel(), size) / count).cpu().numpy()
        signal = np.maximum(together - alone, 0) / (frames * (frames - 1))
        noise = alone / frames - signal
        floor = 0.3 * float(np.median(noise[noise > 0])) if (noise > 0).any() else 1.0
        smooth = np.convolve(np.pad(signal, 2, mode="edge"), np.full(5, 0.2), mode="valid")
        return Rings(np.minimum(smooth, signal * 2), np.maximum(noise, floor), frames, bfactor_px2)

    @property
    def weight(self) -> np.ndarray:
        """Of each ring, for the product of a frame and the mean of the others; in units of 1 / power."""
        s = np.arange(len(self.signal)) * RING
        wiener = self.signal / (self.signal + self.noise / (self.frames - 1))
        return wiener * np.exp(-self.bfactor_px2 / 4 * s**2) / self.noise

    @property
    def highest(self) -> float:
        """The frequency beyond which rings weigh nothing, periods per pixel."""
        gain = self.weight * self.signal
        return float(np.flatnonzero(gain >= FAINT * gain.max(initial=0)).max(initial=0) + 1) * RING

    def weights(self, h: int, w: int, device: torch.device) -> torch.Tensor:
        """(h, w // 2 + 1), 0 at the slowest waves."""
        fy, fx = _frequencies(h, w, device)
        ring = torch.as_tensor(self.weight, dtype=torch.float32, device=device)
        at = _ring_of(h, w, device).clamp(max=len(ring) - 1)
        slow = (fy * h) ** 2 + (fx * w) ** 2 < LOWEST**2
        return torch.where(slow, 0.0, ring[at].reshape(slow.shape))


def align_whole(frames: torch.Tensor, alignment: Alignment) -> tuple[np.ndarray, Rings]:
    """Shifts (n, 2), x then y, of frames (n, h, w) against each other, their mean 0; and the rings' powers."""
    n, (h, w) = len(frames), frames.shape[1:]
    bfactor = alignment.bfactor_px2 / alignment.factor**2
    transforms = torch.empty((n, h, w // 2 + 1), dtype=torch.complex64, device=frames.device)
    power, taper = torch.zeros(transforms.shape[1:], device=frames.device), _taper(frames)
    for frame, transform in zip(frames, transforms, strict=True):  # one by one: these are the largest arrays
        transform.copy_(torch.fft.rfft2((frame - frame.mean()) * taper))
        power += transform.abs() ** 2
    shifts = np.zeros((n, 2))
    for turn in range(alignment.iterations):
        damping = max(bfactor, START_BFACTOR_PX2) if turn < 2 else bfactor
        rings = Rings.of(_total(transforms, shifts, w), power, n, w, damping)
        reach = min(h, w) // (4 if turn < 2 else 8)
        part, size = _crop(transforms, (h, w), rings.highest)
        part = part * _ramps(shifts, size, frames.device, (h, w))
        weight = _crop(rings.weights(h, w, frames.device)[None], (h, w), rings.highest)[0]
        maps = torch.fft.irfft2(part * ((part.sum(0) - part) / (n - 1)).conj() * weight, s=size, norm="forward")
        sigma = np.inf if turn == 0 else alignment.binned_px(FIRST_JERK_A)
        moved = _peaks(maps.cpu().numpy(), shifts, (w / size[1], h / size[0]), reach, sigma)
        shifts = shifts + moved
        shifts -= shifts.mean(0)
        if turn > 1 and np.abs(moved - moved.mean(0)).max() < SETTLED_PX:
            break
    return shifts, Rings.of(_total(transforms, shifts, w), power, n, w, bfactor)


def _total(transforms: torch.Tensor, shifts: np.ndarray, width: int) -> torch.Tensor:
    """The sum (h, w // 2 + 1) of transforms (n, h, w // 2 + 1) of images of `width` moved back by `shifts`."""
    total = torch.zeros_like(transforms[0])
    for transform, shift in zip(transforms, shifts, strict=True):
        total += transform * _ramps(shift[None], (len(transform), width), transforms.device)[0]
    return total


def _crop(transforms: torch.Tensor, shape: tuple[int, int], highest: float) -> tuple[torch.Tensor, tuple[int, int]]:
    """The part of half transforms (n, h, w // 2 + 1) up to a frequency, and the (h, w) that it is the transform of.

    Sizes are even and have small prime factors; an unpaired Nyquist wave is of no account here.
    """
    size = []
    for length in shape:
        wanted = 2 * math.ceil(min(0.5, 1.5 * highest) * length) + 16
        size.append(length if wanted >= length else min(length, 2 * next_fast_len(wanted // 2, real=True)))
    if size[0] < shape[0]:
        half = size[0] // 2
        transforms = torch.cat([transforms[:, :half], transforms[:, -half:]], 1)
    return transforms[:, :, : size[1] // 2 + 1], (size[0], size[1])


def _peaks(maps: np.ndarray, shifts: np.ndarray, pitch: tuple[float, float], reach: float, sigma: float) -> np.ndarray:
    """Where each map (n, h, w) is highest, (n, 2) in pixels from its origin, x then y.

    `pitch` is pixels per sample of the maps, which are log likelihoods. Frame by frame a prior of width `sigma` about
    the middle of its neighbours' places is added.
    """
    n, h, w = maps.shape
    rx, ry = (max(2, min(int(reach / step), length // 2 - 1)) for step, length in zip(pitch, (w, h), strict=True))
    x, y = np.arange(-rx, rx + 1) * pitch[0], np.arange(-ry, ry + 1) * pitch[1]
    rows, columns = np.arange(-ry, ry + 1) % h, np.arange(-rx, rx + 1) % w
    middle = (shifts[np.maximum(np.arange(n) - 1, 0)] + shifts[np.minimum(np.arange(n) + 1, n - 1)]) / 2 - shifts
    middle[[0, -1]] = 0
    found = np.zeros((n, 2))
    for frame in range(n):
        to_device = maps[frame][np.ix_(rows, columns)].astype(np.float64)
        if np.isfinite(sigma):
            apart = (x - middle[frame, 0]) ** 2 + ((y - middle[frame, 1]) ** 2)[:, None]
            to_device -= apart / (2 * sigma**2)
        found[frame] = _summit(to_device) * pitch
    return found


def _summit(to_device: np.ndarray) -> np.ndarray:
    """The highest place (x, y) of a map, in samples from its middle, to a part of one by a parabola along each axis."""
    top = np.unravel_index(int(to_device.argmax()), to_device.shape)
    y, x = (min(max(int(at), 1), length - 2) for at, length in zip(top, to_device.shape, strict=True))
    place = []
    for three, at, length in (
        (to_device[y, x - 1 : x + 2], x, to_device.shape[1]),
        (to_device[y - 1 : y + 2, x], y, to_device.shape[0]),
    ):
        bend = three[0] - 2 * three[1] + three[2]
        part = 0.5 * float((three[0] - three[2]) / bend) if bend < 0 else 0.0
        place.append(at - length // 2 + min(max(part, -1.0), 1.0))
    return np.array(place)


def _taper(frames: torch.Tensor) -> torch.Tensor:
    """(h, w): 1 inside, a raised cosine along the edges."""
    sides = []
    for length in frames.shape[-2:]:
        width = max(1.0, TAPER * length)
        inward = torch.arange(length, device=frames.device)
        inward = torch.minimum(inward, inward.flip(0)) + 0.5
        sides.append(0.5 - 0.5 * torch.cos(math.pi * (inward / width).clamp(max=1)))
    return sides[0][:, None] * sides[1]


def _frequencies(h: int, w: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(h, 1) and (w // 2 + 1,) in periods per pixel."""
    return torch.fft.fftfreq(h, device=device)[:, None], torch.fft.rfftfreq(w, device=device)


def _ring_of(h: int, w: int, device: torch.device) -> torch.Tensor:
    """Ring of every frequency of a half transform, flat, int64."""
    fy, fx = _frequencies(h, w, device)
    return torch.round(torch.hypot(fy, fx) / RING).long().ravel()


def _ramps(
    shifts: np.ndarray, size: tuple[int, int], device: torch.device, whole: tuple[int, int] | None = None
) -> torch.Tensor:
    """Phases (n, h, w // 2 + 1) that take images back by `shifts` (n, 2), x then y.

    `size` is the (h, w) of the transform, `whole` that of the images where it is cropped.
    """
    fy, fx = _frequencies(*size, device)
    if whole is not None:
        fy, fx = fy * (size[0] / whole[0]), fx * (size[1] / whole[1])
    moved = torch.as_tensor(shifts, dtype=torch.float32, device=device)[:, :, None, None]
    return torch.exp(2j * math.pi * moved[:, 1] * fy) * torch.exp(2j * math.pi * moved[:, 0] * fx)


class _Patches:
    """Patches of a movie and the smooth motion that makes them agree."""

    def __init__(
        self, frames: torch.Tensor, numbers: np.ndarray, shifts: np.ndarray, patches: tuple[int, int], rings: Rings
    ) -> None:
        h, w = frames.shape[1:]
        self._shape, self._device, self._numbers = (h, w), frames.device, numbers
        counts = (patches[1], patches[0])
        size = [min(n, 2 * math.ceil(OVERLAP * n / count / 2)) for n, count in zip((h, w), counts, strict=True)]
        y, x = (np.linspace(side / 2, n - side / 2, count) for side, n, count in zip(size, (h, w), counts, strict=True))
        grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)  # centres, x then y
        self._start = shifts - shifts.mean(0)
        share = size[0] * size[1] / (h * w)  # of the power: a transform of fewer pixels
        self._full, self._highest = (size[0], size[1]), rings.highest
        cut = in_turn(grid, lambda _, centre: self._cut(frames, centre), workers_on(frames.device))
        parts, offsets = zip(*cut, strict=True)
        self._transforms, self._offset = torch.stack(parts), torch.stack(offsets)
        weight = rings.weights(*self._full, frames.device)[None] / share
        cropped, self._size = _crop(weight, self._full, self._highest)
        self._weight = cropped[0]
        motion = Motion(np.zeros((1, 2)), (h, w), np.zeros((2, 6, 3)))
        self._bends = len(grid) > 1 and len(frames) > 3  # else nothing says how
        self._space = torch.as_tensor(motion.space(grid[:, 0], grid[:, 1])[:, 1:], dtype=torch.float32)  # (p, 5)
        time = torch.as_tensor(numbers / max(1, int(numbers[-1])), dtype=torch.float32)
        self._time = torch.stack([time, time**2, time**3], -1)  # (n, 3)

    def _cut(self, frames: torch.Tensor, centre: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Cropped transforms of a patch's windows, which follow the whole frames by whole pixels where there is room;
        and by how much each does, (n, 2)."""
        (sy, sx), (h, w) = self._full, self._shape
        windows = torch.empty((len(frames), sy, sx), device=frames.device)
        offset = torch.empty((len(frames), 2))
        left, top = round(centre[0] - sx / 2), round(centre[1] - sy / 2)
        for frame, (dx, dy) in enumerate(np.rint(self._start).astype(int).tolist()):
            x, y = min(max(left + dx, 0), w - sx), min(max(top + dy, 0), h - sy)
            windows[frame] = frames[frame, y : y + sy, x : x + sx]
            offset[frame, 0], offset[frame, 1] = x - left, y - top
        windows -= windows.mean((1, 2), keepdim=True)
        transforms = torch.fft.rfft2(windows * _taper(windows))
        return _crop(transforms, self._full, self._highest)[0].clone(), offset

    def fit(self, sigma_px: float, jerk_px: float) -> tuple[np.ndarray, np.ndarray]:
        """(local (2, 6, 3), shifts (n, 2)) in binned pixels, with the widths of their priors."""
        local = torch.zeros((2, 5, 3))
        shifts = torch.as_tensor(self._start, dtype=torch.float32)
        for turn, step_px in enumerate(MAP_STEPS_PX):
            now = self._moved(local, shifts)
            problem = _Fit(self._maps(now, step_px), step_px, now, self._moved, sigma_px, jerk_px)
            local, shifts = problem.solve(local, shifts, blur_px=2.0 if turn == 0 else 0.0)
            local = local * self._bends
        scale = float(max(1, int(self._numbers[-1]))) ** np.arange(1, 4)
        whole = np.zeros((2, 6, 3))
        whole[:, 1:] = local.numpy() / scale
        return whole, shifts.numpy() - shifts.numpy().mean(0)

    def _moved(self, local: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        """Displacement (patches, n, 2) against the windows' places."""
        return torch.einsum("pk,nj,akj->pna", self._space, self._time, local) + shifts - self._offset

    def _maps(self, now: torch.Tensor, step_px: float) -> torch.Tensor:
        """Correlation of each patch and frame with the mean of its other frames: (patches, n, m, m), on the CPU."""
        fy, fx = _frequencies(*self._size, self._device)
        fy, fx = fy * (self._size[0] / self._full[0]), fx * (self._size[1] / self._full[1])  # of the whole transform
        count = torch.full_like(fx, 2.0)
        count[0] = 1
        if self._size[1] % 2 == 0:
            count[-1] = 1
        steps = (torch.arange(MAP_SIDE, device=self._device) - MAP_SIDE // 2) * step_px
        across = torch.exp(2j * math.pi * fx[:, None] * steps) * count[:, None]
        down = torch.exp(2j * math.pi * steps[:, None] * fy[:, 0])

        def map_of(_: int, patch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            transforms, moved = patch
            ramp = torch.exp(2j * math.pi * moved[:, 1, None, None] * fy)
            ramp = ramp * torch.exp(2j * math.pi * moved[:, 0, None, None] * fx)
            aligned = transforms * ramp
            others = (aligned.sum(0) - aligned) / (len(aligned) - 1)
            return (down @ (aligned * others.conj() * self._weight) @ across).real.cpu()

        patches = zip(self._transforms, now.to(self._device), strict=True)
        return torch.stack(list(in_turn(patches, map_of, workers_on(self._device))))


@dataclass(frozen=True)
class _Fit:
    """Where the sum of the maps (patches, n, m, m) about displacements `now`, and the priors, are highest."""

    maps: torch.Tensor
    step_px: float
    now: torch.Tensor
    moved: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of local motion and shifts
    sigma_px: float  # of the local motion
    jerk_px: float  # of a frame against the middle of its neighbours

    def solve(self, local: torch.Tensor, shifts: torch.Tensor, blur_px: float) -> tuple[torch.Tensor, torch.Tensor]:
        """From this start; blurred maps draw from farther away."""
        maps = self.maps.reshape(-1, 1, *self.maps.shape[2:])
        maps = _blurred(maps, blur_px / self.step_px) if blur_px else maps
        parameters = [local.clone().requires_grad_(), shifts.clone().requires_grad_()]
        engine = torch.optim.LBFGS(parameters, max_iter=60, history_size=20, line_search_fn="strong_wolfe")

        def cost() -> torch.Tensor:
            engine.zero_grad()
            loss = self._cost(maps, *parameters)
            torch.autograd.backward(loss)
            return loss

        engine.step(cost)
        return parameters[0].detach(), parameters[1].detach()

    def _cost(self, maps: torch.Tensor, local: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        where = self.moved(local, shifts)
        away = where - self.now
        away = away - away.mean(1, keepdim=True)  # the others move, too: no frame, and no place, stands still
        at = (away / (MAP_SIDE // 2 * self.step_px)).reshape(-1, 1, 1, 2)
        found = torch.nn.functional.grid_sample(maps, at, mode="bicubic", padding_mode="border", align_corners=True)
        bent = where - self.moved(torch.zeros_like(local), shifts)
        smooth = local.numel() / 2 * (bent**2).sum(-1).mean() / (2 * self.sigma_px**2)
        jerk = (shifts[1:-1] - (shifts[:-2] + shifts[2:]) / 2) / self.jerk_px
        return smooth + 2 * torch.log1p((jerk**2).sum(-1) / 3).sum() - found.sum()


def _blurred(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Maps (n, 1, m, m) convolved with a Gaussian of `sigma` samples."""
    reach = math.ceil(2 * sigma)
    kernel = torch.exp(-((torch.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    kernel = kernel / kernel.sum()
    maps = torch.nn.functional.conv2d(maps, kernel.reshape(1, 1, 1, -1), padding=(0, reach))
    return torch.nn.functional.conv2d(maps, kernel.reshape(1, 1, -1, 1), padding=(reach, 0))

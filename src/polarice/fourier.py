"""The one Fourier convention of Polarice, and the small tools that depend on it.

Images are `(..., N, N)`, indexed `[y, x]`, their origin at pixel `N // 2` for odd and even boxes. Transforms are
centred (frequency 0 at `N // 2` too) and scaled by 1/N, so white noise of variance v per pixel has E|F|^2 = v. Shell s
holds the frequencies with |k| rounded to s; shells 0 .. N // 2 are kept, the corners beyond are not.

Every function that takes images takes NumPy arrays and torch tensors alike and gives back the same kind.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import numpy as np


def namespace_of(array: Any) -> Any:
    """`torch` for a tensor, `numpy` for everything else; never imports torch."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(array, torch.Tensor) else np


def centred_fft2(images: Any) -> Any:
    """Centred transform of `(..., N, N)` images, scaled by 1/N: complex `(..., N, N)`, `[ky, kx]`."""
    fft = namespace_of(images).fft
    return fft.fftshift(fft.fft2(fft.ifftshift(images, (-2, -1)), norm="ortho"), (-2, -1))


def centred_ifft2(transforms: Any) -> Any:
    """Inverse of `centred_fft2`: complex `(..., N, N)`; take `.real` where the transform is of a real image."""
    fft = namespace_of(transforms).fft
    return fft.fftshift(fft.ifft2(fft.ifftshift(transforms, (-2, -1)), norm="ortho"), (-2, -1))


def centred_grid(box_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates `(y, x)` from the origin at pixel N // 2, each (N, N) float64: pixels, or Fourier pixels (ky, kx)."""
    axis = np.arange(box_px, dtype=np.float64) - box_px // 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y, x


@lru_cache(maxsize=16)
def shell_of(box_px: int, dimensions: int = 2) -> np.ndarray:
    """Shell of every frequency: |k| rounded to the nearest integer, (N,) * dimensions int64, read-only."""
    squared = (np.arange(box_px) - box_px // 2) ** 2
    total = sum(np.ix_(*[squared] * dimensions), np.int64(0))
    shell = np.rint(np.sqrt(total)).astype(np.int64)
    shell.flags.writeable = False
    return shell


def shell_sum(values: Any, shell: np.ndarray, shells: int | None = None) -> Any:
    """Sum of `values` over each shell.

    values: (..., *shell.shape), real or complex; shell: integers, as `shell_of` makes them; shells: how many to keep
    (default N // 2 + 1 for a box of N). Returns (..., shells), float64 (complex128) for NumPy, the same type for torch.
    """
    shells = shell.shape[-1] // 2 + 1 if shells is None else shells
    flat = values.reshape(*values.shape[: values.ndim - shell.ndim], -1)
    if namespace_of(values) is np:
        return _shell_sum_numpy(flat, shell, shells)
    torch = namespace_of(values)
    index = torch.asarray(np.minimum(shell, shells).ravel(), device=values.device)
    sums = torch.zeros(*flat.shape[:-1], shells + 1, dtype=flat.dtype, device=flat.device)
    return sums.index_add(-1, index, flat)[..., :shells]


def _shell_sum_numpy(flat: np.ndarray, shell: np.ndarray, shells: int) -> np.ndarray:
    """Pixels sorted by shell, then one sum over each run of equal shells; an empty shell has no run."""
    order = np.argsort(shell, axis=None, kind="stable")
    starts = np.searchsorted(shell.ravel()[order], np.arange(shells + 1))
    present = np.flatnonzero(np.diff(starts))
    wide = np.complex128 if np.iscomplexobj(flat) else np.float64
    sums = np.zeros((*flat.shape[:-1], shells), wide)
    if len(present):
        kept = flat[..., order[: starts[-1]]].astype(wide)
        sums[..., present] = np.add.reduceat(kept, starts[present], axis=-1)
    return sums


def shell_mean(values: Any, shell: np.ndarray, shells: int | None = None) -> Any:
    """Mean of `values` over each shell; arguments and shapes as in `shell_sum`. An empty shell gives 0."""
    sums = shell_sum(values, shell, shells)
    count = np.bincount(shell.ravel(), minlength=sums.shape[-1])[: sums.shape[-1]]
    xp = namespace_of(values)
    return sums / xp.asarray(np.maximum(count, 1), dtype=sums.real.dtype, device=sums.device)


def rescale(images: Any, box_px: int) -> Any:
    """`(..., N, N)` real images on a box of `box_px` pixels over the same field of view: Fourier crop or padding.

    Grey values are kept (the mean of an image does not change), the origin stays the origin. The pixel size becomes
    N / box_px of what it was. The Nyquist frequency of an even box is split in two on padding and put together on
    cropping (as scipy.signal.resample does), so that enlarging and reducing again gives the image back.
    """
    return resample(images, (box_px, box_px))


def resample(images: Any, shape: tuple[int, int]) -> Any:
    """`rescale` of images `(..., ny, nx)` that need not be square, to `shape` (ny, nx)."""
    ny, nx = images.shape[-2:]
    if (ny, nx) == shape:
        return namespace_of(images).asarray(images, copy=True)
    transforms = centred_fft2(images)
    for axis, length in zip((-1, -2), shape[::-1], strict=True):
        if length != images.shape[axis]:
            transforms = _resize_axis(transforms, length, axis)
    return centred_ifft2(transforms).real * (shape[0] * shape[1] / (ny * nx)) ** 0.5


def _resize_axis(transforms: Any, box_px: int, axis: int) -> Any:
    """Crop or pad one axis of a centred transform."""
    xp, box = namespace_of(transforms), transforms.shape[axis]

    def part(start: int, stop: int) -> Any:
        return transforms[..., start:stop, :] if axis == -2 else transforms[..., start:stop]

    if box_px < box:
        first = box // 2 - box_px // 2
        if box_px % 2:
            return part(first, first + box_px)
        folded = part(first, first + 1) + part(first + box_px, first + box_px + 1)
        return xp.concatenate([folded, part(first + 1, first + box_px)], axis=axis)
    before, after = box_px // 2 - box // 2, box_px - box - (box_px // 2 - box // 2)
    pieces = [part(0, box)]
    if box % 2 == 0:
        half = part(0, 1) / 2
        pieces, after = [half, part(1, box), half], after - 1
    shape = list(transforms.shape)

    def zeros(length: int) -> Any:
        shape[axis] = length
        return xp.zeros(tuple(shape), dtype=transforms.dtype, device=transforms.device)

    return xp.concatenate([zeros(before), *pieces, zeros(after)], axis=axis)


def frc(first: Any, second: Any) -> Any:
    """Fourier ring correlation of real images `(..., N, N)`: (..., N // 2 + 1), 0 where a shell is empty.

    FRC(s) = Re sum A conj(B) / sqrt(sum |A|^2 sum |B|^2) over the shell (van Heel 1987).
    """
    shell, xp = shell_of(first.shape[-1]), namespace_of(first)
    a, b = centred_fft2(first), centred_fft2(second)
    cross = shell_sum((a * b.conj()).real, shell)
    power = shell_sum(xp.abs(a) ** 2, shell) * shell_sum(xp.abs(b) ** 2, shell)
    return xp.where(power > 0, cross / xp.where(power > 0, power, xp.ones_like(power)) ** 0.5, xp.zeros_like(power))


def soft_disc(box_px: int, radius_px: float, edge_px: float = 5.0) -> np.ndarray:
    """Disc about the origin: 1 up to `radius_px`, then a raised cosine that reaches 0 at `radius_px + edge_px`.

    Returns (N, N) float32. `edge_px` 0 gives a hard edge.
    """
    radius = np.hypot(*centred_grid(box_px))
    if edge_px <= 0:
        return (radius <= radius_px).astype(np.float32)
    along = np.clip((radius - radius_px) / edge_px, 0, 1)
    return (0.5 + 0.5 * np.cos(np.pi * along)).astype(np.float32)

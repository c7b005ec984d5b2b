"""Simulated movies with their truth: a specimen that drifts and bends under the beam, counted electron by electron."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from polarice.types import InputError, Motion


@dataclass(frozen=True)
class MovieSimulation:
    """A movie whose frames are drawn anew, and the same, each time they are asked for.

    The camera counts Poisson(dose (1 + contrast) / gain); what it counts times the gain is the dose.
    """

    contrast: np.ndarray  # (ny, nx) of the specimen, relative to the mean intensity; mean 0
    motion: Motion
    dose_e_px: float  # electrons per pixel and frame
    gain: np.ndarray | None = None  # (ny, nx), multiplies
    dead: np.ndarray | None = None  # (ny, nx) bool: pixels that count nothing
    hot: np.ndarray | None = None  # (ny, nx) bool: pixels that count HOT_COUNTS every frame
    seed: int = 1

    HOT_COUNTS = 40

    def __post_init__(self) -> None:
        if self.contrast.shape != self.motion.shape:
            raise InputError(f"a specimen of {self.contrast.shape} pixels for frames of {self.motion.shape}")

    @property
    def frames(self) -> int:
        return len(self.motion.shifts_px)

    def counts(self) -> Iterator[np.ndarray]:
        """Frames (ny, nx) uint8 as the camera reads them, before the gain."""
        for frame, expected in enumerate(self.expected()):
            rng = np.random.default_rng([self.seed, frame])
            yield np.minimum(rng.poisson(expected), 255).astype(np.uint8)

    def expected(self) -> Iterator[np.ndarray]:
        """The mean (ny, nx) of what each frame counts."""
        spline = ndimage.spline_filter(self.contrast.astype(np.float64), order=3, mode="mirror")
        y, x = (grid.astype(np.float64) for grid in np.indices(self.contrast.shape))
        for frame in range(self.frames):
            moved = self.motion.at(frame, x, y)
            moved = self.motion.at(frame, x - moved[..., 0], y - moved[..., 1])  # motion is stated at the first frame's
            places = [y - moved[..., 1], x - moved[..., 0]]
            seen = ndimage.map_coordinates(spline, places, order=3, mode="mirror", prefilter=False)
            mean = np.maximum(self.dose_e_px * (1 + seen), 0)
            mean = mean if self.gain is None else mean / self.gain
            mean = mean if self.dead is None else np.where(self.dead, 0, mean)
            yield mean if self.hot is None else np.where(self.hot, self.HOT_COUNTS, mean)

    def events(self, raw_per_frame: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Raw frames of an event camera: (pixel, subpixel) of each electron, as `io.eer.encode` takes them.

        Each frame's dose falls evenly on `raw_per_frame` raw frames, and anywhere in a pixel; a raw frame sees at most
        one electron per pixel.
        """
        for frame, expected in enumerate(self.expected()):
            for part in range(raw_per_frame):
                rng = np.random.default_rng([self.seed, frame, part])
                pixel = np.flatnonzero(rng.random(expected.shape, np.float32) < expected / raw_per_frame)
                yield pixel, rng.integers(0, 16, len(pixel))


def drifting(shape: tuple[int, int], frames: int, drift_px: float, local_px: float, seed: int = 1) -> Motion:
    """A typical motion: fast at first and slower later, with a jitter; local motion of `local_px` RMS at the end.

    `drift_px` is the length of the way from the first frame to the last; the first frame has not moved.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(frames) / max(1, frames - 1)
    angle = rng.uniform(0, 2 * np.pi)
    along = drift_px * (1 - np.exp(-3 * time)) / (1 - np.exp(-3))
    bend = 0.2 * drift_px * np.sin(np.pi * time)
    jitter = rng.normal(0, 0.15, (frames, 2))
    jitter[0] = 0
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shifts = np.stack([along, bend], -1) @ turn + jitter
    coefficients = rng.normal(size=(2, 6, 3))
    coefficients[:, 0] = 0  # the same everywhere: that is drift
    coefficients *= np.array([1.0, -0.6, 0.2]) / float(max(1, frames - 1)) ** np.arange(1, 4)
    motion = Motion(np.zeros((frames, 2)), shape, coefficients)
    y, x = np.meshgrid(*(np.linspace(0, length, 9) for length in shape), indexing="ij")
    size = float(np.sqrt((motion.at(frames - 1, x, y) ** 2).sum(-1).mean()))
    return Motion(shifts, shape, motion.local_px * (local_px / size if size else 0.0))


def specimen_of(micrograph: np.ndarray, dose_e_px: float) -> np.ndarray:
    """The contrast of the specimen in a real micrograph taken with `dose_e_px` electrons per pixel, noise taken off.

    Beyond 90 % of the Nyquist frequency a micrograph holds noise alone: that gives the noise's power, and with it the
    scale (counting noise has the relative variance 1 / dose) and a Wiener filter, ring by ring.
    """
    ny, nx = micrograph.shape
    transform = np.fft.rfft2(micrograph - micrograph.mean())
    frequency = np.hypot(np.fft.fftfreq(ny)[:, None], np.fft.rfftfreq(nx)[None])
    ring = np.minimum(np.rint(frequency * 400), 200).astype(int)
    power = np.bincount(ring.ravel(), (np.abs(transform) ** 2).ravel()) / np.maximum(np.bincount(ring.ravel()), 1)
    noise = power[181:200].mean()
    keep = np.clip(1 - noise / np.maximum(power, 1e-30), 0, 1)
    kept = np.fft.irfft2(transform * keep[ring], s=(ny, nx))
    return kept * np.sqrt(ny * nx / (noise * dose_e_px))


def rms_error_px(found: Motion, truth: Motion, points: int = 9) -> tuple[float, float]:
    """(whole-frame, everywhere): RMS differences in pixels of two motions, the length of (x, y).

    A constant between them is taken out, as nobody can know where the specimen was before. The second is over frames
    and a grid of points, the first of their means over the frame.
    """
    y, x = np.meshgrid(*((np.arange(points) + 0.5) / points * length for length in truth.shape), indexing="ij")
    frame = np.arange(len(truth.shifts_px))[:, None, None]
    difference = found.at(frame, x, y) - truth.at(frame, x, y)
    difference -= difference.mean(0)
    whole = difference.mean((1, 2))
    return float(np.sqrt((whole**2).sum(-1).mean())), float(np.sqrt((difference**2).sum(-1).mean()))


def least_error_px(simulation: MovieSimulation, jitter_px: float) -> float:
    """The RMS error of whole-frame motion, in pixels, the length of (x, y), that no method beats on such a movie.

    A Cramer-Rao bound (van Trees 1968, Detection, Estimation, and Modulation Theory, part 1, 2.4): frames of an unknown
    specimen of known power S in counting noise N say of shifts t, along each axis and per wave k, with rho = S / N,

        (2 pi k)^2 rho^2 / (1 + n rho)  of  n sum t^2 - (sum t)^2,

    and it is known that a frame lies `jitter_px` sqrt(3 / 2) from the middle of its neighbours, as a straight way with
    an independent jitter of each frame does. Local motion, edges and what binning takes are left out: it is a bound.
    """
    n, (ny, nx) = simulation.frames, simulation.contrast.shape
    power = np.abs(np.fft.fft2(simulation.contrast - simulation.contrast.mean())) ** 2
    fy, fx = np.broadcast_arrays(np.fft.fftfreq(ny)[:, None], np.fft.fftfreq(nx)[None])
    ring = np.rint(np.hypot(fy, fx) * min(ny, nx)).astype(int)
    count = np.bincount(ring.ravel())
    rho = (np.bincount(ring.ravel(), power.ravel()) / np.maximum(count, 1))[ring] * simulation.dose_e_px / (ny * nx)
    away = np.diff(np.eye(n), 2, axis=0) / 2  # of each frame from the middle of its neighbours
    known = away.T @ away / (1.5 * jitter_px**2)
    centred = np.eye(n) - 1 / n
    variance = 0.0
    for f in (fx, fy):
        told = ((2 * np.pi * f) ** 2 * rho**2 / (1 + n * rho)).sum()
        variance += np.trace(np.linalg.pinv(told * n * centred + known, rcond=1e-12)) / n
    return float(np.sqrt(variance))

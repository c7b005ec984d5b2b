"""A CTF fit as a picture: measured rings beside fitted ones, and both as curves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from polarice.contrast_transfer import ctf
from polarice.contrast_transfer.estimate import Fit
from polarice.contrast_transfer.quality import Curve
from polarice.contrast_transfer.spectrum import Spectrum
from polarice.fourier import centred_grid, shell_mean, shell_of
from polarice.report.charts import COLOURS, FAINT, INK
from polarice.types import Optics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTH_DEG = 5.0  # along the rings, that they stand out of the noise
BACKGROUND_PX = 8.0
CONTRAST = 1.6  # standard deviations from mid-grey to white
SHOWN_A = 4.0  # the picture's edge, or Nyquist


def half_and_half(spectrum: Spectrum, optics: Optics, fit: Fit) -> np.ndarray:
    """(N, N) float32: measured rings on the left, the background taken off; on the right, CTF^2 as fitted.

    Both are 0 in their middle and run from about -1 to 1.
    """
    from scipy.ndimage import gaussian_filter1d, map_coordinates

    n = spectrum.box_px
    level = shell_mean(spectrum.log_power, shell_of(n))
    rings = _turned(spectrum.log_power, len(level))
    rings = gaussian_filter1d(rings, SMOOTH_DEG, axis=0, mode="wrap") - gaussian_filter1d(level, BACKGROUND_PX)
    rings /= CONTRAST * gaussian_filter1d(np.sqrt((rings**2).mean(axis=0)), BACKGROUND_PX)
    ky, kx = centred_grid(n)
    where = np.rad2deg(np.arctan2(ky, kx)) % 360, np.hypot(ky, kx)
    measured = np.clip(map_coordinates(rings, where, order=1, mode="nearest"), -1, 1)
    fx, fy = spectrum.grid()
    fitted = 2 * ctf(optics, fit.parameters(), fx, fy)[0] ** 2 - 1
    return np.where(np.arange(n) < n // 2, measured, fitted).astype(np.float32)


def _turned(plane: np.ndarray, radii: int) -> np.ndarray:
    """A plane (N, N) at whole degrees and radii: (360, radii)."""
    from scipy.ndimage import map_coordinates

    angle, radius = np.deg2rad(np.arange(360.0))[:, None], np.arange(radii)
    centre = plane.shape[0] // 2
    where = np.stack([centre + radius * np.sin(angle), centre + radius * np.cos(angle)])
    return map_coordinates(plane, where, order=1, mode="nearest")


def picture(both: np.ndarray, curve: Curve, fit: Fit, resolution_A: float, title: str) -> Figure:
    """The rings (N, N) of `half_and_half` above the curves of `quality.curve_of`; a line where they cease to match."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 6.2), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(4.6, 1.6))
    step = curve.s[1] - curve.s[0]  # of a pixel
    centre, edge = both.shape[0] // 2, min(1 / SHOWN_A / step, both.shape[0] // 2 - 1)
    above.imshow(both, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    angle = np.linspace(0, 2 * math.pi, 200)
    radius = 1 / resolution_A / step
    above.plot(centre + radius * np.cos(angle), centre + radius * np.sin(angle), ":", color=COLOURS[1], linewidth=0.8)
    above.set(xlim=(centre - edge, centre + edge), ylim=(centre + edge, centre - edge), xticks=[], yticks=[])
    above.set_title(title, fontsize=8, color=INK)
    scale = np.maximum(_running(np.abs(curve.measured), 15), 1e-9)
    measured = np.clip(0.5 + curve.measured / scale / 4, -0.1, 1.1)
    below.plot(curve.s, measured, color=COLOURS[0], linewidth=0.9, label="spectrum")
    below.plot(curve.s, curve.model, color=COLOURS[1], linewidth=0.7, label="CTF² as fitted")
    below.plot(curve.s, curve.agreement, color=COLOURS[2], linewidth=0.9, label="agreement")
    below.axvline(1 / resolution_A, color=FAINT, linewidth=1)
    below.set(ylim=(-0.12, 1.12), xlim=(curve.s[0], curve.s[-1]), yticks=[0, 1])
    below.set_xlabel("1/Å; the grey line: fit resolution", fontsize=7, color=INK)
    figure.legend(loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    below.tick_params(labelsize=7)
    return figure


def _running(values: np.ndarray, width: int) -> np.ndarray:
    return np.convolve(np.pad(values, width // 2, mode="edge"), np.ones(width) / width, mode="valid")[: len(values)]

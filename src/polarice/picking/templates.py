"""Class averages as kernels: brought to the working copy's scale, seen through the CTF, turned to many angles."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates

from polarice.contrast_transfer import ctf_image
from polarice.fourier import centred_fft2, centred_ifft2, rescale
from polarice.types import CTFParameters, Optics

ROUND = 0.02  # change on turning by a step, relative, below which one angle does for all


def seen_through(templates: np.ndarray, optics: Optics, parameters: CTFParameters) -> np.ndarray:
    """Templates (n, N, N), white, as a micrograph of one CTF shows them; `optics` has the templates' pixel size."""
    wave = ctf_image(optics, parameters, templates.shape[-1])[0]
    return centred_ifft2(centred_fft2(templates.astype(np.float64)) * wave).real.astype(np.float32)


def kernels_of(templates: np.ndarray, shrink: float, radius_px: float, step_deg: float) -> np.ndarray:
    """Kernels (n * angles, k, k), k odd, of templates (n, N, N).

    shrink: pixels of the working copy over the templates'; radius_px: of the kernel, in pixels of the working copy.
    """
    box = templates.shape[-1]
    small_px = max(8, round(box / shrink))
    small = rescale(templates.astype(np.float64), small_px) if small_px < box else templates
    scale = small.shape[-1] / box * shrink  # what rounding has left
    reach = int(np.ceil(radius_px))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1] * scale
    centre = small.shape[-1] // 2
    angles = np.deg2rad(np.arange(0, 360, step_deg))
    kernels = []
    for picture in small:
        for angle in angles:
            where = [centre + y * np.cos(angle) + x * np.sin(angle), centre + x * np.cos(angle) - y * np.sin(angle)]
            kernels.append(map_coordinates(picture, where, order=3, mode="nearest"))
    return np.stack(kernels).astype(np.float32)

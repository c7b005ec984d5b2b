"""Small movies with their truth, through real files, for the tests of import and motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from polarice.simulation.movies import MovieSimulation, drifting

SHAPE, FRAMES, PIXEL_A = (360, 400), 10, 2.0

OPTICS = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnMicrographOriginalPixelSize #3
_rlnVoltage #4
_rlnSphericalAberration #5
_rlnAmplitudeContrast #6
opticsGroup1 1 2.0 300.0 2.7 0.1


# version 30001

data_movies

loop_
_rlnMicrographMovieName #1
_rlnOpticsGroup #2
"""


def specimen(shape: tuple[int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Blobs of all sizes, the strong ones large."""
    rng = np.random.default_rng(seed)
    image = sum(ndimage.gaussian_filter(rng.normal(size=shape), sigma) * sigma for sigma in (1.5, 3, 6))
    return 0.1 * (image / image.std())


def simulation(seed: int = 1, dose: float = 2.0, local_px: float = 1.5, **kwargs) -> MovieSimulation:
    motion = drifting(SHAPE, FRAMES, 12, local_px, seed=seed)
    return MovieSimulation(specimen(seed=seed), motion, dose, seed=seed, **kwargs)


def write_table(path: Path, movies: list[str]) -> Path:
    path.write_text(OPTICS + "".join(f"{name} 1\n" for name in movies) + "\n")
    return path

"""What is known of every simulated particle, drawn once for the whole set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from polarice.simulation.settings import Microscope, Orientations, Simulation
from polarice.types import CTFParameters


@dataclass(frozen=True)
class Truth:
    """The truth of n particles.

    quat: (n, 4) xyzw; the rotation R takes the object into the image's frame: image x and y are the first two rows of R
    applied to it. shift_px: (n, 2), x then y, where the particle's centre lies, from the origin at pixel N // 2. label:
    (n,) int, the species; junk follows the species, one label for each kind, with the identity for its rotation and no
    shift. micrograph_of: (n,) int.
    """

    quat: np.ndarray
    shift_px: np.ndarray
    label: np.ndarray
    label_names: tuple[str, ...]
    species: int  # labels from here on are junk
    micrograph_of: np.ndarray
    ctf: CTFParameters | None  # None: no CTF

    @property
    def is_junk(self) -> np.ndarray:
        return self.label >= self.species


def draw_truth(simulation: Simulation) -> Truth:
    """Orientation, shift, species and CTF of every particle; fixed by the simulation's seed."""
    rng = np.random.default_rng([simulation.seed, 0])
    n, species = simulation.particles, simulation.species
    label = _draw_labels(simulation, rng)
    quat = draw_orientations(simulation.orientations, n, rng)
    limit = simulation.shift_limit_px
    shift = np.clip(rng.normal(size=(n, 2)) * simulation.shift_sigma_px, -limit, limit)
    junk = label >= len(species)
    quat[junk], shift[junk] = (0, 0, 0, 1), 0
    micrographs = min(simulation.microscope.micrographs or -(-n // 100), n)
    micrograph_of = np.arange(n) * micrographs // n
    ctf = _draw_ctf(simulation.microscope, micrograph_of, rng) if simulation.microscope.ctf else None
    names = (*(each.name for each in species), *simulation.junk.kinds)
    return Truth(quat, shift, label, names, len(species), micrograph_of, ctf)


def _draw_labels(simulation: Simulation, rng: np.random.Generator) -> np.ndarray:
    """Every species and every kind of junk in its exact share (to one particle), in random order."""
    junk = simulation.junk
    shares = np.array([each.fraction for each in simulation.species])
    shares = shares / shares.sum() * (1 - junk.fraction)
    shares = np.concatenate([shares, np.full(len(junk.kinds), junk.fraction / len(junk.kinds))])
    edges = np.rint(np.cumsum(shares) * simulation.particles)
    return rng.permutation(np.searchsorted(edges, np.arange(simulation.particles), side="right"))


def draw_orientations(orientations: Orientations, n: int, rng: np.random.Generator) -> np.ndarray:
    """Quaternions (n, 4) xyzw; see `Orientations`."""
    if orientations.kind == "given":
        assert orientations.quat is not None
        return np.array(orientations.quat, np.float64)[np.arange(n) % len(orientations.quat)]
    if orientations.kind == "uniform":
        quat = rng.normal(size=(n, 4))
        return quat / np.linalg.norm(quat, axis=1, keepdims=True)
    view = _draw_views(orientations, n, rng)
    rot = np.rad2deg(np.arctan2(view[:, 1], view[:, 0]))
    tilt = np.rad2deg(np.arccos(np.clip(view[:, 2], -1, 1)))
    return quat_of_euler(np.stack([rot, tilt, rng.uniform(-180, 180, n)], axis=1))


def _draw_views(orientations: Orientations, n: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors (n, 3), von Mises-Fisher about the preferred directions (Wood 1994; on the sphere cos is exact)."""
    centre = np.array(orientations.directions, np.float64).reshape(-1, 3)
    centre = (centre / np.linalg.norm(centre, axis=1, keepdims=True))[rng.integers(len(centre), size=n)]
    kappa, uniform = max(orientations.concentration, 1e-6), rng.uniform(size=n)
    cosine = 1 + np.log(uniform + (1 - uniform) * np.exp(-2 * kappa)) / kappa
    across = rng.normal(size=(n, 3))
    across -= centre * (across * centre).sum(1, keepdims=True)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    return centre * cosine[:, None] + across * np.sqrt(np.clip(1 - cosine**2, 0, None))[:, None]


def _draw_ctf(microscope: Microscope, micrograph_of: np.ndarray, rng: np.random.Generator) -> CTFParameters:
    micrographs, n = int(micrograph_of.max()) + 1, len(micrograph_of)
    mean = rng.uniform(microscope.defocus_min_A, microscope.defocus_max_A, micrographs)
    astigmatism = rng.uniform(0, microscope.astigmatism_A, micrographs) if microscope.astigmatism_A else np.zeros(1)
    angle = rng.uniform(0, 180, micrographs)[micrograph_of]
    half = np.broadcast_to(astigmatism, micrographs)[micrograph_of] / 2
    defocus = mean[micrograph_of] + rng.normal(size=n) * microscope.defocus_spread_A
    return CTFParameters(
        defocus_u_A=defocus + half,
        defocus_v_A=defocus - half,
        defocus_angle_deg=angle,
        phase_shift_deg=np.full(n, microscope.phase_shift_deg),
        bfactor_A2=np.full(n, microscope.bfactor_A2),
        scale=np.ones(n),
    )


def quat_of_euler(angles_deg: np.ndarray) -> np.ndarray:
    """RELION's (rot, tilt, psi), (n, 3) degrees, as quaternions (n, 4) xyzw of the rotation object -> image.

    RELION's Euler angles (ZYZ, as XMIPP, SPIDER and FREALIGN) describe the frame that turns; R is the inverse of that.
    """
    return Rotation.from_euler("ZYZ", np.asarray(angles_deg, np.float64), degrees=True).inv().as_quat()


def euler_of_quat(quat: np.ndarray) -> np.ndarray:
    """RELION's (rot, tilt, psi), (n, 3) degrees, of quaternions (n, 4); rot is 0 where tilt is 0 or 180."""
    matrix = Rotation.from_quat(quat).as_matrix()
    in_plane = np.hypot(matrix[:, 2, 0], matrix[:, 2, 1])
    pole = in_plane < 1e-9
    tilt = np.arctan2(in_plane, matrix[:, 2, 2])
    rot = np.where(pole, 0, np.arctan2(matrix[:, 2, 1], matrix[:, 2, 0]))
    at_pole = np.arctan2(matrix[:, 0, 1], matrix[:, 1, 1])
    psi = np.where(pole, at_pole, np.arctan2(matrix[:, 1, 2], -matrix[:, 0, 2]))
    return np.rad2deg(np.stack([rot, tilt, psi], axis=1))

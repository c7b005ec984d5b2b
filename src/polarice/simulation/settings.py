"""What a simulation is made of: species, orientations, microscope, noise, junk."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from polarice.types import InputError

JUNK_KINDS = ("noise", "edge", "contamination")
PARTICLE_RADIUS = 0.42  # of the box: the circle in which the signal-to-noise ratio is stated
BACKGROUND_RADIUS = 0.47  # of the box: grey values are normalised outside of this circle


@dataclass(frozen=True)
class Species:
    """One kind of particle: its density, protein positive, on a cubic grid with its origin at voxel D // 2."""

    name: str
    density: np.ndarray  # (D, D, D) float32, [z, y, x]
    pixel_size_A: float
    fraction: float = 1.0  # share of the particles, relative to the other species


@dataclass(frozen=True)
class Orientations:
    """How the particles lie: uniformly, in preferred views, or as told.

    A view is the direction of the object that points along the image's z axis. Preferred views are von Mises-Fisher
    distributed about `directions` (in equal parts) with `concentration` kappa: half of them lie within
    arccos(1 - ln(2) / kappa) for kappa above about 3 (21 degrees at kappa 10). The angle in the plane is uniform.
    """

    kind: str = "uniform"  # or "preferred", "given"
    concentration: float = 10.0
    directions: tuple[tuple[float, float, float], ...] = ((0.0, 0.0, 1.0),)
    quat: np.ndarray | None = None  # (m, 4) xyzw, kind "given": particle i takes row i modulo m


@dataclass(frozen=True)
class Microscope:
    """The optics and how they vary: each micrograph has its mean defocus and astigmatism, each particle its height."""

    voltage_kV: float = 300.0
    cs_mm: float = 2.7
    amplitude_contrast: float = 0.1
    defocus_min_A: float = 10000.0
    defocus_max_A: float = 25000.0
    defocus_spread_A: float = 200.0  # sd of the particles of one micrograph about its mean
    astigmatism_A: float = 400.0  # dU - dV is uniform from 0 to this
    phase_shift_deg: float = 0.0
    bfactor_A2: float = 0.0
    micrographs: int | None = None  # None: one for every 100 particles
    ctf: bool = True  # False: images are plain projections


@dataclass(frozen=True)
class NoiseModel:
    """Gaussian noise; its power falls with |k| to the `exponent`, or follows `spectrum`.

    snr: variance of the CTF-modulated signal inside the particle's circle (42 % of the box), meant over the particles,
    over the variance of a noise pixel. Infinity: no noise.
    """

    snr: float = 0.05
    exponent: float = 0.0  # 0 white, 1 as 1/f
    spectrum: np.ndarray | None = None  # relative power of shells 0 .. m, interpolated over 0 .. Nyquist


@dataclass(frozen=True)
class Junk:
    """Images without a particle, their kinds in equal parts."""

    fraction: float = 0.0
    kinds: tuple[str, ...] = JUNK_KINDS


@dataclass(frozen=True)
class Simulation:
    """Everything that fixes a set of simulated particles, bit for bit."""

    species: tuple[Species, ...]
    particles: int
    box_px: int
    pixel_size_A: float
    orientations: Orientations = field(default_factory=Orientations)
    microscope: Microscope = field(default_factory=Microscope)
    noise: NoiseModel = field(default_factory=NoiseModel)
    junk: Junk = field(default_factory=Junk)
    shift_sigma_px: float = 2.0
    shift_limit_px: float = 5.0  # shifts are cut here, each coordinate
    invert: bool = False  # True: particles dark, as in the micrograph
    seed: int = 1

    def __post_init__(self) -> None:
        orientations, microscope, kinds = self.orientations, self.microscope, set(self.junk.kinds)
        given = orientations.quat is not None and len(orientations.quat) > 0
        wrong = {
            "no species to simulate": not self.species,
            f"{self.particles} particles: at least 1 is wanted": self.particles < 1,
            f"a box of {self.box_px} px: at least 8 is wanted": self.box_px < 8,
            f"a pixel size of {self.pixel_size_A} A: must be above 0": not self.pixel_size_A > 0,
            f"an SNR of {self.noise.snr}: must be above 0 (inf: no noise)": not self.noise.snr > 0,
            "fractions of the species must be 0 or more, and not all 0": not _shares(self.species),
            f"a junk fraction of {self.junk.fraction}: must be 0 to 1": not 0 <= self.junk.fraction <= 1,
            f"junk is {', '.join(JUNK_KINDS)}, not {', '.join(sorted(kinds))}": not kinds or kinds - set(JUNK_KINDS),
            f"orientations are uniform, preferred or given, not {orientations.kind}": orientations.kind
            not in ("uniform", "preferred", "given"),
            "given orientations need their quaternions": orientations.kind == "given" and not given,
            "the lowest defocus is above the highest": microscope.defocus_min_A > microscope.defocus_max_A,
        }
        if found := [message for message, is_wrong in wrong.items() if is_wrong]:
            raise InputError("; ".join(found))


def _shares(species: tuple[Species, ...]) -> bool:
    fractions = np.array([each.fraction for each in species])
    return bool(np.all(fractions >= 0) and np.any(fractions > 0))

"""The nouns of the field, as small frozen objects.

Arrays are NumPy; `n` counts particles, `K` classes, `N` is the box in pixels, `S` the number of Fourier shells
(0 .. N // 2), `G` the number of optics groups. Images are `(n, N, N)` float32, indexed `[particle, y, x]`, their
origin at pixel `N // 2`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np


class InputError(Exception):
    """What the user gave cannot be used; the message names the file, the row and the remedy.

    The command line prints the message alone and ends with exit code 2.
    """


@dataclass(frozen=True)
class Optics:
    """One optics group of RELION's `data_optics` block."""

    name: str
    pixel_size_A: float
    voltage_kV: float
    cs_mm: float  # spherical aberration
    amplitude_contrast: float
    box_px: int  # 0 where the table does not say
    ctf_premultiplied: bool = False  # images have been multiplied by their CTF
    phase_flipped: bool = False  # images have been multiplied by the sign of their CTF


@dataclass(frozen=True)
class CTFParameters:
    """Per-particle terms of the contrast transfer function; every array is (n,) float64."""

    defocus_u_A: np.ndarray  # underfocus positive
    defocus_v_A: np.ndarray
    defocus_angle_deg: np.ndarray
    phase_shift_deg: np.ndarray
    bfactor_A2: np.ndarray
    scale: np.ndarray

    def take(self, rows: np.ndarray) -> CTFParameters:
        return CTFParameters(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class Pose2D:
    """In-plane pose of every particle: image = shift by `shift_px` of (rotation by `psi_deg` of the class average).

    Rotation takes the x axis (columns, to the right) towards the y axis (rows, as they increase). RELION writes the
    opposite of both: rlnAnglePsi = -psi_deg, rlnOriginX/YAngst = -shift_px * pixel size.
    """

    class_of: np.ndarray  # (n,) int32, from 0; -1 where not assigned
    psi_deg: np.ndarray  # (n,) float64
    shift_px: np.ndarray  # (n, 2) float64, x then y

    @staticmethod
    def unknown(n: int) -> Pose2D:
        return Pose2D(np.full(n, -1, np.int32), np.zeros(n), np.zeros((n, 2)))

    def take(self, rows: np.ndarray) -> Pose2D:
        return Pose2D(self.class_of[rows], self.psi_deg[rows], self.shift_px[rows])


@dataclass(frozen=True)
class Particles:
    """A table of particles: where each image lies, how it was taken, and what is known of its pose."""

    stacks: tuple[str, ...]  # paths of the image files
    stack_of: np.ndarray  # (n,) int32 into `stacks`
    section: np.ndarray  # (n,) int64, from 0
    optics: tuple[Optics, ...]
    optics_of: np.ndarray  # (n,) int32 into `optics`
    group_names: tuple[str, ...]  # micrographs (or rlnGroupName)
    group_of: np.ndarray  # (n,) int32 into `group_names`
    ctf: CTFParameters | None  # None where the table has no CTF
    pose: Pose2D

    def __len__(self) -> int:
        return len(self.section)

    def take(self, rows: np.ndarray) -> Particles:
        """The particles of `rows` (int indices or a boolean mask), in that order."""
        return replace(
            self,
            stack_of=self.stack_of[rows],
            section=self.section[rows],
            optics_of=self.optics_of[rows],
            group_of=self.group_of[rows],
            ctf=None if self.ctf is None else self.ctf.take(rows),
            pose=self.pose.take(rows),
        )


@dataclass(frozen=True)
class Motion:
    """How the specimen moved under the beam: what lies at (x, y) lies in frame f at (x, y) + `at(f, x, y)`.

    The local part is the polynomial of Zheng et al. 2017 (Nat Methods 14, 331), as RELION states it: with
    u = x / nx - 1/2, v = y / ny - 1/2 and z = f, counted from 0,
    sum over k, j of local[.., k, j] b_k(u, v) z^(j + 1), b = 1, u, u^2, v, v^2, u v.
    """

    shifts_px: np.ndarray  # (frames, 2) float64, x then y
    shape: tuple[int, int]  # ny, nx of a frame
    local_px: np.ndarray  # (2, 6, 3) float64, x then y

    def at(self, frame: int | np.ndarray, x: float | np.ndarray, y: float | np.ndarray) -> np.ndarray:
        """Displacement (..., 2) in pixels, x then y, of broadcast arrays of frames and pixel coordinates."""
        frame = np.asarray(frame)
        powers = np.stack([frame, frame**2, frame**3], -1).astype(np.float64)
        terms = self.space(*np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64)))
        local = np.einsum("...j,akj->...ak", powers, self.local_px)
        return self.shifts_px[frame] + np.einsum("...k,...ak->...a", terms, local)

    def space(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The six terms b_k at pixel coordinates, (..., 6)."""
        u, v = x / self.shape[1] - 0.5, y / self.shape[0] - 0.5
        return np.stack([np.ones_like(u), u, u * u, v, v * v, u * v], -1)


class ImageSource(Protocol):
    """Particle images, simulated or on disk; row i belongs to row i of the table they came with."""

    @property
    def box_px(self) -> int: ...

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Images of `rows`, (len(rows), N, N) float32, in the order asked for."""
        ...


@dataclass(frozen=True)
class ClassModel:
    """Class averages and what is known about them, in pixels and shells (what files and pictures show)."""

    averages: np.ndarray  # (K, N, N) float32
    weights: np.ndarray  # (K,) share of the particles, sums to 1
    noise_power: np.ndarray  # (G, S) variance of the noise per Fourier shell, transform scaled by 1/N
    signal_power: np.ndarray  # (K, S) tau2: the prior's variance per shell
    ssnr: np.ndarray  # (K, S) spectral signal-to-noise ratio of each average
    resolution_A: np.ndarray  # (K,) where SSNR falls below 1
    pixel_size_A: float
    shift_sigma_px: float  # width of the shift prior


@dataclass(frozen=True)
class Assignment:
    """The posterior of every particle, summed up."""

    pose: Pose2D
    log_likelihood: np.ndarray  # (n,) float64
    max_probability: np.ndarray  # (n,) float32, the weight of the best (class, angle, shift)
    significant: np.ndarray  # (n,) int32, poses with more than a thousandth of the best one's weight

    def take(self, rows: np.ndarray) -> Assignment:
        """Those of the particles `rows`, in that order."""
        found = (getattr(self, name)[rows] for name in ("log_likelihood", "max_probability", "significant"))
        return Assignment(self.pose.take(rows), *found)

    def put(self, rows: np.ndarray, other: Assignment) -> Assignment:
        """The same with the particles `rows` as `other` has them."""

        def put(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
            mine = mine.copy()
            mine[rows] = theirs
            return mine

        a, b = self.pose, other.pose
        return Assignment(
            Pose2D(put(a.class_of, b.class_of), put(a.psi_deg, b.psi_deg), put(a.shift_px, b.shift_px)),
            log_likelihood=put(self.log_likelihood, other.log_likelihood),
            max_probability=put(self.max_probability, other.max_probability),
            significant=put(self.significant, other.significant),
        )


@dataclass(frozen=True)
class Iteration:
    """What one turn of the loop leaves behind; progress, checkpoint, STAR files and report are readers of this."""

    number: int
    total: int  # how many iterations the schedule has
    model: ClassModel
    assignment: Assignment
    resolution_limit_A: float  # images were compared up to here
    psi_step_deg: float
    shift_range_px: float
    shift_step_px: float
    particles_used: int  # in this iteration's batch
    log_likelihood: float  # mean per particle of the batch
    max_probability: float  # mean over the batch
    changed_class: float  # share of the batch whose class changed
    changed_psi_deg: float  # median change
    changed_shift_px: float  # median change
    reseeded: tuple[int, ...] = ()  # classes started anew, from 0
    seconds: dict[str, float] = field(default_factory=dict)  # reading, preparation, expectation, maximization, writing

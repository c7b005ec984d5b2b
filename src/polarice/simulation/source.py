"""Simulated particles as a source of images: made when they are asked for, each by its own seed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
from scipy.spatial.transform import Rotation

from polarice.contrast_transfer import ctf
from polarice.fourier import centred_grid
from polarice.simulation.noise import draw_junk, draw_noise, noise_amplitude
from polarice.simulation.project import Projector, Slice
from polarice.simulation.settings import BACKGROUND_RADIUS, PARTICLE_RADIUS, Simulation
from polarice.simulation.truth import Truth, draw_truth
from polarice.simulation.volume import fit_to_box
from polarice.types import Optics, Particles, Pose2D

SIGNAL_SAMPLE = 512  # particles by whose signal the noise is scaled


def simulate(simulation: Simulation, threads: int = 1) -> SimulatedParticles:
    """The particles of `simulation`; images are made by `read`, on `threads` threads."""
    return SimulatedParticles(simulation, threads)


class SimulatedParticles:
    """An ImageSource that also knows its truth.

    Image i depends on the simulation and on i alone, so any order and any batches give the same images bit for bit.
    """

    def __init__(self, simulation: Simulation, threads: int = 1) -> None:
        self.simulation, self.threads = simulation, threads
        self.truth: Truth = draw_truth(simulation)
        self._matrix = Rotation.from_quat(self.truth.quat).as_matrix()
        self._slice = Slice(simulation.box_px, simulation.pixel_size_A)
        self._amplitude = noise_amplitude(simulation.noise, simulation.box_px)
        radius = np.hypot(*centred_grid(simulation.box_px))
        self._inside = radius < PARTICLE_RADIUS * simulation.box_px
        self._background = radius > BACKGROUND_RADIUS * simulation.box_px

    @property
    def box_px(self) -> int:
        return self.simulation.box_px

    def __len__(self) -> int:
        return self.simulation.particles

    @property
    def optics(self) -> Optics:
        microscope = self.simulation.microscope
        return Optics(
            name="opticsGroup1",
            pixel_size_A=self.simulation.pixel_size_A,
            voltage_kV=microscope.voltage_kV,
            cs_mm=microscope.cs_mm,
            amplitude_contrast=microscope.amplitude_contrast,
            box_px=self.box_px,
        )

    @property
    def particles(self) -> Particles:
        """The table that belongs to these images; poses unknown, as they would be."""
        n, names = len(self), micrograph_names(self.truth)
        return Particles(
            stacks=("particles.mrcs",),
            stack_of=np.zeros(n, np.int32),
            section=np.arange(n, dtype=np.int64),
            optics=(self.optics,),
            optics_of=np.zeros(n, np.int32),
            group_names=names,
            group_of=self.truth.micrograph_of.astype(np.int32),
            ctf=self.truth.ctf,
            pose=Pose2D.unknown(n),
        )

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Images of `rows`, (len(rows), N, N) float32, in the order asked for."""
        rows = np.arange(len(self))[rows]
        images = np.empty((len(rows), self.box_px, self.box_px), np.float32)
        _ = self.signal_sd  # made once, before threads ask for it

        def make(i: int) -> None:
            images[i] = self._image(int(rows[i]))

        self._each(make, len(rows))
        return images

    def signal(self, row: int) -> np.ndarray:
        """Particle `row` without noise: CTF times shifted projection, (N, N) float32, white. Junk has none."""
        truth, label = self.truth, int(self.truth.label[row])
        if label >= truth.species:
            return np.zeros((self.box_px, self.box_px), np.float32)
        values = self._projectors[label].project(self._matrix[row]) * self._slice.shift(truth.shift_px[row])
        if truth.ctf is not None:
            values = values * ctf(self.optics, truth.ctf.take(np.array([row])), self._slice.fx, self._slice.fy)[0]
        return self._slice.image(values)

    def _image(self, row: int) -> np.ndarray:
        rng = np.random.default_rng([self.simulation.seed, 1, row])
        image = self.signal(row) / np.float32(self.signal_sd)
        noise_sd = self.simulation.noise.snr**-0.5 if np.isfinite(self.simulation.noise.snr) else 0.0
        if noise_sd:
            image += draw_noise(rng, self.box_px, self._amplitude) * np.float32(noise_sd)
        if self.truth.is_junk[row]:
            kind = self.truth.label_names[self.truth.label[row]]
            image += draw_junk(kind, rng, self.box_px) * np.float32(noise_sd or 1)
        if noise_sd:
            background = image[self._background]
            image = (image - background.mean()) / background.std()
        return -image if self.simulation.invert else image

    def _each(self, make, count: int) -> None:
        if self.threads == 1 or count < 2:
            for i in range(count):
                make(i)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(make, range(count)))

    @cached_property
    def _projectors(self) -> dict[int, Projector]:
        """One for each species that occurs, by its label."""
        sim = self.simulation
        counts = np.bincount(self.truth.label, minlength=len(sim.species))
        field_A = sim.box_px * sim.pixel_size_A
        return {
            label: Projector(fit_to_box(each, field_A), each.pixel_size_A, self._slice)
            for label, each in enumerate(sim.species)
            if counts[label]
        }

    @cached_property
    def signal_sd(self) -> float:
        """Root of the signal's variance inside the particle's circle, meant over (at most 512 of) the particles."""
        rows = np.flatnonzero(~self.truth.is_junk)
        if len(rows) == 0:
            return 1.0
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SIGNAL_SAMPLE)).astype(int))]
        variance = np.empty(len(rows))

        def measure(i: int) -> None:
            variance[i] = self.signal(int(rows[i]))[self._inside].var()

        _ = self._projectors  # made once, before threads ask for it
        self._each(measure, len(rows))
        return float(np.sqrt(variance.mean())) or 1.0


def micrograph_names(truth: Truth) -> tuple[str, ...]:
    """mic000001.mrc, ... one for each micrograph."""
    return tuple(f"mic{i + 1:06d}.mrc" for i in range(int(truth.micrograph_of.max()) + 1))

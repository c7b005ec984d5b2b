"""Simulated particles with their truth: densities, projections, CTF, noise and junk."""

from polarice.simulation.settings import Junk, Microscope, NoiseModel, Orientations, Simulation, Species
from polarice.simulation.source import SimulatedParticles, simulate
from polarice.simulation.truth import Truth, euler_of_quat, quat_of_euler
from polarice.simulation.volume import species_of_map, species_of_model

__all__ = [
    "Junk",
    "Microscope",
    "NoiseModel",
    "Orientations",
    "SimulatedParticles",
    "Simulation",
    "Species",
    "Truth",
    "euler_of_quat",
    "quat_of_euler",
    "simulate",
    "species_of_map",
    "species_of_model",
]

"""Polarice: 2D alignment and classification of cryo-EM particles in polar harmonics."""

__version__ = "0.1.0"

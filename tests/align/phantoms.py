"""Small particles made of Gaussian blobs, at exactly known poses, and the objects that the engine wants around them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from polarice.align.images import ParticleImages
from polarice.align.prepare import Preparation
from polarice.types import Assignment, CTFParameters, Optics, Particles, Pose2D

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Blobs:
    """A particle: heights, widths (px) and centres (px; x, y) of its blobs."""

    height: np.ndarray
    sigma_px: np.ndarray
    centre_px: np.ndarray

    @staticmethod
    def random(reach_px: float, seed: int, count: int = 9, sigma_px: float = 1.6) -> Blobs:
        rng = np.random.default_rng(seed)
        radius, angle = reach_px * np.sqrt(rng.uniform(0, 1, count)), rng.uniform(0, 2 * np.pi, count)
        centre = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return Blobs(
            rng.uniform(0.5, 1.5, count), rng.uniform(0.8, 1.2, count) * sigma_px, centre - centre.mean(axis=0)
        )

    def image(
        self, box_px: int, psi_deg: float = 0.0, shift_px: tuple[float, float] | np.ndarray = (0.0, 0.0)
    ) -> np.ndarray:
        """(N, N) float64: turned by psi from x towards y, then shifted; image = Shift(+t) Rotate(+psi) reference."""
        x = np.arange(box_px) - box_px // 2
        cos, sin = np.cos(np.deg2rad(psi_deg)), np.sin(np.deg2rad(psi_deg))
        image = np.zeros((box_px, box_px))
        for height, sigma, (cx, cy) in zip(self.height, self.sigma_px, self.centre_px, strict=True):
            mx, my = cos * cx - sin * cy + shift_px[0], sin * cx + cos * cy + shift_px[1]
            image += height * np.outer(
                np.exp(-((x - my) ** 2) / (2 * sigma**2)), np.exp(-((x - mx) ** 2) / (2 * sigma**2))
            )
        return image


def optics(pixel_size_A: float = 3.0, box_px: int = 0, name: str = "opticsGroup1") -> Optics:
    return Optics(name, pixel_size_A, 300.0, 2.7, 0.1, box_px)


def ctf_parameters(n: int, astigmatism_A: float = 0.0, seed: int = 0, defocus_A: float = 12000.0) -> CTFParameters:
    rng = np.random.default_rng(seed)
    mean = rng.uniform(0.85, 1.15, n) * defocus_A
    zero = np.zeros(n)
    return CTFParameters(
        mean + astigmatism_A / 2, mean - astigmatism_A / 2, rng.uniform(-90, 90, n), zero, zero, np.ones(n)
    )


@dataclass(frozen=True)
class Held:
    """Images in memory, as an image source."""

    images: np.ndarray

    @property
    def box_px(self) -> int:
        return self.images.shape[-1]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]


def particles(n: int, parameters: CTFParameters | None, groups: int = 1) -> Particles:
    """n particles in `groups` optics groups, taking turns."""
    return Particles(
        stacks=("images.mrcs",),
        stack_of=np.zeros(n, np.int32),
        section=np.arange(n),
        optics=tuple(optics(name=f"opticsGroup{g + 1}") for g in range(groups)),
        optics_of=(np.arange(n) % groups).astype(np.int32),
        group_names=("micrograph",),
        group_of=np.zeros(n, np.int32),
        ctf=parameters,
        pose=Pose2D.unknown(n),
    )


def particle_images(
    images: np.ndarray,
    radius_px: float,
    parameters: CTFParameters | None = None,
    groups: int = 1,
    normalise: bool = False,
) -> ParticleImages:
    """The engine's view of images (n, N, N)."""
    return ParticleImages(
        particles(len(images), parameters, groups),
        Held(images.astype(np.float32)),
        Preparation(images.shape[-1], radius_px, normalise=normalise),
        CPU,
    )


def unassigned(n: int) -> Assignment:
    return Assignment(Pose2D.unknown(n), np.zeros(n), np.zeros(n, np.float32), np.zeros(n, np.int32))

"""Small sets of particles on disk: a few phantoms at known poses, with CTF and noise, and their table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from align.phantoms import Blobs, ctf_parameters, optics
from polarice.contrast_transfer import ctf_image
from polarice.fourier import centred_fft2, centred_ifft2
from polarice.io.mrc import write_stack
from polarice.io.particles import pose_columns
from polarice.io.star import Block, Table, write_star
from polarice.types import Pose2D

PIXEL_A = 3.0
PHANTOMS = 4


@dataclass(frozen=True)
class ParticleSet:
    """How a set is made; `write` puts it into a folder."""

    n: int = 240
    box_px: int = 32
    noise_sd: float = 0.5
    ctf: bool = True
    seed: int = 0
    phantoms: int = PHANTOMS
    columns: dict[str, Any] = field(default_factory=dict)  # further columns of the table, (n,) each

    @property
    def label(self) -> np.ndarray:
        """(n,) which phantom each particle shows."""
        return np.arange(self.n) % self.phantoms

    def pose(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """psi (n,) degrees and shift (n, 2) px: what the generator of the images gives first."""
        return rng.uniform(0, 360, self.n), rng.uniform(-1.5, 1.5, (self.n, 2))

    def aligned(self) -> dict[str, Any]:
        """The true poses as columns of the table."""
        psi, shift = self.pose(np.random.default_rng(self.seed))
        return pose_columns(Pose2D(self.label.astype(np.int32), psi, shift), PIXEL_A)

    def images(self) -> np.ndarray:
        """(n, N, N) float32."""
        rng = np.random.default_rng(self.seed)
        phantoms = [Blobs.random(0.26 * self.box_px, 10 + s) for s in range(self.phantoms)]
        psi, shift = self.pose(rng)
        clean = np.stack([phantoms[c].image(self.box_px, a, t) for c, a, t in zip(self.label, psi, shift, strict=True)])
        if self.ctf:
            values = ctf_image(optics(PIXEL_A), ctf_parameters(self.n, 500.0, self.seed), self.box_px)
            clean = centred_ifft2(centred_fft2(clean) * values).real
        return (clean + self.noise_sd * rng.standard_normal(clean.shape)).astype(np.float32)

    def table(self, names: list[str] | None = None) -> dict[str, Any]:
        """The columns of data_particles."""
        found = ctf_parameters(self.n, 500.0, self.seed)
        defocus = {
            "rlnDefocusU": found.defocus_u_A,
            "rlnDefocusV": found.defocus_v_A,
            "rlnDefocusAngle": found.defocus_angle_deg,
        }
        return {
            "rlnImageName": names or [f"{i + 1:06d}@stack.mrcs" for i in range(self.n)],
            "rlnMicrographName": [f"mic{i // 60}.mrc" for i in range(self.n)],
            **(defocus if self.ctf else {}),
            "rlnOpticsGroup": np.ones(self.n, int),
            **self.columns,
        }

    def optics(self) -> dict[str, Any]:
        """The columns of data_optics."""
        return {
            "rlnOpticsGroupName": ["opticsGroup1"],
            "rlnOpticsGroup": [1],
            "rlnVoltage": [300.0],
            "rlnSphericalAberration": [2.7],
            "rlnAmplitudeContrast": [0.1],
            "rlnImagePixelSize": [PIXEL_A],
            "rlnImageSize": [self.box_px],
            "rlnImageDimensionality": [2],
        }

    def write(self, folder: Path, images: np.ndarray | None = None, dtype: Any = np.float32) -> Path:
        """stack.mrcs and particles.star in `folder`; returns the table's path."""
        write_stack(folder / "stack.mrcs", self.images() if images is None else images, PIXEL_A, dtype)
        return self.write_table(folder)

    def write_table(self, folder: Path, **columns: Any) -> Path:
        """particles.star, some of its columns replaced (None: left out)."""
        kept = {label: values for label, values in {**self.table(), **columns}.items() if values is not None}
        write_star(
            folder / "particles.star",
            [Block("optics", table=Table.of(self.optics())), Block("particles", table=Table.of(kept))],
        )
        return folder / "particles.star"

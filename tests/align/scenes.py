"""One posterior problem, as the engine sees it and as the oracle does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from align.phantoms import Blobs, ctf_parameters, optics, particle_images
from polarice.align import oracle
from polarice.align.expect import PolarImages, Posterior, References, expect, log_weights
from polarice.align.images import ParticleImages
from polarice.align.polar import PolarBasis
from polarice.align.search import Search
from polarice.align.sums import Sums
from polarice.contrast_transfer import ctf
from polarice.fourier import centred_fft2, centred_ifft2

PIXEL_SIZE_A = 3.0


@dataclass(frozen=True)
class Scene:
    """Images of K phantoms under known poses, and everything that both sides need to score them."""

    images: ParticleImages
    references: np.ndarray  # (K, N, N) float64
    noise: oracle.NoiseSpectrum
    basis: PolarBasis
    search: Search
    centre_px: np.ndarray  # (n, 2) whole pixels

    @property
    def batch(self) -> PolarImages:
        rows = np.arange(len(self.images))
        field = self.images.fields(self.basis, self.images.read(rows), self.centre_px)
        return self.images.polar(self.basis, rows, field, self.centre_px, self.centre_px)

    @property
    def ring_noise(self) -> torch.Tensor:
        """(1, ring) float32."""
        return torch.from_numpy(self.noise(np.arange(1.0, self.basis.r_max + 1))).float()[None]

    @property
    def masked(self) -> np.ndarray:
        """(n, N, N) float64: what the engine samples."""
        pixels = torch.from_numpy(self.images.read(np.arange(len(self.images))))
        return self.images.preparation(pixels, torch.from_numpy(self.centre_px)).double().numpy()

    @property
    def psi_rad(self) -> np.ndarray:
        return np.arange(self.search.psi_count) * 2 * np.pi / self.search.psi_count

    @property
    def disc(self) -> oracle.Disc:
        return oracle.Disc(self.basis.box_px, self.basis.r_max)

    @property
    def poses(self) -> tuple[np.ndarray, np.ndarray]:
        return self.search.shifts_px.double().numpy(), self.psi_rad

    def ctf_at(self, frequency: np.ndarray) -> np.ndarray:
        """(n, k) CTF at frequencies (k, 2) in Fourier pixels."""
        parameters = self.images.particles.ctf
        if parameters is None:
            return np.ones((len(self.images), len(frequency)))
        kx, ky = frequency.T / (self.basis.box_px * PIXEL_SIZE_A)
        return ctf(optics(PIXEL_SIZE_A), parameters, kx, ky)

    @property
    def shift_log_prior(self) -> np.ndarray:
        """(n, shift, 1, 1) the Gaussian on whole shifts."""
        whole = self.centre_px[:, None] + self.search.shifts_px.double().numpy()
        return oracle.shift_log_prior(whole, self.search.shift_sigma_px)[:, :, None, None]

    @property
    def ctf_grid(self) -> np.ndarray:
        """(n, N, N) CTF on the centred grid."""
        box = self.basis.box_px
        whole = oracle.Disc(box, box)  # every pixel
        return self.ctf_at(whole.frequency).reshape(-1, box, box)

    def engine_references(self, log_prior: np.ndarray | None = None) -> References:
        field = self.basis.sample(torch.from_numpy(self.references).float().to(self.basis.device))
        prior = np.zeros(len(self.references)) if log_prior is None else log_prior
        return references_of(
            self.basis, field, self.images.even_harmonics(self.basis), torch.from_numpy(prior).float().to(field.device)
        )


def run(where: Scene, batch: PolarImages | None = None, log_prior: np.ndarray | None = None) -> tuple[Posterior, Sums]:
    """The engine's expectation of the scene's batch, or of another."""
    batch = where.batch if batch is None else batch
    return expect(where.basis, where.engine_references(log_prior), batch, where.search, where.ring_noise)


def engine_log_weights(where: Scene, batch: PolarImages | None = None) -> np.ndarray:
    """(n, shift, K, psi) float64: what the expectation makes a posterior of, priors included."""
    batch = where.batch if batch is None else batch
    weights = log_weights(where.basis, where.engine_references(), batch, where.search, where.ring_noise)
    return weights.double().numpy()


def references_of(basis: PolarBasis, field: torch.Tensor, even: int, log_prior: torch.Tensor) -> References:
    """What a model hands the expectation, for fields (K, ring, angle)."""
    power = torch.fft.rfft(field.square())[..., : 2 * even : 2]
    return References(
        conjugate=basis.harmonics(field).conj().permute(2, 1, 0).contiguous().resolve_conj(),
        power_conjugate=power.conj().permute(2, 1, 0).contiguous().resolve_conj(),
        log_prior=log_prior,
    )


def scene(
    box_px: int = 48,
    astigmatism_A: float | None = 0.0,
    n: int = 4,
    noise_sd: float = 0.4,
    spectrum: Callable[[int], oracle.NoiseSpectrum] = oracle.fading_noise,
    seed: int = 0,
    rings: int = 16,
) -> Scene:
    """n images of two phantoms, radius 11 px; astigmatism None leaves the CTF out."""
    rng = np.random.default_rng(seed)
    blobs = [Blobs.random(8.0, s) for s in (1, 2)]
    parameters = None if astigmatism_A is None else ctf_parameters(n, astigmatism_A, seed)
    basis = PolarBasis(box_px, 11.0, rings, slack_px=4.0)
    shifts = torch.tensor([[x, y] for x in (-2.0, 0.0, 2.0) for y in (-1.5, 0.5)])
    empty = particle_images(np.zeros((n, box_px, box_px)), 11.0, parameters)
    search = Search.over(basis, shifts, basis.n_theta, 3.0)
    spread = noise_sd**2
    fading = spectrum(basis.r_max)
    blank = Scene(
        empty,
        np.stack([b.image(box_px) for b in blobs]),
        lambda radius: spread * fading(radius),
        basis,
        search,
        rng.integers(-2, 3, (n, 2)).astype(float),
    )
    whole = blank.centre_px + shifts.numpy()[rng.integers(0, len(shifts), n)]
    psi = np.rad2deg(blank.psi_rad[rng.integers(0, basis.n_theta, n)])
    clean = np.stack([blobs[i % 2].image(box_px, psi[i], whole[i]) for i in range(n)])
    seen = centred_ifft2(centred_fft2(clean) * blank.ctf_grid).real + noise_sd * rng.standard_normal(clean.shape)
    return Scene(particle_images(seen, 11.0, parameters), blank.references, blank.noise, basis, search, blank.centre_px)

"""Posed images whose truth lies on a map, and everything that the model and its oracle need to place them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from align.phantoms import Blobs, ctf_parameters, optics, particle_images
from align.scenes import PIXEL_SIZE_A
from polarice.align import oracle
from polarice.align.images import ParticleImages
from polarice.align.polar import PolarBasis
from polarice.contrast_transfer import ctf, ctf_image
from polarice.fourier import centred_fft2, centred_ifft2
from polarice.references.manifold.aligned import AlignedImages, power_vectors
from polarice.references.manifold.latent import LatentGrid
from polarice.references.manifold.model import Manifold, ManifoldPrior, ring_ramp
from polarice.references.manifold.nodes import NodePosterior, Nodes, NodeSums, expect_nodes

RADIUS_PX = 11.0


@dataclass(frozen=True)
class Problem:
    """Images under known poses, and a map whose coefficients are known as images, too."""

    images: ParticleImages
    model: Manifold
    nodes: np.ndarray  # (K, N, N) float64
    psi_rad: np.ndarray  # (n,)
    shift_px: np.ndarray  # (n, 2)

    @property
    def even(self) -> int:
        return self.images.even_harmonics(self.model.basis)

    @property
    def aligned(self) -> AlignedImages:
        return aligned(self.images, self.model, self.psi_rad, self.shift_px)

    @property
    def masked(self) -> np.ndarray:
        """(n, N, N) float64: what the engine samples."""
        pixels = torch.from_numpy(self.images.source.read(np.arange(len(self.images))))
        return self.images.preparation(pixels, torch.zeros(len(pixels), 2)).double().numpy()

    def ctf_at(self, frequency: np.ndarray) -> np.ndarray:
        """(n, k) CTF at frequencies (k, 2) in Fourier pixels."""
        parameters = self.images.particles.ctf
        if parameters is None:
            return np.ones((len(self.images), len(frequency)))
        kx, ky = frequency.T / (self.model.basis.box_px * PIXEL_SIZE_A)
        return ctf(optics(PIXEL_SIZE_A), parameters, kx, ky)

    @property
    def scale(self) -> np.ndarray:
        """(n, ring) w / sigma^2 of every image."""
        return self.model.scale.numpy()[self.images.particles.optics_of]


def aligned(images: ParticleImages, model: Manifold, psi_rad: np.ndarray, shift_px: np.ndarray) -> AlignedImages:
    """All images, posed."""
    rows, nowhere = np.arange(len(images)), np.zeros((len(images), 2))
    field = images.fields(model.basis, images.source.read(rows), nowhere)
    batch = images.polar(model.basis, rows, field, nowhere, shift_px)
    return AlignedImages.of(model.packed, batch, torch.from_numpy(psi_rad), images.even_harmonics(model.basis))


def expected(
    model: Manifold, images: AlignedImages, even: int = 1, rings: int | None = None
) -> tuple[NodePosterior, NodeSums]:
    return expect_nodes(model.packed, model.nodes(even), images, rings)


def fitted(model: Manifold, images: AlignedImages, iterations: int, even: int = 1) -> Manifold:
    """The model after so many iterations, on more and more rings."""
    for rings in ring_ramp(model.basis, iterations):
        model = model.maximize(expected(model, images, even, rings)[1], ManifoldPrior())
    return model


def climbed(
    model: Manifold, images: AlignedImages, iterations: int, prior: ManifoldPrior
) -> tuple[Manifold, np.ndarray]:
    """The model after so many iterations on all rings, and the log posterior that each began with."""
    history = []
    for _ in range(iterations):
        _, sums = expected(model, images)
        history.append(model.log_posterior(sums, prior))
        model = model.maximize(sums, prior)
    return model, np.array(history)


def seen_through(clean: np.ndarray, parameters: object) -> np.ndarray:
    """Images (n, N, N) as a microscope shows them."""
    if parameters is None:
        return clean
    return centred_ifft2(centred_fft2(clean) * ctf_image(optics(PIXEL_SIZE_A), parameters, clean.shape[-1])).real


def blank(basis: PolarBasis, shape: int | tuple[int, ...], noise: float | np.ndarray, groups: int = 1) -> Manifold:
    """A map without structure."""
    mask = particle_images(np.zeros((1, basis.box_px, basis.box_px)), basis.radius_px).preparation.mask_fraction
    power = torch.ones(groups, basis.box_px // 2 + 1, dtype=torch.float64) * torch.as_tensor(noise)
    return Manifold.empty(basis, LatentGrid.of(shape), power, mask)


def problem(
    box_px: int = 48,
    astigmatism_A: float | None = 0.0,
    n: int = 5,
    groups: int = 1,
    whole_turns: bool = False,
    noise: float = 0.16,
) -> Problem:
    """n images of nodes of a 3 x 4 map; the noise spectrum fades at both ends, as the Cartesian oracle asks.

    whole_turns: angles are whole samples of the basis.
    """
    rng = np.random.default_rng(0)
    basis = PolarBasis(box_px, RADIUS_PX, 16, slack_px=4.0)
    level = noise * np.arange(1, groups + 1)[:, None]
    model = blank(basis, (3, 4), level * oracle.fading_noise(basis.r_max)(np.arange(box_px // 2 + 1)), groups)
    blobs = [Blobs.random(8.0, seed) for seed in (1, 2, 3)]
    mixture = 0.3 * rng.standard_normal((model.grid.m, 3))
    mixture[0] = [1.0, 0.5, 0.5]
    pictures = np.einsum("mb,byx->myx", mixture, np.stack([b.image(box_px) for b in blobs]))
    field = basis.sample(torch.from_numpy(pictures).float())
    weights = torch.from_numpy(rng.uniform(0.5, 1.5, model.grid.k))
    model = replace(
        model,
        coefficients=model.packed.vectors(basis.harmonics(field)).double(),
        weights=weights / weights.sum(),
        tau2=torch.linspace(0.5, 0.02, basis.r_max, dtype=torch.float64),
    )
    on_nodes = model.grid.phi.numpy() @ mixture
    psi = rng.uniform(0, 2 * np.pi, n)
    if whole_turns:
        psi = rng.integers(0, basis.n_theta, n) * (2 * np.pi / basis.n_theta)
    shift = rng.uniform(-2, 2, (n, 2))
    clean = np.stack(
        [
            sum(
                part * b.image(box_px, np.rad2deg(psi[i]), shift[i])
                for part, b in zip(on_nodes[rng.integers(model.grid.k)], blobs, strict=True)
            )
            for i in range(n)
        ]
    )
    parameters = None if astigmatism_A is None else ctf_parameters(n, astigmatism_A)
    images = seen_through(clean, parameters) + noise**0.5 * rng.standard_normal(clean.shape)
    pixels = np.einsum("km,myx->kyx", model.grid.phi.numpy(), pictures)
    return Problem(particle_images(images, RADIUS_PX, parameters, groups), model, pixels, psi, shift)


@dataclass(frozen=True)
class PosedSet:
    """Simulated particles with known poses and a hidden state."""

    images: ParticleImages
    empty: Manifold
    aligned: AlignedImages
    even: int


def true_nodes(where: PosedSet, states: list[Blobs], place: np.ndarray) -> Nodes:
    """Nodes that hold the states themselves, equally probable, at places (state, axis): what no fit can do better."""
    model, basis = where.empty, where.empty.basis
    pictures = torch.from_numpy(np.stack([state.image(basis.box_px) for state in states])).float()
    field = basis.field(basis.harmonics(basis.sample(pictures)))
    return Nodes(
        vector=model.packed.vectors(basis.harmonics(field)),
        power=power_vectors(torch.fft.rfft(field.square())[..., : 2 * where.even : 2], basis.n_theta),
        log_weight=torch.zeros(len(states)),
        scale=model.scale.float(),
        place=torch.from_numpy(place),
    )


def posed_set(
    blobs: list[Blobs], shape: int | tuple[int, ...], noise_sd: float, astigmatism_A: float | None = 0.0, seed: int = 0
) -> PosedSet:
    """One image of each particle, radius 11 px, box 40, turned and shifted at random; rings to 12."""
    rng, box, n = np.random.default_rng(seed), 40, len(blobs)
    basis = PolarBasis(box, RADIUS_PX, 12, slack_px=3.0)
    psi, shift = rng.uniform(0, 360, n), rng.normal(0, 1, (n, 2))
    clean = np.stack([b.image(box, p, t) for b, p, t in zip(blobs, psi, shift, strict=True)])
    parameters = None if astigmatism_A is None else ctf_parameters(n, astigmatism_A, seed)
    seen = seen_through(clean, parameters) + noise_sd * rng.standard_normal(clean.shape)
    images = particle_images(seen, RADIUS_PX, parameters)
    empty = blank(basis, shape, noise_sd**2)
    return PosedSet(images, empty, aligned(images, empty, np.deg2rad(psi), shift), images.even_harmonics(basis))


def species_set(species: int, noise_sd: float, shape: int | tuple[int, ...]) -> PosedSet:
    """400 images of so many particles that have little in common."""
    kinds = [Blobs.random(8.0, seed) for seed in range(1, species + 1)]
    return posed_set([kinds[s] for s in np.random.default_rng(2).integers(0, species, 400)], shape, noise_sd)


def on_arc(share: float) -> Blobs:
    """A body with one blob at a share of the way along an arc of 120 degrees."""
    body = Blobs.random(5.0, 3, count=5)
    angle = np.deg2rad(120 * share)
    return Blobs(
        np.append(body.height, 1.5),
        np.append(body.sigma_px, 1.8),
        np.vstack([body.centre_px, [8 * np.cos(angle), 8 * np.sin(angle)]]),
    )

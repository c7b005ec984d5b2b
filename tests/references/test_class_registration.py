"""Classes in arbitrary frames are brought into one: in degrees and pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from align.phantoms import Blobs, ctf_parameters, particle_images
from polarice.align.images import Clock
from polarice.align.polar import PolarBasis
from polarice.align.store import CacheBudget
from polarice.references.manifold.aligned_particles import AlignedParticles
from polarice.references.manifold.class_registration import register, register_basis
from polarice.references.plain import PlainAverages
from polarice.types import Pose2D
from references.maps import RADIUS_PX, seen_through

BOX = 40


def state(share: float) -> Blobs:
    """A body of nine blobs, and a smaller one at a share of the way along an arc of 60 degrees."""
    body, angle = Blobs.random(8.0, 3), np.deg2rad(60 * share)
    return Blobs(
        np.append(body.height, 0.8),
        np.append(body.sigma_px, 1.6),
        np.vstack([body.centre_px, [8 * np.cos(angle), 8 * np.sin(angle)]]),
    )


def frames(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Angles (class,) in degrees and shifts (class, 2) that classes happen to stand at."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 360, count), rng.uniform(-2.5, 2.5, (count, 2))


def turned(vectors: np.ndarray, angle_deg: np.ndarray) -> np.ndarray:
    z = (vectors[:, 0] + 1j * vectors[:, 1]) * np.exp(1j * np.deg2rad(angle_deg))
    return np.stack([z.real, z.imag], axis=1)


def spread(pose: Pose2D, psi_deg: np.ndarray, shift_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each particle is from the frame that all have in common: degrees and pixels, (n,) each."""
    off = np.exp(1j * np.deg2rad(pose.psi_deg - psi_deg))
    common = np.angle(off.mean())
    angle = np.rad2deg(np.angle(off * np.exp(-1j * common)))
    # in the frame of the truth: Shift(t') Rotate(psi') B = Shift(t) Rotate(psi) X, so X = Shift(R(-psi) (t' - t)) ...
    offset = turned(pose.shift_px - shift_px, -psi_deg)
    return np.abs(angle), np.linalg.norm(offset - np.median(offset, axis=0), axis=1)


@pytest.mark.parametrize("noise_sd", [0.05, 1.0])
def test_averages_along_an_arc(noise_sd):
    """Ten states, each turned and shifted anyhow, and some noise in each average."""
    alpha, u = frames(10)
    rng = np.random.default_rng(1)
    pictures = np.stack([state(i / 9).image(BOX, a, t) for i, (a, t) in enumerate(zip(alpha, u, strict=True))])
    pictures += noise_sd / np.sqrt(100) * rng.standard_normal(pictures.shape)
    basis = register_basis(BOX, RADIUS_PX, 20, torch.device("cpu"))
    found = register(basis, basis.sample(torch.from_numpy(pictures).float()), torch.ones(basis.r_max), np.full(10, 100))
    angle, offset = spread(Pose2D(np.zeros(10, np.int32), found.psi_deg, found.shift_px), alpha, u)
    assert angle.max() < 6 and np.median(angle) < 3  # the moving blob itself pulls
    assert offset.max() < 1.0
    assert found.correlation.min() > 0.8
    unregistered, _ = spread(Pose2D(np.zeros(10, np.int32), np.zeros(10), np.zeros((10, 2))), alpha, u)
    assert np.median(unregistered) > 30


def test_copies_of_one_particle_come_into_register_exactly():
    alpha, u = frames(6, 3)
    blob = Blobs.random(8.0, 2)
    pictures = np.stack([blob.image(BOX, a, t) for a, t in zip(alpha, u, strict=True)])
    basis = register_basis(BOX, RADIUS_PX, 20, torch.device("cpu"))
    found = register(basis, basis.sample(torch.from_numpy(pictures).float()), torch.ones(basis.r_max), np.full(6, 1))
    angle, offset = spread(Pose2D(np.zeros(6, np.int32), found.psi_deg, found.shift_px), alpha, u)
    assert angle.max() < 1.0 and offset.max() < 0.3
    assert found.correlation.min() > 0.99


def test_particles_follow_their_classes():
    """Noisy particles with CTF whose poses lead to class frames: composed, they lead to one frame."""
    rng = np.random.default_rng(4)
    n, states = 360, [state(i / 4) for i in range(5)]
    alpha, u = frames(5, 5)
    label = np.arange(n) % 5
    psi, shift = rng.uniform(0, 360, n), rng.normal(0, 1, (n, 2))
    clean = np.stack([states[c].image(BOX, p, t) for c, p, t in zip(label, psi, shift, strict=True)])
    parameters = ctf_parameters(n, 500.0)
    noisy = seen_through(clean, parameters) + 0.7 * rng.standard_normal(clean.shape)
    images = particle_images(noisy, RADIUS_PX, parameters)
    # the class stands at Shift(u) Rotate(alpha) X: an image Shift(t) Rotate(psi) X has pose psi - alpha, ...
    to_class = psi - alpha[label]
    pose = Pose2D(label.astype(np.int32), to_class, shift - turned(u[label], to_class))
    basis = register_basis(BOX, RADIUS_PX, 16, torch.device("cpu"))
    posed = AlignedParticles(images, basis, np.arange(n), CacheBudget())
    scale = basis.weight.double()[None] / 0.49
    plain = PlainAverages.of(posed, pose, label, (5, scale, images.preparation.mask_fraction), Clock())
    field = posed.packed.field(plain.vector.float())
    found = register(basis, field, torch.full((basis.r_max,), 0.49), plain.count)
    angle, offset = spread(found.pose(pose, label), psi, shift)
    assert np.median(angle) < 3 and angle.max() < 7
    assert offset.max() < 1.0
    before, _ = spread(pose, psi, shift)
    assert np.median(before) > 30


def test_a_plain_average_is_the_particle():
    """Without noise, with CTF: what was averaged is the phantom, in the frame of its class."""
    n, blob = 60, Blobs.random(8.0, 2)
    rng = np.random.default_rng(0)
    psi, shift = rng.uniform(0, 360, n), rng.normal(0, 1, (n, 2))
    clean = np.stack([blob.image(BOX, p, t) for p, t in zip(psi, shift, strict=True)])
    parameters = ctf_parameters(n, 0.0)
    images = particle_images(seen_through(clean, parameters), RADIUS_PX, parameters)
    basis = PolarBasis(BOX, RADIUS_PX, 16, 1.0)
    posed = AlignedParticles(images, basis, np.arange(n), CacheBudget())
    label = np.where(np.arange(n) < 50, 1, -1)
    scale = basis.weight.double()[None] / 1e-4
    plain = PlainAverages.of(
        posed, Pose2D(label.astype(np.int32), psi, shift), label, (3, scale, images.preparation.mask_fraction), Clock()
    )
    assert plain.count.tolist() == [0, 50, 0]
    assert not plain.vector[0].any() and not plain.ssnr[2].any()
    picture = basis.to_images(posed.packed.field(plain.vector[1:2].float()))[0].numpy()
    truth = basis.to_images(basis.sample(torch.from_numpy(blob.image(BOX)).float()[None]))[0].numpy()
    assert np.corrcoef(picture.ravel(), truth.ravel())[0, 1] > 0.99
    assert np.linalg.norm(picture) == pytest.approx(np.linalg.norm(truth), rel=0.05)

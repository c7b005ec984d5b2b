"""Generative topographic mapping written down word by word: float64, every matrix formed, every sum over samples.

Fields are (n, ring, angle), made by direct Fourier sums; poses move them by a phase and turn them by whole samples. No
harmonics, no vectors, no shared factors: a system is solved for every sample of every ring.
"""

from __future__ import annotations

import itertools

import numpy as np

from polarice.align import oracle
from polarice.align.polar import PolarBasis


def ring_points(basis: PolarBasis) -> np.ndarray:
    """(ring * angle, 2) frequencies in Fourier pixels, x then y."""
    r = np.arange(1, basis.r_max + 1)[:, None]
    theta = 2 * np.pi * np.arange(basis.n_theta) / basis.n_theta
    return np.stack([r * np.cos(theta), r * np.sin(theta)], axis=-1).reshape(-1, 2)


def posed_fields(basis: PolarBasis, images: np.ndarray, shift_px: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Fields of images (n, N, N), moved by -shift (n, 2) and turned by -steps (n,) samples: (n, ring, angle)."""
    points = ring_points(basis)
    transform = oracle.transform_at(images, points)
    transform = transform * np.exp(2j * np.pi / basis.box_px * (np.asarray(shift_px, float) @ points.T))
    return turned(basis, transform.real + transform.imag, steps)


def turned(basis: PolarBasis, samples: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(n, ring * angle) -> (n, ring, angle), turned by -steps."""
    samples = samples.reshape(len(samples), basis.r_max, basis.n_theta)
    return np.stack([np.roll(each, -step, axis=-1) for each, step in zip(samples, steps, strict=True)])


def phi(shape: tuple[int, ...], functions: tuple[int, ...], width: float) -> np.ndarray:
    """(K, M): a constant and Gaussians on the coarser grid."""

    def places(counts: tuple[int, ...]) -> np.ndarray:
        return np.array(list(itertools.product(*[np.linspace(-1, 1, n) if n > 1 else [0.0] for n in counts])))

    spacing = np.array([2 / max(m - 1, 1) for m in functions])
    nodes, centres = places(shape), places(functions)
    values = np.ones((len(nodes), 1 + len(centres)))
    for k, node in enumerate(nodes):
        for m, centre in enumerate(centres):
            values[k, 1 + m] = np.exp(-0.5 * (((node - centre) / (width * spacing)) ** 2).sum())
    return values


def log_weights(
    data: np.ndarray, ctf: np.ndarray, nodes: np.ndarray, scale: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(n, K) from fields and CTFs (n, ring, angle), nodes (K, ring, angle), scale (n, ring), weights (K,)."""
    found = np.empty((len(data), len(nodes)))
    for k, node in enumerate(nodes):
        seen = ctf * node
        found[:, k] = (scale[:, :, None] * (data * seen - 0.5 * seen**2)).sum(axis=(1, 2)) + np.log(weights[k])
    return found


def responsibilities(weights: np.ndarray) -> np.ndarray:
    """(n, K), each row's sum 1."""
    share = np.exp(weights - weights.max(axis=1, keepdims=True))
    return share / share.sum(axis=1, keepdims=True)


def coefficients(
    functions: np.ndarray, share: np.ndarray, fields: tuple[np.ndarray, np.ndarray], scale: np.ndarray, hold: np.ndarray
) -> np.ndarray:
    """(M, ring, angle): [Phi' G_r Phi + hold_r I'] W = Phi' S, solved sample by sample."""
    data, ctf = fields
    numerator = np.einsum("nk,nr,nra->kra", share, scale, ctf * data)
    denominator = np.einsum("nk,nr,nr->kr", share, scale, (ctf**2).mean(axis=2))
    found = np.empty((functions.shape[1], *numerator.shape[1:]))
    free = np.eye(functions.shape[1])
    free[0, 0] = 0
    for r in range(numerator.shape[1]):
        system = functions.T @ np.diag(denominator[:, r]) @ functions + hold[r] * free
        for a in range(numerator.shape[2]):
            found[:, r, a] = np.linalg.solve(system, functions.T @ numerator[:, r, a])
    return found


def noise(
    share: np.ndarray, fields: tuple[np.ndarray, np.ndarray], nodes: np.ndarray, mask_fraction: float
) -> np.ndarray:
    """(ring,) mean square of what the nodes leave unexplained, as if the mask had let all through."""
    data, ctf = fields
    left = np.zeros(data.shape[1])
    for k, node in enumerate(nodes):
        left += (share[:, k, None] * ((data - ctf * node) ** 2).mean(axis=2)).sum(axis=0)
    return left / len(data) / mask_fraction

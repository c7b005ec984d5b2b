"""Where a manifold starts: laid out over the principal components of the images or of class averages, or coarser.

Nodes that all start as one image are a fixed point of expectation maximization; both starts raise ValueError where
there is nothing to tell them apart by.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from polarice.cluster import SERIAL, Comm
from polarice.references.manifold.aligned import AlignedImages
from polarice.references.manifold.model import Manifold, first_rings

REACH_SD = 2.0  # the grid covers so many standard deviations of each component on either side
POWER_ITERATIONS = 6
SPARE_COMPONENTS = 8  # of the random subspace, beyond those asked for
PCA_RIDGE = 1e-6  # of the mean diagonal; node images are linear in the grid, nothing is to be smoothed
AVERAGES_RIDGE = 1e-2  # averages lie anywhere on the grid and may be fewer than its functions


def from_pca(
    empty: Manifold, images: AlignedImages, rings: int | None = None, seed: int = 0, comm: Comm = SERIAL
) -> Manifold:
    """A map that is linear in the first principal components of aligned images, over +-2 standard deviations.

    images: a subset that fits in memory, of which every rank holds a part; the components are those of the images less
    their mean's part, each ring weighted as its noise demands, on the first `rings` rings (`first_rings`: components of
    more fold a long path). Mean and components are then fitted to all rings by least squares with the CTF.
    """
    rings = min(rings or first_rings(empty.basis), empty.basis.r_max)
    scores = _image_scores(empty, images, (rings, seed), comm)
    n = len(scores)
    design = torch.cat([scores.new_ones(n, 1), scores], dim=1)
    components = _fitted(empty, images, design, comm)
    place = torch.cat([empty.grid.nodes.new_ones(empty.grid.k, 1), REACH_SD * empty.grid.nodes], dim=1)
    return _started(empty, empty.grid.nodes, place @ components, torch.ones_like(place[:, 0]), PCA_RIDGE)


def from_averages(empty: Manifold, field: Tensor, weights: Tensor) -> Manifold:
    """A map through class averages that lie on the grid as their principal components say.

    field (K0, ring, angle) in the model's basis, in register with one another; weights (K0,) their shares, sum 1.
    """
    vectors = empty.packed.vectors(empty.basis.harmonics(field)).double()
    weights = weights.double()
    scale = empty.scale.mean(dim=0).sqrt()[empty.packed.ring_of]
    deviation = (vectors - weights @ vectors) * scale * weights.sqrt()[:, None]
    value, direction = torch.linalg.eigh(deviation @ deviation.T)
    axes = empty.grid.nodes.shape[1]
    total = float((vectors * scale).square().sum())
    if float(value[-1]) <= 1e-12 * total:
        raise ValueError("the class averages to start from are all the same")
    places = torch.zeros(len(vectors), axes, dtype=torch.float64, device=vectors.device)
    for axis in range(min(axes, len(value))):
        if float(value[-1 - axis]) > 1e-12 * total:
            places[:, axis] = direction[:, -1 - axis] / weights.sqrt().clamp_min(1e-9) / REACH_SD
    return _started(empty, places.clamp(-1, 1), vectors, weights, AVERAGES_RIDGE)


def from_coarser(empty: Manifold, coarse: Manifold) -> Manifold:
    """A map that shows what a coarser one of the same axes does, read between its nodes; its prior and noise stay.

    Priors made of the coefficients alone hold the finer map down: it ended lower.
    """
    images = coarse.grid.at(empty.grid.nodes) @ coarse.dense
    model = _started(empty, empty.grid.nodes, images, torch.ones_like(empty.weights), PCA_RIDGE)
    return replace(model, noise_power=coarse.noise_power, tau2=coarse.tau2)


def _started(empty: Manifold, points: Tensor, vectors: Tensor, weights: Tensor, ridge: float) -> Manifold:
    """The map whose images at points of the grid come nearest to the vectors (point, d)."""
    model = replace(empty, coefficients=empty.grid.fit(points, vectors, weights, ridge))
    spread = (model.vectors - model.vectors.mean(dim=0)).norm()
    if not float(spread) > 1e-6 * float(model.vectors.norm()):
        raise ValueError("the images to start from are all the same: there is nothing to lay out on the latent grid")
    power = model._coefficient_power()
    return replace(model, tau2=power.clamp_min(1e-6 * float(power.max())))


def _image_scores(empty: Manifold, images: AlignedImages, how: tuple[int, int], comm: Comm) -> Tensor:
    """(image, axis) float64 principal components of all ranks' images, each of mean 0 and variance 1; of this rank's.

    By subspace iteration from a random start (Halko, Martinsson and Tropp 2011); how = (rings, seed).
    """
    (rings, seed), ring_of, axes = how, empty.packed.ring_of, empty.grid.nodes.shape[1]
    ones = images.vector.new_ones(len(images), 1).double()
    mean = _fitted(empty, images, ones, comm)[0].float()
    scale, ctf_power = _scales(empty, images)
    n, seen = comm.sum((len(images), ctf_power.sum(dim=0)))
    seen = (seen / n).clamp_min(1e-6)
    keep = int(empty.packed.bounds[rings])
    ring_of = ring_of[:keep]
    data = images.vector[:, :keep] - ctf_power[:, ring_of] * mean[:keep]
    data *= (scale / seen).sqrt()[:, ring_of]
    data -= comm.sum(data.sum(dim=0)) / n
    size = min(axes + SPARE_COMPONENTS, n, keep)
    generator = torch.Generator().manual_seed(seed)
    span = torch.randn(keep, size, generator=generator).to(data.device)
    for _ in range(POWER_ITERATIONS):
        span = torch.linalg.qr(comm.sum(data.T @ (data @ span))).Q
    along = (data @ span).double()
    products, square = comm.sum((along.T @ along, float(data.norm()) ** 2))
    values, turn = torch.linalg.eigh(products)
    values, turn = values.flip(0)[:axes].clamp_min(0).sqrt(), turn.flip(1)[:, :axes]
    if size < axes or not float(values[-1]) > 1e-6 * (square**0.5 + 1e-30):
        raise ValueError(f"the images to start from do not differ in as many ways as the latent grid has axes ({axes})")
    turn = turn * turn.gather(0, turn.abs().argmax(dim=0, keepdim=True)).sign()  # which else rounding may turn round
    return along @ turn / values * n**0.5


def _scales(empty: Manifold, images: AlignedImages) -> tuple[Tensor, Tensor]:
    """w / sigma^2 and mean C^2 of each image, (image, ring) float32."""
    return empty.scale.float()[images.optics_of], images.mean_ctf_power(empty.basis.n_theta)


def _fitted(empty: Manifold, images: AlignedImages, design: Tensor, comm: Comm) -> Tensor:
    """Coefficients (column, d) float64 that explain images as design (image, column) @ coefficients, CTF included."""
    scale, ctf_power = _scales(empty, images)
    seen = (scale * ctf_power).double()
    system = torch.einsum("na,nr,nb->rab", design, seen, design)
    right = (design.T.float() @ (images.vector * scale[:, empty.packed.ring_of])).double()
    system, right = comm.sum((system, right))
    diagonal = system.diagonal(dim1=-2, dim2=-1)
    diagonal += 1e-9 * diagonal.mean(dim=1, keepdim=True) + 1e-30
    parts = [
        torch.linalg.solve(each, columns)
        for each, columns in zip(system, right.tensor_split(empty.packed.bounds[1:-1].tolist(), dim=1), strict=True)
    ]
    return torch.cat(parts, dim=1)

"""The expectation of a map: where on it each image lies, and what the images say of its nodes.

Nodes that differ in few ways, Y = Z V, meet images through the rows V alone: log weights are made of X V', and of the
sums over images S = R' X, maximization takes S V' = R' (X V'), known at once, and Z' S = (R Z)' X with the amplitudes
that it has found by then (`gathered`). So neither takes a product of images and nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from polarice.align.expect import SIGNIFICANT
from polarice.align.sums import Additive
from polarice.references.manifold.aligned import AlignedImages, PackedHarmonics

FLOOR = -60.0  # log shares below this count as this: nothing, yet no slow denormal numbers, however many nodes


@dataclass(frozen=True)
class Nodes:
    """What a manifold hands the expectation; float32. Their images are `vector`, or the product of `factors`."""

    vector: Tensor | None  # (K, d) Y
    power: Tensor  # (K, ring, 2 e - 1) of Y^2, see `power_vectors`
    log_weight: Tensor  # (K,)
    scale: Tensor  # (G, ring) w / sigma^2
    place: Tensor  # (K, axis) on the latent grid
    factors: tuple[Tensor, Tensor] | None = None  # (K, a) Z, (a, d) V: the nodes' images where they are thin

    def mean(self, share: Tensor) -> Tensor:
        """(image, d) the nodes' images, averaged with shares (image, K)."""
        if self.factors is not None:
            return share @ self.factors[0] @ self.factors[1]
        assert self.vector is not None
        return share @ self.vector


@dataclass(frozen=True)
class NodePosterior:
    """Where on the map the images of a batch lie; tensors of (image,)."""

    node_of: Tensor  # int64, the most probable
    max_probability: Tensor
    latent_mean: Tensor  # (image, axis), in [-1, 1]
    latent_sd: Tensor  # (image, axis) spread of the posterior
    log_likelihood: Tensor  # log of the sum of all weights, up to the image's own power
    significant: Tensor  # int64, nodes with more than SIGNIFICANT of the best one's weight

    @staticmethod
    def joined(parts: list[NodePosterior]) -> NodePosterior:
        """Posteriors of several batches as one."""
        return NodePosterior(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(NodePosterior)))


@dataclass(frozen=True)
class NodeSums(Additive):
    """Weighted sums over images, which add; a batch's in single precision, `double` what batches are added into."""

    numerator: Tensor  # (K, d) S; (K, a) S V' of `expect_thin`
    denominator: Tensor  # (K, ring, 2 e - 1) sum of R w/sigma^2 C'^2, see `power_vectors`; its mean over theta is D
    node_weight: Tensor  # (K,) sum of R
    image_power: Tensor  # (G, ring) sum over images of mean_theta X^2
    ctf_power: Tensor  # (G, ring) sum over images of mean_theta C^2
    group_count: Tensor  # (G,) images
    log_likelihood: Tensor  # () float64
    max_probability: Tensor  # () float64

    @property
    def count(self) -> float:
        """Images that were summed."""
        return float(self.group_count.sum())

    def light(self) -> NodeSums:
        """The same with what is large in single precision, in which it was computed: half to send."""
        return replace(self, numerator=self.numerator.float(), denominator=self.denominator.float())


def log_weights(packed: PackedHarmonics, nodes: Nodes, images: AlignedImages, rings: int | None = None) -> Tensor:
    """log p(i, k) up to the image's own power, on the first `rings` (all): (image, K) float32.

    One large matrix product and a small one; where nodes have thin factors, small ones only.
    """
    rings = _within(packed, rings)
    if nodes.factors is not None:
        along = _products(packed, nodes, images, nodes.factors[1], slice(0, rings))
        return _weights(nodes, images, along, nodes.factors[0], rings)
    assert nodes.vector is not None
    kept = slice(0, int(packed.bounds[rings]))
    each = _scale_of(nodes, images)[:, packed.ring_of[kept]]
    data, right = images.vector[:, kept], nodes.vector[:, kept]
    data, right = (data, right * each) if len(each) == 1 else (data * each, right)
    return _weights(nodes, images, data, right, rings)


def expect_nodes(
    packed: PackedHarmonics, nodes: Nodes, images: AlignedImages, rings: int | None = None
) -> tuple[NodePosterior, NodeSums]:
    """The posterior of a batch over the nodes, on the first `rings` (all), and its share of the sums of all rings."""
    share, posterior = _posterior(nodes, log_weights(packed, nodes, images, rings))
    by_node = share.T.contiguous()  # as it is, the large product took twice as long
    each = _scale_of(nodes, images)[:, packed.ring_of]
    numerator = (by_node @ images.vector).mul_(each) if len(each) == 1 else by_node @ (images.vector * each)
    return posterior, _sums(packed, nodes, images, by_node, (posterior, numerator))


def expect_thin(
    packed: PackedHarmonics, nodes: Nodes, images: AlignedImages, rings: int | None = None
) -> tuple[NodePosterior, NodeSums, Tensor]:
    """The same where nodes have thin factors, the sums being S V' instead of S; and what `gathered` takes of the batch:
    products of the images with the rows on the first `rings`, (image, a)."""
    assert nodes.factors is not None
    (design, rows), rings = nodes.factors, _within(packed, rings)
    first = _products(packed, nodes, images, rows, slice(0, rings))
    along = first
    if rings < packed.basis.r_max:
        along = first + _products(packed, nodes, images, rows, slice(rings, packed.basis.r_max))
    share, posterior = _posterior(nodes, _weights(nodes, images, first, design, rings))
    by_node = share.T.contiguous()
    return posterior, _sums(packed, nodes, images, by_node, (posterior, by_node @ along)), first


def gathered(
    packed: PackedHarmonics, nodes: Nodes, images: AlignedImages, first: Tensor, rings: int | None, design: Tensor
) -> Tensor:
    """A batch's part of Z' S, (a, d), for any Z: `design` (K, a); `first` as `expect_thin` gave it."""
    assert nodes.factors is not None
    weights = _weights(nodes, images, first, nodes.factors[0], _within(packed, rings))
    share, _ = _shares(weights, weights.amax(dim=1))
    by_column = (share @ design).T.contiguous()
    each = _scale_of(nodes, images)[:, packed.ring_of]
    return (by_column @ images.vector).mul_(each) if len(each) == 1 else by_column @ (images.vector * each)


def _within(packed: PackedHarmonics, rings: int | None) -> int:
    return packed.basis.r_max if rings is None else min(rings, packed.basis.r_max)


def _products(packed: PackedHarmonics, nodes: Nodes, images: AlignedImages, rows: Tensor, rings: slice) -> Tensor:
    """(image, a) sums over some rings of w / sigma^2 X V'."""
    place = slice(int(packed.bounds[rings.start]), int(packed.bounds[rings.stop]))
    each = _scale_of(nodes, images)[:, packed.ring_of[place]]
    data, rows = images.vector[:, place], rows[:, place]
    return data @ (rows * each).T if len(each) == 1 else (data * each) @ rows.T


def _weights(nodes: Nodes, images: AlignedImages, data: Tensor, right: Tensor, rings: int) -> Tensor:
    """(image, K) log weights of which data (image, a) @ right (K, a)' are the products of images and nodes."""
    scale = _scale_of(nodes, images)[:, :rings]
    power = (images.ctf_power[:, :rings] * scale[..., None]).flatten(1)
    weights = power @ nodes.power[:, :rings].flatten(1).T
    return torch.addmm(weights, data, right.T, beta=-0.5).add_(nodes.log_weight)


def _shares(weights: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
    """Shares (image, K) in the place of log weights; the sums of all weights in units of the largest, e^peak."""
    share = weights.sub_(peak[:, None]).clamp_(min=FLOOR).exp_()
    total = share.sum(dim=1)
    share /= total[:, None]
    return share, total


def _posterior(nodes: Nodes, weights: Tensor) -> tuple[Tensor, NodePosterior]:
    """Shares (image, K) in the place of log weights, and what is kept of them."""
    peak, node_of = weights.max(dim=1)
    share, total = _shares(weights, peak)
    marked = torch.gt(share, SIGNIFICANT / total[:, None], out=torch.empty_like(share))  # booleans add up more slowly
    place = nodes.place.to(share.dtype)
    mean = share @ place
    return share, NodePosterior(
        node_of=node_of,
        max_probability=1 / total,
        latent_mean=mean,
        latent_sd=(share @ place.square() - mean.square()).clamp_min(0).sqrt(),
        log_likelihood=peak + total.log(),
        significant=marked.sum(dim=1).long(),
    )


def _scale_of(nodes: Nodes, images: AlignedImages) -> Tensor:
    """w / sigma^2 of each image, or the one of all where there is only one optics group: (image or 1, ring)."""
    return nodes.scale if len(nodes.scale) == 1 else nodes.scale[images.optics_of]


def _sums(
    packed: PackedHarmonics, nodes: Nodes, images: AlignedImages, by_node: Tensor, found: tuple[NodePosterior, Tensor]
) -> NodeSums:
    """The batch's sums, of shares (K, image); found = (posterior, numerator)."""
    posterior, numerator = found
    member = torch.nn.functional.one_hot(images.optics_of, len(nodes.scale)).to(by_node.dtype)
    power = (images.ctf_power * _scale_of(nodes, images)[..., None]).flatten(1)
    return NodeSums(
        numerator=numerator,
        denominator=(by_node @ power).unflatten(1, images.ctf_power.shape[1:]),
        node_weight=by_node.sum(dim=1),
        image_power=member.T @ images.image_power,
        ctf_power=member.T @ images.mean_ctf_power(packed.basis.n_theta),
        group_count=member.sum(dim=0),
        log_likelihood=posterior.log_likelihood.double().sum(),
        max_probability=posterior.max_probability.double().sum(),
    )

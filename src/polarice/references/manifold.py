"""`manifold`: K references on a smooth map of one to three dimensions, for images whose poses are known.

    Y_k(r, theta) = sum_m Phi_km W_m(r, theta)                                  Phi: see `latent`
    log p(i, k)   = sum_r w_r / sigma_r^2  sum_theta [C'X' Y_k - C'^2 Y_k^2 / 2]  +  log pi_k
    [Phi' D_r Phi + lambda_r I'] W_rq = Phi' S_rq                              for every ring r and harmonic q

with X' an image turned and shifted into the frame of the references, C' its CTF turned likewise, R_ik the share of node
k in image i, S_k = sum_i R_ik w/sigma^2 C'X', D_kr = sum_i R_ik w/sigma^2 mean_theta C'^2, and I' the identity without
the constant's place. This is generative topographic mapping (Bishop, Svensen and Williams, Neural Computation 10, 215,
1998), brought to cryo-EM images by Wu et al. (PLoS ONE 12, e0182130, 2017) as statistical manifold learning; with the
CTF and a noise spectrum inside, it is solved ring by ring, in the real numbers of `aligned`, where all products are
plain ones.

For round CTFs both steps are exact: the penalised log likelihood (`Manifold.log_posterior`) does not fall. With
astigmatism the expectation and the noise stay exact, and the coefficients' equations take the mean of C'^2 over the
circle, which the sum over turned images makes nearly round.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from polarice.align.expect import SIGNIFICANT, References
from polarice.align.polar import PolarBasis
from polarice.align.sums import Additive
from polarice.cluster import SERIAL, Comm
from polarice.references import subspace
from polarice.references.aligned import AlignedImages, Triangle, power_vectors
from polarice.references.banded import Factors
from polarice.references.latent import LatentGrid
from polarice.references.noise import noise_left
from polarice.references.subspace import Rows, Weighted

RING_BLOCK_BYTES = {"cpu": 32 << 20, "cuda": 1 << 30}  # of systems that are factored at once
ERROR_BLOCK = 512  # nodes whose errors are computed at once
NODE_BLOCK = 64  # nodes whose fields are multiplied at once
PROBES = 32  # random signs that estimate a trace; up to as many functions it is exact
SMALLEST_SHIFT = 1e-9  # of the mean diagonal: a system is held down at least so much
FLOOR = -60.0  # log shares below this count as this: nothing, yet no slow denormal numbers, however many nodes
RAMP_SHARE = 0.6  # of the iterations in which images are compared on few rings


@dataclass(frozen=True)
class ManifoldPrior:
    """How strongly maximization holds the map down."""

    tau2_fudge: float = 1.0  # variances of the coefficients are taken to be so many times what the data speak for
    learn_tau2: bool = True
    pseudo_count: float = 0.1  # images that every node's weight is granted
    evenness: float = 0.0  # and so many times an equal share of all images

    def granted(self, images: Tensor, k: int) -> Tensor:
        """() images that each of k nodes' weights is granted beyond its own."""
        return self.pseudo_count + self.evenness * images / k


def first_rings(basis: PolarBasis) -> int:
    """Rings up to one period across the particle."""
    return min(basis.r_max, math.ceil(basis.box_px / (2 * basis.radius_px)))


def ring_ramp(basis: PolarBasis, iterations: int, first: int | None = None) -> list[int]:
    """On how many rings images are compared in each iteration: from `first` (`first_rings`) to all, by factors.

    On the first rings states far apart still overlap, so neighbours find each other; a map that starts on all rings
    settles as it was laid out, folded where principal components fold (tests/references/test_manifold.py).
    """
    first = min(basis.r_max, first or first_rings(basis))
    steps = max(1, round(RAMP_SHARE * iterations))
    return [min(basis.r_max, round(first * (basis.r_max / first) ** (i / steps))) for i in range(iterations)]


@dataclass(frozen=True)
class Nodes:
    """What a manifold hands the expectation; float32."""

    vector: Tensor  # (K, d)
    power: Tensor  # (K, ring, 2 e - 1) of Y^2, see `power_vectors`
    log_weight: Tensor  # (K,)
    scale: Tensor  # (G, ring) w / sigma^2
    place: Tensor  # (K, axis) on the latent grid
    product: tuple[Tensor, Tensor] | None = None  # (K, a), (a, d): factors of `vector`, where they are thin


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

    numerator: Tensor  # (K, d) S
    denominator: Tensor  # (K, ring, 2 e - 1) sum of R w/sigma^2 C'^2, see `power_vectors`; its mean over theta is D
    node_weight: Tensor  # (K,) sum of R
    image_power: Tensor  # (G, ring) sum over images of mean_theta X^2
    ctf_power: Tensor  # (G, ring) sum over images of mean_theta C^2
    group_count: Tensor  # (G,) images
    log_likelihood: Tensor  # () float64
    max_probability: Tensor  # () float64

    def light(self) -> NodeSums:
        """The same with what is large in single precision, in which it was computed: half to send."""
        return replace(self, numerator=self.numerator.float(), denominator=self.denominator.float())


def log_weights(triangle: Triangle, nodes: Nodes, images: AlignedImages, rings: int | None = None) -> Tensor:
    """log p(i, k) up to the image's own power, on the first `rings` (all): (image, K) float32.

    One large matrix product and a small one; where nodes have thin factors, small ones only.
    """
    rings = triangle.basis.r_max if rings is None else min(rings, triangle.basis.r_max)
    kept = int(triangle.bounds[rings])
    scale = _scale_of(nodes, images)[:, :rings]
    each = scale[:, triangle.ring_of[:kept]]
    power = (images.ctf_power[:, :rings] * scale[..., None]).flatten(1)
    weights = power @ nodes.power[:, :rings].flatten(1).T
    data = images.vector[:, :kept]
    right = (nodes.vector if nodes.product is None else nodes.product[1])[:, :kept]
    if len(scale) == 1:
        right = right * each
    else:
        data = data * each
    if nodes.product is not None:
        data, right = data @ right.T, nodes.product[0]
    return torch.addmm(weights, data, right.T, beta=-0.5).add_(nodes.log_weight)


def expect_nodes(
    triangle: Triangle, nodes: Nodes, images: AlignedImages, rings: int | None = None
) -> tuple[NodePosterior, NodeSums]:
    """The posterior of a batch over the nodes, on the first `rings` (all), and its share of the sums of all rings."""
    share = log_weights(triangle, nodes, images, rings)
    peak, node_of = share.max(dim=1)
    share.sub_(peak[:, None]).clamp_(min=FLOOR).exp_()
    total = share.sum(dim=1)
    significant = (share > SIGNIFICANT).sum(dim=1)
    share /= total[:, None]
    place = nodes.place.to(share.dtype)
    mean = share @ place
    posterior = NodePosterior(
        node_of=node_of,
        max_probability=1 / total,
        latent_mean=mean,
        latent_sd=(share @ place.square() - mean.square()).clamp_min(0).sqrt(),
        log_likelihood=peak + total.log(),
        significant=significant,
    )
    return posterior, _accumulate(triangle, nodes, images, share, posterior)


def _scale_of(nodes: Nodes, images: AlignedImages) -> Tensor:
    """w / sigma^2 of each image, or the one of all where there is only one optics group: (image or 1, ring)."""
    return nodes.scale if len(nodes.scale) == 1 else nodes.scale[images.optics_of]


def _accumulate(
    triangle: Triangle, nodes: Nodes, images: AlignedImages, share: Tensor, posterior: NodePosterior
) -> NodeSums:
    """The batch's sums, of shares (image, K)."""
    scale = _scale_of(nodes, images)
    each = scale[:, triangle.ring_of]
    alone = len(scale) == 1
    ctf_power = images.mean_ctf_power(triangle.basis.n_theta)
    by_node = share.T.contiguous()  # as it is, the large product took twice as long
    member = torch.nn.functional.one_hot(images.optics_of, len(nodes.scale)).to(share.dtype)
    return NodeSums(
        numerator=(by_node @ images.vector).mul_(each) if alone else by_node @ (images.vector * each),
        denominator=(by_node @ (images.ctf_power * scale[..., None]).flatten(1)).unflatten(
            1, images.ctf_power.shape[1:]
        ),
        node_weight=share.sum(dim=0),
        image_power=member.T @ images.image_power,
        ctf_power=member.T @ ctf_power,
        group_count=member.sum(dim=0),
        log_likelihood=posterior.log_likelihood.double().sum(),
        max_probability=posterior.max_probability.double().sum(),
    )


@dataclass(frozen=True)
class Manifold:
    """The model; tensors on the engine's device."""

    basis: PolarBasis
    grid: LatentGrid
    coefficients: Tensor  # (M, d) float64, in the triangle's numbers
    weights: Tensor  # (K,) float64, sum 1: share of the images
    tau2: Tensor  # (ring,) float64, the prior's variance of a coefficient's field
    noise_power: Tensor  # (G, shell) float64, shells 0 .. N // 2
    mask_fraction: float
    rank: int = 0  # of the coefficients beside the constant's: images differ in so many ways (`subspace`); 0: in all

    @staticmethod
    def empty(basis: PolarBasis, grid: LatentGrid, noise_power: Tensor, mask_fraction: float) -> Manifold:
        """A map without structure, to be started (`starts`); noise_power (G, S) float64."""
        return Manifold(
            basis=basis,
            grid=grid,
            coefficients=torch.zeros(grid.m, Triangle(basis).d, dtype=torch.float64, device=basis.device),
            weights=torch.full((grid.k,), 1 / grid.k, dtype=torch.float64, device=basis.device),
            tau2=torch.ones(basis.r_max, dtype=torch.float64, device=basis.device),
            noise_power=noise_power,
            mask_fraction=mask_fraction,
        )

    @cached_property
    def triangle(self) -> Triangle:
        return Triangle(self.basis)

    @cached_property
    def vectors(self) -> Tensor:
        """(K, d) float32 Phi W."""
        if self._thin:
            design, rows = self._rows.nodes(self.grid)
            return design @ rows
        return self.grid.images(self.coefficients, torch.float32)

    @property
    def field(self) -> Tensor:
        """(K, ring, angle) float32 Phi W."""
        return self.triangle.field(self.vectors)

    @property
    def scale(self) -> Tensor:
        """(G, ring) float64 w / sigma^2."""
        return self.basis.weight.double() / self.noise_power[:, 1 : self.basis.r_max + 1]

    def images(self) -> Tensor:
        """(K, N, N) float32 node averages in pixels."""
        return self.triangle.images(self.vectors)

    def nodes(self, even_harmonics: int = 1) -> Nodes:
        """The nodes as the expectation takes them; `even_harmonics` of the CTF's square are accounted for.

        Raises ValueError where all hold the same image: expectation maximization would never part them.
        """
        if torch.equal(self.vectors, self.vectors[:1].expand_as(self.vectors)):
            raise ValueError("all nodes of the latent grid hold the same image and would stay together")
        return Nodes(
            vector=self.vectors,
            power=power_vectors(self._power(even_harmonics), self.basis.n_theta),
            log_weight=self.weights.log().float(),
            scale=self.scale.float(),
            place=self.grid.nodes,
            product=self._rows.nodes(self.grid) if self._thin else None,
        )

    def references(self, even_harmonics: int) -> References:
        """The nodes as references of a search over poses (`align.expect`)."""
        harmonics, power = self.triangle.harmonics(self.vectors), self._power(even_harmonics)
        return References(
            conjugate=harmonics.conj().permute(2, 1, 0).contiguous().resolve_conj(),
            power_conjugate=power.conj().permute(2, 1, 0).contiguous().resolve_conj(),
            log_prior=self.weights.log().float(),
        )

    def maximize(self, sums: NodeSums, prior: ManifoldPrior, comm: Comm = SERIAL) -> Manifold:
        """The model that all ranks' sums speak for; of a free map every rank solves some rings, and gets all."""
        solved = self._solved(sums, comm) if self.rank == 0 else self._improved(sums)
        count = sums.node_weight.double()
        count = count + prior.granted(count.sum(), self.grid.k)
        model = replace(self, coefficients=solved.coefficients, weights=count / count.sum())
        noise_power = model._noise(sums, solved.product)
        tau2 = _smooth(prior.tau2_fudge * (model._coefficient_power() + solved.spread) / self.freedom)
        return model._with(noise_power, tau2 if prior.learn_tau2 else self.tau2)

    def log_posterior(self, sums: NodeSums, prior: ManifoldPrior) -> float:
        """Penalised log likelihood of all images under this model, sums being those of its own expectation.

        What expectation leaves out is counted in: the images' power and the normalisation. A ring has 2 pi r real
        coefficients, of which the mask leaves the share f independent. The penalties are those on the coefficients,
        |W|^2 lambda / 2, and on the weights, -pseudo_count log pi.
        """
        sums = sums.double()
        noise = self.noise_power[:, 1 : self.basis.r_max + 1]
        numbers = math.pi * self.basis.rings.double()
        power = (numbers * sums.image_power / noise).sum()
        normal = (sums.group_count[:, None] * self.mask_fraction * numbers * noise.log()).sum()
        strength = self._penalty * self._coefficient_power() * (self.grid.m - 1) * self.basis.n_theta
        granted = prior.granted(sums.group_count.sum(), self.grid.k)
        weights = granted * self.weights.clamp_min(1e-30).log().sum()
        return float(sums.log_likelihood - power - normal - 0.5 * strength.sum() + weights)

    def error(self, sums: NodeSums) -> Tensor:
        """(K, ring) float64 variance that noise leaves in the nodes' fields, given the shares: diag(Phi A^-1 Phi').

        A node's field squared over it is its signal-to-noise ratio; for files and pictures, not for the iterations.
        """
        unit = self.mask_fraction * self.basis.weight.double()
        if self.rank:
            return subspace.variance(self.grid, self._seen(sums), self._rows) * unit
        found = torch.empty(self.grid.k, self.basis.r_max, dtype=torch.float64, device=self.basis.device)
        for block, factors in self._factors(sums, ERROR_BLOCK):
            for nodes, variance in zip(self.grid.nodes.split(ERROR_BLOCK), found.split(ERROR_BLOCK), strict=True):
                half = factors.half(self.grid.at(nodes).T.expand(block.stop - block.start, -1, -1))
                variance[:, block] = half.square_().sum(dim=1).T
        return found * unit

    def on(self, basis: PolarBasis) -> Manifold:
        """The same map on another basis of the same box: rings are cut, or filled with nothing and held as the last."""
        rings, n_q = min(basis.r_max, self.basis.r_max), min(basis.n_q, self.basis.n_q)
        old = self.triangle.harmonics(self.coefficients)[:, :rings, :n_q]
        harmonics = old.new_zeros(self.grid.m, basis.r_max, basis.n_q)
        harmonics[:, :rings, :n_q] = old * (basis.n_theta / self.basis.n_theta)
        tau2 = torch.cat([self.tau2[:rings], self.tau2[rings - 1 : rings].expand(basis.r_max - rings)])
        return replace(self, basis=basis, coefficients=Triangle(basis).vectors(harmonics), tau2=tau2)

    def cut(self, rank: int) -> Manifold:
        """The map with what varies most over it, in `rank` ways, which stays its rank; ValueError below 1."""
        if rank < 1:
            raise ValueError(f"a map varies in at least one way, not in {rank}")
        rank = min(rank, self.grid.m - 1)
        rows = Rows.cut(self.coefficients, rank, self._telling)
        return replace(self, coefficients=rows.coefficients, rank=rank)

    @property
    def freedom(self) -> float:
        """Which share of the Gaussians' coefficients is free along one harmonic: what the prior's variance is of."""
        return self.rank / (self.grid.m - 1) if self.rank else 1.0

    @property
    def _telling(self) -> Tensor:
        """(d,) how much a number of an image tells, by the noise."""
        return self.scale.mean(dim=0)[self.triangle.ring_of]

    @cached_property
    def _rows(self) -> Rows:
        return Rows.of(self.coefficients, self.rank)

    @property
    def _thin(self) -> bool:
        """Whether products with rows are cheaper than with nodes."""
        return 0 < self.rank < self.grid.k // 2

    def _seen(self, sums: NodeSums) -> Weighted:
        round_power = sums.denominator[..., 0].double() / math.sqrt(self.basis.n_theta)
        return Weighted(sums.numerator.double(), round_power, self._penalty)

    def _improved(self, sums: NodeSums) -> _Solution:
        """Better coefficients of the same rank; not the best, yet the penalised log likelihood does not fall."""
        rows, variance, product = subspace.improved(self.grid, self.triangle, self._seen(sums), self._rows)
        spread = self.mask_fraction * self.basis.weight.double() * variance
        return _Solution(rows.coefficients, spread, product)

    @property
    def _penalty(self) -> Tensor:
        """(ring,) lambda = w f / tau^2."""
        return self.basis.weight.double() * self.mask_fraction / self.tau2

    def _coefficient_power(self) -> Tensor:
        """(ring,) mean over the Gaussians' coefficients and the circle of W^2."""
        square = sum(block.square().sum(dim=0) for block in self.coefficients[1:].split(NODE_BLOCK))
        return self.triangle.ring_sums(square) / ((self.grid.m - 1) * self.basis.n_theta)

    def _with(self, noise_power: Tensor, tau2: Tensor) -> Manifold:
        """The same map under another noise and prior; its images are not made again."""
        other = replace(self, noise_power=noise_power, tau2=tau2)
        other.__dict__.update({name: self.__dict__[name] for name in _OF_IMAGES if name in self.__dict__})
        return other

    @cached_property
    def ring_power(self) -> Tensor:
        """(K, ring) float32 sums over the circle of the squared fields."""
        return torch.cat([self.triangle.ring_sums(block.square()) for block in self.vectors.split(NODE_BLOCK)])

    def _power(self, even_harmonics: int) -> Tensor:
        """(K, ring, e) complex64 even harmonics of the squared fields."""
        if even_harmonics == 1:
            return self.ring_power[..., None].to(torch.complex64)
        parts = [
            torch.fft.rfft(self.triangle.field(block).square_())[..., : 2 * even_harmonics : 2]
            for block in self.vectors.split(NODE_BLOCK)
        ]
        return torch.cat(parts)

    def _solved(self, sums: NodeSums, comm: Comm) -> _Solution:
        """The coefficients' equations: one factor for each ring serves all of its harmonics."""
        own = self._own_rings(comm)
        first, last = self.triangle.bounds[own.start], self.triangle.bounds[own.stop]
        right = self.grid.project(sums.numerator[:, first:last].double())  # and, ring by ring, what solves them
        probes = _probes(self.grid.m, right.device)
        count = probes.shape[1]
        traces, products = [right.new_empty(0)], [right.new_empty(0)]
        for block, factors in self._factors(sums, count + 2 * self.basis.n_q, own):
            ends = [end - first for end in self.triangle.bounds[block.start : block.stop + 1]]
            rings = list(itertools.pairwise(ends))
            most = max(b - a for a, b in rings)
            padded = right.new_zeros(len(rings), self.grid.m, count + most)
            padded[..., :count] = probes
            for each, (a, b) in zip(padded, rings, strict=True):
                each[:, count : count + b - a] = right[:, a:b]
            found = factors.solve(padded)
            for each, (a, b) in zip(found, rings, strict=True):
                right[:, a:b] = each[:, count : count + b - a]
            padded *= found
            traces.append(padded[..., :count].sum(dim=(1, 2)))
            products.append(padded[..., count:].sum(dim=(1, 2)))
        trace, product = torch.cat(traces), torch.cat(products)
        if comm.size > 1:
            trace, product = comm.join((trace, product))
            right = comm.join(right.T.float()).T.double()  # single precision is half to send, and enough
        spread = self.mask_fraction * self.basis.weight.double() * trace / (self.grid.m - 1)
        return _Solution(right, spread, product)

    def _own_rings(self, comm: Comm) -> slice:
        """The rings whose equations this rank solves: as much of the work as any other's."""
        bounds = self.triangle.bounds
        work = np.asarray(bounds) + PROBES * np.arange(len(bounds))
        edges = np.rint(np.interp(work[-1] * np.arange(comm.size + 1) / comm.size, work, np.arange(len(work))))
        return slice(int(edges[comm.rank]), int(edges[comm.rank + 1]))

    def _factors(self, sums: NodeSums, columns: int, rings: slice | None = None) -> Iterator[tuple[slice, Factors]]:
        """Cholesky factors of Phi' D_r Phi + lambda_r I', for as many rings (of `rings`, or all) at a time as fit with
        their columns."""
        rings = rings or slice(0, self.basis.r_max)
        round_power = sums.denominator[..., 0].double() / math.sqrt(self.basis.n_theta)
        size = max(1, RING_BLOCK_BYTES[self.basis.device.type] // (8 * self.grid.m * (self.grid.bandwidth + columns)))
        for start in range(rings.start, rings.stop, size):
            block = slice(start, min(start + size, rings.stop))
            systems = self.grid.gram(round_power[:, block])
            least = SMALLEST_SHIFT / self.grid.m * systems.trace()
            yield block, systems.shifted(torch.maximum(self._penalty[block], least), 1e-30).factors()

    def _noise(self, sums: NodeSums, product: Tensor) -> Tensor:
        """What the map leaves unexplained, per optics group and shell; self: new coefficients, old noise.

        product (ring,) is the sum over nodes of Y S.
        """
        weight = self.basis.weight.double()
        even = (sums.denominator.shape[2] + 1) // 2
        power = power_vectors(self._power(even), self.basis.n_theta)
        square = (sums.denominator * power).sum(dim=(0, 2))
        explained = (2 * product - square) / weight
        return noise_left(self.noise_power, sums, explained / self.basis.n_theta, self.mask_fraction)


_OF_IMAGES = ("triangle", "vectors", "ring_power", "_rows")


@dataclass(frozen=True)
class _Solution:
    """What the coefficients' equations hold."""

    coefficients: Tensor  # (M, d)
    spread: Tensor  # (ring,) how much the posterior variance of a coefficient adds to its square
    product: Tensor  # (ring,) sum over functions of W Phi' S, which is that over nodes of Y S


def _probes(m: int, device: torch.device) -> Tensor:
    """(M, probe) Z with mean Z Z' = the identity without the constant's place: sum(Z * A Z) is the trace of A there.

    Up to PROBES functions one for each; beyond that random signs, the same every time (Hutchinson 1990).
    """
    if m <= PROBES:
        return torch.eye(m, dtype=torch.float64, device=device)[:, 1:]
    sign = torch.randint(0, 2, (m, PROBES), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    sign[0] = 0
    return (sign / math.sqrt(PROBES)).to(device)


def _smooth(tau2: Tensor) -> Tensor:
    """Means over three neighbouring rings (ring,); never nothing."""
    mean = torch.nn.functional.avg_pool1d(tau2[None, None], 3, stride=1, padding=1, count_include_pad=False)
    return mean[0, 0].clamp_min(1e-30)

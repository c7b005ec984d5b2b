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
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from polarice.align.expect import References
from polarice.align.polar import PolarBasis
from polarice.cluster import SERIAL, Comm
from polarice.references.manifold import subspace
from polarice.references.manifold.aligned import PackedHarmonics, power_vectors
from polarice.references.manifold.banded import Factors
from polarice.references.manifold.latent import LatentGrid
from polarice.references.manifold.nodes import Nodes, NodeSums
from polarice.references.manifold.sharing import RingShares
from polarice.references.manifold.subspace import Gather, Held, Rows, Weighted
from polarice.references.noise import noise_left

RING_BLOCK_BYTES = {"cpu": 32 << 20, "cuda": 1 << 30}  # of systems that are factored at once
ERROR_BLOCK = 512  # nodes whose errors are computed at once
NODE_BLOCK = 64  # nodes whose fields are multiplied at once
PROBES = 32  # random signs that estimate a trace; up to as many functions it is exact
SMALLEST_SHIFT = 1e-9  # of the mean diagonal: a system is held down at least so much
RAMP_SHARE = 0.6  # of the iterations in which images are compared on few rings


@dataclass(frozen=True)
class ManifoldPrior:
    """How strongly maximization holds the map down."""

    tau2_fudge: float = 1.0  # variances of the coefficients are taken to be so many times what the data speak for
    learn_tau2: bool = True
    pseudo_count: float = 0.1  # images that every node's weight is granted
    equal_shares: float = 0.0  # and so many times an equal share of all images

    def weight_floor(self, images: Tensor, k: int) -> Tensor:
        """() images that each of k nodes' weights is granted beyond its own."""
        return self.pseudo_count + self.equal_shares * images / k


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
class Manifold:
    """The model; tensors on the engine's device."""

    basis: PolarBasis
    grid: LatentGrid
    coefficients: Tensor  # (M, d) float64 W, in the triangle's numbers; of a map of few ways (1 + rank, d): mean and V
    weights: Tensor  # (K,) float64, sum 1: share of the images
    tau2: Tensor  # (ring,) float64, the prior's variance of a coefficient's field
    noise_power: Tensor  # (G, shell) float64, shells 0 .. N // 2
    mask_fraction: float
    amplitudes: Tensor | None = None  # (M, rank) float64 A of a map of few ways (`subspace`): W = mean + A V

    @staticmethod
    def empty(basis: PolarBasis, grid: LatentGrid, noise_power: Tensor, mask_fraction: float) -> Manifold:
        """A map without structure, to be started (`starts`); noise_power (G, S) float64."""
        return Manifold(
            basis=basis,
            grid=grid,
            coefficients=torch.zeros(grid.m, PackedHarmonics(basis).d, dtype=torch.float64, device=basis.device),
            weights=torch.full((grid.k,), 1 / grid.k, dtype=torch.float64, device=basis.device),
            tau2=torch.ones(basis.r_max, dtype=torch.float64, device=basis.device),
            noise_power=noise_power,
            mask_fraction=mask_fraction,
        )

    @cached_property
    def packed(self) -> PackedHarmonics:
        return PackedHarmonics(self.basis)

    @property
    def rank(self) -> int:
        """In so many ways the images differ; 0: in all."""
        return 0 if self.amplitudes is None else self.amplitudes.shape[1]

    @property
    def low_rank(self) -> bool:
        """Whether products with rows are cheaper than with nodes."""
        return 0 < self.rank < self.grid.k // 2

    def shares(self, comm: Comm) -> RingShares:
        """Which rings are whose."""
        return RingShares(self.packed, comm)

    @property
    def dense(self) -> Tensor:
        """(M, d) float64 W."""
        return self.coefficients if self.amplitudes is None else self._rows.coefficients

    @cached_property
    def vectors(self) -> Tensor:
        """(K, d) float32 Phi W."""
        if self.low_rank:
            return self._design.float() @ self.coefficients.float()
        return self.grid.images(self.dense, torch.float32)

    @property
    def field(self) -> Tensor:
        """(K, ring, angle) float32 Phi W."""
        return self.packed.field(self.vectors)

    @property
    def scale(self) -> Tensor:
        """(G, ring) float64 w / sigma^2."""
        return self.basis.weight.double() / self.noise_power[:, 1 : self.basis.r_max + 1]

    def images(self) -> Tensor:
        """(K, N, N) float32 node averages in pixels."""
        return self.packed.images(self.vectors)

    def nodes(self, even_harmonics: int = 1) -> Nodes:
        """The nodes as the expectation takes them; `even_harmonics` of the CTF's square are accounted for.

        Raises ValueError where all hold the same image: expectation maximization would never part them.
        """
        apart = self._design if self.low_rank else self.vectors
        if torch.equal(apart, apart[:1].expand_as(apart)):
            raise ValueError("all nodes of the latent grid hold the same image and would stay together")
        return Nodes(
            vector=None if self.low_rank else self.vectors,
            power=power_vectors(self._power(even_harmonics), self.basis.n_theta),
            log_weight=self.weights.log().float(),
            scale=self.scale.float(),
            place=self.grid.nodes,
            factors=(self._design.float(), self.coefficients.float()) if self.low_rank else None,
        )

    def references(self, even_harmonics: int) -> References:
        """The nodes as references of a search over poses (`align.expect`)."""
        harmonics, power = self.packed.harmonics(self.vectors), self._power(even_harmonics)
        return References(
            conjugate=harmonics.conj().permute(2, 1, 0).contiguous().resolve_conj(),
            power_conjugate=power.conj().permute(2, 1, 0).contiguous().resolve_conj(),
            log_prior=self.weights.log().float(),
        )

    def maximize(
        self, sums: NodeSums, prior: ManifoldPrior, comm: Comm = SERIAL, gather: Gather | None = None
    ) -> Manifold:
        """The model that all ranks' sums speak for (`RingShares.together`); every rank solves some rings, and gets all.

        gather: Z' S (a, own d) for Z (K, a), where the sums are S V' alone (`nodes.expect_thin`).
        """
        shares = self.shares(comm)
        solved = self._solved(sums, shares) if self.rank == 0 else self._improved(sums, shares, gather)
        count = sums.node_weight.double()
        count = count + prior.weight_floor(count.sum(), self.grid.k)
        weights = count / count.sum()
        model = replace(self, coefficients=solved.coefficients, amplitudes=solved.amplitudes, weights=weights)
        model.__dict__.update(solved.images)
        if model.low_rank:
            model.__dict__["ring_power"] = shares.join(model._low_rank_power(shares.own))
        noise_power = model._noise(sums, solved.product, comm)
        tau2 = _smooth(prior.tau2_fudge * (model._coefficient_power() + solved.spread) / self.pose_prior)
        return model._with(noise_power, tau2 if prior.learn_tau2 else self.tau2)

    def log_posterior(self, sums: NodeSums, prior: ManifoldPrior) -> float:
        """Penalised log likelihood of all images under this model, sums being those of its own expectation.

        What expectation leaves out is counted in: the images' power and the normalisation. A ring has 2 pi r real
        coefficients, of which the mask leaves the share f independent. The penalties are those on the coefficients,
        |W|^2 lambda / 2, and on the weights, -pseudo_count log pi.
        """
        count = sums.group_count.double()
        noise = self.noise_power[:, 1 : self.basis.r_max + 1]
        numbers = math.pi * self.basis.rings.double()
        power = (numbers * sums.image_power / noise).sum()
        normal = (count[:, None] * self.mask_fraction * numbers * noise.log()).sum()
        strength = self._penalty * self._coefficient_power() * (self.grid.m - 1) * self.basis.n_theta
        weight_floor = prior.weight_floor(count.sum(), self.grid.k)
        weights = weight_floor * self.weights.clamp_min(1e-30).log().sum()
        return float(sums.log_likelihood - power - normal - 0.5 * strength.sum() + weights)

    def error(self, sums: NodeSums) -> Tensor:
        """(K, ring) float64 variance that noise leaves in the nodes' fields, given the shares: diag(Phi A^-1 Phi').

        A node's field squared over it is its signal-to-noise ratio; for files and pictures, not for the iterations.
        """
        unit = self.mask_fraction * self.basis.weight.double()
        if self.rank:
            return subspace.variance(self.grid, self._held(sums), self._rows) * unit
        found = torch.empty(self.grid.k, self.basis.r_max, dtype=torch.float64, device=self.basis.device)
        for block, factors in self._factors(sums, ERROR_BLOCK):
            for nodes, variance in zip(self.grid.nodes.split(ERROR_BLOCK), found.split(ERROR_BLOCK), strict=True):
                half = factors.half(self.grid.at(nodes).T.expand(block.stop - block.start, -1, -1))
                variance[:, block] = half.square_().sum(dim=1).T
        return found * unit

    def on(self, basis: PolarBasis) -> Manifold:
        """The same map on another basis of the same box: rings are cut, or filled with nothing and held as the last."""
        rings, n_q = min(basis.r_max, self.basis.r_max), min(basis.n_q, self.basis.n_q)
        old = self.packed.harmonics(self.coefficients)[:, :rings, :n_q]
        harmonics = old.new_zeros(len(self.coefficients), basis.r_max, basis.n_q)
        harmonics[:, :rings, :n_q] = old * (basis.n_theta / self.basis.n_theta)
        tau2 = torch.cat([self.tau2[:rings], self.tau2[rings - 1 : rings].expand(basis.r_max - rings)])
        return replace(self, basis=basis, coefficients=PackedHarmonics(basis).vectors(harmonics), tau2=tau2)

    def cut(self, rank: int) -> Manifold:
        """The map with what varies most over it, in `rank` ways, which stays its rank; ValueError below 1."""
        if rank < 1:
            raise ValueError(f"a map varies in at least one way, not in {rank}")
        rows = Rows.cut(self.dense, min(rank, self.grid.m - 1), self._telling)
        return replace(self, coefficients=rows.stacked, amplitudes=rows.amplitudes)

    @property
    def pose_prior(self) -> float:
        """Which share of the Gaussians' coefficients is free along one harmonic: what the prior's variance is of."""
        return self.rank / (self.grid.m - 1) if self.rank else 1.0

    @property
    def _telling(self) -> Tensor:
        """(d,) how much a number of an image tells, by the noise."""
        return self.scale.mean(dim=0)[self.packed.ring_of]

    @property
    def _rows(self) -> Rows:
        assert self.amplitudes is not None
        return Rows(self.coefficients, self.amplitudes)

    @cached_property
    def _design(self) -> Tensor:
        """(K, 1 + rank) float64 Z of a map of few ways."""
        return self._rows.design(self.grid)

    def _held(self, sums: NodeSums) -> Held:
        return Held(sums.denominator[..., 0].double() / math.sqrt(self.basis.n_theta), self._penalty)

    def _improved(self, sums: NodeSums, shares: RingShares, gather: Gather | None) -> _Solution:
        """Better coefficients of the same rank; not the best, yet the penalised log likelihood does not fall."""
        old, numerator = self._rows, sums.numerator.double()
        if gather is None:
            along = shares.comm.sum(numerator @ old.rows[:, shares.place].T)
            seen = Weighted(along, lambda design: design.T @ numerator)
        else:
            seen = Weighted(numerator[:, 1:], lambda design: gather(design.float()).double())
        rows, variance, product = subspace.improved(self.grid, shares, self._held(sums), seen, old)
        spread = self.mask_fraction * self.basis.weight.double() * variance
        return _Solution(rows.stacked, spread, product, rows.amplitudes)

    @property
    def _penalty(self) -> Tensor:
        """(ring,) lambda = w f / tau^2."""
        return self.basis.weight.double() * self.mask_fraction / self.tau2

    def _coefficient_power(self) -> Tensor:
        """(ring,) mean over the Gaussians' coefficients and the circle of W^2."""
        if self.amplitudes is None:
            square = sum(block.square().sum(dim=0) for block in self.coefficients[1:].split(NODE_BLOCK))
            found = self.packed.ring_sums(square)
        else:
            others = self.amplitudes[1:]
            found = torch.einsum("rab,ab->r", self._products[:, 1:, 1:], others.T @ others)
        return found / ((self.grid.m - 1) * self.basis.n_theta)

    def _with(self, noise_power: Tensor, tau2: Tensor) -> Manifold:
        """The same map under another noise and prior; its images are not made again."""
        other = replace(self, noise_power=noise_power, tau2=tau2)
        other.__dict__.update({name: self.__dict__[name] for name in _OF_IMAGES if name in self.__dict__})
        return other

    @cached_property
    def ring_power(self) -> Tensor:
        """(K, ring) float32 sums over the circle of the squared fields."""
        every = slice(0, self.basis.r_max)
        return self._low_rank_power(every) if self.low_rank else self.packed.ring_squares(self.vectors, every)

    def _low_rank_power(self, rings: slice) -> Tensor:
        """(K, those of `rings`) float32 the same of a map of few ways."""
        found = self._design.new_empty(rings.stop - rings.start, self.grid.k)
        for ring, products in zip(found, self._products[rings], strict=True):
            torch.sum((self._design @ products) * self._design, dim=1, out=ring)
        return found.T.float()

    @cached_property
    def _products(self) -> Tensor:
        """(ring, 1 + rank, 1 + rank) of mean and rows of a map of few ways with each other."""
        return self.packed.ring_products(self.coefficients)

    def _power(self, even_harmonics: int, comm: Comm = SERIAL) -> Tensor:
        """(K, ring, e) complex64 even harmonics of the squared fields, found once; ranks share them out by nodes."""
        if even_harmonics == 1:
            return self.ring_power[..., None].to(torch.complex64)
        if even_harmonics not in self._powers:
            own = range(self.grid.k)[self.shares(comm).some(self.grid.k)]
            found = torch.empty(
                len(own), self.basis.r_max, even_harmonics, dtype=torch.complex64, device=self.basis.device
            )
            for start in range(0, len(own), NODE_BLOCK):
                fields = self.packed.field(self._vectors_of(own[start : start + NODE_BLOCK]))
                found[start : start + NODE_BLOCK] = torch.fft.rfft(fields.square_())[..., : 2 * even_harmonics : 2]
            self._powers[even_harmonics] = comm.all_gather(found)
        return self._powers[even_harmonics]

    @cached_property
    def _powers(self) -> dict[int, Tensor]:
        """What `_power` has found, by the number of harmonics."""
        return {}

    def _vectors_of(self, nodes: range) -> Tensor:
        """(node, d) float32 of some nodes, where the others are not wanted."""
        some = slice(nodes.start, nodes.stop)
        return self._design[some].float() @ self.coefficients.float() if self.low_rank else self.vectors[some]

    def _solved(self, sums: NodeSums, shares: RingShares) -> _Solution:
        """The coefficients' equations: one factor for each ring serves all of its harmonics."""
        own, first = shares.own, shares.place.start
        right = self.grid.project(sums.numerator.double())  # and, ring by ring, what solves them
        probes = _probes(self.grid.m, right.device)
        count = probes.shape[1]
        traces, products = [right.new_empty(0)], [right.new_empty(0)]
        for block, factors in self._factors(sums, count + 2 * self.basis.n_q, own):
            ends = [end - first for end in self.packed.bounds[block.start : block.stop + 1]]
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
        trace, product = shares.comm.all_gather((torch.cat(traces), torch.cat(products)))
        spread = self.mask_fraction * self.basis.weight.double() * trace / (self.grid.m - 1)
        vectors = self.grid.images(right, torch.float32)
        power = self.packed.ring_squares(vectors, own)
        images = {"vectors": shares.join(vectors), "ring_power": shares.join(power)}
        return _Solution(shares.join(right), spread, product, images=images)

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

    def _noise(self, sums: NodeSums, product: Tensor, comm: Comm) -> Tensor:
        """What the map leaves unexplained, per optics group and shell; self: new coefficients, old noise.

        product (ring,) is the sum over nodes of Y S.
        """
        weight = self.basis.weight.double()
        even = (sums.denominator.shape[2] + 1) // 2
        power = power_vectors(self._power(even, comm), self.basis.n_theta)
        square = (sums.denominator * power).sum(dim=(0, 2))
        explained = (2 * product - square) / weight
        return noise_left(self.noise_power, sums, explained / self.basis.n_theta, self.mask_fraction)


_OF_IMAGES = ("triangle", "vectors", "ring_power", "_powers", "_design", "_products")


@dataclass(frozen=True)
class _Solution:
    """What the coefficients' equations hold."""

    coefficients: Tensor  # as the map's
    spread: Tensor  # (ring,) how much the posterior variance of a coefficient adds to its square
    product: Tensor  # (ring,) sum over functions of W Phi' S, which is that over nodes of Y S
    amplitudes: Tensor | None = None
    images: dict[str, Tensor] = field(default_factory=dict)  # of the new map, where they are known already


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

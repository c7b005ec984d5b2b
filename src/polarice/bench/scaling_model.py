"""How long a classification takes on so many nodes: measured compute, messages, files, and what stays the same.

    compute(R) = p / R + sum over iterations of  images_i k_i/K c / R + (m + d / R) k_i/K + reduce(V k_i/K, R)
    total(R)   = compute(R) + look(R) + start(R)
    start(R)   = constant + f / R + g / drawers

c is the time per image of one node, m of what every node does of a maximization and d of what they divide among them,
with all K references, p that of preparing all images; k_i of them there are in
iteration i, while classes grow. V is the volume of the sums. A reduction sends its volume twice but for an R-th of it,
in ROUNDS log2 R messages, one after another; each rank packs it and takes it apart. `look` is the first look at the
images, which the disks bound, or the processors; later reading goes on beside the engine. f makes the first classes, g
draws the report's charts, of which there are CHARTS; the rest of start and report is the same on any number of nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

CHARTS = 6
DRAWERS = 3  # at the most, on one node
ROUNDS = 6  # a barrier, a reduce-scatter, an all-gather, the latter two announced: measured between two nodes


@dataclass(frozen=True)
class Network:
    """Between nodes."""

    name: str
    bytes_per_s: float
    latency_s: float


ETHERNET_10 = Network("10 GbE", 1.1e9, 30e-6)
FABRIC_100 = Network("100 Gb/s", 11e9, 2e-6)


@dataclass(frozen=True)
class Start:
    """What a job takes beside computing, as one core does it."""

    constant_s: float  # loading, folder, the page: the same on any number of nodes
    first_s: float = 0.0  # first classes, shared by all cores
    draw_s: float = 0.0  # charts
    look_byte_s: float = 0.0  # the first look, by the bytes of the stack
    box_px: int = 1  # of the images that this is of

    def of_box(self, box_px: int) -> Start:
        """The same for another box: as many images are averaged first, and cost as much as they have pixels."""
        return replace(self, box_px=box_px, first_s=self.first_s * (box_px / self.box_px) ** 2)


@dataclass(frozen=True)
class Work:
    """A job, as one node does it."""

    name: str
    images: Sequence[int]  # compared in each iteration
    share: Sequence[float]  # of the K references there, in each iteration
    image_s: float  # per image on one node, all references
    maximize_s: float
    volume_bytes: float  # of the sums, all references
    stack_bytes: float
    start: Start
    cores: int = 1  # of a node
    once_s: float = 0.0  # for all images, on one node
    divided_s: float = 0.0  # of a maximization, shared by the nodes
    messages: int = 1  # in which an iteration's sums and what is made of them go about


@dataclass(frozen=True)
class Disks:
    """What one node reads, and all together."""

    node_bytes_per_s: float
    shared_bytes_per_s: float = math.inf  # of a file system that all nodes read from


def reduce_s(volume_bytes: float, ranks: int, network: Network, pack_s_per_byte: float, messages: int = 1) -> float:
    """A reduction whose sum every rank has, in so many messages."""
    if ranks == 1:
        return 0.0
    sent = 2 * volume_bytes * (ranks - 1) / ranks
    return (
        messages * ROUNDS * math.ceil(math.log2(ranks)) * network.latency_s
        + sent / network.bytes_per_s
        + volume_bytes * pack_s_per_byte
    )


def compute_s(work: Work, nodes: int, network: Network, pack_s_per_byte: float) -> float:
    """Engine, maximization and messages of all iterations."""
    total = work.once_s / nodes
    for images, share in zip(work.images, work.share, strict=True):
        total += math.ceil(images / nodes) * share * work.image_s + share * (work.maximize_s + work.divided_s / nodes)
        total += reduce_s(share * work.volume_bytes, nodes, network, pack_s_per_byte, work.messages)
    return total


def look_s(work: Work, nodes: int, disks: Disks) -> float:
    """The first look at all images."""
    read = work.stack_bytes / min(nodes * disks.node_bytes_per_s, disks.shared_bytes_per_s)
    return max(read, work.stack_bytes * work.start.look_byte_s / (nodes * work.cores))


def start_s(work: Work, nodes: int) -> float:
    """Start and report: one node's charts are drawn by processes of its own, those of several by their ranks."""
    chart_processes = min(work.cores, DRAWERS) if nodes == 1 else min(nodes, CHARTS)
    start = work.start
    return start.constant_s + start.first_s / (nodes * work.cores) + start.draw_s / chart_processes


def total_s(work: Work, nodes: int, network: Network, pack_s_per_byte: float, disks: Disks) -> float:
    """From start to end."""
    return compute_s(work, nodes, network, pack_s_per_byte) + look_s(work, nodes, disks) + start_s(work, nodes)


def efficiency(seconds: Sequence[float], nodes: Sequence[int]) -> list[float]:
    """How much of the nodes' time does what one node would have to do; the first is one node."""
    return [seconds[0] / (n * s) for n, s in zip(nodes, seconds, strict=True)]


def fitted_reduction(volumes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(seconds at no volume, seconds per byte) of measured reductions, by least squares of relative errors."""
    x, y = np.asarray(volumes, float), np.asarray(seconds, float)
    design = np.stack([1 / y, x / y], axis=1)
    constant, slope = np.linalg.lstsq(design, np.ones(len(y)), rcond=None)[0]
    return max(0.0, float(constant)), max(0.0, float(slope))


def sums_bytes(rings: int, harmonics: int, references: int) -> float:
    """Volume of the sums: numerator, complex of single precision; the denominator's one even harmonic."""
    return 8.0 * rings * references * (harmonics + 1)

"""What `polarice bench scaling` predicts of the mission's data sets on more nodes than there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from polarice.bench.results import markdown, number
from polarice.bench.scaling_model import (
    Disks,
    Network,
    Start,
    Work,
    compute_s,
    efficiency,
    look_s,
    start_s,
    sums_bytes,
    total_s,
)

NODES = (*range(1, 13), 20, 50, 100, 200, 500, 1000)
ASKED_NODES, ASKED_COMPUTE, ASKED_TOTAL = 12, 0.95, 0.9
NODE_SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # cores
HARMONICS_PER_RING = 2.5  # 2 pi P / N of a mask of 0.8 of the box: the last ring's harmonics over its number
TIMED, TIMED_PER_CLASS = 2000, 10  # particles whose averages the engine is timed with: few reach but few rings
MAP_WAYS = {"sml": 40, "free sml": 0}  # in which maps vary, 0: in all; of 20,000 images 12 to 170 are confirmed
MOST_CORES_OF_ONE = 8  # that a maximization makes use of
SETS = ((16_306, 250), (57_001, 160), (35_407, 160))  # images, box (px)


@dataclass(frozen=True)
class DataSet:
    """One of those that are predicted, and what is done with it."""

    job: str
    particles: int
    box_px: int
    k: int
    iterations: int

    @property
    def name(self) -> str:
        return f"{self.particles:,} of {self.box_px} px, {self.job} K = {self.k}"


MISSION = tuple(
    DataSet(job, *each, k, iterations)
    for each in SETS
    for job, k, iterations in (("align2d", 50, 25), *((job, 1000, 30) for job in MAP_WAYS), ("class2d", 300, 30))
)


@dataclass(frozen=True)
class Rates:
    """What was measured here and holds for all nodes."""

    pack_s_per_byte: float  # of sums
    disks: Disks
    start: Start


def engines(params: Any) -> list[dict[str, Any]]:
    """For each of MISSION; those of one job, box and K are measured once."""
    made: dict[tuple[str, int, int], dict[str, Any]] = {}
    for each in MISSION:
        key = each.job, each.box_px, each.k
        if key not in made:
            print(f"timing {each.job}, {each.box_px} px, K = {each.k}", flush=True)
            made[key] = _map(each) if each.job in MAP_WAYS else _engine(params, each)
    return [made[each.job, each.box_px, each.k] for each in MISSION]


def _engine(params: Any, data: DataSet) -> dict[str, Any]:
    """The engine's time per image on one thread for a data set's box and classes, and the rings of its references."""
    from polarice.bench.engine import Params as EngineParams
    from polarice.bench.engine import _finished_run
    from polarice.bench.timing import time_passes

    many = max(TIMED, TIMED_PER_CLASS * data.k)
    few = EngineParams(o=params.o / "engine", particles=many, iter=5, snr=params.snr, device="cpu")
    times = time_passes(replace(_finished_run(few, data.box_px, data.k, params.threads), threads=1), 21, 2)
    stages = times["kept"]["stages_ms"]
    return {
        "image_ms": times["kept"]["best_ms"] - stages.get("maximization", 0.0),
        "prepare_ms": times["fresh"]["best_ms"] - times["kept"]["best_ms"],
        "maximize_s": stages.get("maximization", 0.0) * few.particles / 1e3,
        "divided_s": 0.0,
        "rings": times["rings"],
        "bytes": sums_bytes(times["rings"], round(HARMONICS_PER_RING * times["rings"]), data.k),
    }  # fmt: skip


def _map(data: DataSet) -> dict[str, Any]:
    """The same of a map of K nodes on a line, on all rings."""
    from polarice.bench.timing import time_map

    return time_map(data.box_px, data.k, MAP_WAYS[data.job])


def work_of(data: DataSet, engine: dict[str, Any], cores: int, start: Start) -> Work:
    """The job on nodes of so many cores."""
    from polarice.bench.rank_times import steps

    images, share = [data.particles] * data.iterations, [1.0] * data.iterations
    if data.job not in MAP_WAYS:
        images, share = steps(data.k, data.iterations, data.particles, data.job == "class2d")
    return Work(
        name=data.name, images=images, share=share, image_s=engine["image_ms"] / 1e3 / cores,
        once_s=data.particles * engine["prepare_ms"] / 1e3 / cores,
        divided_s=engine["divided_s"] / min(cores, MOST_CORES_OF_ONE),
        maximize_s=engine["maximize_s"] / min(cores, MOST_CORES_OF_ONE), volume_bytes=engine["bytes"],
        messages=engine.get("messages", 1),
        stack_bytes=4.0 * data.particles * data.box_px**2, start=start.of_box(data.box_px), cores=cores,
    )  # fmt: skip


def predicted(
    data: DataSet, engine: dict[str, Any], network: Network, cores: int, rates: Rates, nodes: Sequence[int] = NODES
) -> dict[str, Any]:
    """Times and efficiencies on so many nodes of so many cores."""
    work = work_of(data, engine, cores, rates.start)
    compute = [compute_s(work, each, network, rates.pack_s_per_byte) for each in nodes]
    total = [total_s(work, each, network, rates.pack_s_per_byte, rates.disks) for each in nodes]
    return {
        "data": data.name, "particles": data.particles, "cores": cores, "network": network.name,
        "volume_bytes": work.volume_bytes,
        "nodes": nodes, "compute_s": compute, "total_s": total,
        "start_s": [start_s(work, each) for each in nodes],
        "look_s": [look_s(work, each, rates.disks) for each in nodes],
        "compute_efficiency": efficiency(compute, nodes), "total_efficiency": efficiency(total, nodes),
    }  # fmt: skip


def largest_node(data: DataSet, engine: dict[str, Any], network: Network, rates: Rates) -> int:
    """Cores of the largest nodes of which ASKED_NODES are as efficient as asked; 0 where one core is too many.

    What of the start is the same on any node asks for enough to compute: with N nodes, an efficiency e and s seconds
    of it, one node must have (e N - 1) s / (1 - e) to compute, which is 98 s for 12 nodes and 90 %.
    """
    found = 0
    for cores in NODE_SIZES:
        last = predicted(data, engine, network, cores, rates, (1, ASKED_NODES))
        if last["compute_efficiency"][1] < ASKED_COMPUTE or last["total_efficiency"][1] < ASKED_TOTAL:
            break
        found = cores
    return found


def told(found: Sequence[dict[str, Any]], largest: Sequence[dict[str, Any]], start: Start) -> list[str]:
    """A table, and how large nodes may be."""
    head = (
        "predicted", "cores of a node", "network", "MB of sums", "12 nodes: compute s", "efficiency", "in all s",
        "efficiency", "100 nodes: compute", "1000 nodes: compute",
    )  # fmt: skip
    sizes = [
        (each["data"], each["network"], f"cores up to {each['cores']}" if each["cores"] else "not even one core")
        for each in largest
    ]
    asked = f"{100 * ASKED_COMPUTE:.0f} % in compute and {100 * ASKED_TOTAL:.0f} % in all on {ASKED_NODES} nodes"
    return [
        markdown(head, [_line(each) for each in found]).rstrip("\n"),
        f"{start.constant_s:.1f} s of start and report are the same on any number of nodes; on one core, first classes "
        f"take {start.first_s:.1f} s, charts {start.draw_s:.1f} s, the first look {1e9 * start.look_byte_s:.2f} s a "
        f"GB. Nodes that reach {asked}:",
        markdown(("predicted", "network", "of a node"), sizes).rstrip("\n"),
    ]


def _line(each: dict[str, Any]) -> list[str]:
    at = {nodes: place for place, nodes in enumerate(each["nodes"])}

    def percent(name: str, nodes: int) -> str:
        return f"{100 * each[f'{name}_efficiency'][at[nodes]]:.0f} %"

    return [
        each["data"], str(each["cores"]), each["network"], number(each["volume_bytes"] / 1e6, ".1f"),
        number(each["compute_s"][at[12]], ".1f"), percent("compute", 12), number(each["total_s"][at[12]], ".1f"),
        percent("total", 12), percent("compute", 100), percent("compute", 1000),
    ]  # fmt: skip

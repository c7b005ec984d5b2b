"""The job on two nodes that are played here, over networks of limited rate, beside what the model says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polarice.bench import link
from polarice.bench.results import markdown
from polarice.bench.scaling_model import Disks, Network, Work, compute_s, reduce_s, total_s
from polarice.bench.scaling_runs import VOLUMES, one_run, time_sums

NODES = 2
MOST_S = 1.5  # of a volume's way over the network, for its sum to be timed


def over_links(params: Any, table: Path, work: Work, pack_s_per_byte: float, disk: float) -> list[dict[str, Any]]:
    """Sums alone, and the whole job, at each of params.links (Mbit/s); [] where nodes cannot be played."""
    if params.links and (why := link.missing()):
        print(f"no networks are measured: {why}", flush=True)
        return []
    found = []
    for mbit in params.links:
        network = Network(f"{mbit} Mbit/s", mbit * 1e6 / 8, params.latency / 1e3)
        volumes = [volume for volume in VOLUMES if volume <= MOST_S * network.bytes_per_s]
        with link.two_nodes(network.bytes_per_s, network.latency_s, params.o) as launch:
            sums = time_sums(launch, volumes)
            run = one_run(params, table, (launch, "cpu"), f"link{mbit}")
        compute = compute_s(work, NODES, network, pack_s_per_byte)
        total = total_s(work, NODES, network, pack_s_per_byte, Disks(disk, disk))
        predicted = [reduce_s(volume, NODES, network, pack_s_per_byte) for volume in volumes]
        print(f"{mbit} Mbit/s: compute {run['compute_s']:.2f} s, the model says {compute:.2f}", flush=True)
        found.append({
            "network": network.name, "bytes_per_s": network.bytes_per_s, "latency_s": network.latency_s,
            "sums_bytes": volumes, "sums_s": sums, "predicted_sums_s": predicted,
            "sums_error": _errors(predicted, sums),
            **{name: run[name] for name in ("compute_s", "total_s", "stages_s", "each_cpu_s")},
            "predicted_compute_s": compute, "predicted_total_s": total,
            "compute_error": compute / run["compute_s"] - 1, "total_error": total / run["total_s"] - 1,
        })  # fmt: skip
    return found


def _errors(predicted: Sequence[float], measured: Sequence[float]) -> list[float]:
    return [one / other - 1 for one, other in zip(predicted, measured, strict=True)]


def told(found: Sequence[dict[str, Any]]) -> str:
    """A table."""
    head = (
        "two nodes over", "latency ms", "ms of a sum of 1 MB, 4 MB, 16 MB (model)", "messages s", "compute s (model)",
        "in all s (model)",
    )  # fmt: skip
    rows = []
    for each in found:
        timed = list(zip(each["sums_s"], each["predicted_sums_s"], strict=True))[2:]
        rows.append([
            each["network"], f"{1e3 * each['latency_s']:g}",
            ", ".join(f"{1e3 * measured:.0f} ({1e3 * predicted:.0f})" for measured, predicted in timed),
            f"{each['stages_s'].get('communication', 0.0):.2f}",
            f"{each['compute_s']:.2f} ({each['predicted_compute_s']:.2f}, {100 * each['compute_error']:+.0f} %)",
            f"{each['total_s']:.2f} ({each['predicted_total_s']:.2f}, {100 * each['total_error']:+.0f} %)",
        ])  # fmt: skip
    return markdown(head, rows).rstrip("\n")

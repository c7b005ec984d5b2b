"""What a job took: time, bytes read, energy, money; over all its ranks."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarice.cluster import Comm
from polarice.io.atomic import replacing
from polarice.jobs.energy import Meter, cpu_seconds

if TYPE_CHECKING:
    import torch

USAGE_NAME = "usage.json"


@dataclass(frozen=True)
class Usage:
    """One run, from its start or from where it went on; sums over the ranks unless said otherwise."""

    ranks: int
    nodes: int
    images: int  # compared with the classes, in all iterations together
    wall_s: float
    cpu_s: tuple[float, ...]  # processor time of each rank
    waited_s: float  # for images, mean over the ranks
    bytes_read: int
    read_s: float  # that the readers took, beside the engine
    joules: float
    measured: tuple[str, ...]
    estimated: tuple[str, ...]
    price: float | None  # of a node for an hour

    @property
    def images_per_joule(self) -> float:
        return self.images / max(self.joules, 1e-9)

    @property
    def cost_per_million(self) -> float | None:
        """Images compared."""
        return None if self.price is None else self.price * self.nodes * self.wall_s / 3600 * 1e6 / max(1, self.images)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        more = {"images_per_joule": self.images_per_joule, "cost_per_million_images": self.cost_per_million}
        return asdict(self) | more

    def lines(self) -> list[tuple[str, str]]:
        """(what, figure) for the report."""
        rate = self.bytes_read / 1e6 / self.read_s if self.read_s else 0.0
        sources = [*self.measured, *(f"estimate: {each}" for each in self.estimated)]
        found = [
            ("ranks", f"{self.ranks} on {self.nodes} node{'s' if self.nodes > 1 else ''}"),
            ("wall clock", f"{self.wall_s:.1f} s"),
            ("processor time", f"{sum(self.cpu_s):.1f} s, {max(self.cpu_s):.1f} s of the busiest rank"),
            ("images compared", f"{self.images:,}"),
            ("read from stacks", f"{self.bytes_read / 1e9:.3f} GB, {rate:.0f} MB/s for each reader"),
            ("waited for images", f"{self.waited_s:.2f} s"),
            ("energy", f"{'about ' if self.estimated else ''}{self.joules:.0f} J ({'; '.join(sources)})"),
            ("images per joule", f"{'about ' if self.estimated else ''}{self.images_per_joule:.3g}"),
        ]
        if self.cost_per_million is not None:
            found.append(
                ("cost of a million images compared", f"{self.cost_per_million:.3g}, at {self.price:g} an hour")
            )
        return found


def write_usage(folder: Path, usage: Usage) -> None:
    """usage.json."""
    with replacing(folder / USAGE_NAME, "w") as stream:
        json.dump(usage.as_dict(), stream, indent=2)


class Watch:
    """Begun with a job, read at its end."""

    def __init__(self, comm: Comm, device: torch.device) -> None:
        self._comm, self._since, self._cpu_s = comm, time.perf_counter(), cpu_seconds()
        self._first_of_node = comm.rank == comm.node_ranks[0]
        self._meter = Meter(self._first_of_node, device.index if device.type == "cuda" else None)

    def usage(self, traffic: Any, images: int, waited_s: float, price: float | None) -> Usage:
        """Of all ranks, each of which calls this; traffic (bytes, seconds) and waited_s are this one's."""
        energy = self._meter.energy()
        own = (float(self._first_of_node), traffic.bytes, traffic.seconds, waited_s, energy.joules)
        nodes, bytes_read, read_s, waited_s, joules = self._comm.sum(own)
        told = self._comm.collect((energy.measured, energy.estimated, cpu_seconds() - self._cpu_s))
        return Usage(
            ranks=self._comm.size,
            nodes=int(nodes),
            images=images,
            wall_s=time.perf_counter() - self._since,
            cpu_s=tuple(seconds for _, _, seconds in told),
            waited_s=waited_s / self._comm.size,
            bytes_read=bytes_read,
            read_s=read_s,
            joules=joules,
            measured=_once(each for measured, _, _ in told for each in measured),
            estimated=_once(each for _, estimated, _ in told for each in estimated),
            price=price,
        )


def _once(texts: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))

"""What a job took: time, bytes read, energy, money; over all its ranks."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from polarice.cluster import Comm
from polarice.io.atomic import replacing
from polarice.project.energy import Meter, cpu_seconds

USAGE_NAME = "usage.json"
REPORT = "report"  # the step after all others
STEPS = ("loading", "looking at images", "first classes", "iterations")


@dataclass(frozen=True)
class Spent:
    """Time and energy of a run, from its start or from where it went on; sums over the ranks unless said otherwise."""

    ranks: int
    nodes: int
    wall_s: float
    cpu_s: tuple[float, ...]  # processor time of each rank and of the processes that it started
    joules: float
    measured: tuple[str, ...]
    estimated: tuple[str, ...]
    price: float | None  # of a node for an hour

    @property
    def about(self) -> str:
        """What stands before an estimate."""
        return "about " if self.estimated else ""

    def cost(self, count: int) -> float | None:
        """Of each of `count` things that were done; None where no price was said."""
        return None if self.price is None else self.price * self.nodes * self.wall_s / 3600 / max(1, count)

    def lines(self) -> list[tuple[str, str]]:
        """(what, figure) for the report."""
        sources = [*self.measured, *(f"estimate: {each}" for each in self.estimated)]
        return [
            ("ranks", f"{self.ranks} on {self.nodes} node{'s' if self.nodes > 1 else ''}"),
            ("wall clock", f"{self.wall_s:.1f} s"),
            ("processor time", f"{sum(self.cpu_s):.1f} s, {max(self.cpu_s):.1f} s of the busiest rank"),
            ("energy", f"{self.about}{self.joules:.0f} J ({'; '.join(sources)})"),
        ]


@dataclass(frozen=True)
class Usage(Spent):
    """Of a job that compares images."""

    images: int  # compared with the classes, in all iterations together
    waited_s: float  # for images, mean over the ranks
    bytes_read: int
    read_s: float  # that the readers took, beside the engine
    steps_s: dict[str, float]  # wall clock of rank 0 from the start of its process to the report, by STEPS

    @property
    def images_per_joule(self) -> float:
        return self.images / max(self.joules, 1e-9)

    @property
    def cost_per_million(self) -> float | None:
        """Images compared."""
        return None if (each := self.cost(self.images)) is None else 1e6 * each

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        more = {"images_per_joule": self.images_per_joule, "cost_per_million_images": self.cost_per_million}
        return asdict(self) | more

    def lines(self) -> list[tuple[str, str]]:
        """(what, figure) for the report."""
        rate = self.bytes_read / 1e6 / self.read_s if self.read_s else 0.0
        found = [
            *super().lines(),
            ("images compared", f"{self.images:,}"),
            ("read from stacks", f"{self.bytes_read / 1e9:.3f} GB, {rate:.0f} MB/s for each reader"),
            ("waited for images", f"{self.waited_s:.2f} s"),
            ("wall clock by step", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.steps_s.items())),
            ("images per joule", f"{self.about}{self.images_per_joule:.3g}"),
        ]
        if self.cost_per_million is not None:
            found.append(
                ("cost of a million images compared", f"{self.cost_per_million:.3g}, at {self.price:g} an hour")
            )
        return found


@dataclass(frozen=True)
class Items(Spent):
    """Of a job that treats one micrograph, or movie, after another."""

    count: int  # made in this run, not before
    what: str  # what they are called

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"per_joule": self.count / max(self.joules, 1e-9), "cost_of_each": self.cost(self.count)}

    def lines(self) -> list[tuple[str, str]]:
        """(what, figure) for the report."""
        found = [*super().lines(), (f"{self.what} made in this run", f"{self.count:,}")]
        if self.count:
            found.append((f"{self.what} per joule", f"{self.about}{self.count / max(self.joules, 1e-9):.3g}"))
            if (cost := self.cost(self.count)) is not None:
                found.append((f"cost of a thousand {self.what}", f"{1e3 * cost:.3g}, at {self.price:g} an hour"))
        return found


def write_usage(folder: Path, usage: Usage | Items) -> None:
    """usage.json."""
    with replacing(folder / USAGE_NAME, "w") as stream:
        json.dump(usage.as_dict(), stream, indent=2)


def items_of_last_run(folder: Path) -> Items | None:
    """What usage.json of a job over micrographs says: of the last run that made something; None where nothing does."""
    try:
        told = json.loads((folder / USAGE_NAME).read_text(encoding="utf-8"))
        found = Items(**{each.name: told[each.name] for each in fields(Items)})
        found.lines()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


class Watch:
    """Begun with a job, read at its end. What came before the first of a process is its loading, too."""

    _first = True

    def __init__(self, comm: Comm, card: int | None) -> None:
        """card: number of the CUDA card that this rank works on; None for none."""
        self._comm, self._since, self._cpu_s = comm, time.perf_counter(), cpu_seconds()
        if Watch._first:
            Watch._first = False
            self._since, self._cpu_s = self._since - seconds_of_process(), 0.0
        self._steps_s, self._last_step = dict[str, float](), self._since
        self._first_of_node = comm.rank == comm.node_ranks[0]
        self._meter = Meter(self._first_of_node, card)

    def mark(self, step: str) -> None:
        """A step, of STEPS, has ended now."""
        now = time.perf_counter()
        self._steps_s[step], self._last_step = now - self._last_step, now

    def usage(self, traffic: Any, images: int, waited_s: float, price: float | None) -> Usage:
        """Of all ranks, each of which calls this; traffic (bytes, seconds) and waited_s are this one's."""
        self.mark(STEPS[-1])
        spent = self.spent(price)
        bytes_read, read_s, waited_s = self._comm.sum((traffic.bytes, traffic.seconds, waited_s))
        waited_s /= self._comm.size
        return Usage(
            **vars(spent), images=images, waited_s=waited_s, bytes_read=bytes_read, read_s=read_s, steps_s=self._steps_s
        )

    def ended(self, usage: Usage) -> Usage:
        """The same, when the report has been written: its time counted, too."""
        now = time.perf_counter()
        steps_s = usage.steps_s | {REPORT: now - self._last_step}
        return replace(usage, wall_s=now - self._since, steps_s=steps_s)

    def spent(self, price: float | None) -> Spent:
        """By all ranks, each of which calls this."""
        energy = self._meter.energy()
        nodes, joules = self._comm.sum((float(self._first_of_node), energy.joules))
        told = self._comm.collect((energy.measured, energy.estimated, cpu_seconds() - self._cpu_s))
        return Spent(
            ranks=self._comm.size,
            nodes=int(nodes),
            wall_s=time.perf_counter() - self._since,
            cpu_s=tuple(seconds for _, _, seconds in told),
            joules=joules,
            measured=_once(each for measured, _, _ in told for each in measured),
            estimated=_once(each for _, estimated, _ in told for each in estimated),
            price=price,
        )


def seconds_of_process() -> float:
    """Since this process began, to a hundredth, where Linux tells; elsewhere 0."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        fields_of = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields_of[19]) / os.sysconf("SC_CLK_TCK"))
    return 0.0


def _once(texts: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))

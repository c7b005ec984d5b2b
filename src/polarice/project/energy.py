"""Energy that a job takes: from the counters of processors (RAPL) and cards (NVML), or an estimate that says so.

Counters are the node's: what other programs take at the same time counts as well.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
WATTS_PER_CORE = 6.0  # rated power of a server's processors, memory and fans over its logical cores
LOOK_S = 30.0  # counters of processors begin anew every few minutes


@dataclass(frozen=True)
class Energy:
    """Joules, and where the figure comes from; sums over ranks."""

    joules: float
    measured: tuple[str, ...]  # counters that were read
    estimated: tuple[str, ...]  # what there was no counter for


class Counter:
    """A RAPL zone: joules since the first look; `look` now and then, as its numbers begin anew."""

    def __init__(self, zone: Path) -> None:
        """OSError where it may not be read."""
        self._zone = zone
        self._range = int((zone / "max_energy_range_uj").read_text())
        self._last = self._now()
        self._sum = 0

    def _now(self) -> int:
        return int((self._zone / "energy_uj").read_text())

    def look(self) -> float:
        now = self._now()
        self._sum += (now - self._last) % (self._range + 1)
        self._last = now
        return self._sum / 1e6


@dataclass
class Meter:
    """The energy of this process's part of a job, from when the meter is made.

    node    whether this rank reads the counters of its node's processors
    card    number of the CUDA card it works on; None for none
    """

    node: bool
    card: int | None
    powercap: Path = POWERCAP
    _zones: list[Counter] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._zones = _zones(self.powercap)
        self._cpu_s = cpu_seconds()
        self._card_J = None if self.card is None else _card_joules(self.card)
        if self._zones and self.node:
            threading.Thread(target=self._look, name="energy", daemon=True).start()

    def _look(self) -> None:
        while not self._done.wait(LOOK_S):
            for zone in self._zones:
                zone.look()

    def energy(self) -> Energy:
        """What has been taken so far; the meter stops."""
        self._done.set()
        joules, measured, estimated = 0.0, [], []
        if self._zones and self.node:
            joules += sum(zone.look() for zone in self._zones)
            measured.append("processors and memory of the node (RAPL)")
        elif not self._zones:
            joules += WATTS_PER_CORE * (cpu_seconds() - self._cpu_s)
            estimated.append(f"processor time at {WATTS_PER_CORE:g} W for a core")
        if self.card is not None and self._card_J is not None:
            joules += (_card_joules(self.card) or self._card_J) - self._card_J
            measured.append("graphics card (NVML)")
        elif self.card is not None:
            estimated.append("the graphics card is not counted; nvidia-ml-py may be missing")
        return Energy(joules, tuple(measured), tuple(estimated))


def cpu_seconds() -> float:
    """Processor time so far of this process, and of those that it started and that have ended."""
    return sum(os.times()[:4])


def _zones(powercap: Path) -> list[Counter]:
    """Processor packages, and their memory; [] where there are none, or may not be read."""
    found = []
    with suppress(OSError, ValueError):
        for zone in sorted(powercap.glob("intel-rapl:*")):
            name = (zone / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                found.append(Counter(zone))
        return found
    return []


def _card_joules(card: int) -> float | None:
    """The card's energy counter; None where pynvml (nvidia-ml-py) is missing, or the card (before Volta) has none."""
    import torch

    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(card).uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    except pynvml.NVMLError:
        return None

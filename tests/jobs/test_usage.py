"""Energy, bytes and cost: counters read rightly, estimates marked."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from jobs.runs import polarice
from jobs.sets import ParticleSet
from polarice.cluster import SERIAL
from polarice.project.energy import WATTS_PER_CORE, Counter, Meter
from polarice.project.usage import Usage, Watch

ZONES = {
    "intel-rapl:0": ("package-0", 1_000_000),
    "intel-rapl:0:0": ("core", 500_000),  # a part of the package
    "intel-rapl:0:1": ("dram", 200_000),
    "intel-rapl:1": ("package-1", 3_000_000),
}


@pytest.fixture
def powercap(tmp_path) -> Path:
    """A tree as the kernel's, microjoules; counters begin anew after 9,999,999."""
    for zone, (name, energy) in ZONES.items():
        folder = tmp_path / "powercap" / zone
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text("9999999\n")
        (folder / "energy_uj").write_text(f"{energy}\n")
    return tmp_path / "powercap"


def advance(powercap: Path, zone: str, joules: float) -> None:
    path = powercap / zone / "energy_uj"
    path.write_text(str(int(int(path.read_text()) + 1e6 * joules) % 10_000_000))


def test_a_counter_goes_on_where_its_numbers_begin_anew(powercap):
    counter = Counter(powercap / "intel-rapl:0")
    found = []
    for _ in range(4):
        advance(powercap, "intel-rapl:0", 6.0)
        found.append(counter.look())
    assert found == pytest.approx([6, 12, 18, 24])


def test_packages_and_memory_are_counted_and_cores_not_again(powercap):
    first, second = Meter(True, None, powercap), Meter(False, None, powercap)
    for zone, joules in (
        ("intel-rapl:0", 5.0),
        ("intel-rapl:0:0", 4.0),
        ("intel-rapl:0:1", 0.5),
        ("intel-rapl:1", 2.0),
    ):
        advance(powercap, zone, joules)
    energy = first.energy()
    assert energy.joules == pytest.approx(7.5)
    assert energy.measured == ("processors and memory of the node (RAPL)",) and energy.estimated == ()
    assert second.energy().joules == 0  # another rank of the same node


def test_without_counters_the_estimate_says_so(tmp_path):
    meter, until = Meter(True, None, tmp_path), time.process_time() + 0.2
    while time.process_time() < until:
        pass
    energy = meter.energy()
    assert 0.15 * WATTS_PER_CORE < energy.joules < 60 * WATTS_PER_CORE
    assert energy.measured == () and energy.estimated == ("processor time at 6 W for a core",)


def test_a_card_is_counted_through_nvml(tmp_path, monkeypatch):
    """By its UUID, as numbers of NVML and of CUDA may differ; a card that has no counter is named."""
    nvml = ModuleType("pynvml")
    nvml.NVMLError = type("NVMLError", (Exception,), {})
    counters = {"GPU-b": iter((5_000, 12_500))}
    nvml.nvmlInit = lambda: None
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: counters[uuid]

    def total(handle: Iterator[int]) -> int:
        if (millijoules := next(handle, None)) is None:
            raise nvml.NVMLError
        return millijoules

    nvml.nvmlDeviceGetTotalEnergyConsumption = total
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda card: SimpleNamespace(uuid="ab"[card]))
    energy = Meter(False, 1, tmp_path).energy()
    assert energy.measured == ("graphics card (NVML)",) and energy.joules >= 7.5
    assert energy.joules - 7.5 < 60 * WATTS_PER_CORE
    assert Meter(False, 1, tmp_path).energy().measured == ()  # it says nothing any more
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Meter(False, 1, tmp_path).energy().estimated[-1].startswith("the graphics card is not counted")


def test_what_is_said_of_it():
    usage = Usage(
        ranks=4, nodes=2, images=2_000_000, wall_s=1800, cpu_s=(3.0, 4.0), waited_s=1.5, bytes_read=3 * 10**9,
        read_s=10, joules=4e5, measured=("RAPL",), estimated=("a card",), price=2.5,
        steps_s={"loading": 2.04, "iterations": 30.0},
    )  # fmt: skip
    assert usage.images_per_joule == pytest.approx(5)
    assert usage.cost_per_million == pytest.approx(1.25)
    said = dict(usage.lines())
    assert said["processor time"] == "7.0 s, 4.0 s of the busiest rank"
    assert said["read from stacks"] == "3.000 GB, 300 MB/s for each reader"
    assert said["energy"] == "about 400000 J (RAPL; estimate: a card)"
    assert said["wall clock by step"] == "loading 2.0 s, iterations 30.0 s"
    assert said["cost of a million images compared"] == "1.25, at 2.5 an hour"


def test_a_watch_counts_from_its_making(monkeypatch):
    monkeypatch.setattr(Watch, "_first", False)

    class Traffic:
        bytes, seconds = 1000, 0.5

    usage = Watch(SERIAL, None).usage(Traffic(), 10, 0.25, None)
    assert (usage.ranks, usage.nodes, usage.bytes_read, usage.waited_s) == (1, 1, 1000, 0.25)
    assert 0 <= usage.wall_s < 60 and usage.cost_per_million is None


def test_steps_are_told_apart(monkeypatch):
    """What came before is loading for the first watch of a process, and no other."""
    monkeypatch.setattr(Watch, "_first", True)
    monkeypatch.setattr("polarice.project.usage.seconds_of_process", lambda: 100.0)
    for loading_s in (100, 0):
        watch = Watch(SERIAL, None)
        watch.mark("loading")
        time.sleep(0.02)
        watch.mark("looking at images")
        usage = watch.usage(SimpleNamespace(bytes=0, seconds=0.0), 0, 0.0, None)
        steps = usage.steps_s
        assert list(steps) == ["loading", "looking at images", "iterations"]
        assert loading_s <= steps["loading"] < loading_s + 5 and steps["looking at images"] > 0.01
        time.sleep(0.02)
        ended = watch.ended(usage)  # no second of the wall clock is left out
        assert list(ended.steps_s) == [*steps, "report"] and ended.steps_s["report"] > 0.01
        assert ended.wall_s == pytest.approx(sum(ended.steps_s.values())) and ended.wall_s >= loading_s


def test_how_long_this_process_has_been():
    code = "import time; time.sleep(0.3); from polarice.project.usage import seconds_of_process as s; print(s())"
    found = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert found == 0 if sys.platform != "linux" else 0.28 < found < 60


def test_beside_the_results_and_in_the_report(tmp_path, monkeypatch):
    ParticleSet(n=60, box_px=24).write(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk").mkdir()
    assert polarice("class2d particles.star --k 2 --iter 2 --threads 1 --price 1 --copy-to disk --o out").code == 0
    content = json.loads((tmp_path / "out/usage.json").read_text())
    assert content["images"] == 120 and content["ranks"] == 1
    assert content["bytes_read"] >= 60 * 4 * 24**2  # the first look, at least
    assert content["cost_per_million_images"] == pytest.approx(content["wall_s"] / 3600 * 1e6 / 120)
    page = (tmp_path / "out/report.html").read_text()
    assert "images per joule" in page and "cost of a million images compared" in page
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_job_s_clock_agrees_with_the_wall(tmp_path):
    """From the start of the process, imports among it, to the report."""
    ParticleSet(n=60, box_px=24).write(tmp_path)
    words = ["class2d", "particles.star", "--k", "2", "--iter", "2", "--threads", "1", "--o", "out"]
    since = time.perf_counter()
    subprocess.run([sys.executable, "-m", "polarice", *words], check=True, capture_output=True, cwd=tmp_path)
    wall_s = time.perf_counter() - since
    content = json.loads((tmp_path / "out/usage.json").read_text())
    assert 0.75 * wall_s < content["wall_s"] <= wall_s + 0.1
    assert content["wall_s"] == pytest.approx(sum(content["steps_s"].values()), rel=0.02)

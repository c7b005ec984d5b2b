"""The scaling model against arithmetic, its fit against made-up times, and the command end to end on tiny sets."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.runs import polarice
from polarice.bench import link
from polarice.bench.rank_times import cold_bytes_per_s, steps, time_sums
from polarice.bench.scaling import Params, _devices, start_of
from polarice.bench.scaling_links import told
from polarice.bench.scaling_model import (
    ETHERNET_10,
    ROUNDS,
    Disks,
    Network,
    Start,
    Work,
    compute_s,
    efficiency,
    fitted_reduction,
    look_s,
    reduce_s,
    start_s,
    sums_bytes,
    total_s,
)
from polarice.bench.scaling_predict import DataSet, Rates, largest_node
from polarice.bench.scaling_runs import time_sums as sums_of_ranks
from polarice.bench.timing import time_map
from polarice.cluster import SERIAL

WORK = Work(
    name="w", images=[1000, 2000], share=[0.5, 1.0], image_s=0.01, maximize_s=0.2, volume_bytes=1e6, stack_bytes=1e9,
    start=Start(3.0),
)  # fmt: skip
SLOW = Network("slow", 1e6, 0.01)


def test_one_node_does_all_the_work_and_sends_nothing():
    assert compute_s(WORK, 1, SLOW, 1.0) == pytest.approx(0.5 * 1000 * 0.01 + 2000 * 0.01 + 0.3)
    assert total_s(WORK, 1, SLOW, 1.0, Disks(1e8)) == pytest.approx(25.3 + 10 + 3)


def test_four_nodes_share_images_and_send_sums():
    sent = 2 * 1e6 * 0.75 / 1e6 + 2 * ROUNDS * 0.01 + 1e6 * 1e-8
    assert reduce_s(1e6, 4, SLOW, 1e-8) == pytest.approx(sent)
    half = 2 * 5e5 * 0.75 / 1e6 + 2 * ROUNDS * 0.01 + 5e5 * 1e-8
    assert compute_s(WORK, 4, SLOW, 1e-8) == pytest.approx(25 / 4 + 0.3 + sent + half)
    bound = total_s(WORK, 4, SLOW, 1e-8, Disks(1e8, 2e8)) - compute_s(WORK, 4, SLOW, 1e-8)
    assert bound == pytest.approx(1e9 / 2e8 + 3)  # the file system gives two nodes' worth


def test_what_nodes_divide_among_them_falls_with_their_number():
    more = replace(WORK, once_s=8.0, divided_s=4.0)
    assert compute_s(more, 4, SLOW, 0.0) - compute_s(WORK, 4, SLOW, 0.0) == pytest.approx(2 + 1.5 * 1)


def test_start_and_report_are_shared_out():
    """First classes by all cores, charts by a node's processes or by the ranks, six at the most; the look by the
    processors where they take longer than the disk."""
    work = replace(WORK, start=Start(2.0, first_s=4.0, draw_s=6.0, look_byte_s=4e-8), cores=2)
    assert [start_s(work, nodes) for nodes in (1, 2, 12)] == pytest.approx([2 + 2 + 3, 2 + 1 + 3, 2 + 4 / 24 + 1])
    assert look_s(work, 2, Disks(1e9)) == pytest.approx(10) and look_s(work, 2, Disks(2e7)) == pytest.approx(25)
    assert Start(1.0, first_s=1.0, box_px=100).of_box(200).first_s == pytest.approx(4)


def test_what_runs_took_beside_computing_is_told_apart():
    steps = {"loading": 2.0, "looking at images": 0.5, "first classes": 1.0, "iterations": 11.0, "report": 4.0}
    two = {"ranks": 2, "compute_s": 5.0, "steps_s": steps | {"iterations": 5.5, "report": 2.5}}
    found = start_of([{"ranks": 1, "compute_s": 10.0, "steps_s": steps}, two], Params(particles=100, box=10), 1000)
    assert found.draw_s == pytest.approx(3) and found.constant_s == pytest.approx(2 + 1 + 1)
    assert (found.first_s, found.look_byte_s, found.box_px) == (1.0, 5e-4, 10)


def test_each_message_waits_for_the_one_before():
    more = replace(WORK, messages=5)
    assert compute_s(more, 4, SLOW, 0.0) - compute_s(WORK, 4, SLOW, 0.0) == pytest.approx(2 * 4 * 2 * ROUNDS * 0.01)


def test_a_map_is_timed():
    free, few = time_map(24, 20), time_map(24, 20, 3)
    for found in (free, few):
        assert all(found[name] > 0 for name in ("image_ms", "prepare_ms"))
        assert all(found[name] >= 0 for name in ("divided_s", "maximize_s"))  # differences of what a machine took
        assert found["rings"] == 12 and found["messages"] > 1
    assert free["bytes"] > 3 * few["bytes"] > 12 * 4 * 20 * 12


def test_efficiency_falls_with_nodes():
    nodes = [1, 2, 12, 100]
    found = efficiency([compute_s(WORK, n, ETHERNET_10, 0.0) for n in nodes], nodes)
    assert found[0] == 1 and found == sorted(found, reverse=True) and 0 < found[-1] < 0.5


def test_the_largest_node_has_enough_to_compute():
    """Nothing but images and a start: one node needs (0.9 * 12 - 1) / 0.1 = 98 times the start to compute."""
    data = DataSet("align2d", 120_000, 64, 2, 4)
    engine = {"image_ms": 10.0, "maximize_s": 0.0, "divided_s": 0.0, "prepare_ms": 0.0, "bytes": 1e3}
    weight = sum(n * s for n, s in zip(*steps(2, 4, 120_000, False), strict=True))
    at_eight = 10e-3 * weight / 8
    fast, disks = Network("fast", 1e15, 0.0), Disks(1e15)
    assert largest_node(data, engine, fast, Rates(0.0, disks, Start(at_eight / 98 * 0.999))) == 8
    assert largest_node(data, engine, fast, Rates(0.0, disks, Start(at_eight / 98 * 1.001))) == 6
    assert largest_node(data, engine, fast, Rates(0.0, disks, Start(at_eight))) == 0


def test_measured_sums_are_fitted():
    volumes = [4e3, 1e5, 1e6, 2e7]
    constant, slope = fitted_reduction(volumes, [5e-5 + 2e-9 * each for each in volumes])
    assert constant == pytest.approx(5e-5, rel=1e-6) and slope == pytest.approx(2e-9, rel=1e-6)
    assert sums_bytes(rings=10, harmonics=24, references=3) == 8 * 10 * 25 * 3


def test_steps_are_the_schedules():
    images, share = steps(50, 25, 10_000, growing_batches=False)
    assert images == [10_000] * 25 and share[0] < 0.2 and share[-1] == 1
    images, _ = steps(300, 30, 57_001, growing_batches=True)
    assert images[0] < 0.6 * 57_001 and images[-1] == 57_001 and images == sorted(images)


def test_rates_are_positive(tmp_path):
    (tmp_path / "file").write_bytes(bytes(3_000_000))
    assert cold_bytes_per_s(tmp_path / "file") > 0
    assert all(each >= 0 for each in time_sums([4, 4000], SERIAL))


def test_the_command_leaves_figures_a_page_and_a_picture(tmp_path, monkeypatch):
    ranks = "1 2" if Path(sys.executable).with_name("mpirun").exists() else "1"
    monkeypatch.chdir(tmp_path)
    line = "bench scaling --o out --particles 60 --box 32 --k 3 --iter 2 --repeat 1 --no-passes --ranks"
    ended = polarice(f"{line} {ranks}")
    assert ended.code == 0, ended.err
    told = json.loads((tmp_path / "out/scaling.json").read_text())
    assert [each["ranks"] for each in told["runs"]] == [int(each) for each in ranks.split()]
    for each in told["runs"]:
        assert each["images"] == 120 and 0 < each["compute_s"] < each["total_s"]
        assert sum(each["steps_s"].values()) == pytest.approx(each["total_s"])
        assert each["steps_s"]["iterations"] >= each["compute_s"] and min(each["steps_s"].values()) > 0
    assert len(told["check"]) == len(told["runs"]) - 1
    page = (tmp_path / "out/scaling.md").read_text()
    assert "| 1     | cpu |" in page and "No GPU is here" in page
    assert (tmp_path / "out/scaling.png").read_bytes().startswith(b"\x89PNG")


def test_two_nodes_are_as_far_apart_as_asked(tmp_path):
    """A sum of V bytes sends V each way: 1 MB at 5 MB/s, and messages of 5 ms."""
    if why := link.missing():
        pytest.skip(f"no two nodes: {why}")
    with link.two_nodes(5e6, 0.005, tmp_path) as launch:
        small, large = sums_of_ranks(launch, [400, 1_000_000])
    assert small > 0.005 and large > 0.2  # how much longer is the machine's to say
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_over_networks_is_told():
    each = {
        "network": "100 Mbit/s", "latency_s": 2e-4, "sums_s": [0.1, 0.1, 0.2, 0.7], "stages_s": {"communication": 1.5},
        "predicted_sums_s": [0.1, 0.1, 0.25, 0.5], "compute_s": 10.0, "predicted_compute_s": 9.0, "total_s": 20.0,
        "predicted_total_s": 21.0, "compute_error": -0.1, "total_error": 0.05,
    }  # fmt: skip
    cells = [cell.strip() for cell in told([each]).splitlines()[-1].strip("|").split("|")]
    assert cells == ["100 Mbit/s", "0.2", "200 (250), 700 (500)", "1.50", "10.00 (9.00, -10 %)", "20.00 (21.00, +5 %)"]


def test_a_card_is_measured_beside_the_processor_where_there_is_one():
    cpu, card = {"device": "cpu"}, {"device": "NVIDIA H100"}
    assert _devices(Params(), cpu) == ["cpu"] and _devices(Params(), card) == ["cpu", "cuda"]
    assert _devices(Params(device="cpu"), card) == ["cpu"] and _devices(Params(device="cuda"), card) == ["cuda"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--ranks 2,4", "--ranks 2 4: what one rank takes comes first"),
        ("--launcher nosuchrun --ranks 1,2", "nosuchrun is not there; pip install 'polarice[mpi]'"),
    ],
)
def test_what_cannot_be_measured_is_said(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    ended = polarice(f"bench scaling {words}")
    assert ended.code == 2 and message in ended.err
    assert not (tmp_path / "bench_scaling").exists()

"""The benchmarks: what is measured, what is made of it, and both commands end to end on tiny sets."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.runs import Ended, stub_report
from polarice.align.schedule import shift_grid
from polarice.bench import engine, programs
from polarice.bench.folder import DATA
from polarice.bench.measure import Usage, measure
from polarice.bench.results import HEAD, Result, cells, markdown, notes, reached, rows
from polarice.bench.timing import SHIFT_STEP_PX, counted_products, shift_range_px, summary
from polarice.cli import main, parse
from polarice.jobs import class2d
from polarice.jobs.demo import score_of
from polarice.types import InputError

SMALL = "--particles 120 --box 48 --k 3 --iter 2 --threads 1"
PEER = """
import shutil, sys
from pathlib import Path
particles, out, iterations = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
from polarice.io.particles import read_particles, write_particles
table = read_particles(particles)
truth = read_particles(particles.with_name("data") / "truth.star").take(table.particles.section)
columns = {name: truth.table.numbers(name) for name in ("rlnOriginXAngst", "rlnOriginYAngst")}
for number in range(iterations + 1):
    write_particles(out / f"run_it{number:03d}_data.star", table, columns={"rlnClassNumber": [1] * len(table.table),
        **columns})
"""


def usage(wall_s: float, exit_code: int = 0) -> Usage:
    return Usage(exit_code, wall_s, 2 * wall_s, 3_000_000_000, 5_000_000, None)


def run(line: str) -> Ended:
    """`polarice bench LINE` in this process and the working directory, its words as a shell splits them."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(["bench", *shlex.split(line)])
        except SystemExit as left:
            code = int(left.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


# -- arithmetic --------------------------------------------------------------------------------------------------------


@pytest.fixture
def found():
    """Rows of four programs; Polarice compared 8,000 images in ten iterations of a second."""
    stages = {"reading": 0.5, "preparation": 2.0, "expectation": 5.0, "maximization": 1.0, "writing": 1.5}
    score = {"pose_deg": 12.34, "view_deg": 10.0, "good": 0.5, "effective": 19.5, "shift_px": 0.51}
    ours = Result(
        "polarice", "1", "polarice", "a.log", 1000, 10, usage(12.0), 8000, [1.0] * 10, stages, 0.25, score, ours=True
    )
    part = Result("part", None, "part", "b.log", 100, 5, usage(30.0), 500, [5.0] * 5)
    silent = Result("silent", None, "silent", "c.log", 100, 5, usage(30.0), 500)
    failed = Result("failed", None, "failed", "d.log", 1000, 10, usage(1.0, 3), 10_000)
    return rows([ours, part, silent, failed], 1000, 10)


def test_times_per_image_whole_and_ratios(found):
    ours, part, silent, failed = found
    assert ours["ms_per_image"] == pytest.approx(1.25) and ours["images_per_s"] == pytest.approx(8000 / 12)
    assert ours["compute_s"] == pytest.approx(8.0)
    assert ours["whole_wall_s"] == 12.0 and ours["extrapolated"] is None and ours["ratio_wall"] == 1.0
    assert part["ms_per_image"] == pytest.approx(50.0) and part["ratio_per_image"] == pytest.approx(40.0)
    assert part["whole_wall_s"] == pytest.approx(5 + 20 * 25)  # five seconds outside of its iterations stay five
    assert part["ratio_wall"] == pytest.approx(505 / 12) and part["compute_s"] is part["gemm_share"] is None
    assert part["extrapolated"] == "from 100 particles and 5 iterations"
    assert silent["whole_wall_s"] == pytest.approx(600.0) and silent["ms_per_image"] == pytest.approx(60.0)
    assert failed["status"] == "failed" and failed["ratio_wall"] is failed["ms_per_image"] is None


def test_table_tells_what_is_extrapolated_and_what_failed(found):
    assert dict(zip(HEAD, cells(found[0]), strict=True)) == {
        "program": "polarice", "version": "1", "particles": "1000", "iterations": "10", "wall s": "12.0",
        "compute s": "8.0", "ms per image and iteration": "1.25", "images/s": "666.7", "GEMM share": "0.25",
        "peak GB": "3", "read GB": "0.005", "pose_deg": "12.3", "view_deg": "10", "good": "0.5", "effective": "19.5",
        "shift_px": "0.51", "ratio of time": "1",
    }  # fmt: skip
    assert dict(zip(HEAD, cells(found[1]), strict=True))["wall s"] == "505.0*"
    assert cells(found[3])[:6] == ["failed", "–", "1000", "10", "failed", "–"]
    told = notes(found)
    assert [line.partition(";")[0] for line in told[:2]] == [
        f"\\* {name}: extrapolated from 100 particles and 5 iterations" for name in ("part", "silent")
    ]
    assert markdown(["a", "bb"], [["1", "2"], ["333", "4"]]) == (
        "| a   | bb |\n|-----|----|\n| 1   | 2  |\n| 333 | 4  |\n"
    )


def test_the_shortest_run_of_the_others_quality_is_found():
    def result(name: str, particles: int, iterations: int, wall_s: float, pose_deg: float, effective: float) -> Result:
        score = {"particles": particles, "pose_deg": pose_deg, "effective": effective, "view_deg": 1.0, "good": 1.0}
        return Result(name, None, name, "log", particles, iterations, usage(wall_s), 1000, score=score, ours=name < "q")

    whole = [result("polarice", 1000, 25, 60.0, 5.0, 20.0), result("polarice-5", 1000, 5, 20.0, 15.0, 19.0)]
    part = [result("polarice-part", 100, 25, 8.0, 20.0, 18.0), result("polarice-5-part", 100, 5, 4.0, 31.4, 15.0)]
    found = rows([*whole, *part, result("relion", 100, 25, 100.0, 30.0, 15.0)], 1000, 25)
    assert [row["extrapolated"] for row in found[:4]] == [None] * 4
    (answer,) = reached(found)
    assert answer["iterations"] == 5 and answer["whole_wall_s"] == 20.0 and answer["pose_deg"] == 31.4
    assert answer["ratio"] == pytest.approx(1000 / 20)  # ten times the particles, the same iterations
    assert "with 5 iterations (31.4 degrees, 15.0), which takes 20.0 s for all particles: 50" in notes(found)[-2]
    for pose_deg, effective, iterations in ((29.0, 15.0, 25), (30.0, 15.5, 25), (19.0, 10.0, None)):
        other = result("relion", 100, 25, 100.0, pose_deg, effective)
        assert reached(rows([*whole, *part, other], 1000, 25))[0]["iterations"] == iterations
    whole[1] = result("polarice-5", 1000, 5, 20.0, 32.0, 19.0)  # worse on all than the other on its part
    assert reached(rows([*whole, *part, result("relion", 100, 25, 100.0, 30.0, 15.0)], 1000, 25))[0]["iterations"] == 25
    longer = rows([whole[1], result("relion", 1000, 25, 100.0, 30.0, 15.0)], 1000, 5)
    assert longer[1]["whole_wall_s"] == 100.0 and longer[1]["extrapolated"] is None  # its own iterations count


def test_iterations_are_timed_by_their_files(tmp_path):
    for name, second in {"000_data": 100, "001_data": 102, "001_model": 103, "002_data": 110, "002_model": 107}.items():
        path = tmp_path / f"run_it{name}.star"
        path.touch()
        os.utime(path, (second, second))
    assert programs.iteration_seconds(tmp_path, 2) == pytest.approx([3.0, 7.0])
    assert programs.iteration_seconds(tmp_path, 3) is None


def test_best_and_median_of_passes():
    passes = [{"expectation": t - 0.1, "maximization": 0.1, "total": t} for t in (3.0, 1.0, 1.5)]
    assert summary(passes, 500) == {
        "best_ms": pytest.approx(2.0),
        "median_ms": pytest.approx(3.0),
        "images_per_s": pytest.approx(500.0),
        "stages_ms": {"expectation": pytest.approx(1.8), "maximization": pytest.approx(0.2)},
    }
    times = {"gflop_per_image": 0.09, "kept": summary(passes, 500)}
    assert engine.shares(times, 100.0) == {"gemm_gflops": 100.0, "share": pytest.approx(0.5)}


def test_operations_of_matrix_products_are_counted():
    with counted_products() as products:
        torch.ones(3, 4) @ torch.ones(4, 5)
        a, b = torch.ones(2, 3, 4, dtype=torch.complex64), torch.ones(2, 4, 5, dtype=torch.complex64)
        torch.bmm(a, b, out=torch.empty(2, 3, 5, dtype=torch.complex64))
        torch.ones(3, 4) + 1
    assert products == [2 * 3 * 4 * 5, 8 * 2 * 3 * 4 * 5]


@pytest.mark.parametrize("shifts", [1, 5, 9, 21, 29, 81])
def test_discs_hold_as_many_shifts_as_asked(shifts):
    assert len(shift_grid(shift_range_px(shifts), SHIFT_STEP_PX, np.zeros(2))) == shifts


# -- programs ----------------------------------------------------------------------------------------------------------


def test_a_program_is_measured_without_what_started_it(tmp_path):
    ballast = np.ones(50_000_000)  # 400 MB of ours
    big = measure([sys.executable, "-c", "b = bytearray(150 << 20); print('done')"], tmp_path / "big.log")
    assert big.exit_code == 0 and 150 << 20 < big.peak_bytes < 250 << 20
    assert (tmp_path / "big.log").read_text() == "done\n"
    del ballast
    idle = measure(["sleep", "0.3"], tmp_path / "idle.log")
    assert 0.3 <= idle.wall_s < 2 and idle.cpu_s < 0.1 and idle.peak_bytes < 50 << 20
    assert measure(["sh", "-c", "exit 3"], tmp_path / "log").exit_code == 3
    assert measure(["sh", "-c", "kill -9 $$"], tmp_path / "log").exit_code == -9
    assert measure([str(tmp_path)], tmp_path / "log").exit_code == 127


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count what processes read")
def test_bytes_read_are_counted_with_those_of_children(tmp_path):
    (tmp_path / "file").write_bytes(bytes(3_000_000))
    read = measure(["sh", "-c", f"cat {tmp_path}/file > /dev/null; true"], tmp_path / "log").bytes_read
    assert 3_000_000 <= read < 4_000_000


def test_templates_make_commands_and_names():
    first, second = programs.peers(["python3 -u my/prog.py -i {particles} -n {k} '{{x}}'", "sh {out}/prog.py"])
    task = programs.Task(Path("p.star"), Path("out"), 20, 25, 2, 330.0, 1)
    assert first.command(task) == ["python3", "-u", "my/prog.py", "-i", "p.star", "-n", "20", "{x}"]
    assert [each.name for each in programs.told_apart([first, second, second])] == ["prog", "prog-2", "prog-3"]
    ours = programs.polarice("cpu", ctf=False).command(task)
    parsed = parse("class2d", class2d.Params, ours[2:])
    assert (parsed.k, parsed.iter, parsed.threads, parsed.ctf, parsed.particle_diameter) == (20, 25, 2, False, 330.0)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("nosuch_program {particles}", "no program nosuch_program is on PATH; install it, or leave this peer out"),
        ("sh {nosuch}", "not understood ('nosuch'); it may name {particles}, {out}, {k}"),
        ("sh 'x", "cannot be split into words"),
        ("", "the command is empty"),
    ],
)
def test_a_peer_that_makes_no_sense_is_refused(template, message):
    with pytest.raises(InputError) as refused:
        programs.peers([template])
    assert message in str(refused.value)


# -- end to end --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The folder of a tiny benchmark with a peer that finds the true centres, and one that fails; how it ended."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "peer.py").write_text(PEER)
    good = f"{sys.executable} peer.py {{particles}} {{out}} {{iter}}"
    (folder / "fails.sh").write_text("echo my last words; exit 3")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ended = run(f"class2d --o b {SMALL} --no-relion --peer-particles 60 --peer {shlex.join([good, 'sh fails.sh'])}")
    assert ended.code == 0, ended.err
    return folder / "b", ended


def test_class2d_runs_everyone_in_turn_and_scores(bench):
    folder, _ = bench
    told = json.loads((folder / "bench.json").read_text())
    ours, part, peer, failed = told["programs"]
    assert [row["program"] for row in told["programs"]] == ["polarice", "polarice-part", "peer", "fails"]
    assert part["score"]["particles"] == 60 and part["whole_wall_s"] == part["usage"]["wall_s"]
    assert (
        told["reached"][0]["peer"] == "peer" and told["reached"][0]["iterations"] == 2
    )  # its single class is easily met
    assert told["data"]["pixel_size_A"] == pytest.approx(448 / 48, abs=1e-5)
    assert told["data"]["simulated"] and told["data"]["particles"] == 120
    assert told["machine"]["threads"] == 1 and told["machine"]["gemm_gflops"] > 0.1
    assert 0 < ours["gemm_share"] < 1 and peer["gemm_share"] is None
    assert ours["score"]["particles"] == 120 and peer["score"]["particles"] == 60
    assert peer["score"] == asdict(score_of(folder / "peer_peer/run_it002_data.star", folder / "data/truth.npz"))
    assert peer["score"]["effective"] == 1.0 and peer["score"]["shift_px"] < 1e-4
    assert peer["score"]["view_deg"] == pytest.approx(90, abs=20)  # one class of all directions
    assert failed["status"] == "failed" and failed["usage"]["exit_code"] == 3 and failed["score"] is None


def test_class2d_takes_polarices_times_from_its_history(bench):
    folder, _ = bench
    ours = json.loads((folder / "bench.json").read_text())["programs"][0]
    history = [json.loads(line) for line in (folder / "run/history.jsonl").read_text().splitlines()]
    inside = [sum(row["seconds"].values()) for row in history]
    computing = ("preparation", "expectation", "maximization")
    assert ours["iterations_s"] == pytest.approx(inside) and len(inside) == 2
    assert ours["compute_s"] == pytest.approx(sum(row["seconds"][name] for row in history for name in computing))
    assert ours["ms_per_image"] == pytest.approx(1e3 * sum(inside) / 240)
    assert ours["compute_s"] < sum(inside) < ours["usage"]["wall_s"] == ours["whole_wall_s"]
    assert ours["usage"]["peak_bytes"] > 100e6 and ours["usage"]["cpu_s"] > ours["compute_s"] / 2
    assert ours["command"].startswith("polarice class2d b/data/particles.star --o b/run --k 3 --iter 2 ")


def test_class2d_leaves_table_and_picture_and_says_what_failed(bench):
    folder, ended = bench
    page = (folder / "bench.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    assert [line[0] for line in lines] == ["program", "polarice", "polarice-part", "peer", "fails"]
    assert lines[3][2:4] == ["60", "2"] and lines[3][4].endswith("*") and lines[4][4] == "failed"
    assert "peer: extrapolated from 60 particles and 2 iterations" in page
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "fails failed (3); the end of b/fails.log:\nmy last words\n" in ended.out
    assert all(line in ended.out for line in page.splitlines() if line.startswith("| "))
    assert not list(folder.rglob("*.tmp-*"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("class2d nosuch.star --no-relion --o new", "nosuch.star: no such file"),
        ("class2d --no-relion --o full", "full: holds files already; choose another folder with --o"),
        ("class2d --no-relion --o full/file/x", "full/file/x: cannot be used (Not a directory)"),
        ("class2d --no-relion --o new --k 50 --particles 40", "--k 50: more classes than particles (40, of which"),
        ("class2d --no-relion --o new --k 50 --peer-particles 40", "(2000, of which other programs get 40)"),
        ("class2d --no-relion --o new --peer 'nosuch {out}'", "no program nosuch is on PATH"),
        ("class2d --iter 0", "--iter 0: must be 1 to 999"),
        ("engine --shifts 20", "--shifts 20: no disc of the grid holds so many; take one of 9, 13, 21, 25, 29"),
        ("engine --k 20,300 --particles 200", "--k 300: more references than particles (200)"),
        ("engine --k 20,few", "--k few: must be a whole number"),
        ("clas2d", "no such command: bench clas2d (did you mean bench class2d?)"),
    ],
)
def test_bad_input_is_said_in_one_line(tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    ended = run(line)
    assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.mrcs"))


def test_polarices_own_failure_is_written_down_and_told(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(bench[0])
    ended = run(f"class2d data/particles.star --o {tmp_path}/b --k 2 --no-relion --particle-diameter 9000 --threads 1")
    assert ended.code == 2 and "polarice itself failed; see" in ended.err
    assert "--particle-diameter 9000: the box is 48 px" in ended.out
    (row,) = json.loads((tmp_path / "b/bench.json").read_text())["programs"]
    assert row["status"] == "failed" and row["usage"]["exit_code"] == 2 and row["ratio_wall"] is None
    assert (tmp_path / "b/bench.png").exists()


def test_a_program_that_is_not_there_does_not_take_part(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs.relion(ctf=True) is None


def test_a_truth_that_does_not_fit_is_no_score(bench, tmp_path):
    folder, _ = bench
    np.savez(tmp_path / "truth.npz", quat=np.tile([0.0, 0, 0, 1], (10, 1)), shift=np.zeros((10, 2)))
    with pytest.raises(InputError, match=r"run_it002_data\.star: does not fit"):
        programs.score(folder / "peer_peer", tmp_path / "truth.npz")
    with pytest.raises(InputError, match=r"no \*data.star"):
        programs.score(tmp_path, folder / "data/truth.npz")


def test_relion_takes_part_on_a_given_table(bench, tmp_path, monkeypatch):
    if shutil.which("relion_refine") is None:
        pytest.skip("relion_refine is not installed")
    monkeypatch.chdir(bench[0])
    out = tmp_path / "b"
    ended = run(f"class2d data/particles.star --o {out} --k 2 --iter 2 --threads 1 --peer-particles 60 --peer-iter 1")
    assert ended.code == 0, ended.err
    ours, _, relion = json.loads((out / "bench.json").read_text())["programs"]
    assert relion["status"] == "done" and relion["version"][0].isdigit()
    assert len(relion["iterations_s"]) == 1 and relion["extrapolated"] == "from 60 particles and 1 iterations"
    inside = relion["iterations_s"][0]
    assert relion["ms_per_image"] == pytest.approx(1e3 * inside / 60)
    assert relion["whole_wall_s"] == pytest.approx(relion["usage"]["wall_s"] + 3 * inside)
    assert relion["ratio_per_image"] == pytest.approx(relion["ms_per_image"] / ours["ms_per_image"])
    assert relion["score"]["particles"] == 60 and ours["score"]["particles"] == 120


def test_engine_times_the_grid_and_keeps_its_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stub_report(monkeypatch)
    line = "engine --o e --k 2,4 --box 48 --shifts 5 --particles 60 --iter 2 --repeat 2 --threads 1"
    ended = run(line)
    assert ended.code == 0, ended.err
    told = json.loads(Path("e/engine.json").read_text())
    assert [(case["k"], case["box_px"], case["shifts"]) for case in told["cases"]] == [(2, 48, 5), (4, 48, 5)]
    for case in told["cases"]:
        kept, fresh = case["kept"], case["fresh"]
        assert kept["images_per_s"] == pytest.approx(1e3 / kept["best_ms"])
        assert kept["best_ms"] <= kept["median_ms"] and sum(kept["stages_ms"].values()) <= kept["best_ms"]
        assert kept["stages_ms"]["preparation"] < fresh["stages_ms"]["preparation"]
        rate = case["gflop_per_image"] / (1e-3 * kept["stages_ms"]["expectation"])
        assert case["share"] == pytest.approx(rate / case["gemm_gflops"]) and 0 < case["share"] < 1
        assert case["precision"] == "float32" and case["largest_error"] == case["changed_best"] == 0
    two, four = (case["gflop_per_image"] for case in told["cases"])
    assert 1.5 * two < four < 2.5 * two  # matrix products grow with the references
    assert "class averages" in told["references"] and "after 2 iterations" in Path("e/engine.md").read_text()
    assert ended.out.count("references: 2 iterations") == 2
    again = run(line.replace("2,4", "2") + " --precision tf32,bfloat16")
    assert "references:" not in again.out
    tf32, bfloat16 = json.loads(Path("e/engine.json").read_text())["cases"]
    assert (tf32["precision"], bfloat16["precision"]) == ("tf32", "bfloat16")
    assert 0 < 3 * tf32["largest_error"] < bfloat16["largest_error"]
    assert tf32["gflop_per_image"] == pytest.approx(two, rel=0.1)  # real products of twice the columns: as many


def test_card_tries_everything_and_goes_on_behind_what_fails(tmp_path, monkeypatch):
    """Without a card; the tests marked gpu are left to the card."""
    monkeypatch.chdir(tmp_path)
    small = "--particles 200 --box 32 --k 4 --iter 2 --nodes 8 --map-iter 2 --engine-k 3 --engine-particles 60"
    parts = "card agreement engine align2d sml"
    ended = run(f"card --device cpu --parts {parts} {small} --precision float32 --threads 2 --o out")
    assert ended.code == 0, ended.err
    told = json.loads(Path("out/card.json").read_text())
    assert list(told["parts"]) == parts.split()
    assert all(part["status"] == "done" and part["whole_s"] >= 0 for part in told["parts"].values())
    assert told["parts"]["agreement"]["relative_difference"] == {"pose_deg": 0, "effective": 0}
    assert [each["particles_used"] for each in told["parts"]["align2d"]["iterations"]] == [200, 200]
    assert told["parts"]["align2d"]["profile"]["longest_ms_per_image"]
    assert told["parts"]["engine"]["engine"]["cases"][0]["k"] == 3
    page = Path("out/card.md").read_text()
    assert "| align2d | 2 " in page and "| sml     | 2 " in page
    ended = run(f"card --device cpu --parts engine card {small} --engine-k 61 --precision float32 --o bad")
    assert ended.code == 2 and "not done: engine" in ended.err
    told = json.loads(Path("bad/card.json").read_text())["parts"]
    assert told["engine"]["status"] == "failed (2)" and "more references than particles" in told["engine"]["last"]
    assert told["card"]["status"] == "done"


def test_a_part_of_card_is_ended_at_its_limit(tmp_path):
    from polarice.bench.card import started

    command = [sys.executable, "-c", "import subprocess, sys; print('on', flush=True); subprocess.run(['sleep', '60'])"]
    ended = started(command, tmp_path / "log", 1.5)
    assert ended.status == "ended at its limit" and ended.last == "on" and ended.wall_s < 30


def test_lists_are_given_by_commas_or_blanks_or_one_by_one():
    for words in ("--k 20,100 --threads 1,2", "--k 20 100 --threads 1 2", "--k 20 --threads=1,2 --k=100"):
        params = parse("bench engine", engine.Params, words.split())
        assert (params.k, params.threads, params.box) == ((20, 100), (1, 2), (128,))


def test_help_names_both_benchmarks():
    ended = run("--help")
    assert ended.code == 0 and "bench class2d" in ended.out and "bench engine" in ended.out
    assert "align2d" not in ended.out and run("").code == 2


def test_bench_sml_scores_every_method(tmp_path, monkeypatch):
    """Two maps from three views, hardly any noise: every method has its line, and the map keeps views in order."""
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    stub_report(monkeypatch)
    ribosome = str(DATA / "ribosome70S.mrc")
    small = "--particles 80 --box 24 --angpix 18.7 --diameter 330 --views 3 --k 2x3 --iter 4 --snr 5 --threads 1"
    assert main(["bench", "sml", ribosome, ribosome, "--o", "out", "--no-map", "--no-relion", *small.split()]) == 0
    rows = json.loads(Path("out/sml.json").read_text())["rows"]
    assert [row["method"] for row in rows] == [
        "sml 2x3", "MAP, poses held", "K-means", "PCA 10 + K-means", "PCA 10 + mixture", "PCA 40 + K-means",
        "PCA 40 + mixture", "sml 30, views on an arc",
    ]  # fmt: skip
    assert rows[0]["ari"] > 0.2 and rows[0]["classes"] <= 6
    assert rows[-1]["rank_correlation"] > 0.5
    assert "| 5 " in Path("out/sml.md").read_text()

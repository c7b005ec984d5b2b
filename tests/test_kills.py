"""`polarice bench kills --jobs`: moments, comparison, and a few kills."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from jobs.runs import polarice
from polarice.bench.job_kills import (
    Blow,
    Fell,
    Task,
    blow_of,
    compared,
    processes_in,
    rows_of,
    same,
    sound,
    stage_of,
    verdict,
)
from polarice.io.mrc import write_stack


def fell(**changed):
    plain = dict(stage="3 micrographs", failed="", differing=(), missing=(), leftovers=(), processes=0)
    return Fell("ctf", 2, Blow(1.5, None), **(plain | changed))


def test_moments_fall_within_the_run_and_are_the_same_for_a_seed():
    one, two = ([blow_of(rng, 4.0, 3) for _ in range(300)] for rng in (random.Random(5), random.Random(5)))
    assert one == two and one != [blow_of(random.Random(6), 4.0, 3)] * 300
    assert all(0 <= blow.after_s <= 4 for blow in one)
    assert {blow.rank for blow in one} == {None, 0, 1, 2}
    assert 100 < sum(blow.rank is None for blow in one) < 200
    assert np.histogram([blow.after_s for blow in one], 4, (0, 4))[0].min() > 40


def test_a_task_goes_on_where_something_had_been_begun(tmp_path):
    often, once = Task("class2d", ("class2d", "a.star"), True), Task("ctf", ("ctf", "m.star"), False)
    assert often.again(tmp_path) == ("class2d", "a.star")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/job.json").write_text("{}")
    assert often.again(tmp_path) == ("class2d", "--continue", "out") and once.again(tmp_path) == ("ctf", "m.star")


def test_stages_are_told(tmp_path):
    out = tmp_path / "out"
    assert stage_of(out) == "before its folder"
    out.mkdir()
    assert stage_of(out) == "before its first result"
    (out / "run_it001_polarice.npz").touch()
    assert stage_of(out) == "1 iterations"
    (out / "m_polarice.json").touch()
    assert stage_of(out) == "1 micrographs"


@pytest.fixture
def two(tmp_path):
    """Two folders that hold the same results."""
    for name in ("one", "two"):
        out = tmp_path / name / "out"
        out.mkdir(parents=True)
        (out / "a.star").write_text(f"# made by {name}\ndata_\nloop_\n_rlnDefocusU #1\n15000.500000\n")
        (out / "job.json").write_text(json.dumps({"started": name}))
        (out / "m_polarice.json").write_text(json.dumps({"mark": name, "seconds": len(name), "columns": {"a": 1.5}}))
        (out / "history.jsonl").write_text('{"number": 1, "seconds": {"reading": 1}}\n{"number": 2}\n')
        np.savez(out / "run_it001_polarice.npz", field=np.arange(6.0), class_of=np.arange(3))
        write_stack(out / "a.mrcs", np.ones((2, 4, 4), np.float32), 1.5)
    return tmp_path / "one", tmp_path / "two"


def test_equal_results_are_equal_whatever_their_dates(two):
    assert compared(*two, 0.0) == ((), (), ())


def _spoil(folder, name, off):
    path = folder / "out" / name
    if name == "a.star":
        path.write_text(f"data_\nloop_\n_rlnDefocusU #1\n{15000.5 * (1 + off):.6f}\n")
    elif name.endswith(".npz"):
        np.savez(path, field=np.arange(6.0) * (1 + off), class_of=np.arange(3))
    elif name.endswith(".mrcs"):
        write_stack(path, np.full((2, 4, 4), 1 + off, np.float32), 1.5)
    else:
        path.write_text(json.dumps({"mark": "x", "seconds": 9, "columns": {"a": 1.5 * (1 + off)}}))


@pytest.mark.parametrize("name", ["a.star", "run_it001_polarice.npz", "a.mrcs", "m_polarice.json"])
def test_what_differs_is_named_and_rounding_is_not_where_it_may_be(two, name):
    _spoil(two[0], name, 1e-6)
    assert compared(*two, 0.0) == ((f"out/{name}",), (), ())
    assert compared(*two, 1e-4) == ((), (), ())
    _spoil(two[0], name, 1e-2)
    assert compared(*two, 1e-4) == ((f"out/{name}",), (), ())


def test_classes_are_not_rounded(two):
    np.savez(two[0] / "out/run_it001_polarice.npz", field=np.arange(6.0), class_of=np.array([0, 1, 1]))
    assert compared(*two, 1e-4) == (("out/run_it001_polarice.npz",), (), ())


def test_numbers_that_are_none_are_no_rounding(two):
    write_stack(two[0] / "out/a.mrcs", np.full((2, 4, 4), np.nan, np.float32), 1.5)
    assert not same(two[0] / "out/a.mrcs", two[1] / "out/a.mrcs", 1e-4)


def test_missing_files_and_leftovers_are_named(two):
    (two[0] / "out/a.mrcs").unlink()
    (two[0] / "out/.a.star.tmp-17").touch()
    (two[0] / "tmp").mkdir()
    (two[0] / "tmp/unpacked").touch()
    assert compared(*two, 0.0) == ((), ("out/a.mrcs",), ("out/.a.star.tmp-17", "tmp/unpacked"))


def test_processes_of_a_folder_are_found(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=tmp_path, stdin=subprocess.PIPE) as child:
        assert processes_in(tmp_path) == [child.pid]
        child.kill()
    assert processes_in(tmp_path) == [] and os.getpid() not in processes_in(tmp_path)


def test_what_is_found_is_counted():
    found = [
        fell(),
        fell(stage="before its folder", leftovers=("out/x.tmp-1", "b")),
        fell(failed="error: no", processes=2),
    ]
    assert rows_of(found) == [("ctf", "2", "3", "3 micrographs (2), before its folder (1)", "1", "0", "1", "2")]
    assert [sound([each]) for each in found] == [True, False, False] and not sound([fell(missing=("a",))])
    assert verdict(found[0]) == "as if nothing had been" and verdict(found[1]) == "left over: out/x.tmp-1, b"
    assert verdict(found[2]) == "failed (error: no); 2 processes left behind"


def test_one_number_of_ranks_without_jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for ranks in ("1", "1,2"):
        ended = polarice(f"bench kills --o out --ranks {ranks}")
        assert ended.code == 2 and "--ranks: 2 or more, one number; several, and 1, go with --jobs" in ended.err


@pytest.mark.slow
def test_a_few_kills_of_several_jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = "bench kills --o out --jobs extract,align2d --ranks 1,2 --kills 4 --particles 60 --box 32 --seed 2"
    assert polarice(line).code == 0
    told = json.loads((tmp_path / "out/kills.json").read_text())["kills"]
    assert [(each["job"], each["ranks"]) for each in told] == [
        ("extract", 1),
        ("extract", 2),
        ("align2d", 1),
        ("align2d", 2),
    ]
    for each in told:
        assert not each["failed"] and not each["differing"] and not each["missing"] and not each["processes"]
    assert "| align2d | 2" in (tmp_path / "out/kills.md").read_text()

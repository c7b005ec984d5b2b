"""What a job says of itself, while it works and at its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polarice.project import state
from polarice.project.progress import Bar
from polarice.project.state import EXITS, JobState, claimed, read_state, report_progress, working


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "WRITTEN_EVERY_S", 0.02)
    return tmp_path


def eventually(folder: Path, holds) -> JobState:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if (found := read_state(folder)) is not None and holds(found):
            return found
        time.sleep(0.01)
    raise AssertionError(read_state(folder))


def test_a_job_says_what_it_is_at(folder):
    with working("class2d", folder):
        claimed(folder)
        report_progress("iteration 1", 0, 200)
        time.sleep(0.05)
        report_progress("iteration 1", 50, 200)
        found = eventually(folder, lambda found: found.done == 50)
        assert (found.job, found.state, found.step, found.total, found.pid) == (
            "class2d", "running", "iteration 1", 200, os.getpid(),
        )  # fmt: skip
        assert found.estimate_s is not None and 0.1 < found.estimate_s < 30 and not found.is_lost
        assert found.told().startswith("running: iteration 1, 50 of 200, ") and found.told().endswith(" s left")
        beat = found.heartbeat
        assert not [name for name in EXITS.values() if (folder / name).exists()]
    done = read_state(folder)
    assert done is not None and done.state == "done" and done.heartbeat >= beat
    assert (folder / "RELION_JOB_EXIT_SUCCESS").read_bytes() == b""


@pytest.mark.parametrize(
    ("error", "ended", "marker"),
    [
        (ValueError("row 3 is\nodd"), "failed", "RELION_JOB_EXIT_FAILURE"),
        (KeyboardInterrupt(), "stopped", "RELION_JOB_EXIT_ABORTED"),
        (SystemExit(2), "failed", "RELION_JOB_EXIT_FAILURE"),
    ],
)
def test_how_it_ended(folder, error, ended, marker):
    (folder / "RELION_JOB_EXIT_SUCCESS").touch()  # of the run before
    with pytest.raises(type(error)), working("ctf", folder):
        claimed(folder)
        eventually(folder, lambda found: found.state == "running")
        raise error
    found = read_state(folder)
    assert found is not None and found.state == ended
    assert found.error == (
        "row 3 is odd" if ended == "failed" and error.args[0] != 2 else "2" if ended == "failed" else ""
    )
    assert [name for name in EXITS.values() if (folder / name).exists()] == [marker]


def test_a_folder_that_no_job_has_claimed_is_left_alone(tmp_path):
    with working("ctf", tmp_path), working("ctf", tmp_path / "nowhere"):
        report_progress("x", 1, 2)
    with working("run", None):
        report_progress("x", 1, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_job_whose_process_is_gone_is_lost(folder):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    told = JobState("sml", host=os.uname().nodename, pid=process.pid, step="iteration 3", done=1, total=9)
    (folder / state.NAME).write_text(json.dumps(vars(told)))
    found = read_state(folder)
    assert found == told and found.is_lost and found.told() == "killed, or its node lost, at iteration 3, 1 of 9"
    elsewhere = JobState("sml", host="another", pid=1, heartbeat=time.time())
    assert not elsewhere.is_lost and JobState("sml", host="another", heartbeat=time.time() - 100).is_lost


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"job": 3}',
        '{"job": "a", "state": "odd"}',
        '{"job": "a", "done": "x"}',
        '{"job": "a", "estimate_s": "soon"}',
        '{"job": "a", "pid": 1e99}',
        '{"job": "a", "pid": 99999999999999999999}',
        '{"job": "a", "heartbeat": NaN}',
    ],
)
def test_a_damaged_state_says_nothing(tmp_path, text):
    (tmp_path / state.NAME).write_text(text)
    assert read_state(tmp_path) is None


def test_a_log_has_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr("polarice.project.progress.LINE_EVERY_S", 0.0)
    with Bar("class2d 1/2", 100) as bar:
        for _ in range(50):
            bar.update(2)
    lines = capsys.readouterr().err.splitlines()
    assert 15 <= len(lines) <= 20 and lines[0].startswith("class2d 1/2: 6 of 100 img (6%), ")
    with Bar("quiet", 100, quiet=True) as bar:
        bar.update(50)
    assert capsys.readouterr().err == ""

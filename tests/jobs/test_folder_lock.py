"""One process in a folder: others are told so, whatever the job, and what they were told goes with the first."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.runs import polarice
from polarice.project.folder_lock import alone
from polarice.types import InputError

DEAD = 2**22 + 1  # more than any process's number


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", ["import nothing.star --o out", "ctf nothing.star --o out", "motion m.star --o out"])
def test_a_folder_in_use_is_refused(here, line):
    Path("nothing.star").write_text("data_\n")
    with alone(Path("out")):
        ended = polarice(line)
    assert ended.code == 2 and "out: another process is at work there; wait for its end" in ended.err
    assert not Path("out").exists()  # nothing was put there, and it was made for this


def test_a_workflow_is_run_once_at_a_time(here):
    Path("w.toml").write_text('[[step]]\njob = "simulate"\ninputs = ["x.mrc"]\n')
    with alone(Path("w.toml")):
        ended = polarice("run w.toml")
    assert ended.code == 2 and "another process is at work with it; wait for its end" in ended.err


def test_what_lies_in_the_folder_stays(here):
    with alone(Path("a/b")):
        Path("a/b/result").write_text("1")
    assert Path("a/b/result").exists()


@pytest.fixture
def no_locks(monkeypatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)


def test_where_a_file_system_has_no_locks_a_note_keeps_others_away(here, no_locks):
    note = here / "out/.out.at_work"
    with alone(Path("out")):
        assert note.read_text() == f"{socket.gethostname()} {os.getpid()}\n"
        with pytest.raises(InputError, match=f"process {os.getpid()} on {socket.gethostname()} is at work there"):
            alone(Path("out")).__enter__()
        assert note.exists()
    assert not Path("out").exists()


@pytest.mark.parametrize(("host", "taken"), [(socket.gethostname(), True), ("elsewhere", False)])
def test_a_note_of_a_process_that_is_gone_is_taken_over_on_its_own_host(here, no_locks, host, taken):
    Path("out").mkdir()
    note = here / "out/.out.at_work"
    note.write_text(f"{host} {DEAD}\n")
    if taken:
        with alone(Path("out")):
            assert note.read_text().split()[1] == str(os.getpid())
        assert not note.exists()
    else:
        with pytest.raises(InputError, match=f"if it has ended, remove out/{note.name}"):
            alone(Path("out")).__enter__()


def test_ctrl_c_while_the_command_line_loads_ends_in_one_line():
    script = (
        "import sys\nclass Interrupt:\n    def find_spec(self, name, *_):\n"
        "        if name == 'polarice.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\nimport polarice.__main__ as m\nsys.exit(m.run())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "polarice: interrupted\n")

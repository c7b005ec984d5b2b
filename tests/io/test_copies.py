"""Copies of stacks on a disk of one's own: whole, shared, and gone with the last job."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_stacks import BOX, make, particles

from polarice.io import copies
from polarice.io.copies import copied
from polarice.io.stacks import StackSource
from polarice.types import InputError

PARTS = [
    np.arange(3, 8),
    np.arange(12, 17),
]  # of three stacks of ten: sections 3 .. 7 of the first, 2 .. 6 of the second


@pytest.fixture
def disk(tmp_path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


@pytest.fixture
def table(tmp_path):
    return particles(make(tmp_path, [10, 10, 10]), np.repeat(np.arange(3), 10), np.tile(np.arange(10), 3))


def test_copies_hold_what_is_wanted_and_go(table, disk):
    with copied(disk, table, PARTS, False) as found:
        assert [(each.first, each.stop) for each in found.values()] == [(3, 8), (2, 7)]
        assert all(each.size == 1024 + 5 * 4 * BOX**2 for each in found.values())
        source = StackSource(table, copies=found)
        source.check()
        for name in (table.stacks[0], table.stacks[1]):
            shutil.move(name, f"{name}.away")  # only the copies can be read now, and the third stack
        rows = np.concatenate([*PARTS, [25]])
        np.testing.assert_array_equal(source.read(rows)[:, 0, 0], (100 * table.stack_of + table.section)[rows])
        assert source.traffic.bytes == 11 * 4 * BOX**2
    assert list(disk.iterdir()) == []


def test_what_is_not_copied_is_read_from_the_stack(table, disk):
    with copied(disk, table, PARTS, False) as found:
        source = StackSource(table, copies=found)
        np.testing.assert_array_equal(source.read(np.arange(30))[:, 0, 0], 100 * table.stack_of + table.section)


def test_two_jobs_share_one_set(table, disk):
    with copied(disk, table, PARTS, False) as mine:
        before = {each.path: os.stat(each.path).st_ino for each in mine.values()}
        with copied(disk, table, PARTS, False) as theirs:
            assert {each.path: os.stat(each.path).st_ino for each in theirs.values()} == before
        assert all(path.exists() for path in before)
        with copied(disk, table, PARTS[:1], False) as others:
            assert not {each.path for each in others.values()} & set(before)
        assert all(path.exists() for path in before)
    assert list(disk.iterdir()) == []


def test_what_a_killed_job_leaves_is_removed_by_the_next(table, disk, tmp_path):
    left = disk / "polarice-copy-0123456789abcdef"
    left.mkdir()
    (left / "000000.mrcs").write_bytes(b"half a stack")
    lock = left.with_name(f"{left.name}.lock")
    hold = "fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); time.sleep(60)"
    hold = "fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); time.sleep(60)"
    script = f"import fcntl, time\nf = open({str(lock)!r}, 'w'); {hold}"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with copied(disk, table, PARTS, False):
            assert left.exists()  # somebody reads there
        holder.send_signal(signal.SIGKILL)
    with copied(disk, table, PARTS, False):
        assert not left.exists() and not lock.exists()


def test_half_a_set_is_made_anew(table, disk, monkeypatch):
    with copied(disk, table, PARTS, False) as found:
        place = next(iter(found.values())).path.parent
    place.mkdir()
    (place / "000000.mrcs").write_bytes(b"half a stack")
    with copied(disk, table, PARTS, False) as found:
        assert StackSource(table, copies=found).read(PARTS[0]).shape == (5, BOX, BOX)


@pytest.mark.parametrize(
    ("what", "instead", "message"),
    [
        ("shutil.disk_usage", lambda path: SimpleNamespace(free=3000), "the particles take 0.00 GB, 0.00 GB are free"),
        (
            "os.pwrite",
            lambda file, data, place: len(data),
            "is not what was read from .*s0.mrcs; is this disk in order",
        ),
    ],
)
def test_a_disk_that_will_not_do(table, disk, monkeypatch, what, instead, message):
    monkeypatch.setattr(f"polarice.io.copies.{what}", instead)
    with pytest.raises(InputError, match=message), copied(disk, table, PARTS, False):
        pass
    assert list(disk.iterdir()) == []


def test_a_folder_that_is_not_there(table, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"), copied(tmp_path / "nowhere", table, PARTS, False):
        pass
    assert copies.PREFIX == "polarice-copy-"

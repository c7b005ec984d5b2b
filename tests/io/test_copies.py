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


@pytest.fixture
def made(table, disk, tmp_path) -> Path:
    """A whole set of copies, as a killed job leaves it."""
    with copied(disk, table, PARTS, False) as found:
        place = next(iter(found.values())).path.parent
        assert place.stat().st_mode & 0o777 == 0o700
        shutil.copytree(place, tmp_path / "kept")
    shutil.move(tmp_path / "kept", place)
    return place


def _values(table, disk) -> tuple[np.ndarray, int]:
    with copied(disk, table, PARTS, False) as found:
        first = next(iter(found.values())).path
        return StackSource(table, copies=found).read(PARTS[0])[:, 0, 0], first.stat().st_ino


def _spoil(file: Path) -> None:
    with open(file, "rb+") as stream:
        stream.seek(1024 + 4 * BOX**2 * 4)
        stream.write(b"spoilt")


@pytest.mark.parametrize(
    "how",
    [
        lambda place: _spoil(place / "000000.mrcs"),
        lambda place: place.chmod(0o755),
        lambda place: (place / "complete").write_text(""),
        lambda place: os.link(place / "000000.mrcs", place.parent / "second name"),
        lambda place: os.truncate(place / "000001.mrcs", 2000),
    ],
)
def test_copies_that_are_not_as_they_were_made_are_made_anew(table, disk, made, how):
    before = (made / "000000.mrcs").stat().st_ino
    how(made)
    with open(made / "000000.mrcs", "rb"):  # so that its number is not given again
        values, after = _values(table, disk)
    assert values.tolist() == [3, 4, 5, 6, 7] and after != before


def test_a_whole_set_is_used_again(table, disk, made):
    before = (made / "000000.mrcs").stat().st_ino
    assert _values(table, disk)[1] == before


def test_copies_of_another_user_are_not_used(table, disk, made, monkeypatch):
    _spoil(made / "000000.mrcs")
    held = os.open(made, os.O_RDONLY)  # so that its number is not given again
    foreign = os.fstat(held).st_ino
    monkeypatch.setattr(copies, "_own", lambda status: status.st_ino != foreign)
    assert _values(table, disk)[0].tolist() == [3, 4, 5, 6, 7]
    os.close(held)


@pytest.mark.parametrize("ending", ["", ".lock"])
def test_a_link_in_the_place_of_copies_is_not_followed(table, disk, made, tmp_path, ending):
    shutil.move(made, tmp_path / "elsewhere")
    victim = tmp_path / "elsewhere"
    made.with_name(made.name + ending).symlink_to(victim if not ending else victim / "000000.mrcs")
    with pytest.raises(InputError, match=r"--copy-to .*; name another folder"):
        _values(table, disk)
    assert sorted(path.name for path in victim.iterdir()) == ["000000.mrcs", "000001.mrcs", "complete"]


def test_copies_that_another_job_reads_are_not_remade_under_it(table, disk):
    with copied(disk, table, PARTS, False) as found:
        _spoil(next(iter(found.values())).path)
        with pytest.raises(InputError, match="not what was copied, and another job reads it"):
            _values(table, disk)


def test_a_folder_that_takes_no_files(table):
    with pytest.raises(InputError, match="--copy-to /proc: takes no files"), copied(Path("/proc"), table, PARTS, False):
        pass

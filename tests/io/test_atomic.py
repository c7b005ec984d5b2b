"""A file is complete or not there, whatever goes wrong while it is written."""

import errno
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from polarice.io.atomic import naming_full_disk, replacing
from polarice.io.mrc import write_stack, write_volume
from polarice.io.star import Block, Table, write_star
from polarice.types import InputError


@contextmanager
def at_most(size):
    """Let the system refuse files above `size` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_writes_bytes_and_text(tmp_path):
    with replacing(tmp_path / "a") as stream:
        stream.write(b"one\r\n")
    with replacing(tmp_path / "b", "w") as stream:
        stream.write("Å\n")
    assert (tmp_path / "a").read_bytes() == b"one\r\n"
    assert (tmp_path / "b").read_bytes() == "Å\n".encode()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_what_was_there(tmp_path, error):
    target = tmp_path / "a"
    target.write_bytes(b"before")
    with pytest.raises(error), replacing(target) as stream:
        stream.write(b"after")
        raise error
    assert target.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a"]


def test_a_full_disk_is_an_input_error_and_leaves_nothing(tmp_path):
    target = tmp_path / "a"
    target.write_bytes(b"before")
    full = pytest.raises(InputError, match=r"disk full while writing .*/a; free some space")
    with at_most(100_000), full, replacing(target) as stream:
        for _ in range(100):
            stream.write(bytes(10_000))
    assert target.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["stack.mrcs", "volume.mrc", "table.star"])
def test_every_writer_survives_a_full_disk(tmp_path, name):
    values = np.random.default_rng(0).normal(size=(40, 40, 40))
    writers = {
        "stack.mrcs": lambda path: write_stack(path, values, 1.0),
        "volume.mrc": lambda path: write_volume(path, values, 1.0),
        "table.star": lambda path: write_star(path, [Block("x", table=Table.of({"a": values.ravel()}))]),
    }
    target = tmp_path / name
    target.write_bytes(b"before")
    with at_most(100_000), pytest.raises(InputError, match=rf"disk full while writing .*/{name}"):
        writers[name](target)
    assert target.read_bytes() == b"before"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_the_system_saying_no_space_left_is_named():
    full = pytest.raises(InputError, match=r"disk full while writing results.star; free some space")
    with full, naming_full_disk("results.star"), open("/dev/full", "wb", buffering=0) as stream:
        stream.write(b"x")


def test_an_error_of_the_block_keeps_its_own_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"other"), replacing(tmp_path / "a"):
        open(tmp_path / "other")  # noqa: SIM115
    assert os.listdir(tmp_path) == []


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"there is no folder .*/none; make it first"), replacing(tmp_path / "none/a"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"a folder stands there"), replacing(tmp_path / "folder"):
        pass
    assert os.listdir(tmp_path) == ["folder"]

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    denied = pytest.raises(InputError, match=r"no permission to write .*/a; choose another folder")
    with denied, replacing(tmp_path / "a"):
        pass


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").write_bytes(b"before")
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as stream:
        stream.write(b"after")
    assert (tmp_path / "real").read_bytes() == b"after"
    assert (tmp_path / "link").is_symlink()

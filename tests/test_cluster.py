"""Ranks: what the launcher says, whose rows are whose, one buffer for many tensors; alone, a sum is what one has."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polarice.cluster import Comm, Serial, hub, launched, part
from polarice.cluster.launch import Launch
from polarice.cluster.packed import joined, summed
from polarice.types import Assignment, Pose2D


def test_serial_hands_back_the_very_same_object():
    comm: Comm = Serial()
    stats = {"numerator": np.arange(3.0)}
    assert (comm.rank, comm.size, comm.node_ranks) == (0, 1, (0,))
    assert comm.sum(stats) is stats and comm.all_gather(stats) is stats and comm.broadcast(stats) is stats
    assert comm.collect(stats) == [stats] and comm.on_root(lambda: stats) is stats
    np.testing.assert_array_equal(stats["numerator"], [0, 1, 2])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, None),
        ({"PMI_RANK": "2", "PMI_SIZE": "3"}, Launch(2, 3, False)),
        ({"PMI_RANK": "2", "PMI_SIZE": "3", "MPI_LOCALNRANKS": "2"}, Launch(2, 3, False)),
        ({"PMI_RANK": "2", "PMI_SIZE": "3", "MPI_LOCALNRANKS": "3"}, Launch(2, 3, False, True)),
        ({"PMI_RANK": "0", "PMI_SIZE": "2", "SLURM_STEP_NUM_NODES": "1"}, Launch(0, 2, False, True)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "8", "PMIX_RANK": "1"}, Launch(1, 8, True)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_NTASKS": "6"}, Launch(5, 6, False)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "6"}, None),  # in the batch script itself, outside of srun
    ],
)
def test_what_the_launcher_says(environment, expected):
    assert launched(environment) == expected


def test_alone_mpi4py_is_not_loaded():
    script = "import sys, polarice.cluster as c\nwith c.world('x') as comm: print(comm.size, 'mpi4py' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "1 False\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
def test_parts_are_even_and_end_where_files_end(size):
    rng = np.random.default_rng(0)
    files = np.repeat(np.arange(2000), rng.integers(50, 150, 2000))
    parts = [part(files, rank, size) for rank in range(size)]
    np.testing.assert_array_equal(
        np.concatenate([np.arange(len(files))[each] for each in parts]), np.arange(len(files))
    )
    counts = [each.stop - each.start for each in parts]
    assert max(counts) <= 1.04 * len(files) / size
    for each in parts[1:]:
        assert files[each.start - 1] != files[each.start]


def test_parts_of_one_file_differ_by_one_row_at_the_most():
    counts = [part(np.zeros(100), rank, 7) for rank in range(7)]
    assert {each.stop - each.start for each in counts} == {14, 15}


@dataclass(frozen=True)
class Inner:
    spectrum: Any
    count: Any


@dataclass(frozen=True)
class Outer:
    inner: Inner
    table: dict[str, Any]
    pair: tuple[Any, ...]


def outer(seed: int) -> Outer:
    rng = np.random.default_rng(seed)
    complex_ = torch.from_numpy(rng.standard_normal((3, 2)) + 1j * rng.standard_normal((3, 2)))
    inner = Inner(complex_.transpose(0, 1), torch.tensor(seed + 1))
    return Outer(inner, {"b": rng.random(4).astype(np.float32), "a": 2.5 * seed}, (seed, np.arange(3) * 2**40 + seed))


def test_one_buffer_of_each_precision_holds_a_whole_tree():
    mine, other = outer(1), outer(2)
    sent: dict[np.dtype, np.ndarray] = {}
    summed(other, lambda buffer: sent.update({buffer.dtype: buffer.copy()}))
    messages = []

    def all_reduce(buffer: np.ndarray) -> None:
        messages.append((buffer.dtype.name, len(buffer)))
        buffer += sent[buffer.dtype]

    total = summed(mine, all_reduce)
    assert messages == [("float32", 4), ("float64", 2 * 6 + 1 + 1 + 1 + 3)]
    assert torch.equal(total.inner.spectrum, mine.inner.spectrum + other.inner.spectrum)
    assert total.inner.count.dtype == torch.int64 and int(total.inner.count) == 5
    np.testing.assert_array_equal(total.table["b"], mine.table["b"] + other.table["b"])
    assert list(total.table) == ["b", "a"] and total.table["a"] == 7.5
    assert total.pair[0] == 3 and isinstance(total.pair[0], int)
    np.testing.assert_array_equal(total.pair[1], 2 * np.arange(3) * 2**40 + 3)
    assert torch.equal(mine.inner.spectrum, outer(1).inner.spectrum)  # what was given is left alone


def assignment(n: int, seed: int) -> Assignment:
    rng = np.random.default_rng(seed)
    pose = Pose2D(rng.integers(0, 9, n).astype(np.int32), rng.random(n), rng.random((n, 2)))
    return Assignment(pose, rng.random(n), rng.random(n).astype(np.float32), rng.integers(0, 99, n).astype(np.int32))


def test_parts_of_a_table_are_joined_and_put_back():
    whole = assignment(11, 0)
    parts = [whole.take(np.arange(11)[cut]) for cut in (slice(0, 4), slice(4, 4), slice(4, 11))]
    sent: list[np.ndarray] = []
    for each in parts:
        joined(each, lambda own: sent.append(own) or [own])
    for each in parts:
        again = joined(each, lambda own: sent)
        np.testing.assert_array_equal(again.pose.shift_px, whole.pose.shift_px)
        np.testing.assert_array_equal(again.significant, whole.significant)
        assert again.max_probability.dtype == np.float32
    rows = np.array([3, 0, 7])
    changed = whole.put(rows, assignment(3, 1))
    np.testing.assert_array_equal(changed.pose.psi_deg[rows], assignment(3, 1).pose.psi_deg)
    np.testing.assert_array_equal(np.delete(changed.log_likelihood, rows), np.delete(whole.log_likelihood, rows))
    np.testing.assert_array_equal(whole.pose.psi_deg, assignment(11, 0).pose.psi_deg)


SECRET = "the run's secret"
HUB = [sys.executable, "-I", "-S", hub.__file__, "class2d"]


def greeted(port: int, number: int, secret: str = SECRET, host: str = "") -> socket.socket:
    """A connection that has said it is a rank's."""
    connection = socket.create_connection(("localhost", port))
    connection.settimeout(20)
    nonce = line_of(connection).removeprefix("nonce ")
    who = (number, host or f"node{number // 2}", 1000 + number)
    connection.sendall(f"hello {' '.join(map(str, who))} {hub.signed(secret, nonce, *who)}\n".encode())
    return connection


def rank_at(port: int, number: int, host: str = "") -> socket.socket:
    connection = greeted(port, number, host=host)
    assert line_of(connection) == "welcome"
    return connection


def line_of(connection: socket.socket) -> str:
    found = b""
    while not found.endswith(b"\n") and (byte := connection.recv(1)):
        found += byte
    return found.decode().strip()


class Told:
    """A hub, and ranks that speak to it; `first`: statements before it begins."""

    def __init__(self, ranks: int, first: str = "", count: int = 0) -> None:
        here = str(Path(hub.__file__).parent)
        script = f"import sys; sys.path.insert(0, {here!r}); import hub; {first}; hub.main(*sys.argv[1:])"
        words = [sys.executable, "-c", script, "class2d"] if first else HUB
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [*words, str(count or ranks), ""], stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        self.process.stdin.write(SECRET + "\n")
        self.process.stdin.flush()
        self.port = int(self.process.stdout.readline())
        self.ranks = [rank_at(self.port, number) for number in range(ranks)]

    def stranger(self) -> socket.socket:
        connection = socket.create_connection(("localhost", self.port))
        connection.settimeout(20)
        return connection

    def end(self) -> str:
        """What the hub has printed, when it and all ranks have gone."""
        for each in self.ranks:
            each.close()
        return self.process.communicate(timeout=20)[1]


def test_the_hub_goes_when_all_ranks_have_said_goodbye():
    told = Told(3)
    stranger = socket.create_connection(("localhost", told.port))
    stranger.sendall(b"bye\n")
    stranger.close()
    for each in told.ranks:
        each.sendall(b"bye\n")
    assert told.end() == "" and told.process.returncode == 0


def test_the_hub_names_a_rank_that_is_gone_and_stops_the_others():
    told = Told(4)
    told.ranks[0].sendall(b"bye\n")
    told.ranks[2].close()
    assert [told.ranks[number].recv(16) for number in (1, 3)] == [b"stop\n"] * 2
    said = told.end()
    assert said.startswith("polarice class2d: error: rank 2 on node1: process 1002 was killed")
    assert said.count("\n") == 1


def test_the_hub_hands_on_what_a_rank_says():
    told = Told(2)
    told.ranks[1].sendall(b"failed " + json.dumps("stack.mrcs is cut off;\ncopy it again").encode() + b"\n")
    assert told.ranks[0].recv(16) == b"stop\n"
    assert told.end() == "polarice class2d: error: rank 1 on node0: stack.mrcs is cut off;\ncopy it again\n"


def test_a_rank_that_mpi_ends_is_not_called_the_cause(tmp_path):
    """MPI exits a process where another rank is gone, and the system may close that one's connections later."""
    here = socket.gethostname()
    markers = [tmp_path / f"{hub.MARKER}{number}" for number in range(3)]
    for killed in (True, False):
        told = Told(0, count=3)
        told.ranks = [rank_at(told.port, number, here) for number in range(3)]
        for each, marker in zip(told.ranks, markers, strict=True):
            marker.touch()
            each.sendall(f"marker {marker}\n".encode())
        markers[0].unlink()
        told.ranks[0].close()
        time.sleep(0.8 if killed else 0.05)  # longer than what a killed one is waited for
        if killed:
            told.ranks[1].close()
        assert told.ranks[2].recv(16) == b"stop\n"
        why = "1 on {}: process 1001 was killed" if killed else "0 on {}: process 1000 ended, by MPI or another library"
        assert told.end().startswith(f"polarice class2d: error: rank {why.format(here)}")
        assert not any(marker.exists() for marker in markers)


@pytest.mark.parametrize(
    "line",
    [b"hello x\n", b"hello\n", b'failed "x"\n', b"bye\n", b"\xff\xfe\n", b"x" * 100_000, b"hello 0 n 1 \xc3\xa9\n"],
)
def test_strangers_are_sent_away(line):
    told = Told(2)
    with told.stranger() as stranger:
        line_of(stranger)
        stranger.sendall(line)
        with suppress(ConnectionResetError):
            assert stranger.recv(16) == b""
    for number, secret in ((1, "another"), (1, SECRET), (7, SECRET)):  # rank 1 is here already; there is no rank 7
        with greeted(told.port, number, secret) as wrong:
            assert wrong.recv(16) == b""
    for each in told.ranks:
        each.sendall(b"bye\n")
    assert told.end() == "" and told.process.returncode == 0


def test_idle_strangers_do_not_keep_ranks_out():
    told = Told(3, "hub.INTRODUCTION_S = 0.5; hub.ALIVE_S = 0.1")
    told.ranks[2].sendall(b"bye\n")
    crowd = [told.stranger() for _ in range(300)]
    for each in crowd[:100]:  # the oldest go where there are too many
        with suppress(ConnectionResetError):
            assert line_of(each).startswith("nonce") and each.recv(16) == b""
    since = time.monotonic()
    assert line_of(crowd[-1]).startswith("nonce") and crowd[-1].recv(16) == b""
    assert time.monotonic() - since < 5
    told.ranks[1].sendall(b'failed "x"\n')
    assert told.end().endswith("error: rank 1 on node0: x\n")
    for each in crowd:
        each.close()


def test_a_rank_that_is_stopped_is_told_and_so_is_its_return():
    told = Told(3, "hub.SILENT_S = 0.4; hub.ALIVE_S = 0.1")
    until = time.monotonic() + 0.6
    while time.monotonic() < until:
        for number in (0, 1):
            told.ranks[number].sendall(b"alive\n")
        time.sleep(0.05)
    word, _, said = line_of(told.ranks[0]).partition(" ")
    assert word == "tell"
    assert json.loads(said).startswith(
        "polarice class2d: warning: rank 2 on node1 (process 1002) has given no sign of life for "
    )
    for each in told.ranks:
        each.sendall(b"alive\n")
    assert "rank 2 on node1 is back after" in line_of(told.ranks[0])
    for each in told.ranks:
        each.sendall(b"bye\n")
    assert told.end() == ""


def test_ranks_of_one_node_are_listened_to_there_alone():
    process = subprocess.Popen([*HUB, "2", "127.0.0.1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write(SECRET + "\n")
    process.stdin.flush()
    port = int(process.stdout.readline())
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    at = [row.split()[1] for rows in tables for row in rows if row.split()[3] == "0A"]
    assert [each for each in at if int(each.partition(":")[2], 16) == port] == [f"0100007F:{port:04X}"]
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_the_hub_ends_a_job_whose_rank_0_never_comes(tmp_path):
    """A rank was lost before it said anything: rank 0, the hub's parent, waits for it in MPI's own start."""
    rank_0 = tmp_path / "rank0"
    rank_0.write_text('#!/bin/sh\nexec 3<&0\n"$@" <&3 &\nwait\n')
    rank_0.chmod(0o755)
    words = [str(rank_0), *HUB, "3", "", "0.5"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    process.stdin.write(SECRET + "\n")
    process.stdin.flush()
    with rank_at(int(process.stdout.readline()), 1) as rank_1:
        assert rank_1.recv(16) == b"stop\n"
    said = process.communicate(timeout=20)[1]
    assert said.startswith("polarice class2d: error: not all of 3 ranks have come within 0 s")
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_the_hub_speaks_past_the_launchers_helpers_and_after_its_last_words(tmp_path, kind):
    """What the hub's own standard error leads to is lost here, as when a launcher's helper ends before it is read."""
    launcher = tmp_path / "mpirun"
    launcher.write_text('#!/bin/sh\nexec 3<&0\n"$@" 2>/dev/null <&3 &\nsleep 0.5\necho last words >&2\n')
    launcher.chmod(0o755)
    words = [str(launcher), *HUB, "3", ""]
    pipe = subprocess.PIPE
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=log if kind == "file" else pipe, text=True)
    process.stdin.write(SECRET + "\n")
    process.stdin.flush()
    port = int(process.stdout.readline())
    ranks = [rank_at(port, number) for number in (0, 2)]
    ranks[1].close()
    assert ranks[0].recv(16) == b"stop\n"
    ranks[0].close()
    if kind == "pipe":
        said = process.communicate(timeout=20)[1]
    else:
        until = time.monotonic() + 20
        while "rank 2" not in (said := (tmp_path / "log").read_text()):
            assert time.monotonic() < until, said
            time.sleep(0.02)
        assert said.startswith("last words\npolarice class2d: error: rank 2")
        process.communicate(timeout=20)
    assert "error: rank 2 on node1: process 1002 was killed" in said and "last words" in said

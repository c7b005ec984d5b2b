"""Whom every rank stays connected to: says which one failed, where and why, and ends the others.

A process of its own, started by rank 0 as a script without any package, in a session of its own: a launcher that kills
all ranks as soon as one is gone does not keep it from telling. It ends with the last rank.

    hub.py JOB RANKS TOKEN [S]  prints its port; rank 0 holds its standard input; within S seconds rank 0 is here
    a rank says                 hello TOKEN RANK HOST PID, then: bye, or: failed MESSAGE (a JSON string)
    the hub says                stop
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

KEEP_ALIVE = (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 4))  # a node that is off is missed after 7 s
GATHER_S = 300.0  # until rank 0 comes, when MPI has started on all: they load PyTorch, some from a slow file system
GRACE_S = 2.0  # for the others to end, after which the connections are closed
LAUNCHERS = ("mpirun", "mpiexec", "hydra", "prterun", "prted", "orted")
LAUNCHER_S = 5.0  # that a launcher may take to end


def keep_alive(connection: socket.socket) -> None:
    """Let the system notice that the other side's node is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def ended_for_memory() -> int:
    """How many programs this system has ended for want of memory."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def launcher_of(process: int) -> int:
    """The launcher that started a process on this node; 0 where there is none."""
    found = 0
    with suppress(OSError, ValueError):
        while process > 1:
            name, _, rest = Path(f"/proc/{process}/stat").read_text().partition("(")[2].rpartition(")")
            found = process if name.startswith(LAUNCHERS) else found
            process = int(rest.split()[1])
    return found


class Voice:
    """The launcher's own standard error.

    What ranks print goes through its helpers, which end within milliseconds of the first rank, and may lose it.
    """

    def __init__(self, launcher: int) -> None:
        self.stream, self.launcher = 2, launcher
        with suppress(OSError):
            self.stream = os.open(f"/proc/{launcher}/fd/2", os.O_WRONLY | os.O_APPEND)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its helpers, and so the launcher, wait for ours to be closed

    @property
    def waits(self) -> bool:
        """Whether it is a file: the launcher's last words would be written over what stands there before them."""
        return self.stream != 2 and stat.S_ISREG(os.fstat(self.stream).st_mode)

    def say(self, line: str) -> None:
        until = time.monotonic() + LAUNCHER_S
        while self.waits and Path(f"/proc/{self.launcher}").exists() and time.monotonic() < until:
            time.sleep(0.02)
        with suppress(OSError):
            os.write(self.stream, line.encode())


class Hub:
    """The connections and what was said on them."""

    def __init__(self, job: str, ranks: int, token: str, gather_s: float = GATHER_S) -> None:
        self.job, self.ranks, self.token = job, ranks, token
        self.gather_s, self.deadline = gather_s, time.monotonic() + gather_s
        self.begun, self.parent = False, os.getppid()  # whether rank 0, the parent, has come
        self.listener = socket.create_server(("", 0), backlog=1024)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(sys.stdin, selectors.EVENT_READ)
        self.said: dict[socket.socket, bytes] = {}  # what is left of the last line
        self.who: dict[socket.socket, tuple[int, str, str]] = {}  # rank, host, process
        self.gone = 0
        self.ended_for_memory = ended_for_memory()
        self.voice = Voice(launcher_of(os.getppid()))

    def run(self) -> None:
        """Until all have said goodbye, or one has failed."""
        while self.gone < self.ranks:
            events = self.selector.select(None if self.begun else max(0.0, self.deadline - time.monotonic()))
            if not events and not self.begun:
                self.give_up()
                return
            for key, _ in events:
                if key.fileobj is self.listener:
                    self.accept()
                elif key.fileobj is sys.stdin:
                    self.selector.unregister(sys.stdin)
                    if not self.who:  # rank 0 went before anyone came
                        return
                elif (message := self.hear(key.fileobj)) is not None:  # type: ignore[arg-type]
                    self.end(message)
                    return

    def give_up(self) -> None:
        """End a job that has not begun: rank 0 and others wait, in MPI's start, for one that is lost."""
        self.end(
            f"polarice {self.job}: error: not all of {self.ranks} ranks have come within {self.gather_s:.0f} s: one "
            "was lost before it began, or cannot be reached; start again\n"
        )
        if os.getppid() == self.parent > 1:
            with suppress(OSError):
                os.kill(self.parent, signal.SIGTERM)

    def accept(self) -> None:
        connection, _ = self.listener.accept()
        keep_alive(connection)
        self.said[connection] = b""
        self.selector.register(connection, selectors.EVENT_READ)

    def hear(self, connection: socket.socket) -> str | None:
        """Take in what a rank says; the message where that ends the job."""
        try:
            data = connection.recv(65536)
        except OSError:
            data = b""
        *lines, self.said[connection] = (self.said[connection] + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == "hello":
                token, rank, host, process = rest.split(" ")
                if token == self.token:
                    self.who[connection] = (int(rank), host, process)
                    self.begun |= int(rank) == 0
            elif connection in self.who and word == "bye":
                self.leave(connection)
                return None
            elif connection in self.who and word == "failed":
                return self.told(connection, json.loads(rest))
        if data:
            return None
        message = self.told(connection, self.cause(connection)) if connection in self.who else None
        self.leave(connection, message is not None)
        return message

    def leave(self, connection: socket.socket, counted: bool = True) -> None:
        self.selector.unregister(connection)
        self.said.pop(connection)
        self.who.pop(connection, None)
        self.gone += counted

    def cause(self, connection: socket.socket) -> str:
        """Of an end without a word."""
        _, host, process = self.who[connection]
        if host == socket.gethostname() and ended_for_memory() > self.ended_for_memory:
            return f"process {process} was ended by the system, out of memory; start fewer ranks on a node, or --memory"
        return f"process {process} was killed, or its node lost (kill -9, out of memory, power, network)"

    def told(self, connection: socket.socket, message: str) -> str:
        """The line about a rank; "" where nothing is to be said."""
        rank, host, _ = self.who[connection]
        return f"polarice {self.job}: error: rank {rank} on {host}: {message}\n" if message else ""

    def end(self, message: str) -> None:
        """Say why, end the others, and go when they have gone."""
        if not self.voice.waits:
            self.voice.say(message)
        self.stop()
        if self.voice.waits:
            self.voice.say(message)

    def stop(self) -> None:
        left = set(self.said)  # also those that have not been heard yet
        for connection in left:
            with suppress(OSError):
                connection.sendall(b"stop\n")
        until = time.monotonic() + GRACE_S
        while left and time.monotonic() < until:
            for key, _ in self.selector.select(0.1):
                if key.fileobj in left:
                    with suppress(OSError):
                        if key.fileobj.recv(65536):
                            continue
                    left.discard(key.fileobj)
                    self.selector.unregister(key.fileobj)


if __name__ == "__main__":
    hub = Hub(sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(float, sys.argv[4:5]))
    with suppress(BrokenPipeError):  # rank 0 went before anyone came
        os.write(1, f"{hub.listener.getsockname()[1]}\n".encode())
        os.close(1)
        hub.run()

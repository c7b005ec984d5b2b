"""The process that every rank stays connected to: it reports which rank failed, where and why, and ends the others.

A process of its own, started by rank 0 as a script without any package, in a session of its own: a launcher that kills
all ranks as soon as one is gone does not keep it from telling. It ends with the last rank.

    hub.py JOB RANKS ADDRESS [S]  listens at ADDRESS ("": everywhere) and prints its port; the first line of its
                                  standard input is the run's secret, and rank 0 holds it open; rank 0 is here within S
                                  seconds
    the hub says                  nonce TEXT, then: welcome; tell TEXT (a JSON string); stop
    a rank says                   hello RANK HOST PID DIGEST, then: marker FILE, which is gone where the process exits,
                                  and left where it is killed; alive, now and then; bye; failed MESSAGE (a JSON string)

Who does not know the secret is not listened to: DIGEST signs the nonce, the secret itself is never sent. Lines, and
the connections of those who have not said who they are, are bounded in number, length and time.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import math
import os
import resource
import secrets
import selectors
import signal
import socket
import stat
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

KEEP_ALIVE = (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 4))  # a node that is off is missed after 7 s
GATHER_S = 300.0  # until rank 0 comes, when MPI has started on all: they load PyTorch, some from a slow file system
GRACE_S = 2.0  # for the others to end, after which the connections are closed
LAUNCHERS = ("mpirun", "mpiexec", "hydra", "prterun", "prted", "orted")
LAUNCHER_S = 5.0  # that a launcher may take to end
SETTLE_S = 0.3  # after a rank is killed: another, whose loss was the cause, may take longer to be closed by the system
EXITED_S = 2.0  # after one has exited without a word, as MPI makes it where another is gone: that one comes yet
ALIVE_S = 5.0  # between two signs of life
SILENT_S = 60.0  # without any, after which a rank is called silent
MARKER = "polarice-rank-"  # how the names of markers begin
STRANGERS = 64  # connections that have not said who they are, beside one for each rank
INTRODUCTION_S, INTRODUCTION_BYTES = 10.0, 512  # within which they have to
MESSAGE_BYTES = 1 << 20  # of a line of a rank


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


def signed(secret: str, nonce: str, rank: int, host: str, process: int) -> str:
    """What proves that a rank knows the run's secret."""
    return hmac.new(secret.encode(), f"{nonce} {rank} {host} {process}".encode(), hashlib.sha256).hexdigest()


@dataclass(eq=False)
class Caller:
    """A connection; of a rank from its introduction on."""

    connection: socket.socket
    nonce: str
    heard: float  # when something came last
    rest: bytes = b""  # of the last line
    rank: int = -1
    host: str = ""
    process: int = 0
    silent: bool = False
    marker: str = ""  # a file on this node that is removed where the process exits
    exited: bool = False  # ended by an exit, and not by a signal

    @property
    def known(self) -> bool:
        return self.rank >= 0

    def clear(self) -> None:
        """Remove the marker of a rank that is gone or going."""
        if self.marker:
            with suppress(OSError):
                os.unlink(self.marker)

    def say(self, line: str) -> None:
        with suppress(OSError):
            self.connection.sendall(line.encode() + b"\n")


class Hub:
    """The connections and what was said on them."""

    def __init__(self, job: str, ranks: int, secret: str, address: str = "", gather_s: float = GATHER_S) -> None:
        self.job, self.ranks, self.secret = job, ranks, secret
        self.gather_s, self.deadline = gather_s, time.monotonic() + gather_s
        self.begun, self.parent = False, os.getppid()  # whether rank 0, the parent, has come
        self.listener = socket.create_server((address, 0), backlog=1024)
        self.listener.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(sys.stdin, selectors.EVENT_READ)
        self.callers: dict[socket.socket, Caller] = {}
        self.lost: list[Caller] = []  # ranks that ended without a word, in the order in which that was noticed
        self.verdict = math.inf  # when it is said which of them was the cause
        self.gone, self.held = 0, True  # ranks that have left; whether rank 0 holds the standard input
        self.ended_for_memory = ended_for_memory()
        self.voice = Voice(launcher_of(os.getppid()))

    def run(self) -> None:
        """Until all have said goodbye, or one has failed."""
        while self.gone < self.ranks:
            for key, _ in self.selector.select(self.patience()):
                if key.fileobj is self.listener:
                    self.accept()
                elif key.fileobj is sys.stdin:
                    self.selector.unregister(sys.stdin)
                    self.held = False
                elif (message := self.hear(key.fileobj)) is not None:  # type: ignore[arg-type]
                    self.end(message)
                    return
            now = time.monotonic()
            if not self.held and not self.lost and not any(each.known for each in self.callers.values()):
                return  # rank 0 has gone, and so has everybody who had come
            if self.lost and (now >= self.verdict or self.gone + len(self.lost) >= self.ranks):
                self.end(self.cause())
                return
            if not self.begun and now >= self.deadline:
                self.give_up()
                return
            self.look_round(now)

    def patience(self) -> float:
        """How long to wait for something to happen."""
        until = min(self.verdict, math.inf if self.begun else self.deadline)
        return max(0.0, min(ALIVE_S, until - time.monotonic()))

    def give_up(self) -> None:
        """End a job that has not begun: rank 0 and others wait, in MPI's start, for one that is lost."""
        self.end(
            f"polarice {self.job}: error: not all of {self.ranks} ranks have come within {self.gather_s:.0f} s: one "
            "was lost before it began, or cannot be reached; start again\n"
        )
        if os.getppid() == self.parent > 1:
            with suppress(OSError):
                os.kill(self.parent, signal.SIGTERM)

    def look_round(self, now: float) -> None:
        """Send away who does not say who they are, and tell of ranks that have fallen silent."""
        for each in [each for each in self.callers.values() if not each.known]:
            if now - each.heard > INTRODUCTION_S:
                self.drop(each)
        for each in self.callers.values():
            if each.known and not each.silent and now - each.heard > SILENT_S:
                each.silent = True
                self.tell(
                    f"warning: rank {each.rank} on {each.host} (process {each.process}) has given no sign of life for "
                    f"{now - each.heard:.0f} s: stopped, short of memory, or cut off? the others wait for it"
                )

    def tell(self, text: str) -> None:
        """Let a rank that answers print a line: what it prints goes the launcher's own way."""
        awake = [each for each in self.callers.values() if each.known and not each.silent]
        if awake:
            min(awake, key=lambda each: each.rank).say(f"tell {json.dumps(f'polarice {self.job}: {text}')}")

    def accept(self) -> None:
        """Take a connection in, in place of the oldest stranger's where there are too many."""
        strangers = [each for each in self.callers.values() if not each.known]
        if len(strangers) >= self.ranks + STRANGERS:
            self.drop(strangers[0])
        try:
            connection, _ = self.listener.accept()
        except OSError as error:  # gone again already, or no descriptor is free
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self.drop(strangers[0]) if strangers else time.sleep(0.1)
            return
        keep_alive(connection)
        caller = Caller(connection, secrets.token_hex(16), time.monotonic())
        self.callers[connection] = caller
        self.selector.register(connection, selectors.EVENT_READ)
        caller.say(f"nonce {caller.nonce}")

    def drop(self, caller: Caller) -> None:
        self.selector.unregister(caller.connection)
        del self.callers[caller.connection]
        caller.connection.close()

    def hear(self, connection: socket.socket) -> str | None:
        """Take in what is said; the message where that ends the job."""
        if (caller := self.callers.get(connection)) is None:
            return None  # sent away since
        try:
            data = caller.connection.recv(65536)
        except OSError:
            data = b""
        *lines, caller.rest = (caller.rest + data).split(b"\n")
        if len(caller.rest) > MESSAGE_BYTES:
            lines, caller.rest = [*lines, caller.rest], b""
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if not caller.known:
                if not self.introduced(caller, word, rest):
                    self.drop(caller)
                    return None
            elif word == "marker" and os.path.basename(rest).startswith(MARKER):
                caller.marker = rest if caller.host == socket.gethostname() else ""
            elif word == "bye":
                self.leave(caller)
                return None
            elif word == "failed":
                return self.told(caller, _text(rest))
        if not caller.known and len(caller.rest) > INTRODUCTION_BYTES:
            self.drop(caller)
        elif data and caller.known:
            self.awake(caller)
        elif not data and caller.known:
            caller.exited = bool(caller.marker) and not os.path.exists(caller.marker)
            self.lost.append(caller)
            self.verdict = min(self.verdict, time.monotonic() + (EXITED_S if caller.exited else SETTLE_S))
            self.leave(caller, counted=False)
        elif not data:
            self.drop(caller)
        return None

    def awake(self, caller: Caller) -> None:
        now = time.monotonic()
        if caller.silent:
            caller.silent = False
            self.tell(f"rank {caller.rank} on {caller.host} is back after {now - caller.heard:.0f} s")
        caller.heard = now

    def introduced(self, caller: Caller, word: str, rest: str) -> bool:
        """Whether it is a rank of this run that speaks."""
        try:
            rank, host, process, digest = rest.split(" ")
            number, pid = int(rank), int(process)
        except ValueError:
            return False
        taken = any(each.rank == number for each in self.callers.values())
        right = hmac.compare_digest(signed(self.secret, caller.nonce, number, host, pid).encode(), digest.encode())
        if word != "hello" or not right or taken or not 0 <= number < self.ranks:
            return False
        caller.rank, caller.host, caller.process = number, host, pid
        self.begun |= number == 0
        caller.say("welcome")
        return True

    def leave(self, caller: Caller, counted: bool = True) -> None:
        self.selector.unregister(caller.connection)
        del self.callers[caller.connection]
        self.gone += counted
        caller.clear()

    def cause(self) -> str:
        """Of ends without a word: the first that was no exit, for MPI exits where another rank is gone."""
        killed = [each for each in self.lost if not each.exited]
        each = (killed or self.lost)[0]
        if not killed:
            return self.told(each, f"process {each.process} ended, by MPI or another library (see what stands above)")
        if each.host == socket.gethostname() and ended_for_memory() > self.ended_for_memory:
            why = "was ended by the system, out of memory; start fewer ranks on a node, or --memory"
        else:
            why = "was killed, or its node lost (kill -9, out of memory, power, network)"
        return self.told(each, f"process {each.process} {why}")

    def told(self, caller: Caller, message: str) -> str:
        """The line about a rank; "" where nothing is to be said."""
        return f"polarice {self.job}: error: rank {caller.rank} on {caller.host}: {message}\n" if message else ""

    def end(self, message: str) -> None:
        """Say why, end the others, and go when they have gone."""
        if not self.voice.waits:
            self.voice.say(message)
        self.stop()
        if self.voice.waits:
            self.voice.say(message)

    def stop(self) -> None:
        left = set(self.callers)  # also those that have not been heard yet
        for caller in self.callers.values():
            caller.say("stop")
            caller.clear()
        until = time.monotonic() + GRACE_S
        while left and time.monotonic() < until:
            for key, _ in self.selector.select(0.1):
                if key.fileobj in left:
                    with suppress(OSError):
                        if key.fileobj.recv(65536):
                            continue
                    left.discard(key.fileobj)
                    self.selector.unregister(key.fileobj)


def _text(words: str) -> str:
    """Of a JSON string; what is none is taken as it is, as far as it goes."""
    try:
        return str(json.loads(words))
    except ValueError:
        return words[:1000]


def allow_descriptors() -> None:
    """Take as many open files as the system allows: each rank is one."""
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main(job: str, ranks: str, address: str, gather_s: str = str(GATHER_S)) -> None:
    """Serve one run."""
    allow_descriptors()
    with os.fdopen(os.dup(0), "rb", buffering=0) as given:
        secret = given.readline().decode().strip()
    hub = Hub(job, int(ranks), secret, address, float(gather_s))
    with suppress(BrokenPipeError):  # rank 0 went before anyone came
        os.write(1, f"{hub.listener.getsockname()[1]}\n".encode())
        os.close(1)
        hub.run()


if __name__ == "__main__":
    main(*sys.argv[1:])

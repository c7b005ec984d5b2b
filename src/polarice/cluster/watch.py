"""A rank's line to the hub: as long as it holds, all ranks are alive."""

from __future__ import annotations

import ctypes
import glob
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from polarice.cluster import hub

CONNECT_S = 20.0
AGAIN_S = 0.1  # between two attempts
STOPPED = 1  # exit code of a rank that is ended because another one failed


@dataclass(frozen=True)
class Address:
    """Where the hub listens."""

    host: str
    port: int
    token: str


def start_hub(job: str, ranks: int, one_node: bool = False) -> Address:
    """Start the hub; before any MPI library is loaded, as a process is made. Ranks of one node are listened to there
    alone. The secret is handed over on its standard input: a command line is for all to read."""
    token = secrets.token_hex(32)
    listens_at = "127.0.0.1" if one_node else ""
    words = [sys.executable, "-I", "-S", str(Path(hub.__file__)), job, str(ranks), listens_at]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None and process.stdout is not None
    _HUBS.append(process)  # held, and so is its standard input, until this process ends
    process.stdin.write(token.encode() + b"\n")
    process.stdin.flush()
    return Address(socket.gethostname(), int(process.stdout.readline()), token)


_HUBS: list[subprocess.Popen[bytes]] = []


class Line:
    """The connection of one rank. Where none can be made, failures are the launcher's to notice."""

    def __init__(self, address: Address, rank: int, witness: bool) -> None:
        """witness: whether this rank says so when the hub itself is lost."""
        self._address, self._witness = address, witness
        self._leaving, self._marker = False, ""
        self._lock = threading.Lock()
        self._socket = _introduced(address, rank)
        if self._socket is None:
            return
        self._marker = _removed_on_exit()
        self._say(f"marker {self._marker}")
        threading.Thread(target=self._listen, args=(self._socket,), name="hub", daemon=True).start()
        threading.Thread(target=self._show_life, name="hub", daemon=True).start()

    @property
    def holds(self) -> bool:
        return self._socket is not None

    def leave(self) -> None:
        """Say goodbye: what follows is no failure."""
        self._leaving = True
        with suppress(OSError):
            os.unlink(self._marker)
        self._say("bye")

    def fail(self, message: str) -> None:
        """Tell that this rank cannot go on, which ends the others; an empty message is not printed."""
        self._leaving = True
        self._say(f"failed {json.dumps(message)}")

    def _say(self, line: str) -> None:
        if self._socket is not None:
            with suppress(OSError), self._lock:
                self._socket.sendall(line.encode() + b"\n")

    def _show_life(self) -> None:
        """Tell the hub now and then that this process is not stopped."""
        while not self._leaving:
            time.sleep(hub.ALIVE_S)
            self._say("alive")

    def _listen(self, connection: socket.socket) -> None:
        said = ""
        with suppress(OSError), connection.makefile(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                said, _, rest = line.rstrip("\n").partition(" ")
                if said != "tell":
                    break
                with suppress(OSError, ValueError):
                    os.write(2, f"{json.loads(rest)}\n".encode())
            else:
                said = ""
        if self._leaving:
            return
        if not said and self._witness:
            os.write(
                2, f"polarice: error: lost contact with rank 0 on {self._address.host}: its node is gone\n".encode()
            )
        os._exit(STOPPED)  # not sys.exit: this rank may be waiting for one that is dead


def _introduced(address: Address, rank: int) -> socket.socket | None:
    """A connection on which the hub knows this rank; None where none can be made in time."""
    host, until = socket.gethostname(), time.monotonic() + CONNECT_S
    while time.monotonic() < until:
        with suppress(OSError):
            connection = socket.create_connection(
                ("localhost" if address.host == host else address.host, address.port), timeout=CONNECT_S
            )
            hub.keep_alive(connection)
            nonce = _line(connection).removeprefix("nonce ")
            digest = hub.signed(address.token, nonce, rank, host, os.getpid())
            connection.sendall(f"hello {rank} {host} {os.getpid()} {digest}\n".encode())
            answer = _line(connection)
            if answer == "welcome":
                connection.settimeout(None)
                return connection
            if answer == "stop" or nonce == "stop":
                os._exit(STOPPED)
            connection.close()  # sent away with too many strangers: once more
        time.sleep(AGAIN_S)
    return None


def _line(connection: socket.socket) -> str:
    """The next line, and not a byte more; "" where there is none."""
    found = b""
    while not found.endswith(b"\n") and len(found) < hub.INTRODUCTION_BYTES:
        byte = connection.recv(1)
        if not byte:
            return ""
        found += byte
    return found.decode(errors="replace").strip()


def _removed_on_exit() -> str:
    """The name of an empty file that the C library removes when the process exits, by whomever; "" where none is made.

    MPI libraries exit a process on their own where another rank is gone. One that is killed leaves the file, which the
    hub removes, or, where that is killed too, the next run here.
    """
    _remove_stale()
    libc = ctypes.CDLL(None)
    try:
        libc.__cxa_atexit.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        file, name = tempfile.mkstemp(prefix=f"{_marker_prefix()}{os.getpid()}-")
    except (AttributeError, OSError):  # another C library than GNU's; nowhere to write
        return ""
    os.close(file)
    _NAMES.append(ctypes.create_string_buffer(os.fsencode(name)))  # to the end of the process
    libc.__cxa_atexit(ctypes.cast(libc.unlink, ctypes.c_void_p), ctypes.addressof(_NAMES[-1]), None)
    return name


def _marker_prefix() -> str:
    """Of this node's markers: the folder may be one that nodes share."""
    return f"{hub.MARKER}{socket.gethostname()}-"


def _remove_stale() -> None:
    """Remove the files of this node's processes that are gone."""
    for path in Path(tempfile.gettempdir()).glob(f"{glob.escape(_marker_prefix())}*-*"):
        number = path.name.removeprefix(_marker_prefix()).partition("-")[0]
        with suppress(OSError):
            if number.isdigit() and _is_gone(number) and path.stat().st_uid == os.getuid():
                path.unlink()


def _is_gone(process: str) -> bool:
    """Whether a process of this node has ended, though nobody may have asked for its exit code yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


_NAMES: list[ctypes.Array[ctypes.c_char]] = []

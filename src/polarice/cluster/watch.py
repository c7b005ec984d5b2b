"""A rank's line to the hub: as long as it holds, all ranks are alive."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from polarice.cluster import hub

CONNECT_S = 20.0
STOPPED = 1  # exit code of a rank that is ended because another one failed


@dataclass(frozen=True)
class Address:
    """Where the hub listens."""

    host: str
    port: int
    token: str


def start_hub(job: str, ranks: int) -> Address:
    """Start the hub; before any MPI library is loaded, as a process is made."""
    token = secrets.token_hex(16)
    words = [sys.executable, "-I", "-S", str(Path(hub.__file__)), job, str(ranks), token]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    _HUBS.append(process)  # held, and so is its standard input, until this process ends
    return Address(socket.gethostname(), int(process.stdout.readline()), token)


_HUBS: list[subprocess.Popen[bytes]] = []


class Line:
    """The connection of one rank. Where none can be made, failures are the launcher's to notice."""

    def __init__(self, address: Address, rank: int, witness: bool) -> None:
        """witness: whether this rank says so when the hub itself is lost."""
        self._address, self._witness = address, witness
        self._leaving = False
        host = socket.gethostname()
        self._socket = _connected("localhost" if address.host == host else address.host, address.port)
        if self._socket is None:
            return
        self._say(f"hello {address.token} {rank} {host} {os.getpid()}")
        threading.Thread(target=self._listen, args=(self._socket,), name="hub", daemon=True).start()

    @property
    def holds(self) -> bool:
        return self._socket is not None

    def leave(self) -> None:
        """Say goodbye: what follows is no failure."""
        self._leaving = True
        self._say("bye")

    def fail(self, message: str) -> None:
        """Tell that this rank cannot go on, which ends the others; an empty message is not printed."""
        self._leaving = True
        self._say(f"failed {json.dumps(message)}")

    def _say(self, line: str) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendall(line.encode() + b"\n")

    def _listen(self, connection: socket.socket) -> None:
        try:
            said = connection.recv(16)
        except OSError:
            said = b""
        if self._leaving:
            return
        if not said and self._witness:
            os.write(
                2, f"polarice: error: lost contact with rank 0 on {self._address.host}: its node is gone\n".encode()
            )
        os._exit(STOPPED)  # not sys.exit: this rank may be waiting for one that is dead


def _connected(host: str, port: int) -> socket.socket | None:
    try:
        connection = socket.create_connection((host, port), timeout=CONNECT_S)
    except OSError:
        return None
    connection.settimeout(None)
    hub.keep_alive(connection)
    return connection

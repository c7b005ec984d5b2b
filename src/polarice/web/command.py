"""`polarice serve`: a page over a project folder, for this machine's user alone."""

from __future__ import annotations

import ipaddress
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from polarice.project.params import Parameters, PathRole, argument, option
from polarice.types import InputError

SUMMARY = "show a project folder in the browser: jobs, classes, maps, micrographs; start, stop, choose"
EXAMPLE = "polarice serve"
FIRST_PORT, PORTS = 8650, 50  # one of them is taken where none is asked for


@dataclass(frozen=True)
class Params(Parameters):
    """What is shown, and to whom."""

    folder: Path | None = argument(
        "project folder (default: this one)", flags=("--project",), path=PathRole("input", "folder")
    )
    port: int | None = option(
        None, "port", derived=f"the first free one from {FIRST_PORT} on", low=1, high=65535, level="essential"
    )
    read_only: bool = option(False, "show only: nothing can be started, stopped or chosen", level="essential")
    also: tuple[Path, ...] = option((), "folders outside of the project that may be read too (images behind links)")
    host: str = option("127.0.0.1", "address to listen at; other than this machine's own only with --i-know")
    i_know: bool = option(
        False, "listen where others can reach it: who has the address with its token acts with your rights"
    )
    cert: Path | None = option(None, "TLS certificate (PEM), for a host that others reach", derived="no TLS")
    key: Path | None = option(None, "its private key", derived="in --cert", needs=("cert", True))


def is_local(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run(params: Params) -> None:
    """Serve until Ctrl-C. Raises InputError for a folder or port that cannot be used, and for an open host unasked."""
    from polarice.web.server import Server
    from polarice.web.site import Site

    root = params.folder or Path()
    for folder in (root, *params.also):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; name the project's folder")
    if not is_local(params.host):
        if not params.i_know:
            raise InputError(
                f"--host {params.host}: others could reach the page and act with your rights; leave it out and forward "
                "the port (ssh -L 8650:localhost:8650 HOST), or say --i-know"
            )
        if params.cert is None:
            print("warning: no TLS (--cert): who listens on the network sees the token and the data", file=sys.stderr)
    # begun in the background of a script, Ctrl-C would be ignored here and, inherited, by every job that is started
    signal.signal(signal.SIGINT, signal.default_int_handler)
    site = Site.of(root, params.also, read_only=params.read_only)
    with Server(_listening(params.host, params.port), site, params.cert, params.key) as server:
        print(f"{root.resolve()} is shown at\n\n    {server.address}\n")
        print("The address lets in whoever has it. Ctrl-C ends the page; jobs go on.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nthe page has ended", file=sys.stderr)


def _listening(host: str, port: int | None) -> socket.socket:
    """A socket at the port, or at the first free one. Raises InputError where there is none."""
    error: OSError | None = None
    for number in (port,) if port else range(FIRST_PORT, FIRST_PORT + PORTS):
        try:
            return socket.create_server((host, number), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as refused:
            error = refused
    assert error is not None
    which = f"--port {port}" if port else f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
    raise InputError(f"{which}: cannot listen at {host} ({error.strerror}); choose another with --port") from error

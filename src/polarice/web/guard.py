"""Who may ask for what: the rules of `polarice serve`, as functions that raise `Refused`.

A request needs a cookie that only the printed address gives, a Host that is this server's name (or another site could
have itself resolved to 127.0.0.1), and, to change anything, an Origin that is the Host. Files are read below the
project's folder alone, links followed first.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

MOST_BODY_BYTES = 1 << 18  # of a form: 10,000 class numbers fit
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
PAGE_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
REPORT_SANDBOX = "allow-same-origin allow-popups allow-scripts"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # no-referrer would make browsers send `Origin: null`
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@cache
def report_policy() -> str:
    """Of a job's own page, which may come from anywhere: nothing in it is sent, and no script runs but the one of our
    own reports, known by its digest."""
    text = files("polarice.report").joinpath("report.html").read_text(encoding="utf-8")
    script = Template(text.partition("<script>")[2].partition("</script>")[0]).substitute()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"sandbox {REPORT_SANDBOX}; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )


class Refused(Exception):
    """A request that is not answered, with its status and the reason, which is logged and shown."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Keys:
    """What the printed address holds, and what the browser then keeps; neither leads to the other."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32))


def require_token(given: str, keys: Keys) -> None:
    if not hmac.compare_digest(given.encode(), keys.token.encode()):
        raise Refused(HTTPStatus.FORBIDDEN, "wrong token; open the address that polarice serve has printed")


def require_session(cookies: Iterable[str], name: str, keys: Keys) -> None:
    """`cookies`: the request's Cookie headers."""
    given = [pair.strip() for header in cookies for pair in header.split(";")]
    values = [pair[len(name) + 1 :] for pair in given if pair.startswith(f"{name}=")]
    if not values:
        raise Refused(HTTPStatus.FORBIDDEN, "no token; open the address that polarice serve has printed")
    if not any(hmac.compare_digest(value.encode(), keys.session.encode()) for value in values):
        raise Refused(HTTPStatus.FORBIDDEN, "wrong cookie; open the address that polarice serve has printed")


def require_host(hosts: list[str], served: str) -> None:
    """The one Host header names this machine. `served`: the address that is listened at; ports may be forwarded."""
    name = _name_of(hosts[0]) if len(hosts) == 1 else ""
    if name in LOCAL_NAMES:
        return
    if served not in LOCAL_NAMES and (name in (served, socket.gethostname(), socket.getfqdn()) or _is_address(name)):
        return
    raise Refused(HTTPStatus.MISDIRECTED_REQUEST, f"foreign Host {', '.join(hosts)[:80] or 'left out'!r}")


def require_same_origin(headers: Mapping[str, str], scheme: str) -> None:
    """What changes something comes from a page of ours. `headers`: Host, Origin and Sec-Fetch-Site, "" where absent."""
    origin, host = headers.get("Origin", ""), headers.get("Host", "")
    if origin != f"{scheme}://{host}":
        raise Refused(HTTPStatus.FORBIDDEN, f"a request from another site: Origin {origin[:80]!r}")
    if headers.get("Sec-Fetch-Site", "") not in ("", "same-origin"):
        raise Refused(HTTPStatus.FORBIDDEN, f"a request from another site: {headers['Sec-Fetch-Site'][:20]!r}")


def _name_of(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    """A number cannot be made to resolve to another machine."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Fence:
    """The folders that may be read; the first is the project's."""

    roots: tuple[Path, ...]  # resolved

    @property
    def root(self) -> Path:
        return self.roots[0]

    def holds(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path, links followed, lies inside; it need not be there."""
        try:
            real = Path(path).resolve()
        except (OSError, ValueError, RuntimeError):
            return False
        return any(real.is_relative_to(root) for root in self.roots)

    def inside(self, name: str) -> Path:
        """The file or folder that a request names, from the project's folder. Raises Refused for what is not there,
        lies outside when links are followed, is hidden, or is neither a file nor a folder."""
        parts = name.split("/")
        if "\0" in name or "\\" in name or name.startswith("/") or any(part.startswith(".") for part in parts):
            raise Refused(HTTPStatus.FORBIDDEN, f"not a path in the project: {name[:200]!r}")
        try:
            path = self.root.joinpath(*parts)
            real = path.resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            raise Refused(HTTPStatus.NOT_FOUND, f"not there: {name[:200]!r}") from None
        if not self.holds(real):
            raise Refused(HTTPStatus.FORBIDDEN, f"leads out of the project: {name[:200]!r} (see --also)")
        if not (real.is_file() or real.is_dir()):
            raise Refused(HTTPStatus.FORBIDDEN, f"neither file nor folder: {name[:200]!r}")
        return path

    def folder(self, name: str) -> Path:
        """`inside`, of a folder; "" is the project's own."""
        path = self.inside(name) if name else self.root
        if not path.is_dir():
            raise Refused(HTTPStatus.NOT_FOUND, f"no folder: {name[:200]!r}")
        return path

"""The server: the standard library's, with bounds on what a request may be, and a word for every refusal."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import polarice
from polarice.types import InputError
from polarice.web import guard
from polarice.web.guard import Refused

if TYPE_CHECKING:
    from polarice.web.site import Site

IDLE_S = 30.0  # a connection that says nothing is closed
MOST_CONNECTIONS = 64
MOST_FIELDS = 400
MOST_LOGGED = 2000  # characters of a command


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    method: str
    path: str  # decoded, begins with /
    query: dict[str, str]
    form: dict[str, str] = field(default_factory=dict)

    def number(self, name: str, low: int, high: int, default: int) -> int:
        """A whole number of the query. Raises Refused for anything else."""
        text = self.query.get(name, str(default))
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
        if not low <= value <= high:
            raise Refused(HTTPStatus.BAD_REQUEST, f"{name}={text[:40]!r}: not a number from {low} to {high}")
        return value


@dataclass(frozen=True)
class Answer:
    """What is sent."""

    body: bytes
    kind: str = "text/html; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK
    headers: dict[str, str] = field(default_factory=dict)
    policy: str = guard.PAGE_POLICY

    @staticmethod
    def to(place: str, **headers: str) -> Answer:
        """Sends the browser to another page, which it asks for with GET."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Answer(b"", status=HTTPStatus.SEE_OTHER, headers={"Location": place, **named})


class Server(ThreadingHTTPServer):
    """Answers on a listening socket, each connection in a thread of its own."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, site: Site, cert: Path | None = None, key: Path | None = None) -> None:
        """Raises InputError for a certificate that cannot be used."""
        super().__init__(listening.getsockname()[:2], Handler, bind_and_activate=False)
        self.socket.close()
        self.site, self.scheme, self._room = site, "http", threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.socket = listening
        self.server_name, self.server_port = listening.getsockname()[:2]
        if cert is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            try:
                context.load_cert_chain(cert, key)
            except (OSError, ssl.SSLError) as error:
                self.server_close()
                raise InputError(f"--cert {cert}: cannot be used ({error})") from None
            self.scheme = "https"
            self.socket = context.wrap_socket(listening, server_side=True, do_handshake_on_connect=False)
        self.cookie = f"polarice-{self.server_port}"

    @property
    def address(self) -> str:
        host = socket.gethostname() if self.server_name in ("0.0.0.0", "::") else self.server_name
        host = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{host}:{self.server_port}/?token={self.site.keys.token}"

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.site.log(f"refused a connection from {client_address[0]}: {MOST_CONNECTIONS} are open")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # the browser went away
            self.site.log(f"a fault of polarice: {error!r}")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version, timeout = "HTTP/1.1", IDLE_S
    server: Server
    server_version, sys_version = f"polarice/{polarice.__version__}", ""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, made: Any) -> None:
        """Send what `made` gives; a refusal is logged with its reason, and the connection then closed."""
        try:
            guard.require_host(self.headers.get_all("Host", []), self.server.server_name)
            answer = made()
        except Refused as refused:
            self._refuse(refused)
        except InputError as error:
            self._refuse(Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)))
        except OSError as error:
            if isinstance(error, ConnectionError | TimeoutError):
                self.close_connection = True
                return
            self._refuse(Refused(HTTPStatus.NOT_FOUND, f"{error.filename or ''}: {error.strerror}"))
        except Exception as error:
            self.server.site.log(f"a fault of polarice: {self.command} {shown(self.path)}: {error!r}")
            self._refuse(Refused(HTTPStatus.INTERNAL_SERVER_ERROR, f"a fault of polarice: {type(error).__name__}"))
        else:
            self._send(answer)

    def _get(self) -> Answer:
        request = self._request()
        server = self.server
        if request.path == "/" and "token" in request.query:
            guard.require_token(request.query["token"], server.site.keys)
            safe = "; Secure" if server.scheme == "https" else ""
            cookie = f"{server.cookie}={server.site.keys.session}; Path=/; HttpOnly; SameSite=Strict{safe}"
            return Answer.to("/", Set_Cookie=cookie)
        guard.require_session(self.headers.get_all("Cookie", []), server.cookie, server.site.keys)
        return server.site.get(request)

    def _post(self) -> Answer:
        guard.require_session(self.headers.get_all("Cookie", []), self.server.cookie, self.server.site.keys)
        names = ("Host", "Origin", "Sec-Fetch-Site")
        guard.require_same_origin({name: self.headers.get(name, "") for name in names}, self.server.scheme)
        if self.server.site.read_only:
            raise Refused(HTTPStatus.FORBIDDEN, "read-only: nothing can be changed here (--read-only)")
        request = self._request()
        form = parse_form(self._body(self.headers))
        return self.server.site.post(Request("POST", request.path, request.query, form))

    def _request(self) -> Request:
        try:
            split = urlsplit(self.path)
            query = parse_qs(split.query, keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
            path = unquote(split.path, errors="strict")
        except (ValueError, UnicodeError):
            raise Refused(HTTPStatus.BAD_REQUEST, "an address that cannot be read") from None
        if not self.path.startswith("/") or self.path.startswith("//"):
            raise Refused(HTTPStatus.BAD_REQUEST, f"not a path: {self.path[:80]!r}")
        return Request(self.command, path, {name: values[-1] for name, values in query.items()})

    def _body(self, headers: Message) -> bytes:
        if headers.get("Transfer-Encoding") or len(headers.get_all("Content-Length", [])) != 1:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "a form without its length")
        text = headers["Content-Length"].strip()
        if not (text.isascii() and text.isdigit()):
            raise Refused(HTTPStatus.BAD_REQUEST, f"Content-Length {text[:40]!r}")
        if len(text) > 12 or int(text) > guard.MOST_BODY_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a form of {text[:40]} bytes")
        if headers.get_content_type() != "application/x-www-form-urlencoded":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"a body of {headers.get_content_type()[:80]!r}")
        body = self.rfile.read(int(text))
        if len(body) != int(text):
            raise Refused(HTTPStatus.BAD_REQUEST, "a form cut short")
        return body

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        framed = "SAMEORIGIN" if "frame-ancestors 'self'" in answer.policy else "DENY"
        given = {
            "Content-Type": answer.kind,
            "Content-Length": str(len(answer.body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": answer.policy,
            "X-Frame-Options": framed,
            **guard.HEADERS,
            **answer.headers,
        }
        for name, value in given.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _refuse(self, refused: Refused) -> None:
        where = f"{self.command} {shown(self.path)} from {self.client_address[0]}"
        self.server.site.log(f"refused {refused.status.value} {where}: {shown(refused.reason, 400)}")
        self.close_connection = True  # what is left of a body is not read
        with_page = self.command == "GET" and refused.status not in (HTTPStatus.FORBIDDEN,)
        body = self.server.site.refusal(refused) if with_page else f"{refused.reason}\n".encode()
        kind = "text/html; charset=utf-8" if with_page else "text/plain; charset=utf-8"
        self._send(Answer(body, kind, refused.status))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library itself refuses: malformed lines, methods that are not known."""
        status = HTTPStatus(code)
        self.server.site.log(f"refused {code} from {self.client_address[0]}: {shown(message or status.phrase)}")
        self.close_connection = True
        self.command, self.request_version = getattr(self, "command", None) or "GET", "HTTP/1.1"
        self._send(Answer(f"{status.phrase}\n".encode(), "text/plain; charset=utf-8", status))

    def log_message(self, format: str, *args: Any) -> None:
        """Answered requests are not logged."""


def parse_form(body: bytes) -> dict[str, str]:
    """The last value of each field. Raises Refused for a body that is no form."""
    try:
        fields = parse_qs(
            body.decode("ascii"), keep_blank_values=True, strict_parsing=bool(body), errors="strict",
            max_num_fields=MOST_FIELDS,
        )  # fmt: skip
    except (ValueError, UnicodeError):
        raise Refused(HTTPStatus.BAD_REQUEST, "a malformed form") from None
    return {name: values[-1] for name, values in fields.items()}


def shown(text: str, most: int = 200) -> str:
    """A stranger's text as one harmless line of a log, without the token."""
    text = text.partition("token=")[0] + "token=..." if "token=" in text else text
    return ascii(text[:most])[1:-1]


def log_line(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)

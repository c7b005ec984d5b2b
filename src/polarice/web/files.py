"""Files of the project: listed, and sent where their kind can do no harm."""

from __future__ import annotations

import os
from html import escape
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING

from polarice.web import layout
from polarice.web.found import is_text, natural
from polarice.web.guard import Refused, report_policy
from polarice.web.server import Answer, Request

if TYPE_CHECKING:
    from polarice.web.site import Site

KINDS = {
    ".html": "text/html; charset=utf-8", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg",
    ".gif": "image/gif", ".star": "", ".json": "", ".jsonl": "", ".txt": "", ".log": "", ".out": "", ".err": "",
    ".toml": "", ".xml": "", ".csv": "", ".ctf": "application/octet-stream",
}  # fmt: skip
TEXT = "text/plain; charset=utf-8"
MOST_BYTES = 1 << 26
LISTED = 200


def send(site: Site, request: Request, rest: str) -> Answer:
    """One file. Raises Refused for other kinds than pages, pictures and text, and for very large ones."""
    path = site.fence.inside(rest)
    kind = KINDS.get(path.suffix.lower())
    if kind is None or not path.is_file() or path.name.startswith("."):
        raise Refused(HTTPStatus.FORBIDDEN, f"not a kind of file that is sent: {rest[:200]!r}")
    handle = os.open(path.resolve(), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(handle, "rb") as stream:
        if os.fstat(handle).st_size > MOST_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"larger than is sent: {rest[:200]!r}")
        content = stream.read(MOST_BYTES)
    return Answer(content, kind or TEXT, policy=report_policy())


def show(site: Site, request: Request, rest: str) -> Answer:
    """A folder's files, some at a time."""
    folder = site.fence.folder(rest)
    first = request.number("from", 0, 10**8, 0)
    names = sorted((each for each in os.listdir(folder) if not each.startswith(".")), key=natural)
    names = [each for each in names if is_text(each)]
    rows = "".join(_row(site, rest, name) for name in islice(names, first, first + LISTED))
    body = (
        f"<h1>{escape(rest or '.')}</h1><p class=soft>{len(names):,} files and folders</p>"
        f'<div class="scroll"><table><tr><th scope=col>name</th><th scope=col>size</th></tr>{rows}</table></div>'
        f"{pager(('files', rest), first, LISTED, len(names))}"
    )
    return site.page(rest, body)


def _row(site: Site, folder: str, name: str) -> str:
    path, inner = site.fence.root / folder / name, f"{folder}/{name}".strip("/")
    try:
        status = path.stat()
        shown = site.fence.holds(path)
    except OSError:
        return f"<tr><td>{escape(name)}</td><td>?</td></tr>"
    if not shown:
        return f"<tr><td>{escape(name)}</td><td class=soft>outside</td></tr>"
    if path.is_dir():
        return f"<tr><td>{layout.link(name + '/', 'files', inner)}</td><td></td></tr>"
    known = path.suffix.lower() in KINDS and status.st_size <= MOST_BYTES
    cell = layout.link(name, "file", inner) if known else escape(name)
    return f'<tr><td>{cell}</td><td class="n">{size_of(status.st_size)}</td></tr>'


def size_of(count: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.1f} TB"


def pager(parts: tuple[str, ...], first: int, step: int, total: int, **query: str) -> str:
    """Links to the pages before and after."""
    if total <= step:
        return ""
    before = layout.link("before", *parts, **{"from": max(0, first - step)}, **query) if first else ""
    after = layout.link("after", *parts, **{"from": first + step}, **query) if first + step < total else ""
    said = f"{first + 1:,} to {min(first + step, total):,} of {total:,}"
    return f'<nav class="pager" aria-label="pages">{before}<span>{said}</span>{after}</nav>'

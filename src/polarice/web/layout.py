"""What all pages share: head, header, small pieces of HTML, and a plot of lines as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from urllib.parse import quote

import numpy as np

from polarice.web.found import Progress

STATIC = {"page.css": "text/css", "page.js": "text/javascript", "gallery.js": "text/javascript",
          "map.js": "text/javascript", "micrographs.js": "text/javascript"}  # fmt: skip
WORDS = {"": "?", "lost": "killed", "queued": "queued"}


def page(title: str, body: str, scripts: Sequence[str] = (), crumbs: str = "", read_only: bool = False) -> bytes:
    """A whole page; `body` and `crumbs` are HTML."""
    loaded = "".join(f'<script src="/static/{name}" defer></script>' for name in ("page.js", *scripts))
    new = "" if read_only else '<a href="/new">New job</a>'
    note = '<span class="tag">read-only</span>' if read_only else ""
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)} · Polarice</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f'<link rel="stylesheet" href="/static/page.css">{loaded}</head><body>'
        '<a class="skip" href="#main">Skip to the content</a>'
        f'<header><nav aria-label="main"><a class="home" href="/">Jobs</a>{new}{crumbs}{note}</nav></header>'
        f'<main id="main">{body}</main><p id="said" role="status" aria-live="polite"></p></body></html>'
    ).encode("utf-8", "replace")


def static(name: str) -> bytes:
    return files(__package__).joinpath("static", name).read_bytes()


def link(text: str, *parts: str, **query: str | int) -> str:
    """A link to one of our pages."""
    return f'<a href="{address(*parts, **query)}">{escape(text)}</a>'


def address(*parts: str, **query: str | int) -> str:
    """/part/part?name=value, quoted for an attribute."""
    asked = "&amp;".join(f"{name}={quote(str(value), safe='')}" for name, value in query.items())
    return "/" + "/".join(quote(part) for part in parts) + (f"?{asked}" if asked else "")


def badge(progress: Progress) -> str:
    word = progress.state
    return f'<span class="state {escape(word or "none")}" data-state>{escape(WORDS.get(word, word))}</span>'


def bar(progress: Progress) -> str:
    """Progress of a job that runs."""
    hidden = "" if progress.state == "running" and progress.total else " hidden"
    value = f' value="{min(progress.done, progress.total)}" max="{progress.total}"' if progress.total else ""
    return f'<progress{value} data-bar aria-label="progress"{hidden}></progress>'


def command(text: str) -> str:
    """A command with a button that copies it."""
    return (
        f'<div class="command"><pre tabindex="0" data-command>{escape(text)}</pre>'
        '<button type="button" data-copy>Copy</button></div>'
    )


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and values, both plain."""
    cells = "".join(f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<div class="scroll"><table>{cells}</table></div>'


@dataclass(frozen=True, eq=False)
class Line:
    """One curve."""

    name: str
    x: np.ndarray
    y: np.ndarray


WIDE, HIGH, LEFT, BELOW, ABOVE = 720, 310, 44, 40, 26


def plot(lines: Sequence[Line], x_title: str, ticks: Sequence[tuple[float, str]], levels: Sequence[float]) -> str:
    """Curves with y from below 0 to 1, as SVG. `ticks`: places and words along x; `levels`: dashed lines."""
    most = max((float(line.x.max()) for line in lines if len(line.x)), default=1.0) or 1.0
    low = min(0.0, max(-0.3, min((float(np.nanmin(line.y)) for line in lines if len(line.y)), default=0.0)))

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDE - LEFT - 12) * x / most
        up = (HIGH - BELOW - ABOVE) * (min(max(y, low), 1.02) - low) / (1.02 - low)
        return across, HIGH - BELOW - up

    parts = []
    for y in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = place(0, y)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDE - 12}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
    for y in levels:
        at = place(0, y)[1]
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDE - 12}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{WIDE - 14}" y="{at - 4:.1f}" text-anchor="end">{y:g}</text>')
    for x, word in ticks:
        parts.append(
            f'<text x="{place(x, 0)[0]:.1f}" y="{HIGH - BELOW + 18}" text-anchor="middle">{escape(word)}</text>'
        )
    for number, line in enumerate(lines):
        points = " ".join(
            "{:.1f},{:.1f}".format(*place(float(x), float(y)))
            for x, y in zip(line.x, line.y, strict=True)
            if math.isfinite(x) and math.isfinite(y)
        )
        parts.append(f'<polyline class="c{number % 5}" points="{points}"/>')
        parts.append(f'<text class="c{number % 5}" x="{LEFT + 12 + 150 * number}" y="14">{escape(line.name)}</text>')
    title = f'<text x="{(WIDE + LEFT) / 2}" y="{HIGH - 4}" text-anchor="middle">{escape(x_title)}</text>'
    names = escape(", ".join(line.name for line in lines))
    return (
        f'<svg class="plot" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{names} against {escape(x_title)}">'
        f"{''.join(parts)}{title}</svg>"
    )

"""Pieces of HTML that all pages share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template
from urllib.parse import quote

Cell = str | tuple[str, str] | tuple[str, str, str]  # text; or its CSS class and text; and a file beside the page


def stylesheet(cell_px: int = 128) -> str:
    """The pages' style; pictures in a gallery are at least `cell_px` wide."""
    return Template(files(__package__).joinpath("style.css").read_text(encoding="utf-8")).substitute(cell=cell_px)


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def table(heads: Sequence[Cell], rows: Iterable[Sequence[Cell]]) -> str:
    """An HTML table of escaped text; without a head where all heads are empty."""

    def line(tag: str, cells: Sequence[Cell]) -> str:
        return "<tr>" + "".join(_cell(tag, cell) for cell in cells) + "</tr>"

    head = line("th", heads) + "\n" if any(heads) else ""
    body = "\n".join(line("td", row) for row in rows)
    return f'<div class="table"><table>\n{head}{body}\n</table></div>'


def _cell(tag: str, cell: Cell) -> str:
    name, text, *link = ("", cell) if isinstance(cell, str) else cell
    shown = f'<a href="{quote(os.fsencode(link[0]))}">{escape(text)}</a>' if link else escape(text)
    return f'<{tag} class="{name}">{shown}</{tag}>'

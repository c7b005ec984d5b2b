"""An index page over several jobs: what each did, its pictures and numbers, and the way to its own report."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import quote

import polarice
from polarice.io.atomic import replacing
from polarice.report.html import Cell, stylesheet, table

JPEG = b"\xff\xd8"  # what such a file begins with


@dataclass(frozen=True)
class Picture:
    """An image and what is to be said about it."""

    image: bytes  # PNG or JPEG
    caption: str
    link: str = ""  # of a small one: a file beside the page that shows more


@dataclass(frozen=True)
class Rows:
    """A table; a cell is a text, or (CSS class, text): n for numbers, v for values and names, h for remarks."""

    heads: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Chapter:
    """One part of the page. All texts are plain; what is empty is left out."""

    title: str
    text: Sequence[str] = ()  # paragraphs
    numbers: Sequence[tuple[str, str]] = ()  # (what, value)
    pictures: Sequence[Picture] = ()
    gallery: Sequence[Picture] = ()  # small pictures side by side
    tables: Sequence[Rows] = ()
    commands: Sequence[tuple[str, str]] = ()  # (what for, what to type)
    links: Sequence[tuple[str, str]] = ()  # (text, path relative to the page)


def write_index(
    path: str | os.PathLike[str], title: str, subtitle: str, chapters: Sequence[Chapter], cell_px: int = 128
) -> Path:
    """Write the page, complete in one file but for its links; InputError where it may not be written."""
    template = Template(files(__package__).joinpath("index.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        version=polarice.__version__,
        style=stylesheet(cell_px),
        links="".join(f'<a href="#part-{i}">{escape(each.title)}</a>' for i, each in enumerate(chapters)),
        chapters="\n".join(chapter_html(i, each) for i, each in enumerate(chapters)),
    )
    with replacing(path, "w") as stream:
        stream.write(page)
    return Path(path)


def chapter_html(place: int, chapter: Chapter) -> str:
    """A <section> of a page."""
    numbers = "\n".join(
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in chapter.numbers
    )
    parts = [f'<section id="part-{place}">', f"<h2>{escape(chapter.title)}</h2>"]
    parts += [f'<p class="text">{escape(each)}</p>' for each in chapter.text]
    parts += [f'<div class="numbers" style="margin:0 0 18px">\n{numbers}\n</div>'] if numbers else []
    parts += [_picture(each) for each in chapter.pictures]
    parts += [f'<ol class="gallery">{"".join(map(_small, chapter.gallery))}</ol>'] if chapter.gallery else []
    parts += [table(each.heads, each.rows) for each in chapter.tables]
    parts += [f'<p class="note">{escape(why)}</p><pre>{escape(words)}</pre>' for why, words in chapter.commands]
    links = "".join(f'<a href="{quote(os.fsencode(where))}">{escape(text)}</a>' for text, where in chapter.links)
    parts += [f"<nav>{links}</nav>"] if links else []
    return "\n".join([*parts, "</section>"])


def _small(picture: Picture) -> str:
    shown = f'<img alt="" src="{_source(picture)}">'
    shown = f'<a href="{quote(os.fsencode(picture.link))}">{shown}</a>' if picture.link else shown
    return f"<li>{shown}<p><span>{escape(picture.caption)}</span></p></li>"


def _picture(picture: Picture) -> str:
    caption = escape(picture.caption)
    return (
        f'<figure><img class="montage" alt="{caption}" src="{_source(picture)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _source(picture: Picture) -> str:
    kind = "jpeg" if picture.image.startswith(JPEG) else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture.image).decode()}"

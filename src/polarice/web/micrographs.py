"""Micrographs of a job: a picture of what was made of each, and two columns with bounds to choose by."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.io.micrographs import stem_of
from polarice.io.rows import read_rows
from polarice.project.outputs import RECORD
from polarice.selection.rows import micrographs_of
from polarice.types import InputError
from polarice.web import layout
from polarice.web.files import pager
from polarice.web.found import Job, natural, next_folder
from polarice.web.server import Answer, Request

if TYPE_CHECKING:
    from polarice.web.site import Site

TABLES = ("micrographs.star", "movies.star")
PER_PAGE = 60
MOST_ROWS = 100_000
MOST_RECORD_BYTES = 1 << 20
TITLES = {  # of columns, with units
    "rlnCtfMaxResolution": "CTF fits to (Å)",
    "rlnDefocusU": "defocus U (Å)",
    "rlnDefocusV": "defocus V (Å)",
    "rlnCtfAstigmatism": "astigmatism (Å)",
    "rlnDefocusAngle": "defocus angle (°)",
    "rlnCtfFigureOfMerit": "figure of merit of the CTF",
    "rlnCtfIceRingDensity": "ice ring",
    "polariceCtfDrift": "drift in the CTF's rings",
    "rlnAccumMotionTotal": "motion in all (Å)",
    "rlnAccumMotionEarly": "early motion (Å)",
    "rlnAccumMotionLate": "late motion (Å)",
}


@dataclass(frozen=True)
class Record:
    """What was made of one micrograph."""

    stem: str  # below the job's folder
    figures: Mapping[str, Any]
    remarks: tuple[str, ...]
    reason: str  # why it was left out
    picture: str  # a file below the job's folder, "" for none


def table_of(folder: Path) -> Path | None:
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def has_micrographs(folder: Path) -> bool:
    return table_of(folder) is not None


def records_of(folder: Path) -> list[Record]:
    """Of every micrograph that was treated, those left out first, then by name."""
    names = []
    for around, inner, files in os.walk(folder):
        inner[:] = [each for each in inner if not each.startswith(".")]
        names += [os.path.join(around, each) for each in files if each.endswith(RECORD)]
    found = [record for name in sorted(names, key=natural) if (record := _record(name, folder)) is not None]
    return sorted(found, key=lambda record: not record.reason)


def marked(records: list[Record], folder: Path) -> list[Record]:
    """The records with a reason for those that the job's table lacks, which come first too."""
    path = table_of(folder)
    if path is None or not records:
        return records
    names = micrographs_of(read_rows(path).table).tolist()
    there = {os.path.relpath(stem_of(name, folder), folder) for name in names}
    if not any(record.stem in there for record in records):  # named in another way
        return records
    lacking = f"not in {path.name}; the report says why"
    told = [record if record.reason or record.stem in there else replace(record, reason=lacking) for record in records]
    return sorted(told, key=lambda record: not record.reason)


def _record(name: str, folder: Path) -> Record | None:
    try:
        if os.path.getsize(name) > MOST_RECORD_BYTES:
            return None
        content = json.loads(Path(name).read_text(encoding="utf-8"))
        stem = os.path.relpath(name.removesuffix(RECORD), folder)
        picture = os.path.join(os.path.dirname(stem), os.path.basename(str(content.get("thumbnail", ""))))
        there = bool(content.get("thumbnail")) and os.path.isfile(os.path.join(folder, picture))
        figures = {str(key): value for key, value in dict(content.get("figures", {})).items()}
        remarks = tuple(map(str, content.get("remarks", ())))
        return Record(stem, figures, remarks, str(content.get("reason", "")), picture if there else "")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def show(site: Site, request: Request, rest: str) -> Answer:
    """The scatter of two columns, and pictures, some at a time."""
    job = site.job(rest)
    if table_of(job.folder) is None:
        raise InputError(f"{job.name}: no table of micrographs in it yet")
    records = marked(records_of(job.folder), job.folder)
    first = request.number("from", 0, 10**8, 0)
    cards = "".join(_card(job, record) for record in records[first : first + PER_PAGE])
    out = sum(bool(record.reason) for record in records)
    told = f"{len(records):,} treated, {out:,} left out" if records else "no pictures of single micrographs here"
    body = (
        f"<h1>Micrographs of {escape(job.name)}</h1>{_scatter(site, job)}<h2>Pictures</h2><p class=soft>{told}</p>"
        f'<ul class="cards">{cards}</ul>{pager(("micrographs", job.name), first, PER_PAGE, len(records))}'
    )
    crumbs = layout.link(job.name, "job", job.name)
    return site.page(f"Micrographs of {job.name}", body, ["micrographs.js"], crumbs)


def _card(job: Job, record: Record) -> str:
    where = layout.address("file", job.name, record.picture)
    name = os.path.basename(record.stem)
    shown = f'<a href="{where}"><img loading="lazy" alt="{escape(name)}" src="{where}"></a>' if record.picture else ""
    figures = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(_number(value))}</dd></div>" for key, value in record.figures.items()
    )
    reason = f'<p class="fault">left out: {escape(record.reason)}</p>' if record.reason else ""
    remarks = "".join(f"<p class=soft>{escape(text)}</p>" for text in record.remarks)
    return f"<li>{shown}<p><b>{escape(name)}</b></p>{reason}<dl>{figures}</dl>{remarks}</li>"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _scatter(site: Site, job: Job) -> str:
    folder = next_folder("select", list(site.jobs.all()))
    bounds = "".join(
        f'<fieldset><legend>{axis}</legend><label>column <select id="{axis}" data-axis></select></label>'
        f'<label>from <input type="range" id="{axis}-low" step="any"></label>'
        f'<label>to <input type="range" id="{axis}-high" step="any"></label>'
        f'<output id="{axis}-said"></output></fieldset>'
        for axis in ("x", "y")
    )
    save = "" if site.read_only else (
        f'<form id="save" method="post" action="{layout.address("new", "select")}" '
        f'data-check="{layout.address("check", "select")}">'
        f'<input type="hidden" name="table" value="{escape(job.name)}"><input type="hidden" name="where">'
        '<input type="hidden" name="command"><input type="hidden" name="act" value="start">'
        f'<label>Save to <input type="text" name="o" value="{escape(folder)}" spellcheck="false"></label> '
        '<button class="go" id="start" disabled>Save the choice</button> <span class="fault" id="faults" role="alert">'
        f"</span>{layout.command('')}</form>"
    )  # fmt: skip
    return (
        f'<div id="scatter" data-name="{escape(job.name)}"><canvas width="720" height="360" role="img" '
        'aria-label="two columns against each other; chosen micrographs are full dots"></canvas>'
        f'<div class="bounds">{bounds}<output id="chosen"></output></div></div>'
        f'<p id="picked" class="soft">Click a dot to see its picture.</p><img id="picture" alt="" hidden>{save}'
    )


def data(site: Site, request: Request, rest: str) -> Answer:
    """Columns of numbers of the job's table, names, and pictures, as JSON."""
    job = site.job(rest)
    path = table_of(job.folder)
    if path is None or not site.fence.holds(path):
        raise InputError(f"{job.name}: no table of micrographs in it yet")
    table = read_rows(path).table
    names = micrographs_of(table).tolist()[:MOST_ROWS]
    columns = dict[str, Any]()
    for label in table.labels:
        with suppress(InputError):
            values = table.numbers(label)[:MOST_ROWS]
            if len(np.unique(values)) > 1:
                columns[label] = [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
    pictures = {record.stem: record.picture for record in records_of(job.folder)}
    shown = [pictures.get(os.path.relpath(stem_of(name, job.folder), job.folder), "") for name in names]
    titles = {label: TITLES.get(label, label) for label in columns}
    return site.json({"names": names, "columns": columns, "titles": titles, "pictures": shown})

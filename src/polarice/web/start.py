"""A new job: its form, the command that it makes, and its start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from polarice.project.params import options_of
from polarice.project.registry import load
from polarice.types import InputError
from polarice.web import layout
from polarice.web.forms import Filled, fields_going_on, fill, html_of, offered, proposals, texts_of
from polarice.web.found import Job, next_folder
from polarice.web.guard import Refused
from polarice.web.job_page import cwd_of
from polarice.web.server import MOST_LOGGED, Answer, Request, shown

if TYPE_CHECKING:
    from polarice.web.site import Site


def show(site: Site, request: Request, rest: str) -> Answer:
    """The kinds of jobs, or the form of one; with ?from=JOB as that one was, and ?FIELD=... filled in; with
    ?continue_=JOB what may change when that one goes on."""
    if site.read_only:
        raise Refused(HTTPStatus.FORBIDDEN, "read-only: nothing can be started here (--read-only)")
    if not rest:
        rows = "".join(
            f"<li>{layout.link(name, 'new', name)} <span class=soft>{escape(load(name).SUMMARY)}</span></li>"
            for name in offered()
        )
        return site.page("New job", f'<h1>New job</h1><ul class="kinds">{rows}</ul>')
    job = _kind(rest)
    texts = texts_of(job, {})
    if source := request.query.get("from"):
        old = _old(site, job, source)
        where = old.working_directory or str(site.fence.root)
        moved = os.path.relpath(where, site.fence.root) if os.path.realpath(where) != str(site.fence.root) else ""
        texts = texts_of(job, {**old.params, "continue_": None}, moved)
    fields = {each.field for each in options_of(load(job).Params)}
    texts |= {name: text for name, text in request.query.items() if name in fields}
    if texts.get("continue_"):
        texts["continue_"] = _old(site, job, texts["continue_"]).name
    elif "o" in fields and "o" not in request.query:
        texts["o"] = next_folder(job, list(site.jobs.all()))
    return _page(site, Filled(job, texts))


def _kind(name: str) -> str:
    if name not in offered():
        raise Refused(HTTPStatus.NOT_FOUND, f"no job that is started here: {name[:80]!r}")
    return name


def _page(site: Site, filled: Filled, said: str = "") -> Answer:
    named = "".join(f"<li>{escape(text)}</li>" for name, text in filled.faults.items())
    faults = f'<ul class="faults" role="alert">{named}</ul>' if named else ""
    can = "" if filled.command else " hidden"
    going_on = filled.texts.get("continue_", "")
    title = f"Go on with {going_on}" if going_on else f"New {filled.job}"
    body = (
        f"<h1>{escape(title)}</h1><p class=soft>{escape(load(filled.job).SUMMARY)}</p>"
        f'<form id="form" method="post" action="{layout.address("new", filled.job)}" '
        f'data-check="{layout.address("check", filled.job)}" autocomplete="off" novalidate>'
        f"{html_of(filled, proposals(site.jobs.all(fresh=True), site.fence.root))}"
        f'<div class="ready"><div id="faults">{faults}</div><p class="fault">{escape(said)}</p>'
        f'<div id="ready"{can}>{layout.command(filled.command)}</div>'
        f'<input type="hidden" name="command" value="{escape(filled.command)}">'
        f'<button name="act" value="check" id="check">Check, and show the command</button> '
        f'<button name="act" value="start" id="start" class="go"{can}>Start</button></div></form>'
    )
    return site.page(title, body)


def post(site: Site, request: Request, rest: str) -> Answer:
    """Show the command; where it was shown already and is the same, run it."""
    filled, place, cwd = _filled(site, _kind(rest), request.form)
    if request.form.get("act") != "start" or filled.faults:
        return _page(site, filled)
    if request.form.get("command") != filled.command:
        return _page(site, filled, "Look at the command, then start it.")
    try:
        if not filled.texts.get("continue_") and "o" in filled.texts and place.is_dir() and any(place.iterdir()):
            raise InputError(f"{place.name}: is not empty; choose a new folder for the results")
        site.processes.start(filled.words, place, cwd)
    except InputError as error:
        return _page(site, filled, str(error))
    site.log(shown(f"started: {filled.command}", MOST_LOGGED))
    site.jobs.all(fresh=True)
    return Answer.to(layout.address("job", os.path.relpath(place, site.fence.root)))


def _filled(site: Site, kind: str, form: Mapping[str, str]) -> tuple[Filled, Path, Path]:
    """The form, the folder of its job, and where that works. Raises InputError for a job that cannot go on here."""
    root = site.fence.root
    if name := form.get("continue_", "").strip():
        old = _old(site, kind, name)
        cwd = cwd_of(site, old)
        allowed = {field: form.get(field, "") for field in fields_going_on(kind)}
        texts = {**texts_of(kind, {}), **allowed, "continue_": os.path.relpath(old.folder, cwd)}
        filled = fill(kind, texts, site.fence, cwd)
        return replace(filled, texts={**texts, "continue_": old.name}), old.folder, cwd
    default = next((str(each.default) for each in options_of(load(kind).Params) if each.field == "o"), "")
    # a workflow has no folder: what it prints goes beside its file
    return fill(kind, form, site.fence, root), root / (form.get("o", "").strip() or default or f"{kind}_log"), root


def _old(site: Site, kind: str, name: str) -> Job:
    old = site.job(name)
    if old.kind != kind or old.is_relion:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{name[:80]!r} is no job of this kind")
    return old


def check_only(site: Site, request: Request, rest: str) -> Answer:
    """The command that a form makes, or what is wrong, as JSON."""
    filled, _, _ = _filled(site, _kind(rest), request.form)
    return site.json({"command": filled.command, "faults": dict(filled.faults)})

"""A job's page: how it is, its log, command, parameters, pictures, report; stop, go on, run again, clone."""

from __future__ import annotations

import os
from html import escape
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarice.project.params import Option, options_of
from polarice.project.registry import load
from polarice.types import InputError
from polarice.web import layout, process
from polarice.web.classes import has_classes
from polarice.web.forms import Filled, fill, offered, proposals, texts_of
from polarice.web.found import ERR, OUT, Job, is_text, natural, progress_of, tail
from polarice.web.guard import REPORT_SANDBOX, Refused
from polarice.web.home import as_json
from polarice.web.maps import preferred, volumes_of
from polarice.web.micrographs import has_micrographs
from polarice.web.server import MOST_LOGGED, Answer, Request, shown

if TYPE_CHECKING:
    from polarice.web.site import Site

REPORT = "report.html"
PICTURES, MOST_PICTURES = (".png", ".gif", ".jpg"), 24
LOGS = (ERR, OUT)


def show(site: Site, request: Request, rest: str) -> Answer:
    job = site.job(rest)
    progress = progress_of(job, site.processes.is_running(job.folder))
    parts = [
        f"<h1>{escape(job.name)}</h1>",
        f'<p class="row" id="job" data-name="{escape(job.name)}">{layout.badge(progress)}'
        f'<span class="kind">{escape(job.kind or "?")}{" (RELION, shown only)" if job.is_relion else ""}</span>'
        f'{layout.bar(progress)}<span class="said" data-said>{escape(progress.said)}</span></p>',
        _views(job),
        "" if job.is_relion or site.read_only else _actions(site, job, progress.state),
        f'<p class="fault">{escape(job.fault)}</p>' if job.fault else "",
        f"<h2>Command</h2>{layout.command(job.command)}<p class=soft>in {escape(job.working_directory)}, begun "
        f"{escape(job.started or '?')}</p>" if job.command else "",
        _made_from(site, job),
        _log(job),
        _report(job),
        _pictures(job),
        _parameters(job),
    ]  # fmt: skip
    return site.page(job.name, "".join(parts))


def _views(job: Job) -> str:
    links = [layout.link("Classes", "classes", job.name)] if has_classes(job.folder) else []
    links += [layout.link("Maps", "map", job.name)] if volumes_of(job.folder) else []
    links += [layout.link("Micrographs", "micrographs", job.name)] if has_micrographs(job.folder) else []
    links += [layout.link("Files", "files", "" if job.name == "." else job.name)]
    return f'<nav class="views" aria-label="of this job">{"".join(links)}</nav>'


def _actions(site: Site, job: Job, state: str) -> str:
    """Buttons, each with the command that it runs."""
    parts = []
    if state == "running":
        parts.append(
            f'<form method="post" action="{layout.address("stop", job.name)}"><button class="stop">Stop</button>'
            "<p class=soft>As Ctrl-C does: it writes what it has, and can go on.</p></form>"
        )
    elif job.command and state != "starting":
        try:
            filled, title = again_of(site, job)
            action = layout.address("again", job.name)
            parts.append(
                f'<form method="post" action="{action}"><input type="hidden" name="command" '
                f'value="{escape(filled.command)}"><button>{title}</button>{layout.command(filled.command)}</form>'
            )
            if filled.texts.get("continue_"):
                other = layout.link("Go on with more iterations, or elsewhere", "new", job.kind, continue_=job.name)
                parts.append(f"<p>{other}</p>")
        except InputError as error:
            parts.append(f'<p class="soft">It cannot be run from here: {escape(str(error))}</p>')
    if job.kind in offered():
        parts.append(
            f"<p>{layout.link('Clone: its settings in a new form', 'new', job.kind, **{'from': job.name})}</p>"
        )
    if following := _following(site, job):
        parts.append(f"<p>Use what it made: {following}</p>")
    return f'<div class="actions">{"".join(parts)}</div>'


def _following(site: Site, job: Job) -> str:
    """Links to forms of jobs that take what this one has made."""
    made, links = proposals({job.name: job}, site.fence.root, alone=True), []
    if volumes := volumes_of(job.folder):
        made["map"] = [f"{job.name}/{preferred(volumes)}"]
    for kind in offered():
        first = next(each for each in options_of(load(kind).Params) if each.positional)
        holds = first.path.holds if first.path and first.count == 1 else ""
        if holds and made.get(holds) and kind != job.kind:
            links.append(layout.link(kind, "new", kind, **{first.field: made[holds][-1]}))
    return ", ".join(links)


def again_of(site: Site, job: Job) -> tuple[Filled, str]:
    """The command that goes on with a job, or runs it again, and what it does. Raises InputError where it cannot be
    made: from elsewhere, of parameters that are none."""
    if job.kind not in offered():
        raise InputError(f"{job.kind or 'this'} is no job that is started here")
    cwd = cwd_of(site, job)
    fields = {each.field for each in options_of(load(job.kind).Params)}
    if "continue_" in fields:
        texts, title = {"continue_": os.path.relpath(job.folder, cwd)}, "Go on"
        texts |= {name: text for name, text in texts_of(job.kind, {}).items() if text}
    else:
        texts, title = texts_of(job.kind, job.params), "Run again: what is missing or has changed"
    filled = fill(job.kind, texts, site.fence, cwd)
    if filled.faults:
        raise InputError("; ".join(filled.faults.values()))
    return filled, title


def cwd_of(site: Site, job: Job) -> Path:
    """Where a job was begun, from where its files' names hold. Raises InputError where that is not in the project."""
    cwd = Path(job.working_directory or site.fence.root)
    if not cwd.is_dir() or not cwd.resolve().is_relative_to(site.fence.root):
        raise InputError(f"it was begun in {cwd}, which is not in this project; serve that folder, or clone it")
    return cwd


def _made_from(site: Site, job: Job) -> str:
    makers = [layout.link(each, "job", each) for each in (job.parent, *job.others) if each]
    made = [each.name for each in site.jobs.all().values() if job.name in (each.parent, *each.others)]
    parts = [f"<p>From {', '.join(makers)}.</p>"] if makers else []
    parts += [f"<p>Used by {', '.join(layout.link(each, 'job', each) for each in made[:20])}.</p>"] if made else []
    return "".join(parts)


def _log(job: Job) -> str:
    text = log_of(job)
    hidden = "" if text else " hidden"
    return (
        f'<section id="log"{hidden}><h2>Log</h2><pre class="log" tabindex="0" data-log>{escape(text)}</pre></section>'
    )


def log_of(job: Job) -> str:
    """What it printed, where that is kept: messages, then results."""
    return "\n".join(text.strip("\n") for name in LOGS if (text := tail(job.folder / name)).strip())


def _report(job: Job) -> str:
    if not (job.folder / REPORT).is_file():
        return ""
    where = layout.address("file", *(() if job.name == "." else (job.name,)), REPORT)
    return (
        f'<h2>Report</h2><p><a href="{where}" target="_blank" rel="noopener">In a window of its own</a></p>'
        f'<iframe class="report" src="{where}" title="report of {escape(job.name)}" loading="lazy" '
        f'sandbox="{REPORT_SANDBOX}"></iframe>'
    )


def _pictures(job: Job) -> str:
    there = [each for each in os.listdir(job.folder) if each.lower().endswith(PICTURES) and is_text(each)]
    names = sorted(there, key=natural)
    shown = "".join(
        f'<a href="{layout.address("file", job.name, name)}"><img loading="lazy" alt="{escape(name)}" '
        f'src="{layout.address("file", job.name, name)}"></a>'
        for name in names[-MOST_PICTURES:]
    )
    return (
        f'<details><summary>Pictures ({len(names):,})</summary><div class="pictures">{shown}</div></details>'
        if names
        else ""
    )


def _parameters(job: Job) -> str:
    if not job.params:
        return ""
    try:
        known = {each.field: each for each in options_of(load(job.kind).Params)}
    except KeyError:
        known = {}
    rows = []
    for name, value in job.params.items():
        option = known.get(name)
        default = option is not None and value in (option.default, str(option.default))
        unit = f" {option.unit}" if option and option.unit and value is not None else ""
        rows.append(
            (default, option.flag if option else name, _said(value, option) + unit, option.help if option else "")
        )
    cells = "".join(
        f"<tr{' class=soft' if default else ''}><th scope=row>{escape(name)}</th><td>{escape(value)}</td>"
        f"<td class=soft>{escape(help)}</td></tr>"
        for default, name, value, help in sorted(rows, key=lambda row: row[0])
    )
    return f'<details open><summary>Parameters</summary><div class="scroll"><table>{cells}</table></div></details>'


def _said(value: Any, option: Option | None) -> str:
    if value in (None, []):
        return option.derived if option and option.derived else "none"
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def status(site: Site, request: Request, rest: str) -> Answer:
    """For the page, every two seconds."""
    job = site.job(rest)
    told = as_json(progress_of(job, site.processes.is_running(job.folder)))
    return site.json({**told, "log": log_of(job)})


def stop(site: Site, request: Request, rest: str) -> Answer:
    """Raises InputError where the process is not the job's."""
    job = site.job(rest)
    if job.is_relion:
        raise Refused(HTTPStatus.FORBIDDEN, "RELION's jobs are only shown")
    site.log(shown(f"{job.name}: {process.stop(job.folder)}"))
    return Answer.to(layout.address("job", job.name))


def again(site: Site, request: Request, rest: str) -> Answer:
    """Run the command that was shown. Raises Refused where it has become another one."""
    job = site.job(rest)
    if job.is_relion:
        raise Refused(HTTPStatus.FORBIDDEN, "RELION's jobs are only shown")
    filled, _ = again_of(site, job)
    if request.form.get("command") != filled.command:
        raise Refused(HTTPStatus.CONFLICT, "the command has changed since it was shown; load the page again")
    site.processes.start(filled.words, job.folder, cwd_of(site, job))
    site.log(shown(f"started: {filled.command}", MOST_LOGGED))
    return Answer.to(layout.address("job", job.name))

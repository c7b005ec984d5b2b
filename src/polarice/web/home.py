"""The first page: all jobs as a tree, by what made what."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from polarice.web import layout
from polarice.web.found import Job, Progress, progress_of
from polarice.web.server import Answer, Request

if TYPE_CHECKING:
    from polarice.web.site import Site

MOST_SHOWN = 1000  # the rest by name


def show(site: Site, request: Request, rest: str) -> Answer:
    """The page; with ?part=tree the tree alone, which the page replaces when folders come and go."""
    jobs = site.jobs.all()
    tree = _tree(site, jobs)
    if request.query.get("part") == "tree":
        return Answer(tree.encode("utf-8", "replace"))
    where = site.fence.root
    body = (
        f"<h1>{escape(where.name or str(where))}</h1><p class=soft>{escape(str(where))}</p>"
        '<p class="tools"><label>Show <input type="search" id="filter" placeholder="name, job or state"></label> '
        f'<span id="count" class="soft">{counted(len(jobs))}</span></p>'
        f'<div id="tree" data-version="{version_of(jobs)}">{tree}</div>'
    )
    return site.page(where.name, body)


def counted(n: int) -> str:
    return "1 job" if n == 1 else f"{n:,} jobs"


def _tree(site: Site, jobs: Mapping[str, Job]) -> str:
    if not jobs:
        told = "" if site.read_only else f" {layout.link('Start one', 'new')}, or run polarice here."
        return f"<p>No job below this folder yet.{told}</p>"
    below: dict[str, list[Job]] = {}
    for job in list(jobs.values())[:MOST_SHOWN]:
        below.setdefault(job.parent, []).append(job)
    more = f"<p>{len(jobs) - MOST_SHOWN:,} more are not shown.</p>" if len(jobs) > MOST_SHOWN else ""
    shown: set[str] = set()
    parts = [_branch(site, job, below, shown, 0) for job in below.get("", [])]
    parts += [_branch(site, job, below, shown, 0) for job in list(jobs.values())[:MOST_SHOWN] if job.name not in shown]
    return f'<ul class="jobs">{"".join(parts)}</ul>{more}'


def _branch(site: Site, job: Job, below: Mapping[str, list[Job]], shown: set[str], deep: int) -> str:
    shown.add(job.name)
    inner = [each for each in below.get(job.name, []) if each.name not in shown]
    rows = "".join(_branch(site, each, below, shown, deep + 1) for each in inner) if deep < 100 else ""
    progress = progress_of(job, site.processes.is_running(job.folder))
    also = f' <span class="soft">also from {escape(", ".join(job.others[:3]))}</span>' if job.others else ""
    said = f'<span class="said" data-said>{escape(progress.said)}</span>'
    begun = f'<span class="soft">{escape(job.started[:16].replace("T", " "))}</span>' if job.started else ""
    kind = f"{escape(job.kind or '?')}{' (RELION)' if job.is_relion else ''}"
    return (
        f'<li><div class="row" data-name="{escape(job.name)}">{layout.badge(progress)}'
        f'<a class="name" href="{layout.address("job", job.name)}">{escape(job.name)}</a>'
        f'<span class="kind">{kind}</span>{layout.bar(progress)}{said}{begun}{also}</div>'
        f"{f'<ul>{rows}</ul>' if rows else ''}</li>"
    )


def version_of(jobs: Mapping[str, Job]) -> str:
    """Another one where the tree has changed."""
    text = "\n".join(f"{job.name} {job.kind} {job.parent} {job.started}" for job in jobs.values())
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def status(site: Site, request: Request, rest: str) -> Answer:
    """Every job's state, for a page that asks every two seconds."""
    jobs = site.jobs.all()
    told = {job.name: as_json(progress_of(job, site.processes.is_running(job.folder))) for job in jobs.values()}
    return site.json({"version": version_of(jobs), "count": counted(len(jobs)), "jobs": told})


def as_json(progress: Progress) -> dict[str, Any]:
    """For a page's script."""
    told = {name: getattr(progress, name) for name in ("state", "said", "done", "total")}
    return {**told, "word": layout.WORDS.get(progress.state, progress.state)}

"""The pages of a project and what they ask for: from a path to an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from http import HTTPStatus
from pathlib import Path
from typing import Any

from polarice.web import classes, files, home, job_page, layout, maps, micrographs, start
from polarice.web.found import Job, Jobs
from polarice.web.guard import Fence, Keys, Refused
from polarice.web.process import Processes
from polarice.web.server import Answer, Request, log_line

Page = Callable[["Site", Request, str], Answer]


@dataclass(frozen=True)
class Site:
    """A project folder as it is served."""

    fence: Fence
    jobs: Jobs
    read_only: bool = False
    keys: Keys = field(default_factory=Keys)
    processes: Processes = field(default_factory=Processes)
    runs: classes.Runs = field(default_factory=lambda: classes.Runs())
    log: Callable[[str], None] = log_line

    @staticmethod
    def of(root: Path, also: Sequence[Path] = (), **more: Any) -> Site:
        roots = tuple(path.resolve() for path in (root, *also))
        return Site(Fence(roots), Jobs(roots[0]), **more)

    def get(self, request: Request) -> Answer:
        """Raises Refused for what there is not."""
        return self._of(GET, request)

    def post(self, request: Request) -> Answer:
        """Raises Refused for what there is not."""
        return self._of(POST, request)

    def _of(self, pages: Mapping[str, Page], request: Request) -> Answer:
        name, _, rest = request.path.lstrip("/").partition("/")
        if name not in pages:
            raise Refused(HTTPStatus.NOT_FOUND, f"no such page: {request.path[:200]!r}")
        return pages[name](self, request, rest)

    def job(self, name: str) -> Job:
        """The job of a folder. Raises Refused where there is none."""
        self.fence.folder(name)
        job = self.jobs.one(name or ".")
        if job is None:
            raise Refused(HTTPStatus.NOT_FOUND, f"no job in {name[:200]!r}")
        return job

    def page(self, title: str, body: str, scripts: Sequence[str] = (), crumbs: str = "") -> Answer:
        return Answer(layout.page(title, body, scripts, crumbs, self.read_only))

    def json(self, content: object) -> Answer:
        return Answer(json.dumps(content, allow_nan=False).encode(), "application/json")

    def refusal(self, refused: Refused) -> bytes:
        """A page that says why there is none."""
        unfit = refused.status == HTTPStatus.UNPROCESSABLE_ENTITY
        words = "This cannot be done" if unfit else refused.status.phrase
        return layout.page(words, f"<h1>{escape(words)}</h1><p>{escape(refused.reason)}</p>", read_only=self.read_only)


def _static(site: Site, request: Request, name: str) -> Answer:
    if name not in layout.STATIC:
        raise Refused(HTTPStatus.NOT_FOUND, f"no such file: {name[:80]!r}")
    return Answer(layout.static(name), f"{layout.STATIC[name]}; charset=utf-8")


GET: dict[str, Page] = {
    "": home.show,
    "status.json": home.status,
    "static": _static,
    "job": job_page.show,
    "job.json": job_page.status,
    "new": start.show,
    "classes": classes.show,
    "classes.json": classes.data,
    "scores.json": classes.scores,
    "average": classes.average,
    "particles": classes.particles,
    "map": maps.show,
    "slice": maps.slice_picture,
    "micrographs": micrographs.show,
    "micrographs.json": micrographs.data,
    "file": files.send,
    "files": files.show,
}
POST: dict[str, Page] = {
    "new": start.post,
    "check": start.check_only,
    "stop": job_page.stop,
    "again": job_page.again,
}

"""A server over a small project, and requests to it as a browser or a stranger makes them."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

from polarice.io.mrc import write_stack, write_volume
from polarice.io.star import Block, write_star
from polarice.io.table import Table
from polarice.project.provenance import write_job_json
from polarice.web.command import _listening
from polarice.web.server import Server
from polarice.web.site import Site


@dataclass
class Served:
    """What a test needs of a running server."""

    site: Site
    server: Server
    log: list[str]

    @property
    def port(self) -> int:
        return self.server.server_port

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def cookie(self) -> str:
        return f"{self.server.cookie}={self.site.keys.session}"

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        """A request with nothing but what is said; names of headers with _ for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None and "Content_Length" not in headers:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        found = Answer(answer.status, dict(answer.getheaders()), answer.read())
        connection.close()
        return found

    def get(self, path: str, **headers: str) -> Answer:
        """As the page asks."""
        return self.ask(path, Cookie=self.cookie, **headers)

    def post(self, path: str, fields: dict[str, str] | bytes = b"", **headers: str) -> Answer:
        """As a form of the page is sent."""
        body = fields if isinstance(fields, bytes) else urlencode(fields).encode()
        given = {
            "Cookie": self.cookie,
            "Origin": f"http://{self.host}",
            "Content_Type": "application/x-www-form-urlencoded",
        }
        return self.ask(path, "POST", body, **{**given, **headers})


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def serving(root: Path, also: tuple[Path, ...] = (), **more: Any) -> Iterator[Served]:
    log: list[str] = []
    site = Site.of(root, also, log=log.append, **more)
    with Server(_listening("127.0.0.1", None), site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Served(site, server, log)
        finally:
            server.shutdown()
            thread.join()


def a_job(folder: Path, job: str, inputs: list[Path] | None = None, **params: Any) -> Path:
    """A folder with the job.json of a job begun in its project."""
    folder.mkdir(parents=True, exist_ok=True)
    write_job_json(folder, job, {"o": str(folder), **params}, f"polarice {job}", inputs=inputs or [])
    return folder


def classes_in(folder: Path, k: int = 6, box: int = 32, per_class: int = 4) -> None:
    """The files of a classification's last iteration: blobs of growing size, class c with c times as many particles."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:box, :box] - box // 2
    averages = np.stack([np.exp(-(x**2 + y**2) / (2 * (2 + 5 * c / k) ** 2)) for c in range(k)]).astype(np.float32)
    rng = np.random.default_rng(0)
    class_of = np.repeat(np.arange(k), per_class * (np.arange(k) % 9 + 1))
    images = averages[class_of] + rng.normal(0, 0.3, (len(class_of), box, box)).astype(np.float32)
    write_stack(folder / "particles.mrcs", images, 3.0)
    write_stack(folder / "run_it003_classes.mrcs", averages, 3.0)
    optics = Table.of({"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["a"], "rlnImagePixelSize": [3.0]})
    names = [f"{row + 1:06d}@{folder.name}/particles.mrcs" for row in range(len(class_of))]
    table = Table.of(
        {"rlnImageName": names, "rlnOpticsGroup": np.ones(len(names), int), "rlnClassNumber": class_of + 1}
    )
    write_star(folder / "run_it003_data.star", [Block("optics", table=optics), Block("particles", table=table)])
    classes = Table.of(
        {
            "rlnReferenceImage": [f"{c + 1:06d}@{folder.name}/run_it003_classes.mrcs" for c in range(k)],
            "rlnClassDistribution": np.bincount(class_of, minlength=k) / len(class_of),
            "rlnEstimatedResolution": 12.0 + np.arange(k),
        }
    )
    general = Block.of_pairs("model_general", {"rlnPixelSize": 3.0})
    write_star(folder / "run_it003_model.star", [general, Block("model_classes", table=classes)])


def a_map(path: Path, box: int = 16) -> None:
    """A map whose section z has the value z, in the left half 100."""
    density = np.broadcast_to(np.arange(box, dtype=np.float32)[:, None, None], (box, box, box)).copy()
    density[:, :, : box // 2] = 100
    write_volume(path, density, 2.0)

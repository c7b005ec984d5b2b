"""The jobs of a project, found by their files: Polarice's by job.json and state.json, RELION's by job.star."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from polarice.io.star import read_star
from polarice.project import provenance, state
from polarice.project.state import EXITS, JobState, read_state
from polarice.report.html import duration
from polarice.types import InputError

LOOKED_EVERY_S = 5.0  # for new folders
MOST_FOLDERS = 20_000  # that are looked into
MOST_JSON_BYTES = 1 << 24
MOST_LINE = 10_000
OUT, ERR = "run.out", "run.err"  # of a job that was started here, as RELION names them
RELION = "job.star"
CHAINS = ("run", "deep2d", "demo", "sml")  # commands that run jobs in folders below theirs
RELION_RUN = "_optimiser.star"


@dataclass(frozen=True)
class Job:
    """One job's folder."""

    name: str  # from the project's folder
    folder: Path
    kind: str  # "class2d"; RELION's type where it is RELION's
    is_relion: bool = False
    command: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    working_directory: str = ""
    started: str = ""
    inputs: tuple[str, ...] = ()  # absolute paths
    fault: str = ""  # why job.json cannot be read
    parent: str = ""  # the name of the job that made its first input
    others: tuple[str, ...] = ()  # further jobs that made inputs


@dataclass(frozen=True)
class Progress:
    """How a job is; `state` is one word: running, done, failed, stopped, lost, starting, queued, or ""."""

    state: str
    said: str
    done: int = 0
    total: int = 0
    left_s: float | None = None


class Jobs:
    """Finds them, and remembers what has not changed. Safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock, self._looked = threading.Lock(), -LOOKED_EVERY_S
        self._jobs: dict[str, Job] = {}
        self._read: dict[Path, tuple[int, Job]] = {}

    def all(self, fresh: bool = False) -> dict[str, Job]:
        """By name, in the order of names; looked for anew every few seconds, and where `fresh`."""
        with self._lock:
            if fresh or time.monotonic() - self._looked >= LOOKED_EVERY_S:
                found = [job for job in map(self._job_of, *self._folders()) if job is not None]
                self._jobs = {job.name: job for job in with_parents(found)}
                self._looked = time.monotonic()
            return self._jobs

    def one(self, name: str) -> Job | None:
        """A job as its files are this moment."""
        kept = self.all().get(name)
        folder = self.root / name
        try:
            job = self._job_of(folder, os.listdir(folder))
        except OSError:
            return None
        if job is None or (kept is not None and replace(kept, parent="", others=()) == job):
            return kept
        return self.all(fresh=True).get(name)

    def _folders(self) -> tuple[list[Path], list[list[str]]]:
        folders, names = [], []
        for folder, inner, files in islice(os.walk(self.root), MOST_FOLDERS):
            inner[:] = sorted((each for each in inner if not each.startswith(".") and is_text(each)), key=natural)
            folders.append(Path(folder))
            names.append(files)
        return folders, names

    def _job_of(self, folder: Path, files: list[str]) -> Job | None:
        names = set(files)
        mark = next((each for each in (provenance.NAME, RELION, state.NAME, ERR) if each in names), "")
        if not mark and not (mark := next((each for each in files if each.endswith(RELION_RUN)), "")):
            return None
        try:
            changed = (folder / mark).stat().st_mtime_ns
        except OSError:
            return None
        kept = self._read.get(folder / mark)
        if kept is None or kept[0] != changed:
            kept = changed, _read(folder, os.path.relpath(folder, self.root), mark)
            self._read[folder / mark] = kept
        return kept[1]


def _read(folder: Path, name: str, mark: str) -> Job:
    if mark == provenance.NAME:
        return _polarice_job(folder, name)
    if mark in (state.NAME, ERR):
        return _beginning(folder, name)
    return _relion_job(folder, name)


def _beginning(folder: Path, name: str) -> Job:
    """A job that was started from a page and has not written job.json: as the first line of its log has it."""
    said, command = read_state(folder), ""
    with suppress(OSError), open(folder / ERR, encoding="utf-8", errors="replace") as stream:
        first = stream.readline(MOST_LINE).rstrip("\n")
        command = first[2:] if first.startswith("$ polarice ") else ""
    words = command.split(" ")
    return Job(name, folder, said.job if said else words[1] if len(words) > 1 else "", command=command)


def _polarice_job(folder: Path, name: str) -> Job:
    if (folder / provenance.NAME).stat().st_size > MOST_JSON_BYTES:
        return Job(name, folder, "", fault="job.json is too large")
    try:
        content = provenance.read_job_json(folder)
        records = provenance.inputs_of(content, folder)
    except InputError as error:
        return Job(name, folder, _kind_in(folder), fault=str(error))
    where = str(content.get("working_directory", ""))
    inputs = [_place_of(record, folder, where) for record in records]
    return Job(
        name, folder, str(content.get("job", "")), False, str(content.get("command", "")), content["params"], where,
        str(content.get("started", "")), tuple(dict.fromkeys(inputs)),
    )  # fmt: skip


def _place_of(record: Mapping[str, Any], folder: Path, where: str) -> str:
    """An input's place: as seen from the job's folder, which may have been moved with it, or as it was named."""
    beside = os.path.normpath(folder / str(record.get("beside") or "-"))
    return beside if os.path.lexists(beside) else os.path.normpath(os.path.join(where, str(record["path"])))


def _kind_in(folder: Path) -> str:
    said = read_state(folder)
    return said.job if said else ""


def _relion_job(folder: Path, name: str) -> Job:
    """RELION's own: its type from job.star or the folder above, its inputs from job_pipeline.star."""
    kind, inputs = folder.parent.name or "RELION", list[str]()
    with suppress(InputError, OSError, ValueError):
        star = read_star(folder / RELION)
        pairs = next((block.pairs for block in star if "rlnJobTypeLabel" in block.pairs), {})
        kind = str(pairs.get("rlnJobTypeLabel", kind))
    with suppress(InputError, OSError, ValueError):
        edges = read_star(folder / "job_pipeline.star").table("pipeline_input_edges")
        above = folder.parents[len(Path(name).parts) - 1]
        inputs = [os.path.normpath(above / text) for text in edges.text("rlnPipeLineEdgeFromNode").tolist()]
    return Job(name, folder, kind, True, inputs=tuple(inputs))


def with_parents(jobs: list[Job]) -> list[Job]:
    """The jobs, each with those whose folders hold its inputs; of a job inside another's folder, that one."""
    by_folder = {os.path.abspath(job.folder): job.name for job in jobs}
    chains = {os.path.abspath(job.folder): job.name for job in jobs if job.kind in CHAINS}
    made = []
    for job in jobs:
        makers = [_maker(path, by_folder) for path in job.inputs]
        makers = [each for each in dict.fromkeys(makers) if each and each != job.name]
        if not makers and (around := _maker(os.path.dirname(os.path.abspath(job.folder)), chains)):
            makers = [around]
        made.append(replace(job, parent=makers[0] if makers else "", others=tuple(makers[1:])))
    return _without_circles(made)


def _maker(path: str, by_folder: Mapping[str, str]) -> str:
    """The innermost job around a path."""
    while True:
        if path in by_folder:
            return by_folder[path]
        above = os.path.dirname(path)
        if above == path:
            return ""
        path = above


def _without_circles(jobs: list[Job]) -> list[Job]:
    parent = {job.name: job.parent for job in jobs}
    for name in parent:
        seen, at = {name}, parent[name]
        while at and at not in seen:
            seen.add(at)
            at = parent.get(at, "")
        if at:  # came round: cut here
            parent[name] = ""
    return [replace(job, parent=parent[job.name]) for job in jobs]


def progress_of(job: Job, starting: bool) -> Progress:
    """How a job is, as its files say now; `starting`: a process of ours is at work on it."""
    if job.is_relion:
        done = [name for name, file in EXITS.items() if (job.folder / file).exists()]
        return Progress(done[0] if done else "", "" if done else "no word of how it ended")
    said = read_state(job.folder)
    if said is None:
        if (job.folder / provenance.NAME).exists():
            return Progress("", job.fault or "no state was kept")
        last = last_line(job.folder / ERR)
        return Progress("starting", "") if starting else Progress("failed", last or "it did not begin")
    if starting and said.state != "running":
        return Progress("starting", "")
    return _progress(said)


def _progress(said: JobState) -> Progress:
    word = "lost" if said.is_lost else said.state
    words = said.told().removeprefix(said.state).removeprefix(": ")
    spent_s = said.heartbeat - said.started
    if word == "running" and said.estimate_s is None and 0 < said.done < said.total and spent_s > 0:
        # the step has just begun: from all that was done in all the time
        words += f", about {duration(spent_s / said.done * (said.total - said.done))} left"
    return Progress(word, words, max(said.done, 0), max(said.total, 0), said.estimate_s)


def last_line(path: Path) -> str:
    lines = [line for line in tail(path, 4096).splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def tail(path: Path, most_bytes: int = 1 << 15) -> str:
    """The end of a log, as a terminal would show it: of lines written over each other, the last."""
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(max(0, size - most_bytes))
            text = stream.read(most_bytes).decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8; what is named in another way can be in no page's address."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def natural(name: str) -> list[Any]:
    """job10 comes after job9."""
    words, word = list[Any](), ""
    for letter in name:
        if word and letter.isdigit() != word[-1].isdigit():
            words.append(word)
            word = ""
        word += letter
    return [(1, int(each), "") if each.isascii() and each.isdigit() else (0, 0, each) for each in [*words, word]]


def next_folder(kind: str, names: list[str]) -> str:
    """A folder for a new job, numbered on as RELION does it: Class2D/job008."""
    numbers = [int(part[3:]) for name in names for part in name.split("/") if part[:3] == "job" and part[3:].isdigit()]
    return f"{FOLDERS.get(kind, kind.capitalize())}/job{max(numbers, default=0) + 1:03d}"


FOLDERS = {
    "import": "Import", "motion": "MotionCorr", "ctf": "CtfFind", "pick": "AutoPick", "extract": "Extract",
    "align2d": "Align2D", "class2d": "Class2D", "sml": "SML", "deep2d": "Deep2D", "initial3d": "InitialModel",
    "refine3d": "Refine3D", "class3d": "Class3D", "reconstruct": "Reconstruct", "select": "Select", "star": "Star",
    "mask": "MaskCreate", "postprocess": "PostProcess", "map": "Map", "simulate": "Simulate",
}  # fmt: skip


def inputs_json(content: object) -> str:
    """JSON for a page's script, safe inside of HTML."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")

"""What jobs that treat one movie or micrograph after another share: workers, progress, restart, what is left out.

    def run(params):
        on_ranks("ctf", params, fit_all)

    def fit_all(params, comm):
        table = read_micrographs(params.micrographs)
        items = items_of(table, params.o)
        begin("ctf", params, Writes(params.o, ("micrographs.star",), items, (".ctf",)), [params.micrographs])
        outcomes = treat(items, Fit(params, ...), Farm.of("ctf", params, comm=comm))
        rows, columns = cells_of(outcomes)
        write_micrographs(params.o / "micrographs.star", table.take(np.array(rows)), columns)
        end(MicrographReport("ctf", params.o, params, items, outcomes))

`work` is a picklable object that is called with an `Item`: it reads the files, writes its results below `item.stem`
and hands back an `Outcome`. Every outcome is kept in `STEM_polarice.json` beside the results, written last: a
micrograph is done when that stands there and was made from the same files with the same settings. So the same command
again does what is missing, what has changed, and what failed before; nothing else. A micrograph that cannot be used
(any exception) is an outcome with a reason, never the end of the run.

Micrographs are shared out over the ranks of a `Comm`, and on each rank over processes. Rank 0 does all but `treat`,
for which the others wait (`on_ranks`). No result travels: all ranks see one file system, and rank 0 reads the others'
outcomes from there.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import signal
import struct
import sys
import threading
import time
import traceback
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import polarice.io
from polarice.cluster import SERIAL, Comm, world
from polarice.io.atomic import replacing
from polarice.io.micrographs import MicrographTable, stem_of
from polarice.io.pictures import HEADER_SAYS
from polarice.project import state
from polarice.project.fault import spared
from polarice.project.folder_lock import alone
from polarice.project.inputs import content_of, fingerprint, is_same
from polarice.project.items import Item, Outcome
from polarice.project.outputs import KEY, RECORD, Outputs
from polarice.project.params import Parameters, as_dict, command_line, options_of, resources_of
from polarice.project.processes import context_for
from polarice.project.progress import Bar
from polarice.project.provenance import NAME
from polarice.project.usage import USAGE_NAME, Items, Spent, Watch, items_of_last_run, write_usage
from polarice.runs.per_micrograph import LONGEST_S, PerMicrograph
from polarice.runs.resources import first_card, take_card, threads_of
from polarice.types import InputError

if TYPE_CHECKING:
    from polarice.report.micrographs import MicrographReport

REPORT = "report.html"
AT_WORK = ".at_work_"  # how the names of notes begin that say what a rank is at
LONGEST_NAME_BYTES = 200  # file systems take 255, with what is put behind it
GRACE_S = 60.0  # a process that does not stop by itself at its time limit is ended so much later


Work = Callable[[Item], Outcome]
_READERS = Path(polarice.io.__file__).parent
P = TypeVar("P", bound=PerMicrograph)


@dataclass(frozen=True)
class TaskPool:
    """How a job's items are treated."""

    settings: Mapping[str, Any]  # what the results depend on, beside the items (JSON)
    workers: int = 1  # processes of this rank; 1: this process itself
    threads: int = 1  # of each process
    what: str = "micrographs"  # they are called so
    job: str = ""
    comm: Comm = SERIAL
    device: str = "cpu"
    price: float | None = None
    folder: Path | None = None  # where usage.json goes
    time_limit_s: float = LONGEST_S  # of each item

    @staticmethod
    def of(
        job: str, params: PerMicrograph, what: str = "micrographs", inputs: Iterable[str] = (), comm: Comm = SERIAL
    ) -> TaskPool:
        """The farm that a job's Params ask for; `inputs` are files that all results depend on, a gain reference say."""
        kept = {
            name: value for name, value in as_dict(params).items() if name not in {*resources_of(params), "micrographs"}
        }
        threads = threads_of(params)
        workers = min(params.workers or threads, threads)
        settings = {"job": job, "params": kept, "inputs": [content_of(path) for path in inputs]}
        each = max(1, threads // workers)
        return TaskPool(
            settings, workers, each, what, job, comm, params.device, params.price, params.o, params.time_limit
        )


def items_of(table: MicrographTable, folder: Path) -> list[Item]:
    """An item for every row of the table; its stem is its name's place below `folder`, as RELION lays jobs out.

    The row's own columns and its optics group count among its settings. Raises InputError where two rows would
    write the same files.
    """
    stems = [stem_of(name, folder) for name in table.names]
    seen: dict[str, int] = {}
    for row, stem in enumerate(stems):
        if any(len(os.fsencode(part)) > LONGEST_NAME_BYTES for part in Path(stem).parts):
            raise InputError(
                f"{table.path}, row {row + 1}: the name {table.names[row][:60]}... is longer than {LONGEST_NAME_BYTES} "
                "bytes, which leaves no room for what is put behind it; rename the file"
            )
        if (first := seen.setdefault(stem, row)) != row:
            raise InputError(
                f"{table.path}: rows {first + 1} and {row + 1} ({table.names[first]}, {table.names[row]}) would write "
                "the same files; remove one, or rename it"
            )
    groups = [asdict(group) for group in table.optics]
    labels = table.table.labels
    rows = zip(*(table.table.text(label).tolist() for label in labels), strict=True)
    return [
        Item(name, row, file, stem, {"optics": groups[group], "cells": dict(zip(labels, cells, strict=True))})
        for row, (name, file, stem, group, cells) in enumerate(
            zip(table.names, table.files, stems, table.optics_of.tolist(), rows, strict=True)
        )
    ]


def on_ranks(job: str, params: P, body: Callable[[P, Comm], None]) -> None:
    """Run the body on rank 0 of all that were started; the others do their share of what it treats."""
    with world(job) as comm:
        if comm.rank == 0:
            with alone(params.o):
                body(params, comm)
            comm.on_root(lambda: None)
            return
        while (share := _handed_out(comm)) is not None:
            share.done(comm)


def treat(items: Sequence[Item], work: Work, farm: TaskPool) -> list[Outcome]:
    """The outcome of every item, in their order: kept from before where nothing has changed, else made now.

    Called inside `on_ranks` where the farm has several ranks. Raises KeyboardInterrupt on Ctrl-C (what is done is
    kept) and InputError where the results cannot be written.
    """
    marks = [_mark(item, farm) for item in items]
    files = [[fingerprint(path) for path in (item.file, *item.inputs)] for item in items]  # before they are read
    missing = [row for row, item in enumerate(items) if (old := _recall(item, marks[row])) is None or old.reason]
    if remade := [row for row in missing if (old := _recall(items[row])) is not None and not old.reason]:
        first = f"{len(remade)} {farm.what} made anew, their files or the options have changed ({items[remade[0]].name}"
        more = ", ..." if len(remade) > 1 else ""
        print(f"{first}{more}): tables that name what was made of them before no longer fit", file=sys.stderr)
    for folder in {os.path.dirname(items[row].stem) for row in missing}:
        make_folder(folder)
    plain = replace(farm, settings={}, comm=SERIAL)
    share = _Share(
        [items[row] for row in missing],
        [marks[row] for row in missing],
        [files[row] for row in missing],
        work,
        plain,
        len(items),
        _taken_notes(farm.folder),
    )
    if farm.comm.size > 1:
        farm.comm.on_root(lambda: share)
    spent = share.done(farm.comm)
    if farm.folder is not None and (missing or items_of_last_run(farm.folder) is None):
        write_usage(farm.folder, Items(**vars(spent), count=len(missing), what=farm.what))
    return [_recall(item, mark) or Outcome(reason="not done") for item, mark in zip(items, marks, strict=True)]


@dataclass(frozen=True)
class _Share:
    """What is missing, as rank 0 hands it out; every rank takes each of its `size` items in turn."""

    items: Sequence[Item]
    marks: Sequence[str]
    files: Sequence[Sequence[Mapping[str, Any]]]  # fingerprints of what each item reads
    work: Work
    farm: TaskPool
    total: int  # items, those done before among them
    suspects: frozenset[str]  # stems of those at which a run was killed

    def done(self, comm: Comm) -> Spent:
        """Do this rank's items; when it comes back, all ranks have: what they took."""
        take_card(comm)
        watch = Watch(comm, first_card(self.farm.device))
        mine, failed = range(comm.rank, len(self.items), comm.size), 0
        before = self.total - len(self.items)
        with Bar(self.farm.job, self.total, before, f" {self.farm.what}", quiet=comm.rank > 0) as bar:
            for row, outcome in _made(mine, self.items, self.work, self.farm, self.suspects):
                _remember(self.items[row], self.marks[row], self.files[row], outcome)
                failed += bool(outcome.reason)
                bar.set_postfix_str(f"{failed} left out" if failed else "", refresh=False)
                bar.update(min(comm.size, self.total - bar.n))
        return watch.spent(self.farm.price)


def begin(job: str, params: Parameters, writes: Writes, inputs: Iterable[str | os.PathLike[str] | None] = ()) -> None:
    """Make the job's folder, and say in its job.json what is done there and which files it writes.

    Raises InputError where the folder cannot be made or holds another program's tables, where an input or a file that
    is not this job's would be replaced, and where images that other tables may name would be; nothing is written then.
    """
    from polarice.project.provenance import write_job_json

    check_folder(writes.folder)
    given = [path for path in inputs if path is not None]
    stems = tuple(item.stem for item in writes.items)
    files = (*writes.files, REPORT, USAGE_NAME, *state.FILES)
    outputs = Outputs(job, writes.folder, files, stems, (*writes.endings, RECORD))
    of_items = (path for item in writes.items for path in (item.file, *item.inputs))
    record = outputs.require_free([*given, *of_items, *writes.read])
    if writes.images:
        _require_same_images(job, params, writes.folder)
    make_folder(writes.folder)
    outputs.sweep()
    write_job_json(writes.folder, job, as_dict(params), command_line(job, params), inputs=given, more={KEY: record})


@dataclass(frozen=True)
class Writes:
    """What a job over micrographs writes."""

    folder: Path
    files: tuple[str, ...]  # names in its folder, beside its report
    items: Sequence[Item] = ()
    endings: tuple[str, ...] = ()  # of the files of each item
    read: Sequence[str] = ()  # what it reads beside its inputs and its items' files
    images: bool = False  # other tables name the items' files: they are not to become other images


def _require_same_images(job: str, params: Parameters, folder: Path) -> None:
    """Raise InputError where the folder holds images made with other options: the tables that name them would then
    silently name others."""
    if told := other_options(params, folder):
        raise InputError(
            f"{folder}: holds images that {job} made with other options: {told}; tables that name them would name "
            "other images; choose another folder with --o, or remove this one"
        )


def other_options(params: Parameters, folder: Path) -> str:
    """With which other options what is in a job's folder was made, as a sentence has them; "" where with none."""
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        old, any_done = content["params"], any(folder.rglob("*" + RECORD))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    new = as_dict(params)
    known = [each for each in new if each in old and each not in {*resources_of(params), "micrographs"}]
    changed = [each for each in known if old[each] != new[each]] if any_done else []
    flags = {each.field: each.flag for each in options_of(type(params))}
    return ", ".join(f"{flags[each]} (now {new[each]}, then {old[each]})" for each in changed)


def end(report: MicrographReport, beside: str = "") -> None:
    """Write the report, and tell on the screen what was done, and what was done but is in no table (`beside`)."""
    from polarice.report.micrographs import write_micrograph_report

    used = items_of_last_run(report.folder)
    told = replace(report, usage=used.lines() if used else [])
    spared(lambda: write_micrograph_report(report.folder, told), report.folder / REPORT)
    tell(report.outcomes, report.folder, report.what, beside)


def _handed_out(comm: Comm) -> _Share | None:
    """What rank 0 hands out; None when it is at its end."""
    return comm.on_root(lambda: None)


def _made(
    rows: Sequence[int], items: Sequence[Item], work: Work, farm: TaskPool, killed: frozenset[str]
) -> Iterator[tuple[int, Outcome]]:
    """Outcomes as they are made; `killed` are the stems of items at which a run was killed before."""
    waiting, suspects = deque(rows), list[int]()
    if farm.workers == 1:
        _keep_to(farm.threads)
        note = None if farm.folder is None else farm.folder / f"{AT_WORK}{rows[0] if rows else 0}"
        for row in [row for row in rows if items[row].stem not in killed]:
            with _noting(note, items[row].stem):
                outcome = _safely(work, items[row], farm.time_limit_s)
            yield row, outcome
        waiting = deque(row for row in rows if items[row].stem in killed)  # each in a process of its own
    while before := len(waiting):
        suspects += (broken := (yield from _pooled(waiting, items, work, farm)))
        if len(waiting) == before and not broken:
            raise InputError("processes end before they have begun; is there enough memory? --workers 1 needs least")
    for row in suspects:  # each alone: one of them was too much for its process
        if (yield from _pooled(deque([row]), items, work, replace(farm, workers=1))):
            yield row, Outcome(reason=f"{items[row].file}: its process was killed; is there enough memory?")


def _taken_notes(folder: Path | None) -> frozenset[str]:
    """What the ranks of a run that was killed were at; their notes are taken away."""
    told = set[str]()
    for note in folder.glob(f"{AT_WORK}*") if folder is not None else ():
        with suppress(OSError):
            told.add(os.fsdecode(note.read_bytes()))
            note.unlink()
    return frozenset(told)


@contextmanager
def _noting(note: Path | None, stem: str) -> Iterator[None]:
    """A file that says what is at work, and stays where the process is killed."""
    if note is None:
        yield
        return
    with suppress(OSError):
        note.write_bytes(os.fsencode(stem))
    try:
        yield
    finally:
        with suppress(OSError):
            note.unlink()


def _pooled(
    waiting: deque[int], items: Sequence[Item], work: Work, farm: TaskPool
) -> Generator[tuple[int, Outcome], None, list[int]]:
    """Work off `waiting` in processes; where one of them is killed, end and return the rows that were under work."""
    running: dict[Future[Outcome], int] = {}
    since: dict[int, float] = {}
    with ProcessPoolExecutor(farm.workers, context_for(work), _begin_worker, (farm.threads,)) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < farm.workers:
                    row = waiting[0]  # where the pool is broken by now, it keeps waiting
                    running[pool.submit(_safely, work, items[row], farm.time_limit_s)] = row
                    since[row] = time.monotonic()
                    waiting.popleft()
                for future in wait(running, timeout=GRACE_S / 2, return_when=FIRST_COMPLETED).done:
                    yield running[future], future.result()
                    del running[future]
                late = [row for row in running.values() if time.monotonic() - since[row] > farm.time_limit_s + GRACE_S]
                if late:
                    waiting.extend(row for row in running.values() if row not in late)
                    for process in list(pool._processes.values()):
                        process.kill()
                    running.clear()
                    for row in late:
                        yield row, Outcome(reason=_too_long(items[row], farm.time_limit_s))
                    return []
        except BrokenProcessPool:
            return list(running.values())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return []


def _begin_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word; the parent speaks
    _keep_to(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _keep_to(threads: int) -> None:
    """Let torch use so many threads, be it loaded or not: other numbers give other roundings."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)


def _end_with_parent() -> None:
    """A rank that is killed leaves no processes behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Overrun(BaseException):
    """An item's time is over; no `except Exception` on its way may hold it up."""


def _too_long(item: Item, limit_s: float) -> str:
    return f"{item.file}: not done within {limit_s:g} s; --time-limit allows more"


@contextmanager
def _limited(limit_s: float) -> Iterator[None]:
    """Raise _Overrun when the time is over, where signals can be had: in the main thread of a process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(*_: object) -> None:
        raise _Overrun

    before = signal.signal(signal.SIGALRM, over)
    try:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _safely(work: Work, item: Item, limit_s: float = LONGEST_S) -> Outcome:
    """The work's outcome with its time; whatever goes wrong with this one item is a reason."""
    start = time.monotonic()
    try:
        with _limited(limit_s):
            outcome = work(item)
        if not isinstance(outcome, Outcome) or not _is_sound(outcome):
            raise TypeError(f"{type(work).__name__} made no outcome that can be kept")
        json.dumps(asdict(outcome))
    except _Overrun:
        outcome = Outcome(reason=_too_long(item, limit_s))
    except InputError as error:
        told = str(error)
        named = any(name in told for name in (item.file, item.name, *item.inputs))
        outcome = Outcome(reason=told if named else f"{item.file}: {told}")
    except MemoryError:
        outcome = Outcome(reason=f"{item.file}: not enough memory")
    except Exception as error:
        outcome = Outcome(reason=f"{item.file}: {told_reason(error)}")
    return replace(outcome, seconds=time.monotonic() - start)


def told_reason(error: Exception) -> str:
    """What went wrong, in one line: with the file, or in the program."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
    what = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, OSError):
        return what
    folders = [Path(frame.filename).parent for frame in frames]
    reading = any(folder == _READERS for folder in folders) and folders[-1] != _READERS
    if reading or isinstance(error, (EOFError, zlib.error, struct.error, UnicodeError)):
        return f"damaged, or of a kind that cannot be read ({what})"
    return f"a fault of polarice, not of the file: {what} ({place}); please report it"


def _mark(item: Item, farm: TaskPool) -> str:
    """A short text that changes with everything the outcome depends on, beside the content of the item's files."""
    told = json.dumps([farm.settings, item.name, item.settings], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _recall(item: Item, mark: str | None = None) -> Outcome | None:
    """The outcome that was kept, or None where there is none, a damaged one, or one of other files or settings than the
    mark's."""
    try:
        with open(item.stem + RECORD, encoding="utf-8") as stream:
            content = json.load(stream)
        kept, files = content.pop("mark"), content.pop("files")
        if mark is not None and not _are_same(files, (item.file, *item.inputs)):
            return None
        if (kept != mark and mark is not None) or content.pop("check", None) not in (None, _digest(content)):
            return None
        outcome = Outcome(**content | {"remarks": tuple(content["remarks"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return outcome if _is_sound(outcome) else None


def _are_same(records: Sequence[Mapping[str, Any]], paths: Sequence[str]) -> bool:
    """Whether the files at `paths` are those that were recorded; one that was not there then is not there now."""
    pairs = zip(records, paths, strict=True)
    return all(is_same(record, path) or (record["size"] is None and not os.path.exists(path)) for record, path in pairs)


def _is_sound(outcome: Outcome) -> bool:
    """Whether each of its values is of the kind that the table and the report want."""
    maps = isinstance(outcome.columns, dict) and isinstance(outcome.figures, dict)
    texts = (*outcome.remarks, outcome.thumbnail, outcome.reason)
    if not maps or not all(isinstance(each, str) for each in texts):
        return False
    if not all(isinstance(cell, str) or _is_finite(cell) for cell in outcome.columns.values()):
        return False
    numbers = (*outcome.figures.values(), outcome.seconds)
    return all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in numbers)


def _is_finite(cell: Any) -> bool:
    return isinstance(cell, int) or (isinstance(cell, float) and math.isfinite(cell))


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _remember(item: Item, mark: str, files: Sequence[Mapping[str, Any]], outcome: Outcome) -> None:
    content = json.loads(json.dumps(asdict(outcome)))
    read = [
        {**file, "content": content_of(file["path"]) if fingerprint(file["path"]) == file else None} for file in files
    ]  # one that has changed since is not what was read
    with replacing(item.stem + RECORD, "w") as stream:
        stream.write(json.dumps({"mark": mark, "files": read, "check": _digest(content), **content}) + "\n")


def check_folder(folder: Path) -> None:
    """Raise InputError where another program's tables lie in it; it need not be there."""
    tables = sorted(path.name for path in folder.glob("*.star"))
    if tables and not (folder / NAME).exists():
        raise InputError(f"{folder} holds {tables[0]}, which no job of polarice wrote; choose another folder with --o")


def make_folder(folder: str | Path) -> None:
    """Make it, and those above; InputError where that cannot be."""
    try:
        os.makedirs(folder or ".", exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}; choose another with --o") from None


class Cells(NamedTuple):
    """The rows of the table that were done, and their new columns."""

    rows: list[int]
    columns: dict[str, list[Any]]


def cells_of(outcomes: Sequence[Outcome]) -> Cells:
    """The outcomes' columns put together, of all that were done. Raises InputError where none was, or they differ."""
    rows = [row for row, outcome in enumerate(outcomes) if not outcome.reason]
    if not rows:
        raise InputError(f"nothing could be used; the first: {outcomes[0].reason}")
    labels = list(outcomes[rows[0]].columns)
    if odd := [row for row in rows if set(outcomes[row].columns) != set(labels)]:
        raise InputError(
            f"rows {rows[0] + 1} and {odd[0] + 1} have records (*{RECORD}) of other columns; one of them is damaged: "
            "remove both, and run the same command again"
        )
    return Cells(rows, {label: [outcomes[row].columns[label] for row in rows] for label in labels})


def told(remarks: Iterable[str]) -> None:
    """What the user should know before the results are trusted."""
    for remark in remarks:
        print(f"warning: {remark}", file=sys.stderr)


def tell(outcomes: Sequence[Outcome], folder: Path, what: str = "micrographs", beside: str = "") -> None:
    """One line about the run on the screen, and the first few reasons why something was left out."""
    reasons = [outcome.reason for outcome in outcomes if outcome.reason]
    for reason in reasons[:5]:
        print(f"left out: {reason}", file=sys.stderr)
    if len(reasons) > 5:
        print(f"left out: {len(reasons) - 5} more, see the report", file=sys.stderr)
    sizes = [remark for outcome in outcomes for remark in outcome.remarks if remark.startswith(HEADER_SAYS)]
    if sizes:
        print(f"warning: of {len(sizes)} {what}: {sizes[0]} (the first); see the report", file=sys.stderr)
    done = len(outcomes) - len(reasons)
    more = f", {beside}" if beside else ""
    print(f"{done} of {len(outcomes)} {what} done, {len(reasons)} left out{more}: {Path(folder, 'report.html')}")

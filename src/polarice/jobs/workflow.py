"""Run a chain of jobs that one file describes; what has not changed since the last time is not done again.

    threads = 8                                    # for every job that has such an option

    [[step]]
    job = "extract"
    micrographs = "ctf/micrographs.star"           # options as on the command line; files from the workflow's folder
    box = 256

    [[step]]
    job = "class2d"
    name = "classes"                               # the step and its folder; without it they are called as the job
    particles = "{extract.data}"                   # {NAME} is the folder of a step before, {NAME.data} its last table
    k = 50

A step is done when it ended well with the same options and the same files. Where these have changed, a job of many
iterations (class2d) starts in a new folder, and the old one is kept beside it as NAME.1, NAME.2 and so on. With
`update = 10` in its table it begins with the classes that it had, where only its files have changed (more particles
have come), and takes ten iterations. Jobs that treat one micrograph after another find out what is missing.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import math
import os
import re
import string
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from polarice import jobs
from polarice.io.atomic import replacing
from polarice.io.micrographs import named_files
from polarice.jobs.alone import alone
from polarice.jobs.micrographs import PerMicrograph
from polarice.jobs.params import Option, argument, as_dict, command_line, from_dict, option, options_of
from polarice.jobs.provenance import fingerprint
from polarice.types import InputError

SUMMARY = "run a chain of jobs from one file, again only what has changed"
STATE = ".{stem}_done.json"  # beside the workflow's file
_PAGE = "{stem}_report.html"  # beside it, too
SETTLED_S = 10.0  # files that changed more recently may still be written
_ELSEWHERE = (
    "o",
    "threads",
    "workers",
    "device",
    "memory",
    "scratch",
    "price",
    "copy_to",
    "profile",
    "time_limit",
)  # say where and how fast, not what
_NOT_OPTIONS = ("job", "name", "update")
_TABLES = {  # the table that a job ends with, the first that is there; {NAME.data} stands for it
    "import": ("particles.star", "micrographs.star", "movies.star"),
    **dict.fromkeys(("motion", "ctf", "pick"), ("micrographs.star",)),
    **dict.fromkeys(("extract", "simulate"), ("particles.star",)),
    **dict.fromkeys(("class2d", "align2d"), ("run_it*_data.star",)),
    "sml": ("run_data.star", "run_it*_data.star"),
    "deep2d": ("sml/run_it*_data.star",),
}
_TABLE = re.compile(r"(.+)/<table of (\w+)>")  # {NAME.data}, while the file is read
_ITERATION = re.compile(r"run_it(\d+)_")
_RESERVED = ("o", "continue_")


@dataclass(frozen=True)
class Params:
    workflow: Path = argument("TOML file that names the steps")
    dry_run: bool = option(False, "only say what would be done")
    watch: float | None = option(
        None, "look every so often for new files, until stopped with Ctrl-C", unit="s", low=0.1
    )


@dataclass(frozen=True)
class Step:
    """One job of the chain."""

    name: str  # of the step, and of its folder
    job: str
    options: Mapping[str, Any]  # as the file has them, {NAME} filled in
    update: int | None = None  # iterations from the classes of before, where only files have changed
    patient: bool = False  # wait where all that is there may still be written
    before: tuple[str, ...] = ()  # names of the steps before it
    told: set[str] = field(default_factory=set, compare=False)  # what has been said of files that wait

    @property
    def module(self) -> ModuleType:
        return jobs.load(self.job)

    def params(self) -> Any:
        """The job's Params with every file there is now; InputError where a file is missing, or is waited for."""
        known = {each.field: each for each in options_of(self.module.Params)}
        values = {name: _files(known[name], value, self) for name, value in self.options.items()}
        return self._made(values)

    def checked(self) -> Step:
        """Itself; InputError where an option is unknown, missing or out of bounds. Files need not be there yet."""
        known = {each.field: each for each in options_of(self.module.Params)}
        for name in self.options:
            if name in _RESERVED or name not in known:
                raise InputError(f"{name.rstrip('_')[:80]}: {self.job} has no such option here")
        if self.update is not None and (type(self.update) is not int or self.update < 1 or "ref" not in known):
            raise InputError("update = ...: a number of iterations, of a job that can begin with classes (class2d)")
        for each in known.values():
            if each.positional and not each.optional and each.field not in self.options:
                raise InputError(f"{each.flag} is missing: {each.help}")
        self._made(dict(self.options))
        return self

    def _made(self, values: dict[str, Any]) -> Any:
        for each in options_of(self.module.Params):
            if each.count != 1 and each.field in values and not isinstance(values[each.field], list):
                values[each.field] = [values[each.field]]
            if each.kind is str and each.count == 1 and type(values.get(each.field)) is int:  # k = 1000 of a map
                values[each.field] = str(values[each.field])
        try:
            return from_dict(self.module.Params, {**values, "o": self.name})
        except (TypeError, ValueError) as error:
            raise InputError(f"an option has the wrong type: {error}") from error


def run(params: Params) -> None:
    """Run the steps that need it. Raises InputError where the file or a step's input cannot be used."""
    steps = read_steps(params.workflow)
    state = State(params.workflow.with_name(STATE.format(stem=params.workflow.stem)).absolute())
    page = params.workflow.with_name(_PAGE.format(stem=params.workflow.stem))
    if page.exists() and not state.path.exists() and not params.dry_run:
        raise InputError(f"{page}: stands where the report of this workflow would be written; move it away")
    with contextlib.chdir(params.workflow.absolute().parent):
        if params.dry_run:
            _tell_plan(steps, state)
            return
        with alone(params.workflow.absolute(), "with it; wait for its end"):
            if params.watch is None:
                _run_due(steps, state)
                _report(steps, params.workflow)
            else:
                _keep_watch([replace(step, patient=True) for step in steps], state, params)


def read_steps(path: Path) -> list[Step]:
    """The steps of a workflow's file, all of them checked. Raises InputError naming the step and what is wrong."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the TOML file that names the steps") from None
    except ValueError as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    except RecursionError:
        raise InputError(f"{path}: not TOML of a workflow: brackets inside brackets without end") from None
    tables = content.pop("step", None)
    if not isinstance(tables, list) or not tables:
        raise InputError(f"{path}: no [[step]] in it; each step begins with this line, and job = ...")
    steps: list[Step] = []
    for number, table in enumerate(tables, 1):
        try:
            steps.append(_step(table, content, steps))
        except InputError as error:
            raise InputError(f"{path}: step {number} ({_called(table)}): {error}") from None
    known = {name for step in steps for name in _spellings(step.module)}
    if unused := sorted(name for name in content if _plain(name) not in known):
        raise InputError(f"{path}: no step has an option {', '.join(unused)[:200]}")
    return steps


def _called(table: Any) -> str:
    return str(table.get("name", table.get("job", "?")))[:80] if isinstance(table, Mapping) else "?"


def _step(table: Any, shared: Mapping[str, Any], before: Sequence[Step]) -> Step:
    if not isinstance(table, Mapping):
        raise InputError("not a table; a step begins with the line [[step]]")
    job, known_jobs = table.get("job"), _jobs()
    if not isinstance(job, str) or job not in known_jobs:
        known = ", ".join(known_jobs)
        raise InputError(f"no such job: {str(job)[:80]}; there are {known}" if job else "job = ... is missing")
    name = table.get("name", job)
    if not isinstance(name, str) or not name or set(name) - set(string.ascii_letters + string.digits + "_-"):
        raise InputError(f"name {name!r:.80}: letters, digits, _ and - only")
    earlier = {step.name: step for step in before}
    if name in earlier:
        raise InputError("a step before is called so, too; give it a name of its own")
    fields = _spellings(jobs.load(job))
    given = {fields.get(_plain(key), key): value for key, value in table.items() if key not in _NOT_OPTIONS}
    usual = {fields[_plain(key)]: value for key, value in shared.items() if _plain(key) in fields}
    options = _filled({**usual, **given}, earlier)
    return Step(name, job, options, table.get("update"), before=tuple(earlier)).checked()


def _jobs() -> list[str]:
    """Jobs that write a folder, and so can be a step."""
    others = (name for name, module in jobs.JOBS.items() if module != __name__)
    return sorted(name for name in others if any(each.field == "o" for each in options_of(jobs.load(name).Params)))


def _plain(key: str) -> str:
    return key.lstrip("-").replace("-", "_")


def _spellings(job: ModuleType) -> dict[str, str]:
    """Field by each of the ways in which the command line spells it, without dashes."""
    return {
        _plain(name): each.field for each in options_of(job.Params) for name in (*each.flags, each.flag, each.field)
    }


def _filled(value: Any, before: Mapping[str, Step]) -> Any:
    """With {NAME} replaced by the step's folder, and {NAME.data} by a word for its final table, in every text."""
    if isinstance(value, Mapping):
        return {key: _filled(item, before) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, before) for item in value]
    if not isinstance(value, str):
        return value
    try:
        parts = list(string.Formatter().parse(value))
    except ValueError as error:
        raise InputError(f"{value}: {error}; a brace itself is written twice") from None
    text = ""
    for literal, name, form, turned in parts:
        text += literal
        if name is None:
            continue
        step = before.get(name.removesuffix(".data"))
        if step is None or form or turned or (name.endswith(".data") and step.job not in _TABLES):
            known = ", ".join(before) or "none"
            told = f"{value[:80]}: not the name of a step before this one: {name[:40]}"
            raise InputError(f"{told}; there are: {known}")
        text += f"{step.name}/<table of {step.job}>" if name.endswith(".data") else step.name
    return text


def _files(each: Option, value: Any, step: Step) -> Any:
    """A path with * or ? in it becomes what is there: of one file the last, of several all that are at rest."""
    if not _names_files(each) or value is None:
        return value
    if each.count == 1:
        return _found(value, step)[-1]
    values = value if isinstance(value, list) else [value]
    return [path for item in values for path in _found(item, step)]


def _found(value: Any, step: Step) -> list[Any]:
    if isinstance(value, str) and (match := _TABLE.fullmatch(value)):
        return [_final_table(match[1], match[2])]
    return _matches(value, step) if _is_pattern(value) else [value]


def _final_table(folder: str, job: str) -> str:
    """The table that a step's job ends with: of iterations the last; InputError where there is none yet."""
    for pattern in _TABLES[job]:
        if paths := sorted(glob.glob(f"{glob.escape(folder)}/{pattern}"), key=_place):
            return paths[-1]
    raise InputError(f"{folder}: no final table of {job} in it yet ({', '.join(_TABLES[job])})")


def _place(path: str) -> tuple[str, int, str]:
    """For sorting by name, iteration 1000 after 999."""
    match = _ITERATION.search(path)
    return (path[: match.start()], int(match[1]), path) if match else (path, -1, path)


def _is_pattern(value: Any) -> bool:
    return isinstance(value, str) and glob.has_magic(value) and not os.path.lexists(value)


def _names_files(each: Option) -> bool:
    """Paths, and patterns that a job takes as its inputs."""
    return each.kind is Path or (each.positional and each.kind is str and each.count is None)


def _matches(pattern: str, step: Step) -> list[str]:
    """Files that match, by name; of files from outside, without those that may still be written where there are others.

    What lies in the folder of a step before is all there: that step has ended. Raises InputError where there is none,
    and where the step is patient, none that is at rest.
    """
    paths = sorted(glob.glob(pattern, recursive=True), key=_place)
    if not paths:
        raise InputError(f"{pattern}: no file is called so")
    if Path(pattern).parts[0] in step.before:
        return paths
    rested = [path for path in paths if _age_s(path) > SETTLED_S]
    if step.patient and not rested:
        raise InputError(f"{pattern}: what is there may still be written (changed within {SETTLED_S:g} s)")
    if rested and len(rested) < len(paths):
        _tell_waiting(step, sorted(set(paths) - set(rested)))
    return rested or paths


def _tell_waiting(step: Step, paths: Sequence[str]) -> None:
    """Once for the same files."""
    shown = ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")
    told = f"{step.name}: {len(paths)} left out until the next run, changed within {SETTLED_S:g} s: {shown}"
    if told not in step.told:
        step.told.add(told)
        print(told, file=sys.stderr, flush=True)


def _age_s(path: str) -> float:
    """Seconds since a file changed; without end where it cannot be looked at: what reads it will say so.

    Where its time lies in the future, as copies from a clock that is ahead have it, the file system's own counts.
    """
    now = time.time()
    try:
        status = os.stat(path)
    except OSError:
        return math.inf
    age_s = now - status.st_mtime
    if age_s >= 0:
        return age_s
    age_s = now - status.st_ctime
    return age_s if age_s >= 0 else math.inf  # both clocks are ahead: nothing can be said of it


@dataclass(frozen=True)
class State:
    """What has been done, in a file that is written anew after every step."""

    path: Path

    def read(self) -> dict[str, dict[str, Any]]:
        """{step: {"mark", "options", "ended"}}; empty where there is no file, or none that can be read."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(content, dict) or not all(isinstance(kept, dict) for kept in content.values()):
            return {}
        return content

    def note(self, step: Step, mark: str, ended: bool, begins_with: str = "") -> None:
        """`begins_with`: the folder with the classes that an update goes on from, until it has ended."""
        kept = {"mark": mark, "options": _options_mark(step), "ended": ended}
        self._write({**self.read(), step.name: kept | ({"begins_with": begins_with} if begins_with else {})})

    def forget(self, names: Iterable[str]) -> None:
        """Steps that are to be done again, whatever their tables say."""
        self._write({name: kept | {"mark": ""} if name in names else kept for name, kept in self.read().items()})

    def _write(self, content: dict[str, dict[str, Any]]) -> None:
        if self.path.exists() and not self.read():  # damaged: kept, for somebody to look at
            os.replace(self.path, self.path.with_name(self.path.name + ".damaged"))
        with replacing(self.path, "w") as stream:
            json.dump(content, stream, indent=1)

    def done(self, step: Step, mark: str) -> bool:
        kept = self.read().get(step.name, {})
        return bool(kept.get("mark") == mark and kept.get("ended") and Path(step.name).is_dir())

    def begun(self, step: Step, mark: str) -> bool:
        return self.read().get(step.name, {}).get("mark") == mark

    def begins_with(self, step: Step) -> str:
        """The folder with the classes that an unfinished update of this step, with these options, goes on from."""
        kept = self.read().get(step.name, {})
        folder = kept.get("begins_with")
        same = kept.get("options") == _options_mark(step) and not kept.get("ended")
        return folder if same and isinstance(folder, str) else ""

    def other_options(self, step: Step) -> bool:
        """Whether it was done, or begun, with other options."""
        return self.read().get(step.name, {}).get("options", _options_mark(step)) != _options_mark(step)

    def only_files_changed(self, step: Step) -> bool:
        """Whether it ended well, with these options."""
        kept = self.read().get(step.name, {})
        return bool(kept.get("ended") and kept.get("options") == _options_mark(step))


def mark_of(step: Step, params: Any) -> str:
    """A short text that changes with the step's options and files; those that a table of micrographs names among them.

    A movie that came half and was left out is in the table already when the rest of it has come.
    """
    options = {name: value for name, value in as_dict(params).items() if name not in _ELSEWHERE}
    files = [_file_mark(path) for path in _paths(params)]
    if isinstance(params, PerMicrograph):
        files += map(fingerprint, named_files(params.micrographs))
    told = json.dumps([step.job, options, files], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _options_mark(step: Step) -> str:
    """A text that changes with the step's options as the file has them."""
    return json.dumps({name: value for name, value in step.options.items() if name not in _ELSEWHERE}, sort_keys=True)


def _paths(params: Any) -> Iterator[Path]:
    for each in options_of(params):
        value = getattr(params, each.field)
        if _names_files(each) and each.field not in _ELSEWHERE and value is not None:
            yield from map(Path, value if isinstance(value, tuple) else (value,))


def _file_mark(path: Path) -> Any:
    """Of a table its content: a job that ran again may have written the same; of other files size and time."""
    if path.suffix != ".star" or not path.is_file():
        return fingerprint(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _report(steps: Sequence[Step], workflow: Path) -> None:
    """A page about all steps, beside the workflow's file."""
    from polarice.jobs.report.chain import Link, write_chain_report

    links = [Link(step.name, step.job, command_line(step.job, step.params())) for step in steps]
    page = write_chain_report(Path(_PAGE.format(stem=workflow.stem)).absolute(), workflow.stem, links)
    print(f"report: {page.name}", flush=True)


def _keep_watch(steps: Sequence[Step], state: State, params: Params) -> None:
    """Run what is due again and again, until Ctrl-C. What cannot be used now may be usable when more has arrived."""
    seconds, told = params.watch, ""
    assert seconds is not None
    while True:
        try:
            if _run_due(steps, state, quiet=bool(told)):
                _report(steps, params.workflow)
            news = f"waiting for new files, every {seconds:g} s; Ctrl-C ends"
        except InputError as error:
            news = f"waiting: {error}"
        if news != told:
            print(news, flush=True)
        told = news
        time.sleep(seconds)


def _run_due(steps: Sequence[Step], state: State, quiet: bool = False) -> int:
    """Run the steps that need it; how many did."""
    due = 0
    for number, step in enumerate(steps, 1):
        head = f"[{number}/{len(steps)}] {step.name}"
        try:
            params = step.params()
            mark = mark_of(step, params)
            if state.done(step, mark):
                if not quiet:
                    print(f"{head}: done before, nothing has changed", flush=True)
                continue
            if state.other_options(step):  # the same table may name other images now
                state.forget(_after(step, steps))
            params = _placed(step, params, state, mark)
            print(f"{head}: {command_line(step.job, params)}", flush=True)
            step.module.run(params)
        except InputError as error:
            raise InputError(f"step {step.name}: {error}") from error
        state.note(step, mark, ended=True)
        due += 1
    return due


def _placed(step: Step, params: Any, state: State, mark: str) -> Any:
    """The Params to run with, noted in the state: going on where just this was begun, in an empty folder where it was
    something else."""
    folder, classes = Path(step.name), state.begins_with(step) if step.update is not None else ""
    there = any(each.field == "continue_" for each in options_of(params)) and (folder / "job.json").exists()
    old = state.only_files_changed(step)
    if there and state.begun(step, mark) and (not classes or Path(classes).exists()):
        return replace(params, continue_=folder, **({"iter": step.update} if classes else {}))
    aside = _free_name(step.name) if there else None
    if step.update is not None and aside is not None and (old or (classes and not Path(classes).exists())):
        classes = str(aside)  # said before it is so: a kill in between loses nothing
    state.note(step, mark, ended=False, begins_with=classes)
    if aside is not None:
        folder.rename(aside)
    if classes and Path(classes).exists():
        print(f"{step.name}: begins with the classes that it had, now in {classes}")
        return replace(params, ref=Path(classes), iter=step.update)
    if aside is not None:
        print(f"{step.name}: changed; what was there is kept in {aside}")
    return params


def _free_name(name: str) -> Path:
    number = 1
    while (aside := Path(f"{name}.{number}")).exists():
        number += 1
    return aside


def _after(step: Step, steps: Sequence[Step]) -> set[str]:
    """Names of the steps that read what this one makes, or what those make."""
    found = {step.name}
    for later in steps:
        texts = json.dumps(list(later.options.values()), default=str)
        if any(re.search(rf'"{re.escape(name)}[/"]', texts) for name in found):
            found.add(later.name)
    return found - {step.name}


def _tell_plan(steps: Sequence[Step], state: State) -> None:
    """What `run` would do with the files that are there now."""
    changed = False
    for number, step in enumerate(steps, 1):
        try:
            params = step.params()
            changed = changed or not state.done(step, mark_of(step, params))
            what = "to do" if changed else "done"
        except InputError:
            changed, params, what = True, None, "to do, once its files are there"
        print(f"[{number}/{len(steps)}] {step.name}: {what}")
        if changed and params is not None:
            print(f"    {command_line(step.job, params)}")

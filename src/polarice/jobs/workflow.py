"""Run a chain of jobs that one file describes; what has not changed since the last time is not done again.

    threads = 8                                    # for every job that has such an option

    [[step]]
    job = "extract"
    micrographs = "ctf/micrographs.star"           # options as on the command line; files from the workflow's folder
    box = 256

    [[step]]
    job = "class2d"
    name = "classes"                               # the step and its folder; without it they are called as the job
    particles = "{extract}/particles.star"         # {NAME} is the folder of a step before
    k = 50

A step is done when it ended well with the same options and the same files. Where these have changed, a job of many
iterations (class2d) starts in a new folder, and the old one is kept beside it as NAME.1, NAME.2 and so on. With
`update = 10` in its table it begins with the classes that it had, where only its files have changed (more particles
have come), and takes ten iterations. Jobs that treat one micrograph after another find out what is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import string
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from polarice.io.atomic import replacing
from polarice.io.micrographs import named_files
from polarice.project import registry
from polarice.project.fault import spared
from polarice.project.folder_lock import alone
from polarice.project.inputs import fingerprint
from polarice.project.params import (
    Option,
    Parameters,
    argument,
    as_dict,
    command_line,
    from_dict,
    option,
    options_of,
    resources_of,
)
from polarice.project.patterns import filled, is_pattern, matches, remarks
from polarice.runs.micrographs import other_options
from polarice.runs.per_micrograph import PerMicrograph
from polarice.types import InputError

SUMMARY = "run a chain of jobs from one file, again only what has changed"
EXAMPLE = "polarice run workflow.toml"
STATE = ".{stem}_done.json"  # beside the workflow's file
# options that say where and how fast, not what
_NOT_OPTIONS = ("job", "name", "update")
_RESERVED = ("o", "continue_")


@dataclass(frozen=True)
class Params(Parameters):
    workflow: Path = argument("TOML file that names the steps")
    dry_run: bool = option(False, "only say what would be done")
    watch: float | None = option(
        None,
        "check for new files every so many seconds, until stopped with Ctrl-C",
        derived="run once",
        unit="s",
        low=0.1,
    )


@dataclass(frozen=True)
class Step:
    """One job of the chain."""

    name: str  # of the step, and of its folder
    job: str
    options: Mapping[str, Any]  # as the file has them, {NAME} filled in
    update: int | None = None  # iterations from the classes of before, where only files have changed
    before: tuple[str, ...] = ()  # names of the steps before it
    patient: bool = False  # wait where all that is there may still be written

    @property
    def module(self) -> ModuleType:
        return registry.load(self.job)

    def params(self) -> Parameters:
        """The job's Params with every file there is now; InputError where a file is missing, or is waited for."""
        known = {each.field: each for each in options_of(self.module.Params)}
        return self._made({field: _files(known[field], value, self) for field, value in self.options.items()})

    def remarks(self) -> list[str]:
        """What is to be told of files that its patterns match: those left out for now among them."""
        known = {each.field: each for each in options_of(self.module.Params)}
        named = [value for field, value in self.options.items() if _names_files(known[field])]
        patterns = [item for value in named for item in (value if isinstance(value, list) else [value])]
        return [text for pattern in patterns if is_pattern(pattern) for text in remarks(pattern, self.before)]

    def checked(self) -> Step:
        """Itself; InputError where an option is unknown, missing or out of bounds. Files need not be there yet."""
        known = {each.field: each for each in options_of(self.module.Params)}
        for field in self.options:
            if field in _RESERVED or field not in known:
                raise InputError(f"{field.rstrip('_')[:80]}: {self.job} has no such option here")
        if self.update is not None and (type(self.update) is not int or self.update < 1 or "ref" not in known):
            raise InputError("update = ...: a number of iterations, of a job that can begin with classes (class2d)")
        for each in known.values():
            if each.positional and not each.optional and each.field not in self.options:
                raise InputError(f"{each.flag} is missing: {each.help}")
        self._made(dict(self.options))
        return self

    def _made(self, values: dict[str, Any]) -> Parameters:
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
    with contextlib.chdir(params.workflow.absolute().parent):
        if params.dry_run:
            _tell_plan(steps, state)
            return
        with alone(params.workflow.absolute(), "with it; wait for its end"):
            if params.watch is None:
                try:
                    _run_due(steps, state)
                except KeyboardInterrupt:
                    again = shlex.join(["polarice", "run", str(params.workflow)])
                    raise KeyboardInterrupt(f"stopped; to go on: {again}") from None
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
        raise InputError(f"{path}: not TOML of any workflow: arrays or tables nested too deeply") from None
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
        raise InputError(f"{path}: no step has an option {', '.join(unused)}")
    return steps


def _called(table: Any) -> str:
    return str(table.get("name", table.get("job", "?"))) if isinstance(table, Mapping) else "?"


def _step(table: Any, shared: Mapping[str, Any], before: Sequence[Step]) -> Step:
    if not isinstance(table, Mapping):
        raise InputError("not a table; a step begins with the line [[step]]")
    job, known_jobs = table.get("job"), _jobs()
    if not isinstance(job, str) or job not in known_jobs:
        known = ", ".join(known_jobs)
        raise InputError(f"no such job: {job}; there are {known}" if job else "job = ... is missing")
    name = table.get("name", job)
    if not isinstance(name, str) or not name or set(name) - set(string.ascii_letters + string.digits + "_-"):
        raise InputError(f"name {name!r:.80}: letters, digits, _ and - only")
    earlier = {step.name: step.job for step in before}
    if name in earlier:
        raise InputError("a step before is called so, too; give it a name of its own")
    fields = _spellings(registry.load(job))
    given = {fields.get(_plain(key), key): value for key, value in table.items() if key not in _NOT_OPTIONS}
    usual = {fields[_plain(key)]: value for key, value in shared.items() if _plain(key) in fields}
    return Step(name, job, filled({**usual, **given}, earlier), table.get("update"), tuple(earlier)).checked()


def _jobs() -> list[str]:
    """Jobs that write a folder, and so can be a step."""
    others = (name for name, module in registry.JOBS.items() if module != __name__)
    return sorted(name for name in others if any(each.field == "o" for each in options_of(registry.load(name).Params)))


def _plain(key: str) -> str:
    return key.lstrip("-").replace("-", "_")


def _spellings(job: ModuleType) -> dict[str, str]:
    """Field by each of the ways in which the command line spells it, without dashes."""
    return {
        _plain(name): each.field for each in options_of(job.Params) for name in (*each.flags, each.flag, each.field)
    }


def _files(each: Option, value: Any, step: Step) -> Any:
    """A path with * or ? in it becomes what is there: of one file the last by name, of several all that are at rest."""
    if not _names_files(each) or value is None:
        return value
    if each.count == 1:
        return matches(value, step.before, step.patient)[-1] if is_pattern(value) else value
    values = value if isinstance(value, list) else [value]
    return [
        path for item in values for path in (matches(item, step.before, step.patient) if is_pattern(item) else [item])
    ]


def _names_files(each: Option) -> bool:
    """Paths, and patterns that a job takes as its inputs."""
    return each.kind is Path or (each.positional and each.kind is str and each.count is None)


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

    def note(self, step: Step, mark: str, ended: bool, aside: str = "", update: bool = False) -> None:
        """Say of a step that it begins, or has ended; of one that begins, where the results before it go."""
        kept = {"mark": mark, "options": _options_mark(step), "ended": ended, "aside": aside, "update": update}
        with replacing(self.path, "w") as stream:
            json.dump({**self.read(), step.name: kept}, stream, indent=1)

    def done(self, step: Step, mark: str) -> bool:
        kept = self.read().get(step.name, {})
        return bool(kept.get("mark") == mark and kept.get("ended") and Path(step.name).is_dir())

    def begun(self, step: Step, mark: str) -> dict[str, Any]:
        """What was noted when just this began; empty where it did not."""
        kept = self.read().get(step.name, {})
        return kept if kept.get("mark") == mark else {}

    def other_options(self, step: Step) -> bool:
        """Whether it began or ended with other options."""
        kept = self.read().get(step.name, {})
        return "options" in kept and kept["options"] != _options_mark(step)

    def forget(self, names: Set[str]) -> None:
        """Steps of these names are to be done anew."""
        content = self.read()
        if names & content.keys():
            with replacing(self.path, "w") as stream:
                json.dump({name: kept for name, kept in content.items() if name not in names}, stream, indent=1)

    def only_files_changed(self, step: Step) -> bool:
        """Whether it ended well, with these options."""
        kept = self.read().get(step.name, {})
        return bool(kept.get("ended") and kept.get("options") == _options_mark(step))


def mark_of(step: Step, params: Parameters) -> str:
    """A short text that changes with the step's options and files; those that a table of micrographs names among them.

    A movie that came half and was left out is in the table already when the rest of it has come.
    """
    options = {name: value for name, value in as_dict(params).items() if name not in resources_of(params)}
    files = [_file_mark(path) for path in _paths(params)]
    if isinstance(params, PerMicrograph) and params.micrographs is not None:
        files += map(fingerprint, named_files(params.micrographs))
    told = json.dumps([step.job, options, files], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _options_mark(step: Step) -> str:
    """A text that changes with the step's options as the file has them."""
    told = {name: value for name, value in step.options.items() if name not in resources_of(step.module.Params)}
    return json.dumps(told, sort_keys=True)


def _paths(params: Parameters) -> Iterator[Path]:
    for each in options_of(params):
        value = getattr(params, each.field)
        if _names_files(each) and not each.resource and value is not None:
            yield from map(Path, value if isinstance(value, tuple) else (value,))


def _file_mark(path: Path) -> Any:
    """Of a table its content: a job that ran again may have written the same; of other files size and time."""
    if path.suffix != ".star" or not path.is_file():
        return fingerprint(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _report(steps: Sequence[Step], workflow: Path) -> None:
    """A page about all steps, beside the workflow's file."""
    from polarice.report.chain import Link, write_chain_report

    links = [Link(step.name, step.job, command_line(step.job, step.params())) for step in steps]
    page = Path(f"{workflow.stem}_report.html").absolute()
    spared(lambda: write_chain_report(page, workflow.stem, links), page)
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
            for text in step.remarks():
                print(f"{head}: {text}", file=sys.stderr, flush=True)
            if state.other_options(step):  # what is read of it may look the same, and name other images
                state.forget(_after(step, steps))
            params = _placed(step, params, state, mark)
            print(f"{head}: {command_line(step.job, params)}", flush=True)
            registry.run(step.job, params)
        except InputError as error:
            raise InputError(f"step {step.name}: {error}") from error
        state.note(step, mark, ended=True)
        due += 1
    return due


def _placed(step: Step, params: Parameters, state: State, mark: str) -> Parameters:
    """The Params to run with: going on where just this was begun, in an empty folder where it was something else.

    What is to happen is noted before anything is moved, so that a kill at any moment is made up for the next time.
    """
    folder = Path(step.name)
    goes_on = any(each.field == "continue_" for each in options_of(params))
    begun = state.begun(step, mark)
    if not begun:
        in_the_way = goes_on or (getattr(step.module, "IMAGES", False) and other_options(params, folder))
        aside = _place_aside(folder) if in_the_way and (folder / "job.json").exists() else ""
        update = bool(aside) and step.update is not None and state.only_files_changed(step)
        state.note(step, mark, False, aside, update)
        begun = state.begun(step, mark)
    aside, update = str(begun.get("aside", "")), bool(begun.get("update"))
    if aside and not Path(aside).exists():
        folder.rename(aside)
        what = "begins with the classes that it had, now in" if update else "changed; what was there is kept in"
        print(f"{step.name}: {what} {aside}")
    if goes_on and (folder / "job.json").exists():
        return replace(params, **{"continue_": folder})
    return replace(params, **{"ref": Path(aside), "iter": step.update}) if update else params


def _after(step: Step, steps: Sequence[Step]) -> set[str]:
    """Names of the steps that read what this one makes, or what those make."""
    found = {step.name}
    for later in steps:
        texts = [text for value in later.options.values() for text in (value if isinstance(value, list) else [value])]
        if any(isinstance(text, str) and Path(text).parts[:1] == (name,) for text in texts for name in found):
            found.add(later.name)
    return found - {step.name}


def _place_aside(folder: Path) -> str:
    """A name beside the folder that is free: NAME.1, NAME.2 and so on."""
    number = 1
    while (aside := Path(f"{folder}.{number}")).exists():
        number += 1
    return str(aside)


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

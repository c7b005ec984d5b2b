"""A job's form, made from its Params, and the way back: fields to Params and a command, faults beside their fields."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from polarice.project.params import Option, Parameters, check, command_line, options_of, value_of
from polarice.project.patterns import TABLES
from polarice.project.registry import load
from polarice.types import InputError
from polarice.web.found import Job, is_text
from polarice.web.guard import Fence

STARTABLE = (
    "import", "motion", "ctf", "pick", "extract", "align2d", "class2d", "sml", "deep2d", "select", "star", "initial3d",
    "class3d", "refine3d", "reconstruct", "mask", "postprocess", "map", "simulate", "run",
)  # fmt: skip
PATHS_IN_TEXT = ("inputs", "mtf", "orientations")  # names and patterns of files, in options that are texts
MOST_MATCHES = 20_000  # files of a pattern that are looked at
LONGEST = 100_000  # characters of a value
LEVELS = {"essential": "", "expert": "More options", "machine": "Where and how fast"}
SHOWN_CHOICES = 300


@dataclass(frozen=True)
class Filled:
    """A form as it was filled in."""

    job: str
    texts: Mapping[str, str]  # by field
    faults: Mapping[str, str] = field(default_factory=dict)  # by field; "" for those of several
    params: Parameters | None = None  # None where there are faults
    command: str = ""

    @property
    def words(self) -> list[str]:
        """Of the command, without the program's name."""
        return shlex.split(self.command)[1:]


def offered() -> list[str]:
    """Jobs that can be started here and that there are."""
    from polarice.project.registry import JOBS

    return [name for name in STARTABLE if name in JOBS]


def fill(job: str, texts: Mapping[str, str], fence: Fence, cwd: Path) -> Filled:
    """Check what was filled in, as the command line does; paths are seen from `cwd` and stay inside of the fence."""
    options = options_of(load(job).Params)
    given, faults = _given(options, texts, fence, cwd)
    sound = {each.field: None if each.positional else each.default for each in options if each.field in faults}
    params = load(job).Params(**{**given, **sound})
    try:
        check(params)
    except InputError as error:
        found = _by_field(str(error), options)
        faults = {**{name: text for name, text in found.items() if name not in sound}, **faults}
    return Filled(job, texts, faults) if faults else Filled(job, texts, {}, params, command_line(job, params))


def _given(
    options: tuple[Option, ...], texts: Mapping[str, str], fence: Fence, cwd: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Values by field, and what is wrong with single ones."""
    given, faults = dict[str, Any](), dict[str, str]()
    for each in options:
        text = texts.get(each.field, "").strip()
        if each.positional and not text and not each.optional:
            given[each.field] = None
            if not (each.unless and texts.get(each.unless, "").strip()):
                faults[each.field] = f"{each.flag} is missing: {each.help}"
            continue
        try:
            given[each.field] = value = _value(each, text)
            if fault := _misplaced(each, value, fence, cwd):
                faults[each.field] = fault
        except InputError as error:
            given[each.field], faults[each.field] = None, str(error)
    return given, faults


def _value(option: Option, text: str) -> Any:
    if len(text) > LONGEST or "\0" in text:
        raise InputError(f"{option.flag}: too long, or no text")
    if option.kind is bool:
        return text in ("1", "on", "yes", "true")
    if not text:
        return None if option.positional else option.default
    words = _split(option, text) if option.count != 1 else [text]
    for word in words:  # it would be taken for an option
        if word.startswith("-") and option.kind in (str, Path):
            raise InputError(f"{option.flag} {word}: begins with -; write ./{word} where it is a file")
    return value_of(option, words if option.count != 1 else text)


def _split(option: Option, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"{option.flag}: {error}".lower()) from None


def _misplaced(option: Option, value: Any, fence: Fence, cwd: Path) -> str:
    """What is wrong with where a path leads."""
    if option.field == "coord_suffix" and "/" in str(value):
        return f"{option.flag} {value}: a part of a name, without folders"
    is_path = option.kind is Path or option.field in PATHS_IN_TEXT
    way = option.path.way if option.path else ("input" if is_path else "")
    for each in value if isinstance(value, tuple) else (value,):
        if not way or each is None or (value == option.default and way != "output"):
            continue
        place = os.path.join(cwd, str(each))
        found = [place] if os.path.lexists(place) else []
        if not found and fence.holds(place.partition("*")[0].rpartition("/")[0]):
            found = list(islice(glob.iglob(place, recursive=True), MOST_MATCHES))
        if not all(fence.holds(path) for path in found or [place]):
            return f"{option.flag} {each}: leads out of the project; polarice serve --also FOLDER lets it be read"
        if way == "output" and not Path(place).resolve().is_relative_to(fence.root):
            return f"{option.flag} {each}: must lie inside of the project"
        needed = option.kind is Path or option.field == "inputs"
        if way == "input" and needed and option.field not in ("scratch", "copy_to") and not found:
            return f"{option.flag} {each}: not there"
    return ""


def _by_field(message: str, options: tuple[Option, ...]) -> dict[str, str]:
    """The faults that `check` names, each at the option that it begins with."""
    faults = dict[str, str]()
    for line in filter(None, message.split("\n  ")):
        flag = line.split(" ", 1)[0].rstrip(":,")
        name = next((each.field for each in options if each.flag == flag), "")
        faults[name] = f"{faults[name]}; {line}" if name in faults else line
    return faults


def texts_of(job: str, values: Mapping[str, Any], moved: str = "") -> dict[str, str]:
    """The fields of a form that show these parameters; relative paths are led through `moved`, "" where they hold."""
    texts = dict[str, str]()
    for each in options_of(load(job).Params):
        value = values.get(each.field, None if each.positional else each.default)
        if each.kind is bool:
            texts[each.field] = "1" if value else ""
        elif value not in (None, (), []) and value != _plain(each.default):
            items = value if isinstance(value, list | tuple) else [value]
            words = [_moved(each, str(item), moved) for item in items]
            texts[each.field] = shlex.join(words) if each.count != 1 else words[0]
    return texts


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _moved(option: Option, text: str, moved: str) -> str:
    is_path = option.kind is Path or option.path is not None
    return os.path.normpath(os.path.join(moved, text)) if moved and is_path and not os.path.isabs(text) else text


def html_of(filled: Filled, choices: Mapping[str, list[str]]) -> str:
    """The fields of a form, by level and section. `choices`: files to propose, by what they hold."""
    options, parts = options_of(load(filled.job).Params), list[str]()
    if going_on := filled.texts.get("continue_", ""):
        options = tuple(each for each in options if each.field in fields_going_on(filled.job))
        parts.append(f'<input type="hidden" name="continue_" value="{escape(going_on)}">')
    for level, title in LEVELS.items():
        of_level = [each for each in options if each.level == level and each.field != "continue_"]
        headings = dict.fromkeys(each.section if level == "expert" else "" for each in of_level)
        for heading in headings:
            shown = [each for each in of_level if level != "expert" or each.section == heading]
            fields = "".join(_field(each, filled, choices) for each in shown)
            if not title:
                parts.append(fields)
                continue
            wrong = any(
                each.field in filled.faults or filled.texts.get(each.field) for each in shown if not _is_on(each)
            )
            opened = " open" if wrong else ""
            parts.append(f"<details{opened}><summary>{escape(heading or title)}</summary>{fields}</details>")
    return "".join(parts)


def fields_going_on(job: str) -> list[str]:
    """What may change when a run goes on: what is renewable, and where and how fast it runs."""
    options = options_of(load(job).Params)
    return [each.field for each in options if (each.renewable or each.resource) and each.field != "o"]


def _is_on(option: Option) -> bool:
    return option.kind is bool and bool(option.default)


def _field(option: Option, filled: Filled, choices: Mapping[str, list[str]]) -> str:
    name, fault = option.field, filled.faults.get(option.field, "")
    text = filled.texts.get(name, "")
    needs = f' data-needs="{option.needs[0]}={_word(option.needs[1])}"' if option.needs else ""
    unit = f'<span class="unit">{escape(option.unit)}</span>' if option.unit else ""
    bounds = f" ({option.bounds})" if option.bounds else ""
    return (
        f'<div class="field"{needs} data-field="{name}"><label for="f-{name}">{escape(_title(option))}</label>'
        f'<span class="in">{_input(option, text, fault, choices)}{unit}</span>'
        f'<p class="help" id="h-{name}">{escape(option.help)}{escape(bounds)}</p>'
        f'<p class="fault" id="e-{name}" role="alert">{escape(fault)}</p></div>'
    )


def _title(option: Option) -> str:
    return "results in" if option.field == "o" else option.field.rstrip("_").replace("_", " ")


def _word(value: Any) -> str:
    return "1" if value is True else escape(str(value))


def _input(option: Option, text: str, fault: str, choices: Mapping[str, list[str]]) -> str:
    name = option.field
    shared = f'id="f-{name}" name="{name}" aria-describedby="h-{name} e-{name}"' + (
        ' aria-invalid="true"' if fault else ""
    )
    if option.kind is bool:
        return f'<input type="checkbox" value="1" {shared}{" checked" if text else ""}>'
    if option.choices and option.count == 1:
        default = default_text(option)
        items = [("", f"{default} (default)")] + [(each, each) for each in option.choices if each != option.default]
        made = "".join(
            f'<option value="{escape(value)}"{" selected" if value == text else ""}>{escape(shown)}</option>'
            for value, shown in items
        )
        return f"<select {shared}>{made}</select>"
    proposed = choices.get(option.path.holds if option.path else "", []) if option.path else []
    listed = f' list="l-{name}"' if proposed else ""
    made = "".join(f'<option value="{escape(each)}">' for each in proposed)
    given = f'<datalist id="l-{name}">{made}</datalist>' if proposed else ""
    mode = ' inputmode="decimal"' if option.kind in (int, float) and option.count == 1 else ""
    return (
        f'<input type="text" value="{escape(text)}" placeholder="{escape(default_text(option))}" autocomplete="off" '
        f'spellcheck="false" {shared}{listed}{mode}>{given}'
    )


def default_text(option: Option) -> str:
    """The default in words."""
    if option.positional:
        return ""
    if option.default in (None, ()):
        return option.derived or "none"
    items = option.default if isinstance(option.default, tuple) else (option.default,)
    return " ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in items)


def proposals(jobs: Mapping[str, Job], root: Path, alone: bool = False) -> dict[str, list[str]]:
    """Files of the project to choose from, by what they hold, the last jobs first; `alone`: none but of these jobs."""
    found: dict[str, list[str]] = {"particles": [], "micrographs": [], "map": [], "run": [], "classes": []}
    for name, job in sorted(jobs.items(), key=lambda each: each[1].started, reverse=True)[:SHOWN_CHOICES]:
        found["run"].append(name)
        with suppress(OSError):
            names = sorted(filter(is_text, os.listdir(job.folder)))
            pattern = TABLES.get(job.kind, "*_data.star")
            tables = sorted(Path(job.folder).glob(pattern))[-1:] if "*" not in pattern[:1] else job.folder.glob(pattern)
            for path in tables:
                text = os.path.relpath(path, root)
                found["micrographs" if path.name in ("micrographs.star", "movies.star") else "particles"].append(text)
            found["map"] += [f"{name}/{each}" for each in names if each.endswith(".mrc")][:20]
    with suppress(OSError):
        if alone:
            return found
        there = [each for each in os.listdir(root) if each.endswith(".star") and is_text(each)]
        found["particles"] += sorted(there)[:20]
    return found

"""A job's parameters, stated once: command line, documentation, provenance and web form are all made from them.

    @dataclass(frozen=True)
    class Params(Parameters):
        particles: Path = argument("particle table", flags=("--i",))
        k: int = option(100, "number of classes", low=1, flags=("-k", "--K"), level="essential")
        particle_diameter: float | None = option(None, "particle diameter", unit="A", low=0, derived="80 % of the box")

A field is an int, float, str, Path, bool, a Literal of strings, one of them or None (None: `derived` says what is taken
then), or a tuple of them. A field without default is positional; `continue_` is spelled `--continue`.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from polarice.types import InputError

Level = Literal["essential", "expert", "machine"]  # machine: where and how fast a job computes
LEVELS: tuple[Level, ...] = ("essential", "expert", "machine")  # in the order of help


@dataclass(frozen=True)
class Parameters:
    """What all jobs' Params are, so that what takes them is checked."""

    def faults(self) -> Iterator[str]:
        """What is wrong with values that are each within their bounds, as messages; no file need be there."""
        return iter(())


P = TypeVar("P", bound=Parameters)


@dataclass(frozen=True)
class PathRole:
    """What a path is to a job."""

    way: Literal["input", "output"]
    kind: Literal["file", "folder", "any"] = "file"
    holds: str = ""  # "particles", "micrographs", "coordinates", "map", "classes", "run"


PARTICLES = PathRole("input", "file", "particles")
MICROGRAPHS = PathRole("input", "file", "micrographs")
MAP = PathRole("input", "file", "map")
RUN = PathRole("input", "folder", "run")
INPUT_FILE = PathRole("input")
IMAGE_FOLDER = PathRole("input", "folder", "images")
RESULTS = PathRole("output", "folder")


@dataclass(frozen=True)
class Option:
    """One field of a job's Params, as it is asked for."""

    field: str
    kind: type  # int, float, str, Path or bool; of each item where `count` is not 1
    optional: bool  # None is allowed: derived from the data
    count: int | None  # 1: one value; n: a tuple of n; None: a tuple of any length
    default: Any  # MISSING where the field is positional
    help: str
    unit: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    flags: tuple[str, ...]  # other spellings
    unless: str = ""  # of a positional field: the option beside which it may be missing
    derived: str = ""  # what is taken where the default is None or an empty tuple, in words
    level: Level = "expert"
    section: str = ""  # heading that it stands under in help, among its level
    needs: tuple[str, Any] | None = None  # (field, value): it has an effect only where that field has that value
    resource: bool = False  # says only where and how fast: results are the same
    renewable: bool = False  # may change when a run goes on
    path: PathRole | None = None

    @property
    def positional(self) -> bool:
        return self.default is MISSING

    @property
    def flag(self) -> str:
        """The spelling that help and messages use."""
        name = self.field.rstrip("_").replace("_", "-")
        return name if self.positional else f"--{name}"

    @property
    def bounds(self) -> str:
        """'0 to 1', 'at least 0', 'at most 1', or ''."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.low is not None:
            return f"at least {self.low:g}"
        return "" if self.high is None else f"at most {self.high:g}"


class Traits(TypedDict, total=False):
    """Fields of Option that may be left out."""

    derived: str
    level: Level
    section: str
    needs: tuple[str, Any]
    resource: bool
    renewable: bool
    path: PathRole


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    flags: tuple[str, ...] = (),
    **more: Unpack[Traits],
) -> Any:
    """A field of Params with its help, unit, inclusive bounds, choices and other spellings of its flag.

    It may be infinite only where `high` says so. What is a resource is at the level "machine" where nothing else is
    said.
    """
    metadata = {"help": help, "unit": unit, "low": low, "high": high, "choices": tuple(choices or ()), "flags": flags}
    level: Level = "machine" if more.get("resource") else "expert"
    return dataclasses.field(default=default, metadata={**metadata, "level": level, **more})


def output(default: str, help: str = "folder for the results") -> Any:
    """The field `o` of a job's Params."""
    return option(Path(default), help, path=RESULTS, resource=True, level="essential")


def argument(help: str, *, flags: tuple[str, ...] = (), unless: str = "", path: PathRole | None = None) -> Any:
    """A positional field of Params; with `flags` it may be given as an option too (`--i particles.star`).

    It may be missing (None) where the option named `unless` is given.
    """
    metadata = {"help": help, "flags": flags, "unless": unless, "path": path, "level": "essential"}
    return dataclasses.field(default=MISSING, metadata=metadata)


def options_of(params: Parameters | type[Parameters]) -> tuple[Option, ...]:
    """The options of a Params class, or of an instance of one, in the order of its fields."""
    owner = params if isinstance(params, type) else type(params)
    hints = typing.get_type_hints(owner)
    return tuple(_option_of(field, hints[field.name]) for field in dataclasses.fields(owner) if field.init)


def _option_of(field: dataclasses.Field[Any], hint: Any) -> Option:
    kind, optional, count, choices = _unwrap(hint)
    metadata = {
        "help": "",
        "unit": "",
        "low": None,
        "high": None,
        "flags": (),
        "unless": "",
        **field.metadata,
    }
    metadata["choices"] = metadata.get("choices") or choices
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return Option(field.name, kind, optional, count, default, **metadata)


def _unwrap(hint: Any) -> tuple[type, bool, int | None, tuple[str, ...]]:
    """(type of one item, may be None, how many items, choices) of a field's annotation."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        others = [each for each in inner if each is not type(None)]
        if len(others) != 1:
            raise TypeError(f"a parameter cannot be {hint}: one type, or one type and None")
        kind, _, count, choices = _unwrap(others[0])
        return kind, len(others) < len(inner), count, choices
    if origin is tuple:
        kind, _, _, choices = _unwrap(inner[0])
        return kind, False, None if inner[-1] is Ellipsis else len(inner), choices
    if origin is typing.Literal:
        return type(inner[0]), False, 1, inner
    if hint not in (int, float, str, Path, bool):
        raise TypeError(f"a parameter cannot be {hint}: int, float, str, Path, bool, Literal, or a tuple of them")
    return hint, False, 1, ()


def resources_of(params: Parameters | type[Parameters]) -> frozenset[str]:
    """The fields that say only where and how fast a job computes: its results are the same with any of them."""
    return frozenset(each.field for each in options_of(params) if each.resource)


def check(params: Parameters) -> None:
    """Hold every value against its bounds and choices, then all together; InputError names all that is wrong."""
    wrong = [fault for each in options_of(params) for fault in _faults(each, getattr(params, each.field))]
    raise_all(wrong or list(params.faults()))


def raise_all(faults: list[str]) -> None:
    """Raise InputError with all of the faults, each on a line of its own; nothing where there are none."""
    if faults:
        raise InputError(faults[0] if len(faults) == 1 else "".join(f"\n  {fault}" for fault in faults))


def without_effect(params: Parameters) -> Iterator[str]:
    """Of each option that is given and has no effect, for want of another one, what to say."""
    known = {each.field: each for each in options_of(params)}
    for each in known.values():
        if each.needs is None or getattr(params, each.field) == each.default:
            continue
        field, wanted = each.needs
        value = getattr(params, field)
        if value != wanted and not (wanted is True and value):
            beside = known[field].flag if wanted is True else f"{known[field].flag} {wanted}"
            yield f"{each.flag} has no effect without {beside}"


def _faults(option: Option, value: Any) -> Iterator[str]:
    for item in value if isinstance(value, tuple) else (value,):
        if fault := _fault(option, item):
            yield fault


def _fault(option: Option, item: Any) -> str:
    if item is None:
        return "" if option.optional or option.unless else f"{option.flag} needs a value"
    if option.choices and item not in option.choices:
        return f"{option.flag} {item}: must be one of {', '.join(option.choices)}"
    if option.kind not in (int, float):
        return ""
    low = -math.inf if option.low is None else option.low
    high = math.inf if option.high is None else option.high
    if low <= item <= high and not (option.high is None and math.isinf(item)):
        return ""
    unit = f" {option.unit}" if option.unit else ""
    given = f"{item:g}" if isinstance(item, float) or abs(item) < 1 << 63 else "a number beyond all measure"
    return f"{option.flag} {given}: must be {option.bounds or 'a number'}{unit}"


def as_dict(params: Parameters) -> dict[str, Any]:
    """The parameters as JSON holds them: paths as text, tuples as lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {each.field: plain(getattr(params, each.field)) for each in options_of(params)}


def from_dict(owner: type[P], values: dict[str, Any]) -> P:
    """The Params that `as_dict` wrote down; a field that `values` lacks takes its default.

    Raises InputError for a strange field, and for a value that is not of its field's type.
    """
    options = {each.field: each for each in options_of(owner)}
    if strange := sorted(set(values) - set(options)):
        raise InputError(f"unknown parameters: {', '.join(strange)}")

    typed, faults = dict[str, Any](), list[str]()
    for name, value in values.items():
        try:
            typed[name] = _typed(options[name], value)
        except InputError as error:
            faults.append(str(error))
    raise_all(faults)
    params = owner(**typed)
    check(params)
    return params


def _typed(option: Option, value: Any) -> Any:
    """A value as its field has it: whole numbers for an int and a float, text for a path, nothing else bent."""
    if value is None:
        return None
    if isinstance(value, list | tuple) and option.count != 1:
        return tuple(_one(option, item) for item in value)
    return _one(option, value)


def _one(option: Option, value: Any) -> Any:
    kinds: dict[type, tuple[type, ...]] = {float: (int, float), Path: (str, Path), str: (str, int)}
    accepted = kinds.get(option.kind, (option.kind,))
    text_as_file = option.kind is Path and "\0" in str(value)
    if not isinstance(value, accepted) or (option.kind is not bool and isinstance(value, bool)) or text_as_file:
        kind = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a file"}
        raise InputError(f"{option.flag} {value!r}: must be {kind[option.kind]}")
    try:
        return option.kind(value)
    except OverflowError:
        raise InputError(f"{option.flag}: a number of {len(str(value))} digits is too large") from None


def value_of(option: Option, given: str | list[str]) -> Any:
    """The value that words of a command line stand for; of a list, numbers and choices may be joined by commas.

    Raises InputError for what is not of the option's type.
    """
    if isinstance(given, str):
        return _parsed(option, given)
    joined = option.count is None and (option.kind in (int, float) or option.choices)
    return tuple(_parsed(option, item) for word in given for item in (word.split(",") if joined else [word]))


def _parsed(option: Option, word: str) -> Any:
    try:
        return _one(option, option.kind(word) if option.kind in (int, float) else word)
    except ValueError:
        kind = "a whole number" if option.kind is int else "a number"
        raise InputError(f"{option.flag} {word}: must be {kind}") from None


def command_line(job: str, params: Parameters) -> str:
    """The command that gives `params` again: positional values, then every option that differs from its default, the
    essential ones first."""
    positional, named = [], []
    for each in sorted(options_of(params), key=lambda option: LEVELS.index(option.level)):
        value = getattr(params, each.field)
        if value == each.default or value is None:
            continue
        words = [str(item) for item in (value if isinstance(value, tuple) else (value,))]
        if each.positional:
            positional += words
        elif each.kind is bool:
            named.append(each.flag if value else f"--no-{each.flag[2:]}")
        else:
            named += [each.flag, *words]
    return shlex.join(["polarice", *job.split(), *positional, *named])

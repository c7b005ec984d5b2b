"""A job's parameters, stated once: command line, documentation, provenance and web form are all made from them.

    @dataclass(frozen=True)
    class Params:
        particles: Path = argument("particles.star of RELION", flags=("--i",))
        k: int = option(100, "number of classes", low=1, flags=("-k", "--K"))
        particle_diameter: float | None = option(None, "diameter of the particle", unit="A", low=0)

A field is an int, float, str, Path, bool, a Literal of strings, one of them or None (None: derived from the data), or a
tuple of them. A field without default is positional; `continue_` is spelled `--continue`.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import types
import typing
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar

from polarice.types import InputError

P = TypeVar("P")


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


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    flags: tuple[str, ...] = (),
) -> Any:
    """A field of Params with its help, unit, inclusive bounds, choices and other spellings of its flag.

    It may be infinite only where `high` says so.
    """
    metadata = {"help": help, "unit": unit, "low": low, "high": high, "choices": tuple(choices or ()), "flags": flags}
    return dataclasses.field(default=default, metadata=metadata)


def argument(help: str, *, flags: tuple[str, ...] = (), unless: str = "") -> Any:
    """A positional field of Params; with `flags` it may be given as an option too (`--i particles.star`).

    It may be missing (None) where the option named `unless` is given.
    """
    metadata = {"help": help, "flags": flags, "unless": unless}
    return dataclasses.field(default=MISSING, metadata=metadata)


def options_of(params: Any) -> tuple[Option, ...]:
    """The options of a Params class, or of an instance of one, in the order of its fields."""
    owner = params if isinstance(params, type) else type(params)
    hints = typing.get_type_hints(owner)
    return tuple(_option_of(field, hints[field.name]) for field in dataclasses.fields(owner) if field.init)


def _option_of(field: dataclasses.Field[Any], hint: Any) -> Option:
    kind, optional, count, choices = _unwrap(hint)
    metadata = {"help": "", "unit": "", "low": None, "high": None, "flags": (), "unless": "", **field.metadata}
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


def check(params: Any) -> None:
    """Hold every value against its bounds and choices; InputError names the first that fails."""
    for each in options_of(params):
        value = getattr(params, each.field)
        for item in value if isinstance(value, tuple) else (value,):
            _check_item(each, item)


def _check_item(option: Option, item: Any) -> None:
    if item is None:
        if not option.optional and not option.unless:
            raise InputError(f"{option.flag} needs a value")
        return
    if option.choices and item not in option.choices:
        raise InputError(f"{option.flag} {item}: must be one of {', '.join(option.choices)}")
    if option.kind not in (int, float):
        return
    low = -math.inf if option.low is None else option.low
    high = math.inf if option.high is None else option.high
    if not low <= item <= high or (option.high is None and math.isinf(item)):
        unit = f" {option.unit}" if option.unit else ""
        raise InputError(f"{option.flag} {item:g}: must be {option.bounds or 'a number'}{unit}")


def as_dict(params: Any) -> dict[str, Any]:
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

    params = owner(**{name: _typed(options[name], value) for name, value in values.items()})
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
    kinds: dict[type, tuple[type, ...]] = {float: (int, float), Path: (str, Path)}
    accepted = kinds.get(option.kind, (option.kind,))
    text_as_file = option.kind is Path and "\0" in str(value)
    if not isinstance(value, accepted) or (option.kind is not bool and isinstance(value, bool)) or text_as_file:
        kind = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a file"}
        raise InputError(f"{option.flag} {value!r}: must be {kind[option.kind]}")
    try:
        return option.kind(value)
    except OverflowError:
        raise InputError(f"{option.flag}: a number of {len(str(value))} digits is too large") from None


def command_line(job: str, params: Any) -> str:
    """The command that gives `params` again: positional values, then every option that differs from its default."""
    positional, named = [], []
    for each in options_of(params):
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

"""What the report of a classification is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polarice.project.params import Option, Parameters, as_dict, options_of
from polarice.report.history import Row
from polarice.types import Iteration

if TYPE_CHECKING:
    from polarice.report.index import Chapter


@dataclass(frozen=True)
class Parameter:
    """One line of the report's table of parameters."""

    name: str
    value: str
    unit: str
    help: str


@dataclass(frozen=True)
class LeftOut:
    """A particle that took no part, and why."""

    where: str  # section@stack, and the table's row
    reason: str


@dataclass(frozen=True)
class Report:
    """What a report is made of."""

    title: str
    job: str  # class2d, align2d
    history: Sequence[Row]  # as `read_history` gives it
    iteration: Iteration  # the last one
    command: str  # runs the job again
    continue_command: str  # goes on from the last iteration; "" where that makes no sense
    parameters: Sequence[Parameter] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    left_out: Sequence[LeftOut] = ()
    optics_names: Sequence[str] = ()  # one for each row of the model's noise_power
    particle_diameter_A: float | None = None
    working_directory: str = ""
    chapters: Sequence[Chapter] = ()  # further parts of the page, behind the classes
    notes: Mapping[str, str] = field(default_factory=dict)  # what else is to be said under a part of the page, by name
    usage: Sequence[tuple[str, str]] = ()  # (what, figure): what the job took


def parameters_of(params: Parameters) -> list[Parameter]:
    """Every field of a job's Params with its value, unit and help."""
    values = as_dict(params)
    return [Parameter(each.flag, _words(each, values[each.field]), each.unit, each.help) for each in options_of(params)]


def _words(option: Option, value: Any) -> str:
    if value in (None, []):
        return option.derived or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(str(item) for item in value) if isinstance(value, list) else str(value)

"""One micrograph or movie of a job, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Item:
    """One micrograph or movie of the job."""

    name: str  # as the table has it
    row: int  # of the table, from 0
    file: str
    stem: str  # results are named so, with an ending; its folder is there
    settings: Mapping[str, Any] = field(default_factory=dict)  # of this one (JSON): "optics", and "cells" by label
    inputs: tuple[str, ...] = ()  # other files that belong to it: changed, done again


@dataclass(frozen=True)
class Outcome:
    """What became of one item; JSON holds all of it."""

    columns: Mapping[str, Any] = field(default_factory=dict)  # RELION label: number or text, its cells of the table
    figures: Mapping[str, float] = field(default_factory=dict)  # "defocus (A)": 12345.0, what the report shows
    remarks: tuple[str, ...] = ()  # what the user should know; it was done nevertheless
    thumbnail: str = ""  # a small PNG
    reason: str = ""  # why it was left out; "" where it was done
    seconds: float = 0.0

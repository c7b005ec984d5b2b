"""Keyword arguments to the parameters of a job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from polarice.project.params import Parameters, from_dict, options_of
from polarice.project.registry import load
from polarice.types import InputError

ALIASES = {"diameter_A": "particle_diameter", "pixel_size_A": "angpix", "out": "o", "continue_from": "continue_"}
SPELLED = {field: name for name, field in ALIASES.items()}


def params_of(job: str, options: dict[str, Any]) -> Parameters:
    """The job's Params of keyword arguments, checked. Raises InputError naming all that is wrong."""
    owner: type[Parameters] = load(job).Params
    named = {ALIASES.get(name, name): value for name, value in options.items()}
    known = {each.field for each in options_of(owner)}
    if strange := sorted(named.keys() - known):
        raise InputError(f"{job} has no option {', '.join(strange)}; polarice {job} --help lists them")
    return from_dict(owner, {name: _plain(value) for name, value in named.items()})


def _plain(value: Any) -> Any:
    """Paths and NumPy's numbers as the parameters have them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return Path(value)
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value

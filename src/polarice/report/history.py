"""`history.jsonl` in the job folder: one line of figures per iteration, cheap to append and to read again.

The file is written in place, a line at a time, so a kill can leave a torn last line: the reader leaves such a line out,
and the next append removes it. A continued job rewinds: rows from the iteration it does again on are dropped.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from polarice.io.atomic import naming_target, replacing
from polarice.types import Iteration

NAME = "history.jsonl"

Row = dict[str, Any]


def summary_of(iteration: Iteration) -> Row:
    """The figures of one iteration that the report's curves need; JSON's own types only, None where not known.

    `resolution_A` is the best of the classes in use, `median_resolution_A` their median; `effective_classes` is the
    exponential of the entropy of the class weights; `classes_in_use` counts those with at least one particle.
    """
    model, counts = iteration.model, class_counts(iteration)
    used = counts > 0
    resolution = np.asarray(model.resolution_A, np.float64)[used]
    resolution = resolution[np.isfinite(resolution)]
    weights = np.asarray(model.weights, np.float64)
    weights = weights[weights > 0]
    row = {
        "number": iteration.number,
        "total": iteration.total,
        "particles_used": iteration.particles_used,
        "particles_assigned": int(counts.sum()),
        "classes": len(counts),
        "classes_in_use": int(used.sum()),
        "effective_classes": float(np.exp(-(weights * np.log(weights)).sum())),
        "resolution_A": float(resolution.min()) if len(resolution) else None,
        "median_resolution_A": float(np.median(resolution)) if len(resolution) else None,
        "shift_sigma_px": model.shift_sigma_px,
        "pixel_size_A": model.pixel_size_A,
        "reseeded": [int(c) for c in iteration.reseeded],
        "seconds": {name: float(value) for name, value in iteration.seconds.items()},
    }
    for name in _PLAIN:
        row[name] = getattr(iteration, name)
    return {name: _json_number(value) for name, value in row.items()}


_PLAIN = (
    "resolution_limit_A",
    "psi_step_deg",
    "shift_range_px",
    "shift_step_px",
    "log_likelihood",
    "max_probability",
    "changed_class",
    "changed_psi_deg",
    "changed_shift_px",
)


def figures_of(row: Row) -> dict[str, Any]:
    """What an iteration's row says of it, by the names of Iteration's fields; NaN where it says nothing."""
    figures = {name: math.nan if row[name] is None else row[name] for name in _PLAIN}
    plain = {name: row[name] for name in ("number", "total", "particles_used", "seconds")}
    return figures | plain | {"reseeded": tuple(row["reseeded"])}


def class_counts(iteration: Iteration) -> np.ndarray:
    """How many particles each class holds, (K,) int64; particles without a class are in none."""
    class_of = iteration.assignment.pose.class_of
    return np.bincount(class_of[class_of >= 0], minlength=len(iteration.model.weights))


def append_history(folder: str | os.PathLike[str], iteration: Iteration) -> None:
    """Add the iteration's row at the end of `folder`/history.jsonl; a torn last line goes, and so do rows from
    this iteration's number on (they belong to a run that was cut off).

    Raises InputError where the disk is full or the folder may not be written.
    """
    path = Path(folder) / NAME
    text, rows = _whole_lines(path)
    kept = [line for line, row in zip(text, rows, strict=True) if row["number"] < iteration.number]
    new = json.dumps(summary_of(iteration), allow_nan=False)
    if path.exists() and len(kept) == len(text) and path.stat().st_size == sum(len(line) + 1 for line in text):
        with naming_target(path), open(path, "ab") as stream:
            stream.write(new.encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        return
    _rewrite(path, [*kept, new.encode()])


def read_history(folder: str | os.PathLike[str]) -> list[Row]:
    """The rows of `folder`/history.jsonl in order; empty where there is none; a torn line is left out."""
    return _whole_lines(Path(folder) / NAME)[1]


def rewind_history(folder: str | os.PathLike[str], number: int) -> list[Row]:
    """Drop the rows of iteration `number` and later, on the disk too, and return what is left."""
    path = Path(folder) / NAME
    text, rows = _whole_lines(path)
    kept = [(line, row) for line, row in zip(text, rows, strict=True) if row["number"] < number]
    if path.exists():
        _rewrite(path, [line for line, _ in kept])
    return [row for _, row in kept]


def _whole_lines(path: Path) -> tuple[list[bytes], list[Row]]:
    """Lines that end as they should and hold a row, as bytes without the newline, and what they say."""
    content = path.read_bytes() if path.exists() else b""
    text, rows = [], []
    for line in content.split(b"\n")[:-1]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and _is_row(row):
            text.append(line)
            rows.append(row)
    return text, rows


def _is_row(row: Row) -> bool:
    """Whether what the readers of a row take from it is of the kind that `summary_of` writes."""
    whole = all(_is_number(row.get(name), int) and 0 <= row[name] < 1 << 53 for name in ("number", "total"))
    plain = {name: row.get(name) for name in row if name not in ("seconds", "reseeded")}
    seconds, reseeded = row.get("seconds"), row.get("reseeded", [])
    return (
        whole
        and all(value is None or _is_number(value, int, float) for value in plain.values())
        and isinstance(seconds, dict)
        and all(_is_number(value, int, float) for value in seconds.values())
        and isinstance(reseeded, list)
        and _is_number(row.get("particles_used"), int)
        and all(_is_number(value, int) for value in reseeded)
    )


LARGEST = 1e300  # numbers beyond, infinity among them, are damage


def _is_number(value: Any, *kinds: type) -> bool:
    """Whether it is a number of one of these kinds, no truth value, and finite."""
    return isinstance(value, kinds) and type(value) in (int, float) and -LARGEST < value < LARGEST  # type: ignore[operator]


def _rewrite(path: Path, lines: list[bytes]) -> None:
    with replacing(path) as stream:
        stream.write(b"".join(line + b"\n" for line in lines))


def _json_number(value: Any) -> Any:
    """Plain Python numbers, None for what JSON cannot say (infinite, not a number)."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

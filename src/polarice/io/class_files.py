"""The last iteration of a classification, Polarice's or RELION's: its files, and what they say about the classes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from polarice.io.mrc import open_stack
from polarice.io.stacks import read_named
from polarice.io.star import StarFile, read_star
from polarice.io.table import Table
from polarice.types import InputError

_DATA = re.compile(r"(.*_it(\d+)|run)_data\.star")
_FILE = re.compile(r"(.*)_(data|model|optimiser)\.star")
TABLES = ("particles.star", "micrographs.star", "movies.star")  # of jobs that end with one


@dataclass(frozen=True)
class RunFiles:
    """A table, and the model file of the run it is of."""

    data: Path
    model: Path | None = None
    optimiser: Path | None = None


def run_files(path: str | os.PathLike[str]) -> RunFiles:
    """The files behind a table, or a job's folder: those of its last iteration, or the table that it ends with.

    Of a run any of data, model and optimiser may be named. Raises InputError where a folder holds no table.
    """
    path = Path(path)
    if path.is_dir():
        return _of_folder(path)
    match = _FILE.fullmatch(path.name)
    if match is None:
        return RunFiles(path)
    stem = str(path.with_name(match[1]))
    data = Path(f"{stem}_data.star")
    if not data.exists() and match[2] != "data":
        raise InputError(f"{data}: not found; it is the table of particles that belongs to {path.name}")
    others = [Path(f"{stem}_{kind}.star") for kind in ("model", "optimiser")]
    return RunFiles(data, *(each if each.exists() else None for each in others))


def _of_folder(folder: Path) -> RunFiles:
    found = []
    for place in (folder, folder / "sml"):  # deep2d keeps its last part there
        for path in place.glob("*_data.star"):
            if match := _DATA.fullmatch(path.name):
                found.append((place != folder, int(match[2] or 10**9), path.stat().st_mtime, path))
        if found:
            return run_files(max(found)[-1])
    for name in TABLES:
        if (folder / name).exists():
            return RunFiles(folder / name)
    raise InputError(
        f"{folder}: holds none of run_it*_data.star, {', '.join(TABLES)}; give the folder of a job that has ended, or "
        "a table"
    )


@dataclass(frozen=True, eq=False)
class KnownClasses:
    """What a run's model file says of its K classes; their averages where they are plane images."""

    table: Table  # data_model_classes
    resolution_A: np.ndarray  # (K,) inf where a class has none
    averages: np.ndarray | None  # (K, N, N) float32
    pixel_size_A: float
    diameter_A: float  # of the particle's mask; 0: not known

    def __len__(self) -> int:
        return len(self.table)


def read_classes(files: RunFiles) -> KnownClasses | None:
    """The classes of a run; None where there is no model file. Raises InputError where it cannot be understood."""
    if files.model is None:
        return None
    star = read_star(files.model)
    table = star.table("model_classes")
    if "rlnReferenceImage" not in table or "model_general" not in star:
        raise InputError(f"{files.model}: no _rlnReferenceImage of the classes; is this the model file of a run?")
    resolution = table.numbers("rlnEstimatedResolution") if "rlnEstimatedResolution" in table else np.zeros(len(table))
    resolution = np.where(np.isfinite(resolution) & (resolution > 0), resolution, np.inf)
    pixel_A = _pair(star, "model_general", "rlnPixelSize")
    diameter_A = 0.0
    if files.optimiser is not None:
        diameter_A = max(_pair(read_star(files.optimiser), "optimiser_general", "rlnParticleDiameter"), 0.0)
    return KnownClasses(table, resolution, _averages(table, files.model), pixel_A, diameter_A)


def _pair(star: StarFile, block: str, label: str) -> float:
    """A number of a block of pairs; 0 where it is not there."""
    text = star[block].pairs.get(label, "0") if block in star else "0"
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{star.path}, data_{block}: _{label} is {text!r}, not a number") from None


def _averages(table: Table, model: Path) -> np.ndarray | None:
    """Averages in the order of the table; None where classes are volumes."""
    names = table.text("rlnReferenceImage").tolist()
    if not all("@" in name for name in names):
        return None
    beside = model.with_name(model.name.removesuffix("_model.star") + "_classes.mrcs")
    if beside.exists() and all(PurePath(name).name == beside.name for name in names):  # wherever the run now lies
        sections = [int(text) if (text := name.partition("@")[0]).isdecimal() else 0 for name in names]
        stack = open_stack(beside)
        if not all(1 <= section <= len(stack) for section in sections):
            raise InputError(f"{beside}: has {len(stack)} averages, {model} names others; are they of one iteration?")
        return stack[np.array(sections) - 1].astype(np.float32)
    return read_named(model, "rlnReferenceImage")[0]

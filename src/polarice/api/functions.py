"""The jobs as functions. Each takes what its command takes, and gives back what it left."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from polarice.api.options import ALIASES, SPELLED, params_of
from polarice.api.particles import ParticleSet, particles
from polarice.api.results import Classification, JobResult, KeptFolder, MapResult, TableResult, result_of
from polarice.project.params import options_of
from polarice.project.registry import load, run
from polarice.types import InputError

Path_ = str | os.PathLike[str]
Data = ParticleSet | Path_


class ClassFunction:
    """`polarice.class2d`, `polarice.align2d`: a call runs all iterations, `iterate` gives them one by one."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.__doc__ = _doc_of(job)

    def __call__(self, data: Data | np.ndarray, *, out: Path_ | None = None, **options: Any) -> Classification:
        """Classify; `out` is the folder for the results. Without, they are kept in memory and nothing is written.

        Raises InputError for what cannot be used.
        """
        out = options.pop("o", out)  # as the command spells it
        if out is not None:
            return cast(Classification, _run(self.job, out, _input(data, out), options))
        return deque(self.iterate(data, **options), maxlen=1).pop()

    def iterate(self, data: Data | np.ndarray, **options: Any) -> Iterator[Classification]:
        """The classes after each iteration, in memory; nothing is written.

        Raises InputError for what cannot be used.
        """
        from polarice.api.live import class_iterations

        return class_iterations(self.job, _as_set(data, options), options)


def motion(movies: Path_, *, out: Path_ | None = None, **options: Any) -> TableResult:
    return cast(TableResult, _run("motion", out, movies, options))


def ctf(micrographs: Path_, *, out: Path_ | None = None, **options: Any) -> TableResult:
    return cast(TableResult, _run("ctf", out, micrographs, options))


def pick(micrographs: Path_, *, out: Path_ | None = None, **options: Any) -> TableResult:
    return cast(TableResult, _run("pick", out, micrographs, options))


def extract(micrographs: Path_, *, out: Path_ | None = None, **options: Any) -> TableResult:
    return cast(TableResult, _run("extract", out, micrographs, options))


def import_(*files: Path_, out: Path_ | None = None, **options: Any) -> TableResult:
    return cast(TableResult, _run("import", out, tuple(map(str, files)), options))


def simulate(*inputs: Path_, out: Path_ | None = None, **options: Any) -> TableResult:
    return cast(TableResult, _run("simulate", out, inputs, options))


def sml(data: Data, *, out: Path_ | None = None, **options: Any) -> Classification:
    return cast(Classification, _run("sml", out, data, options))


def deep2d(data: Data, *, out: Path_ | None = None, **options: Any) -> Classification:
    return cast(Classification, _run("deep2d", out, data, options))


def initial3d(classes: Path_ | Classification, *, out: Path_ | None = None, **options: Any) -> MapResult:
    folder = classes.folder if isinstance(classes, Classification) else classes
    if folder is None:
        raise InputError("initial3d begins with a folder of classes: run class2d with out=")
    return cast(MapResult, _run("initial3d", out, folder, options))


def refine3d(data: Data, *, ref: Path_ | MapResult, out: Path_ | None = None, **options: Any) -> MapResult:
    return cast(MapResult, _run("refine3d", out, data, {**options, "ref": _map_of(ref)}))


def class3d(
    data: Data, *, ref: Path_ | MapResult | list[Path_ | MapResult], out: Path_ | None = None, **options: Any
) -> MapResult:
    references = [_map_of(each) for each in (ref if isinstance(ref, list) else [ref])]
    return cast(MapResult, _run("class3d", out, data, {**options, "ref": references}))


def mask(density: Path_ | MapResult, *, out: Path_ | None = None, **options: Any) -> MapResult:
    return cast(MapResult, _run("mask", out, _map_of(density), options))


def postprocess(halves: Path_ | MapResult, *, out: Path_ | None = None, **options: Any) -> MapResult:
    folder = halves.folder if isinstance(halves, MapResult) else Path(halves)
    return cast(MapResult, _run("postprocess", out, (folder,), options))


def map_(density: Path_ | MapResult, *, out: Path_ | None = None, **options: Any) -> MapResult:
    return cast(MapResult, _run("map", out, _map_of(density), options))


def select(given: Path_ | Classification | TableResult, *, out: Path_ | None = None, **options: Any) -> TableResult:
    folder = given.folder if isinstance(given, Classification | JobResult) else given
    if folder is None:
        raise InputError("select works on a folder or a table: run class2d with out=, or use run.select([...])")
    return cast(TableResult, _run("select", out, folder, options))


def reconstruct(data: Data, *, out: Path_ | None = None, **options: Any) -> MapResult:
    return cast(MapResult, _run("reconstruct", out, data, options))


def _run(job: str, out: Path_ | None, given: Any, options: dict[str, Any]) -> Classification | JobResult:
    """Run a job on its positional input, in `out` or in a folder that lasts as long as the result."""
    out = options.pop("o", out)
    held = KeptFolder(job) if out is None else None
    folder = held.path / job if held is not None else Path(cast(Path_, out))
    first = next(each.field for each in options_of(load(job).Params) if each.positional)
    params = params_of(job, {**options, first: _input(given, folder), "o": folder})
    run(job, params)
    return result_of(job, folder, held)


def _input(given: Any, out: Path_) -> Any:
    """A job's input as a path: the table of a set that came from a file, or a new one in the folder."""
    if isinstance(given, np.ndarray):
        raise InputError("images in an array: give them to polarice.particles, with their pixel size")
    if isinstance(given, TableResult):
        return given.table
    if isinstance(given, Classification):
        given = given.particles
    if not isinstance(given, ParticleSet):
        return given
    return given.table.path if given.whole else given.write(Path(out) / "input" / "particles.star")


def _map_of(given: Path_ | MapResult) -> Path:
    """A map's file."""
    return given.folder / given.name if isinstance(given, MapResult) else Path(given)


def _as_set(data: Data | np.ndarray, options: dict[str, Any]) -> ParticleSet:
    if isinstance(data, ParticleSet):
        return data
    if isinstance(data, np.ndarray):
        return particles(data, pixel_size_A=options.pop("pixel_size_A", None))
    named = {ALIASES.get(name, name): name for name in options}
    reading = {name: options.pop(named[name]) for name in ("angpix", "image_dir") if name in named}
    return particles(data, pixel_size_A=reading.get("angpix"), image_dir=reading.get("image_dir"))


def _doc_of(job: str) -> str:
    """What the job does and every option, as `help` shows it."""
    owner = load(job)
    lines = [f"{owner.SUMMARY[0].upper()}{owner.SUMMARY[1:]}.", "", "Options:"]
    named = [each for each in options_of(owner.Params) if not each.positional]
    lines += [f"    {SPELLED.get(each.field, each.field)}: {each.help}" for each in named]
    return "\n".join(lines)


align2d, class2d = ClassFunction("align2d"), ClassFunction("class2d")
for _function in (
    motion,
    ctf,
    pick,
    extract,
    import_,
    simulate,
    sml,
    deep2d,
    initial3d,
    refine3d,
    class3d,
    reconstruct,
    mask,
    postprocess,
    map_,
    select,
):
    _function.__doc__ = _doc_of(_function.__name__.rstrip("_"))

"""`polarice star`: tables joined, split, freed of duplicates, subtracted from each other, regrouped."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from polarice.io.star import write_star
from polarice.project import state
from polarice.project.params import Parameters, PathRole, argument, option, output
from polarice.types import InputError

if TYPE_CHECKING:
    from polarice.io.rows import RowTable

SUMMARY = "join tables, split one, remove duplicates, subtract tables from one, or regroup its micrographs"
EXAMPLE = "polarice star join Select/job007 Select/job008 --o Star/job009"
WHAT = ("join", "split", "unique", "subtract", "regroup")
_PARTS = 1000  # at most


@dataclass(frozen=True)
class Params(Parameters):
    """What to do, with which tables of particles, micrographs or movies."""

    what: Literal["join", "split", "unique", "subtract", "regroup"] = argument(f"one of {', '.join(WHAT)}")
    tables: tuple[Path, ...] = argument(
        "tables, or folders of jobs that end with one; subtract: from the first", path=PathRole("input", "any", "table")
    )
    o: Path = output("Star")
    parts: int | None = option(
        None, "into so many parts of equal size", low=1, high=_PARTS, derived="by --size", needs=("what", "split")
    )
    size: int | None = option(
        None,
        "into parts of so many rows, the last one of the rest",
        low=1,
        derived="by --parts",
        needs=("what", "split"),
    )
    random: bool = option(False, "at random, not in the order of the table", needs=("what", "split"))
    by: str = option("", "unique, subtract: rows are the same by this column; by their image, or micrograph")
    group_size: int | None = option(
        None, "micrographs of like defocus together, so many particles or more", low=1, derived="must be given",
        needs=("what", "regroup"),
    )  # fmt: skip
    seed: int = option(1, "seed of everything random", low=0)


def run(params: Params) -> None:
    """Make the tables. Raises InputError for what cannot be used."""
    from polarice.io.class_files import run_files
    from polarice.io.rows import read_rows
    from polarice.project.outputs import claimed
    from polarice.project.params import as_dict, command_line
    from polarice.project.provenance import write_job_json

    _check(params)
    paths = [run_files(path).data for path in params.tables]
    made, lines = _DO[params.what](params, [read_rows(path) for path in paths])
    with ExitStack() as held:
        kept = claimed("star", params.o, (*made, *state.FILES), paths, held)
        write_job_json(
            params.o, "star", as_dict(params), command_line("star", params),
            inputs=paths, seed=params.seed, more={"outputs": kept, "done": lines},
        )  # fmt: skip
        for name, rows in made.items():
            write_star(params.o / name, rows.blocks())
    print("\n".join([*lines, *(f"{len(rows):,} {rows.kind} in {params.o / name}" for name, rows in made.items())]))


def _check(params: Params) -> None:
    """Raise InputError for options that do not go together."""
    many = len(params.tables) > 1
    if params.what in ("join", "subtract") and not many:
        raise InputError(f"{params.what} takes two tables or more; one is given")
    if params.what in ("split", "regroup") and many:
        raise InputError(f"{params.what} takes one table; {len(params.tables)} are given; join them first")
    if params.what == "split" and (params.parts is None) == (params.size is None):
        raise InputError("split: give either --parts or --size")
    if params.what == "regroup" and params.group_size is None:
        raise InputError("regroup: give --group-size, the least number of particles of a group")
    for name, of in (("parts", "split"), ("size", "split"), ("group_size", "regroup")):
        if getattr(params, name) is not None and params.what != of:
            raise InputError(f"--{name.replace('_', '-')} belongs to {of}, not to {params.what}")


Made = tuple[dict[str, "RowTable"], list[str]]


def _join(params: Params, tables: list[RowTable]) -> Made:
    from polarice.io.joining import first_of_each, identities, join

    joined = join(tables)
    lines = list(joined.remarks)
    twice = len(joined.rows) - int(first_of_each(identities(joined.rows)).sum())
    if twice:
        lines.append(f"{twice:,} rows name an image that stands in a row before; polarice star unique removes them")
    return {f"{joined.rows.kind}.star": joined.rows}, lines


def _split(params: Params, tables: list[RowTable]) -> Made:
    from polarice.io.joining import holding

    (rows,) = map(holding, tables)
    n = len(rows)
    order = np.random.default_rng(params.seed).permutation(n) if params.random else np.arange(n)
    count = params.parts or -(-n // (params.size or n))
    if count > min(n, _PARTS):
        raise InputError(f"{rows.path}: {n:,} rows in {count:,} parts; at most {min(n, _PARTS):,} are possible")
    pieces = (
        np.array_split(order, count) if params.parts else np.split(order, np.arange(params.size or n, n, params.size))
    )
    names = [f"{rows.kind}_split{number}.star" for number in range(1, count + 1)]
    return {name: rows.take(np.sort(piece)) for name, piece in zip(names, pieces, strict=True)}, []


def _unique(params: Params, tables: list[RowTable]) -> Made:
    from polarice.io.joining import first_of_each, holding, identities, join

    lines: list[str] = []
    if len(tables) > 1:
        joined = join(tables)
        rows, lines = joined.rows, list(joined.remarks)
    else:
        rows = holding(tables[0])
    first = first_of_each(identities(rows, params.by))
    lines.append(
        f"{int((~first).sum()):,} of {len(rows):,} rows are the same as one before by {params.by or 'their name'}"
    )
    return {f"{rows.kind}.star": rows.take(first), f"{rows.kind}_excluded.star": rows.take(~first)}, lines


def _subtract(params: Params, tables: list[RowTable]) -> Made:
    from polarice.io.joining import holding, identities

    rows, others = tables[0], tables[1:]
    if other := next((each for each in others if each.kind != rows.kind), None):
        raise InputError(f"{other.path} holds {other.kind}, {rows.path} {rows.kind}; subtract tables of one kind")
    gone = np.unique(np.concatenate([identities(each, params.by) for each in others]))
    stays = ~np.isin(identities(rows, params.by), gone)
    if not stays.any():
        raise InputError(
            f"{rows.path}: all of its {len(rows):,} {rows.kind} stand in the other tables; none would be left"
        )
    lines = [f"{int((~stays).sum()):,} of {len(rows):,} {rows.kind} of {rows.path} stand in the other tables"]
    if stays.all():
        lines.append("no row of the other tables is in the first; are they of the same images (--by names a column)?")
    return {f"{rows.kind}.star": holding(rows).take(stays)}, lines


def _regroup(params: Params, tables: list[RowTable]) -> Made:
    """rlnGroupName by defocus: micrographs of one optics group, sorted, as many as make the size."""
    from polarice.io.joining import holding, modern, with_table
    from polarice.selection.rows import micrographs_of

    rows = holding(modern(tables[0]))
    table = rows.table
    if rows.kind != "particles":
        raise InputError(f"{rows.path}: holds {rows.kind}; groups are of particles")
    _, of = np.unique(micrographs_of(table), return_inverse=True)
    groups, count = _groups(
        of.reshape(-1), table.numbers("rlnDefocusU"), table.integers("rlnOpticsGroup"), params.group_size or 1
    )
    names = np.array([f"group_{number + 1:04d}" for number in range(count)], object)[groups]
    made = with_table(rows, table.with_columns({"rlnGroupName": names}).without("rlnGroupNumber"))
    return {"particles.star": made}, [f"{int(of.max()) + 1:,} micrographs in {count:,} groups"]


def _groups(micrograph: np.ndarray, defocus_A: np.ndarray, optics: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """(n,) the group of every particle, from 0, and how many there are.

    A group that would stay smaller than `size` goes with the one before it, of the same optics group.
    """
    count = np.bincount(micrograph)
    mean = np.bincount(micrograph, defocus_A) / count
    of_optics = np.zeros(len(count), int)
    of_optics[micrograph] = optics
    group_of, groups = np.zeros(len(count), int), 0
    for number in np.unique(of_optics).tolist():
        mine = np.flatnonzero(of_optics == number)
        mine = mine[np.argsort(mean[mine], kind="stable")]
        before, filled = groups, 0
        for place in mine.tolist():
            group_of[place], filled = groups, filled + int(count[place])
            if filled >= size:
                groups, filled = groups + 1, 0
        if filled and groups > before:
            group_of[group_of == groups] = groups - 1
        elif filled:
            groups += 1
    return group_of[micrograph], groups


_DO = {"join": _join, "split": _split, "unique": _unique, "subtract": _subtract, "regroup": _regroup}

"""Tables put together and taken apart: optics groups kept right, rows known by their images, names that hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from polarice.io.cells import split
from polarice.io.optics import groups_of_particles, optics_from_columns
from polarice.io.particles import from_here
from polarice.io.rows import KINDS, RowTable
from polarice.io.stacks import plain_name
from polarice.io.star import Block, StarFile
from polarice.io.table import Table
from polarice.types import InputError

GROUP, NAME = "rlnOpticsGroup", "rlnOpticsGroupName"
_NUMBERED = ("rlnGroupNumber",)  # columns that mean something within one table alone
_UNSAID = {  # what a column of particles, or of optics, means where it is not there
    "rlnPhaseShift": 0.0, "rlnCtfBfactor": 0.0, "rlnCtfScalefactor": 1.0,
    "rlnCtfDataAreCtfPremultiplied": 0, "rlnCtfDataArePhaseFlipped": 0, "rlnBeamTiltX": 0.0, "rlnBeamTiltY": 0.0,
    "rlnMagMat00": 1.0, "rlnMagMat01": 0.0, "rlnMagMat10": 0.0, "rlnMagMat11": 1.0,
}  # fmt: skip
_MATCH = 1e-9  # relative difference of two values that is rounding


@dataclass(frozen=True, eq=False)
class Joined:
    """Tables of one kind as one, and what is to be told of it."""

    rows: RowTable
    table_of: np.ndarray  # (n,) which of the tables each row is from
    remarks: tuple[str, ...]


def join(tables: Sequence[RowTable]) -> Joined:
    """All rows, in order. Optics groups that say the same are one; others that are called the same get a new name.

    Columns stay that all tables have. Raises InputError for tables of different kinds.
    """
    first = tables[0]
    if other := next((each for each in tables if each.kind != first.kind), None):
        raise InputError(f"{other.path} holds {other.kind}, {first.path} {first.kind}; join tables of one kind")
    parts = _completed([holding(modern(each)) for each in tables])
    optics, groups, remarks = _joined_optics(parts)
    numbered = [
        part.table.with_columns({GROUP: number[groups_of_particles(part.table, _optics(part))]}).without(*_NUMBERED)
        for part, number in zip(parts, groups, strict=True)
    ]
    table, lost = stacked(numbered)
    lost += _lost_optics(parts)
    if lost:
        remarks.append(f"columns that not all tables have are left out: {', '.join('_' + label for label in lost)}")
    star = StarFile(first.path, (Block("optics", table=optics), Block(first.kind, table=table)))
    which = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return Joined(RowTable(first.kind, star, 1, table, optics), which, tuple(remarks))


def _completed(parts: Sequence[RowTable]) -> list[RowTable]:
    """The tables with columns that others have, and whose absence means a known value."""

    def missing(tables: Sequence[Table]) -> list[dict[str, np.ndarray]]:
        named = [label for label in _UNSAID if any(label in table for table in tables)]
        return [{label: np.full(len(t), _UNSAID[label]) for label in named if label not in t} for t in tables]

    rows, optics = missing([part.table for part in parts]), missing([_optics(part) for part in parts])
    return [
        replace(part, table=part.table.with_columns(more), optics_table=_optics(part).with_columns(of_optics))
        for part, more, of_optics in zip(parts, rows, optics, strict=True)
    ]


def _optics(rows: RowTable) -> Table:
    assert rows.optics_table is not None, "the table is in the layout of RELION 3.1"
    return rows.optics_table


def modern(rows: RowTable) -> RowTable:
    """The table with a data_optics block; one of up to RELION 3.0 gets it, and origins in A, as in `read_particles`."""
    if rows.optics_table is not None:
        blocks = (Block("optics", table=rows.optics_table), Block(rows.kind, table=rows.table))
        return replace(rows, star=StarFile(rows.path, blocks), place=1)
    optics, of = optics_from_columns(rows.table)
    labels = {label for label in optics.labels if label != "rlnImagePixelSize"}
    table = rows.table.with_columns({GROUP: optics.integers(GROUP)[of]})
    if "rlnOriginX" in table:
        origins = dict(zip(("rlnOriginXAngst", "rlnOriginYAngst"), rows.origins_A().T, strict=True))
        table = table.with_columns(origins).without("rlnOriginX", "rlnOriginY")
    table = table.without(*labels - {GROUP})
    star = StarFile(rows.path, (Block("optics", table=optics), Block(rows.kind, table=table)))
    return RowTable(rows.kind, star, 1, table, optics)


def holding(rows: RowTable) -> RowTable:
    """The table with names of image stacks that hold from the working directory, where the stacks are found."""
    if rows.kind != "particles":
        return rows
    section, name, numbered = rows.table.cells("rlnImageName").split_at(b"@")
    names, of = name.codes()
    here = [_found(os.fsdecode(text), rows) for text in names]
    if all(new is None for new in here):
        return rows
    texts = [new or os.fsdecode(old) for new, old in zip(here, names, strict=True)]
    heads = [os.fsdecode(text) + "@" if at else "" for text, at in zip(section.texts(), numbered.tolist(), strict=True)]
    images = [head + texts[number] for head, number in zip(heads, of.tolist(), strict=True)]
    table = rows.table.with_columns({"rlnImageName": np.array(images, object)})
    return with_table(rows, table)


def _found(name: str, rows: RowTable) -> str | None:
    """A name that holds from here; None where it does so already, or the file is nowhere."""
    plain = plain_name(name)
    if os.path.isabs(plain) or os.path.exists(plain):
        return None
    beside = rows.path.absolute().parent
    place = next((path for path in (root / plain for root in (beside, *beside.parents)) if path.exists()), None)
    return None if place is None else from_here(str(place)) + name[len(plain) :]


def with_table(rows: RowTable, table: Table) -> RowTable:
    """The same file with another table in the rows' place."""
    blocks = tuple(
        replace(block, table=table) if place == rows.place else block for place, block in enumerate(rows.star.blocks)
    )
    return replace(rows, table=table, star=StarFile(rows.path, blocks))


def _joined_optics(parts: Sequence[RowTable]) -> tuple[Table, list[np.ndarray], list[str]]:
    """One optics table; of each part the new number of every of its groups, (groups,); and remarks."""
    labels = [label for label in _optics(parts[0]).labels if all(label in _optics(part) for part in parts)]
    values = [label for label in labels if label not in (GROUP, NAME)]
    known: list[tuple[str, dict[str, str]]] = []  # name, and its values by label
    numbers, remarks = [], []
    for part in parts:
        optics = _optics(part)
        names = optics.text(NAME).tolist() if NAME in optics else [f"opticsGroup{n + 1}" for n in range(len(optics))]
        cells = [
            dict(zip(values, row, strict=True)) for row in zip(*(optics.text(v).tolist() for v in values), strict=True)
        ]
        mine = []
        for name, row in zip(names, cells or [{}] * len(names), strict=True):
            place = next(
                (n for n, (old, its) in enumerate(known) if _based(old) == _based(name) and _same(its, row)), None
            )
            if place is None:
                free = _free(name, [old for old, _ in known])
                if free != name:
                    remarks.append(f"optics group {name} of {part.path} differs from another of this name: now {free}")
                known.append((free, row))
                place = len(known) - 1
            mine.append(place + 1)
        numbers.append(np.array(mine))
    table = {NAME: np.array([name for name, _ in known], object), GROUP: np.arange(1, len(known) + 1)}
    formats = {label: "%s" for label in values}
    table |= {label: np.array([row[label] for _, row in known], object) for label in values}
    return Table.of(table, formats, "joined, data_optics"), numbers, remarks


def _lost_optics(parts: Sequence[RowTable]) -> list[str]:
    """Columns that not all optics tables have."""
    every = [set(_optics(part).labels) for part in parts]
    return sorted({label for labels in every for label in labels if not all(label in other for other in every)})


def _based(name: str) -> str:
    """A name without the number that `_free` puts behind it."""
    base, mark, number = name.rpartition("_")
    return base if mark and number.isdecimal() else name


def _free(name: str, taken: Sequence[str]) -> str:
    number, base = 2, _based(name)
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def _same(one: dict[str, str], other: dict[str, str]) -> bool:
    return all(_alike(one[label], other[label]) for label in one)


def _alike(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return abs(float(one) - float(other)) <= _MATCH * max(abs(float(one)), abs(float(other)))
    except ValueError:
        return False


def stacked(tables: Sequence[Table]) -> tuple[Table, list[str]]:
    """Rows of all tables in order, with the columns that all have, their text as it stood; and the other labels."""
    labels = [label for label in tables[0].labels if all(label in table for table in tables)]
    lost = sorted({label for table in tables for label in table.labels} - set(labels))
    lines = b"".join(line for table in tables if len(table) for line in _ordered(table, labels).lines())
    grid = split(lines, 0, len(lines), max(1, len(labels)))
    return Table(tuple(labels), tuple(range(len(labels))), grid, len(grid), tables[0].where), lost


def _ordered(table: Table, labels: Sequence[str]) -> Table:
    columns = dict(zip(table.labels, table.columns, strict=True))
    return replace(table, labels=tuple(labels), columns=tuple(columns[label] for label in labels))


def identities(rows: RowTable, label: str = "") -> np.ndarray:
    """(n,) text by which a row is known: its image (section and stack, wherever named from), or column `label`."""
    if label and label != "rlnImageName":
        return rows.table.text(label)
    own = dict(KINDS)[rows.kind]
    if own != "rlnImageName":
        return rows.table.text(own)
    section, name, _ = rows.table.cells("rlnImageName").split_at(b"@")
    names, of = name.codes()
    paths = [os.path.abspath(plain_name(_found(os.fsdecode(text), rows) or os.fsdecode(text))) for text in names]
    numbers = [text.lstrip(b"0").decode() for text in section.texts()]
    return np.array([f"{number}@{paths[stack]}" for number, stack in zip(numbers, of.tolist(), strict=True)])


def first_of_each(keys: np.ndarray) -> np.ndarray:
    """(n,) bool: rows whose key stands in none before."""
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first

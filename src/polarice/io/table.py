"""A loop table of a STAR file: columns as they stood in the file, and columns put in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polarice.io.cells import BLOCK_ROWS, Cells, Grid, NotANumber, blocks
from polarice.io.labels import LABELS
from polarice.types import InputError

_BLANKS = frozenset(" \t\n\r\v\f")


def text_of(value: Any, text_format: str = "") -> str:
    """One value as RELION writes it; `text_format` is a printf format, "" for RELION's usual one.

    Raises ValueError for what is not a finite number or holds a line end.
    """
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, (int, np.integer)):
        return (text_format or "%12d") % int(value)
    if isinstance(value, (float, np.floating)):
        if not np.isfinite(value):
            raise ValueError(f"{value} cannot stand in a STAR file")
        return (text_format or _usual_format(float(value))) % float(value)
    return (text_format or "%s") % quoted(str(value))


def quoted(text: str) -> str:
    """`text` in quotes where it would otherwise not be read back as one value."""
    if "\n" in text or "\r" in text:
        raise ValueError(f"{text!r} holds a line end and cannot stand in a STAR file")
    if text and not _BLANKS.intersection(text) and text[0] not in "\"'#":
        return text
    return f"'{text}'" if '"' in text else f'"{text}"'


def _usual_format(value: float) -> str:
    return "%12.6f" if value == 0 or 1e-3 <= abs(value) < 1e5 else "%12.6e"


MOST_CELL_CHARACTERS = 10_000  # paths of file systems have 4,096 at the most
NAMED_LABELS = 40  # that a message holds


@dataclass(frozen=True, eq=False)
class Values:
    """A column that does not come from a file; `text_format` as in `text_of`."""

    array: np.ndarray  # (n,)
    text_format: str = ""

    def texts(self, rows: slice) -> list[bytes]:
        array = self.array[rows]
        if len(array) == 0:
            return []
        if array.dtype.kind not in "fiub":
            return [text_of(value, self.text_format).encode("utf-8", "surrogateescape") for value in array.tolist()]
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"row {rows.start + int(np.argmin(np.isfinite(array)))} is not a finite number")
        numbers = array.astype(np.float64) if array.dtype.kind == "f" else array.astype(np.int64)
        return ("\n".join(self._formats(numbers)) % tuple(numbers.tolist())).encode("ascii").split(b"\n")

    def _formats(self, numbers: np.ndarray) -> Sequence[str]:
        if self.text_format or numbers.dtype.kind == "i":
            return [self.text_format or "%12d"] * len(numbers)
        size = np.abs(numbers)
        plain = (size == 0) | (size >= 1e-3) & (size < 1e5)
        return np.where(plain, "%12.6f", "%12.6e").tolist()


@dataclass(frozen=True, eq=False)
class Table:
    """Rows and columns; a column read from a file keeps its text exactly as it stood there.

    Labels are without the leading underscore. `where` names file and block in error messages.
    """

    labels: tuple[str, ...]
    columns: tuple[int | Values, ...]  # int: that column of `grid`
    grid: Grid | None
    n: int
    where: str = "table"

    @staticmethod
    def of(columns: Mapping[str, Any], formats: Mapping[str, str] | None = None, where: str = "table") -> Table:
        """A new table from arrays or lists of equal length; formats as in `with_columns`."""
        sizes = {len(values) for values in columns.values()}
        if len(sizes) > 1:
            raise ValueError(f"columns of different lengths: {sorted(sizes)}")
        return Table((), (), None, sizes.pop() if sizes else 0, where).with_columns(columns, formats)

    def __len__(self) -> int:
        return self.n

    def __contains__(self, label: object) -> bool:
        return label in self.labels

    def cells(self, label: str) -> Cells:
        """The cells of one column, quotes taken off. Raises InputError where there is no such column."""
        if label not in self.labels:
            named = ", ".join("_" + name[:80] for name in self.labels[:NAMED_LABELS])
            more = f" and {len(self.labels) - NAMED_LABELS:,} more" if len(self.labels) > NAMED_LABELS else ""
            raise InputError(f"{self.where}: no column _{label}; it has {named}{more}")
        column = self.columns[self.labels.index(label)]
        if isinstance(column, int):
            assert self.grid is not None
            cells = self.grid.span(column, column)
            self._require_short(label, cells)
            return cells.unquoted() if self.grid.quotes else cells
        return Cells.of([text.strip() for rows in blocks(self.n) for text in column.texts(rows)]).unquoted()

    def _require_short(self, label: str, cells: Cells) -> None:
        """Raise InputError where a cell is longer than any name: an array of text is as wide as its widest cell."""
        lengths = cells.stops - cells.starts
        if lengths.max(initial=0) > MOST_CELL_CHARACTERS:
            row = int(np.argmax(lengths))
            raise InputError(
                f"{self.where}, row {row + 1}: _{label} has a cell of {lengths[row]:,} characters, where "
                f"{MOST_CELL_CHARACTERS:,} are the most; correct or remove the row"
            )

    def text(self, label: str) -> np.ndarray:
        """One column as an array of str (n,), quotes taken off."""
        return np.array([text.decode("utf-8", "surrogateescape") for text in self.cells(label).texts()], dtype=np.str_)

    def numbers(self, label: str) -> np.ndarray:
        """One column as (n,) float64. Raises InputError naming file, row (from 1) and label."""
        column = self.columns[self.labels.index(label)] if label in self.labels else None
        if isinstance(column, Values) and column.array.dtype.kind in "fiub":
            return column.array.astype(np.float64)
        try:
            return self.cells(label).numbers()
        except NotANumber as error:
            raise InputError(
                f"{self.where}, row {error.row + 1}: _{label} is {error.text[:80]!r}, not a number; "
                "correct or remove the row"
            ) from None

    def finite(self, label: str, most: float = np.inf) -> np.ndarray:
        """As `numbers`; raises InputError too for a value that is not finite, or farther from 0 than `most`."""
        values = self.numbers(label)
        wrong = ~(np.isfinite(values) & (np.abs(values) <= most))
        if wrong.any():
            row = int(np.argmax(wrong))
            what = f"not between {-most:g} and {most:g}" if np.isfinite(most) else "not a finite number"
            raise InputError(f"{self.where}, row {row + 1}: _{label} is {values[row]:g}, {what}; correct it")
        return values

    def integers(self, label: str) -> np.ndarray:
        """One column as (n,) int64; 3.000 counts as 3. Raises InputError naming file, row (from 1) and label."""
        values = self.numbers(label)
        whole = np.isfinite(values) & (values == np.rint(values))
        if not whole.all():
            row = int(np.argmin(whole))
            raise InputError(
                f"{self.where}, row {row + 1}: _{label} is {values[row]:g}, not a whole number; "
                "correct or remove the row"
            )
        return values.astype(np.int64)

    def codes(self, label: str) -> tuple[tuple[str, ...], np.ndarray]:
        """The distinct texts of a column in order of appearance, and which of them each row holds, (n,) int32."""
        names, codes = self.cells(label).codes()
        return tuple(name.decode("utf-8", "surrogateescape") for name in names), codes

    def with_columns(self, columns: Mapping[str, Any], formats: Mapping[str, str] | None = None) -> Table:
        """The table with these columns replaced where they stand, or appended; the others keep their text exactly.

        Values are (n,) arrays or lists of numbers or text. `formats` are printf formats by label ("%10.3f"); without
        one the label's own is taken, else RELION's usual one for the type of the values.
        """
        known = dict(zip(self.labels, self.columns, strict=True))
        for label, values in columns.items():
            array = np.asarray(values)
            if array.shape != (self.n,):
                raise ValueError(f"column {label} has shape {array.shape}, the table {self.n} rows")
            known[label] = _values(label, array, (formats or {}).get(label, ""))
        return replace(self, labels=tuple(known), columns=tuple(known.values()))

    def without(self, *labels: str) -> Table:
        """The table without these columns, where it has them."""
        kept = [(name, column) for name, column in zip(self.labels, self.columns, strict=True) if name not in labels]
        return replace(self, labels=tuple(name for name, _ in kept), columns=tuple(column for _, column in kept))

    def take(self, rows: np.ndarray) -> Table:
        """The rows of `rows` (int indices or a boolean mask), in that order."""
        index = np.arange(self.n)[rows]
        columns = tuple(c if isinstance(c, int) else replace(c, array=c.array[index]) for c in self.columns)
        grid = None if self.grid is None else self.grid.take(index)
        return replace(self, columns=columns, grid=grid, n=len(index))

    def lines(self) -> Iterator[bytes]:
        """The rows as text, some thousands of whole lines at a time."""
        parts = self._parts()
        for rows in blocks(self.n, BLOCK_ROWS // 4):
            columns = [self._texts(part, rows) for part in parts]
            yield b"\n".join(map(b" ".join, zip(*columns, strict=True))) + b"\n"

    def _parts(self) -> list[Values | tuple[int, int]]:
        """The columns in order; neighbours that were neighbours in the file are written as one piece (first, last)."""
        parts: list[Values | tuple[int, int]] = []
        for column in self.columns:
            if isinstance(column, Values):
                parts.append(column)
            elif parts and isinstance(parts[-1], tuple) and parts[-1][1] == column - 1:
                parts[-1] = (parts[-1][0], column)
            else:
                parts.append((column, column))
        return parts

    def _texts(self, part: Values | tuple[int, int], rows: slice) -> list[bytes]:
        if isinstance(part, Values):
            return part.texts(rows)
        assert self.grid is not None
        return self.grid.span(*part, rows).texts()


def _values(label: str, array: np.ndarray, text_format: str) -> Values:
    """The column in the type and format that RELION has for this label."""
    known = LABELS.get(label)
    if known is not None and known.kind == "int" and array.dtype.kind == "f":
        if not np.array_equal(array, np.rint(array)):
            raise ValueError(f"column {label} takes whole numbers")
        array = array.astype(np.int64)
    if known is not None and known.kind == "float" and array.dtype.kind in "iu":
        array = array.astype(np.float64)
    return Values(array, text_format or (known.text if known is not None else ""))

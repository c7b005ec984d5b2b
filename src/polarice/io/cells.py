"""The cells of a text table as positions in the file's bytes: found, compared and turned into numbers by whole columns.

A table of a million rows is split by NumPy in about a second and keeps every cell exactly as it stood, because nothing
but its position is stored (4 bytes a cell).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

CHUNK_BYTES = 4 << 20  # split the file in pieces that stay in the processor's cache
BLOCK_ROWS = 1 << 15

_QUOTED = re.compile(rb"""(?<!\S)("[^"\n]*"|'[^'\n]*')(?!\S)""")


class RaggedTable(ValueError):
    """A row has more or fewer values than the table has columns; `position` is a byte inside that row."""

    def __init__(self, row: int, position: int, found: int) -> None:
        super().__init__(f"row {row}: {found} values")
        self.row, self.position, self.found = row, position, found


class NotANumber(ValueError):
    """Cell `row` (from 0) holds `text`, which is not a number."""

    def __init__(self, row: int, text: str) -> None:
        super().__init__(f"row {row}: {text!r} is not a number")
        self.row, self.text = row, text


def blocks(n: int, size: int = BLOCK_ROWS) -> Iterator[slice]:
    """Slices that cover 0 .. n in order, `size` at a time."""
    return (slice(low, min(low + size, n)) for low in range(0, n, size))


def first_rows(codes: np.ndarray, n: int) -> np.ndarray:
    """The first row (n,) at which each code 0 .. n - 1 stands; -1 where it stands nowhere."""
    first = np.full(n, -1, np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return first


@dataclass(frozen=True, eq=False)
class Cells:
    """One column: cell i is `source[starts[i]:stops[i]]`."""

    source: bytes
    starts: np.ndarray  # (n,) int64
    stops: np.ndarray  # (n,) int64

    @staticmethod
    def of(texts: list[bytes]) -> Cells:
        stops = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return Cells(b"".join(texts), np.concatenate([[0], stops[:-1]]).astype(np.int64)[: len(texts)], stops)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: slice) -> Cells:
        return Cells(self.source, self.starts[rows], self.stops[rows])

    def texts(self) -> list[bytes]:
        source = self.source
        return [source[low:high] for low, high in zip(self.starts.tolist(), self.stops.tolist(), strict=True)]

    def unquoted(self) -> Cells:
        """The same cells without the quotes around them."""
        if len(self) == 0:
            return self
        bytes_ = np.frombuffer(self.source, np.uint8)
        first, last = bytes_[np.minimum(self.starts, len(bytes_) - 1)], bytes_[np.maximum(self.stops - 1, 0)]
        quoted = (first == last) & np.isin(first, np.frombuffer(b"\"'", np.uint8)) & (self.stops - self.starts > 1)
        return Cells(self.source, self.starts + quoted, self.stops - quoted)

    def fixed(self) -> np.ndarray:
        """The cells as a byte-string array (n,), padded with zeros."""
        lengths = self.stops - self.starts
        width = max(1, int(lengths.max(initial=0)))
        last = len(self.source) - width
        if last < 0:
            return np.array(self.texts(), f"S{width}")
        windows = np.ndarray((last + 1,), f"S{width}", self.source, strides=(1,))  # one from every byte on
        found = windows[np.minimum(self.starts, last)]
        found.view(np.uint8).reshape(len(self), width)[...] *= np.arange(width) < lengths[:, None]
        for row in np.flatnonzero(self.starts > last).tolist():
            found[row] = self.source[self.starts[row] : self.stops[row]]
        return found

    def numbers(self) -> np.ndarray:
        """The cells as (n,) float64, rounded as float() rounds. Raises NotANumber."""
        values = np.empty(len(self))
        for rows in blocks(len(self)):
            part = self[rows]
            aligned = part._aligned_decimals()
            values[rows] = part._any_numbers(rows.start) if aligned is None else aligned
        return values

    def _aligned_decimals(self) -> np.ndarray | None:
        """The numbers, if all have as many digits behind the point, no exponent and at most 15 digits.

        An integer below 2^53 divided by a power of ten below 10^22 is correctly rounded (Clinger 1990).
        """
        lengths = self.stops - self.starts
        width = int(lengths.max())
        if lengths.min() < 1 or width > 16 or self.stops.min() < width:
            return None
        windows = np.ndarray((len(self.source) - width + 1,), f"S{width}", self.source, strides=(1,))
        text = windows[self.stops - width].view(np.uint8).reshape(-1, width)  # ends aligned
        negative = np.frombuffer(self.source, np.uint8)[self.starts] == ord("-")
        places = self.source[self.starts[0] : self.stops[0]][::-1].find(b".")  # digits behind the point; -1: no point
        if (lengths - negative < max(places + 2, 1)).any():
            return None
        digits = (text - ord("0")) * (np.arange(width) >= (width - lengths + negative)[:, None])
        weights = 10.0 ** np.arange(width - 1, -1, -1)
        if places >= 0:
            point = width - 1 - places
            if (text[:, point] != ord(".")).any():
                return None
            digits[:, point] = 0
            weights[:point] /= 10.0
        if (digits > 9).any() or ((digits[:, 0] > 0).any() and width - (places >= 0) > 15):
            return None
        values = digits.astype(np.float64) @ weights / 10.0 ** max(places, 0)
        return np.where(negative, -values, values)

    def _any_numbers(self, done: int) -> np.ndarray:
        try:
            return self.fixed().astype(np.float64)
        except ValueError:
            return np.array(self._numbers_one_by_one(done))

    def _numbers_one_by_one(self, done: int) -> list[float]:
        values = []
        for text in self.texts():
            try:
                values.append(float(text))
            except ValueError:
                raise NotANumber(done + len(values), text.decode("utf-8", "surrogateescape")) from None
        return values

    def codes(self) -> tuple[list[bytes], np.ndarray]:
        """The distinct cells in order of first appearance, and for each row which of them it holds, (n,) int32."""
        known: defaultdict[bytes, int] = defaultdict(count().__next__)  # a new cell gets the next number
        codes = np.empty(len(self), np.int32)
        for rows in blocks(len(self)):
            texts = self[rows].fixed()
            heads = np.concatenate([[True], texts[1:] != texts[:-1]])  # equal neighbours are looked up once
            found = np.fromiter(map(known.__getitem__, texts[heads].tolist()), np.int32)
            codes[rows] = found[np.cumsum(heads) - 1]
        return list(known), codes

    def split_at(self, mark: bytes) -> tuple[Cells, Cells, np.ndarray]:
        """What stands before and after the first `mark` (one byte), and whether there was one, (n,) bool.

        Without a mark the whole cell counts as after.
        """
        position = np.full(len(self), -1, np.int64)
        for rows in blocks(len(self)):
            part = self[rows]
            head = Cells(part.source, part.starts, np.minimum(part.stops, part.starts + 16)).fixed()
            hits = head.view(np.uint8).reshape(len(head), -1) == mark[0]
            position[rows] = np.where(hits.any(axis=1), hits.argmax(axis=1), -1)
        for row in np.flatnonzero((position < 0) & (self.stops - self.starts > 16)).tolist():
            position[row] = self.source[self.starts[row] : self.stops[row]].find(mark)
        there = position >= 0
        middle = self.starts + np.maximum(position, 0)
        return Cells(self.source, self.starts, middle), Cells(self.source, middle + there, self.stops), there


@dataclass(frozen=True, eq=False)
class Grid:
    """All cells of a table: cell (i, j) is `source[line[i] + begin[i, j] : line[i] + end[i, j]]`."""

    source: bytes
    line: np.ndarray  # (n,) int64, where row i begins
    begin: np.ndarray  # (n, columns) uint16, or uint32 where a line is longer
    end: np.ndarray  # (n, columns)
    quotes: bool = True  # whether any value may stand in quotes

    def __len__(self) -> int:
        return len(self.line)

    def take(self, rows: np.ndarray) -> Grid:
        return Grid(self.source, self.line[rows], self.begin[rows], self.end[rows], self.quotes)

    def span(self, first: int, last: int, rows: slice = slice(None)) -> Cells:
        """Columns `first` .. `last` of `rows` as one cell each, with what stands between them."""
        return Cells(self.source, self.line[rows] + self.begin[rows, first], self.line[rows] + self.end[rows, last])


def split(source: bytes, start: int, stop: int, columns: int) -> Grid:
    """Split the rows in `source[start:stop]` at white space; blank lines and lines that begin with # are skipped.

    A value in quotes may hold blanks; what follows a # behind the last column is dropped. Raises RaggedTable.
    """
    view = np.frombuffer(source, np.uint8)
    quotes = source.find(b'"', start, stop) >= 0 or source.find(b"'", start, stop) >= 0
    lines, begins, ends, done = [np.empty(0, np.int64)], [], [], 0
    while start < stop:
        cut = stop if stop - start <= CHUNK_BYTES else source.rfind(b"\n", start, start + CHUNK_BYTES) + 1
        if cut <= start:  # one line longer than a chunk
            cut = source.find(b"\n", start, stop) + 1 or stop
        begin, end = _rows(view[start:cut], columns, quotes, done, start)
        first = begin[:, 0].copy()
        kind = np.uint16 if len(end) == 0 or int((end[:, -1] - first).max()) < 1 << 16 else np.uint32
        lines.append(first + start)
        begins.append((begin - first[:, None]).astype(kind))
        ends.append((end - first[:, None]).astype(kind))
        done += len(first)
        start = cut
    empty = [np.empty((0, columns), np.uint16)]
    return Grid(source, np.concatenate(lines), np.concatenate(begins or empty), np.concatenate(ends or empty), quotes)


def _rows(chunk: np.ndarray, columns: int, quotes: bool, done: int, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Begin and end of every cell of a chunk of whole lines, both (rows, columns) int64."""
    begin, end = _words(chunk, quotes)
    if not len(begin):
        return np.empty((0, columns), np.int64), np.empty((0, columns), np.int64)
    newlines = np.flatnonzero(chunk == ord("\n"))
    if len(begin) % columns == 0:
        first = np.searchsorted(newlines, begin[::columns])
        last = np.searchsorted(newlines, begin[columns - 1 :: columns])
        comment = (chunk[begin[::columns]] == ord("#")).any()
        if np.array_equal(first, last) and (np.diff(first) > 0).all() and not comment:
            return begin.reshape(-1, columns), end.reshape(-1, columns)
    return _uneven_rows(chunk, begin, end, newlines, columns, done, offset)


def _words(chunk: np.ndarray, quotes: bool) -> tuple[np.ndarray, np.ndarray]:
    white = np.ones(len(chunk) + 2, bool)
    np.less_equal(chunk, ord(" "), out=white[1:-1])
    if quotes:
        for match in _QUOTED.finditer(chunk.tobytes()):
            white[match.start() + 1 : match.end() + 1] = False
    edges = np.flatnonzero(white[1:] != white[:-1])
    return edges[0::2], edges[1::2]


def _uneven_rows(
    chunk: np.ndarray, begin: np.ndarray, end: np.ndarray, newlines: np.ndarray, columns: int, done: int, offset: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same for a chunk with comments in it, or with a row of the wrong length."""
    line = np.searchsorted(newlines, begin)
    heads = np.flatnonzero(np.concatenate([[True], line[1:] != line[:-1]]))
    counts = np.diff(np.append(heads, len(begin)))
    rows = chunk[begin[heads]] != ord("#")
    heads, counts = heads[rows], counts[rows]
    behind = begin[np.minimum(heads + columns, len(begin) - 1)]
    wrong = (counts < columns) | (counts > columns) & (chunk[behind] != ord("#"))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise RaggedTable(done + row, offset + int(begin[heads[row]]), int(counts[row]))
    cells = heads[:, None] + np.arange(columns)
    return begin[cells], end[cells]

"""STAR files: a patient reader and a strict writer of what RELION 3.1 and later read.

The reader takes Windows line ends, tabs, quotes, comments, missing version lines and blank lines anywhere; the writer
puts every block behind a version line, labels numbered, rows separated by single line ends.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polarice.io.atomic import replacing
from polarice.io.cells import RaggedTable, split
from polarice.io.gzipped import MAGIC, naming_source
from polarice.io.kinds import require_no_folder, require_no_other_kind
from polarice.io.table import Table, quoted, text_of
from polarice.types import InputError

__all__ = ["Block", "StarFile", "Table", "read_star", "write_star"]

MOST_UNPACKED_BYTES = 1 << 31  # of a gzipped table; a million particles have some 300 MB
_VALUE = re.compile(r"""(?<!\S)(?:"([^"]*)"|'([^']*)')(?!\S)|(\S+)""")


@dataclass(frozen=True, eq=False)
class Block:
    """One `data_NAME` block: label and value pairs, or a table, or (rarely) both."""

    name: str
    pairs: Mapping[str, str] = field(default_factory=dict)  # labels without the underscore
    table: Table | None = None

    @staticmethod
    def of_pairs(name: str, values: Mapping[str, Any]) -> Block:
        """A block of pairs from numbers and texts, written as RELION writes them."""
        texts = {label: v if isinstance(v, str) else text_of(v).strip() for label, v in values.items()}
        return Block(name, texts)


@dataclass(frozen=True, eq=False)
class StarFile:
    """The blocks of a file in their order; `star["optics"]` is the first one of that name."""

    path: Path
    blocks: tuple[Block, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(block.name for block in self.blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Block:
        for block in self.blocks:
            if block.name == name:
                return block
        raise InputError(f"{self.path}: no block data_{name}; it has {', '.join('data_' + n for n in self.names)}")

    def table(self, name: str) -> Table:
        """The table of block `name`. Raises InputError where the block is missing or has only pairs."""
        table = self[name].table
        if table is None:
            raise InputError(f"{self.path}: block data_{name} holds no loop_ table")
        return table


def read_star(path: str | os.PathLike[str]) -> StarFile:
    """Read a STAR file, gzipped or not. Raises InputError naming file, block, row and line where it cannot be read."""
    path = Path(path)
    require_no_folder(path)
    data = _contents(path)
    if not data[:4096].lstrip().startswith((b"data_", b"#", b"_", b"loop_")):
        require_no_other_kind(path, "a STAR file", but=("STAR", "gzip", "a text"))
    reader = _Reader(path, data)
    blocks = tuple(reader.blocks())
    if not blocks:
        raise InputError(f"{path} is not a STAR file: it has no line that begins with data_")
    return StarFile(path, blocks)


def write_star(path: str | os.PathLike[str], blocks: Iterable[Block], version: int = 30001) -> None:
    """Write blocks as RELION 3.1 reads them; the file is complete or not there.

    Raises InputError where the disk is full or the folder may not be written.
    """
    with replacing(path) as stream:
        for block in blocks:
            head = f"\n# version {version}\n\ndata_{block.name}\n\n"
            head += "".join(f"_{label:<48} {quoted(value):>12}\n" for label, value in block.pairs.items())
            stream.write(head.encode("utf-8", "surrogateescape"))
            if block.table is not None:
                labels = "".join(f"_{label} #{number} \n" for number, label in enumerate(block.table.labels, 1))
                stream.write(b"loop_ \n" + labels.encode("utf-8", "surrogateescape"))
                for lines in block.table.lines():
                    stream.write(lines)
            stream.write(b" \n")


def _contents(path: Path) -> bytes:
    with naming_source(path):
        data = path.read_bytes()
        if data.startswith(MAGIC):
            data = _unpacked(path)
    return data.removeprefix(b"\xef\xbb\xbf")


def _unpacked(path: Path) -> bytes:
    """The content of a gzip file. Raises InputError where there is no end of it."""
    pieces, size = list[bytes](), 0
    with gzip.open(path) as stream:
        while piece := stream.read(1 << 22):
            pieces.append(piece)
            size += len(piece)
            if size > MOST_UNPACKED_BYTES:
                raise InputError(f"{path}: more than {MOST_UNPACKED_BYTES >> 30} GiB when unpacked; unpack it first")
    return b"".join(pieces)


class _Reader:
    """Walks the lines of a file; tables are handed to `cells.split` as a whole."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.position = path, data, 0

    def blocks(self) -> Iterator[Block]:
        line = self._next_line()
        while line is not None:
            if not _is_header(line):
                raise InputError(
                    f"{self.path}, line {self._line_number()}: a line that begins with data_ was expected, "
                    f"found {_shown(line)}; is this a STAR file?"
                )
            block, line = self._block(line[5:].decode("utf-8", "surrogateescape"))
            yield block

    def _block(self, name: str) -> tuple[Block, bytes | None]:
        """Read one block; returns it with the header line of the next."""
        pairs: dict[str, str] = {}
        labels: list[str] = []
        loop, table = False, None
        while (line := self._next_line()) is not None and (table is None or not _is_header(line)):
            if line.lower() == b"loop_":
                loop = True
            elif line.startswith(b"_") and (not loop or _is_label(line)):
                values = _values(line)
                if loop:
                    labels.append(values[0][1:])
                else:
                    pairs[values[0][1:]] = values[1] if len(values) > 1 else ""
            elif loop and labels and table is None and not (_is_header(line) and self._opens_block(len(labels))):
                table = self._table(name, labels)
            elif _is_header(line):
                break
            elif (
                pairs
                and not loop
                and len(pairs) > 1
                and all(value.startswith("#") or not value for value in pairs.values())
            ):
                raise InputError(
                    f"{self.path}, line {self._line_number()}: rows of a table without the line loop_ before its "
                    "labels; add it"
                )
            else:
                raise InputError(
                    f"{self.path}, line {self._line_number()}: {_shown(line)} stands outside of any table; "
                    "correct or remove it"
                )
        if loop and table is None:
            table = self._table(name, labels, empty=True)
        return Block(name, pairs, table), line

    def _table(self, name: str, labels: list[str], empty: bool = False) -> Table:
        where = f"{self.path}, data_{name}"
        twice = {label for label in labels if labels.count(label) > 1}
        if twice:
            raise InputError(f"{where}: column _{sorted(twice)[0]} stands there twice; remove one of them")
        start = self.position if empty else self._line_start
        stop = start if empty else self._end_of_rows(start, len(labels))
        try:
            grid = split(self.data, start, stop, max(1, len(labels)))
        except RaggedTable as error:
            line = self.data.count(b"\n", 0, error.position) + 1
            raise InputError(
                f"{where}, row {error.row + 1} (line {line}): {error.found} values where the table has "
                f"{len(labels)} columns; correct or remove the row (put text with blanks in quotes)"
            ) from None
        self.position = stop
        return Table(tuple(labels), tuple(range(len(labels))), grid, len(grid), where)

    def _end_of_rows(self, start: int, columns: int) -> int:
        """Where the header line of the next block begins; values may begin with data_ too."""
        found = start
        while (found := self.data.find(b"data_", found)) >= 0:
            begin = self.data.rfind(b"\n", start, found) + 1 or start
            end = self.data.find(b"\n", found)
            end = len(self.data) if end < 0 else end
            if _is_header(self.data[begin:end].strip()) and (columns > 1 or _starts_block(self.data, end)):
                return begin
            found = end
        return len(self.data)

    def _opens_block(self, columns: int) -> bool:
        return columns > 1 or _starts_block(self.data, self.position)

    def _next_line(self) -> bytes | None:
        """The next line that is neither blank nor a comment, white space cut off both ends."""
        while self.position < len(self.data):
            self._line_start = self.position
            end = self.data.find(b"\n", self.position)
            end = len(self.data) if end < 0 else end
            line = self.data[self.position : end].strip()
            self.position = end + 1
            if line and not line.startswith(b"#"):
                return line
        return None

    def _line_number(self) -> int:
        return self.data.count(b"\n", 0, self._line_start) + 1


def _is_header(line: bytes) -> bool:
    return line.startswith(b"data_") and len(line.split(None, 1)) == 1


def _is_label(line: bytes) -> bool:
    """`_rlnName`, `_rlnName #3` and `_rlnName #3 [remark]`, but not a row whose first value begins with _."""
    words = line.split(None, 2)
    return len(words) == 1 or words[1].startswith(b"#")


def _starts_block(data: bytes, position: int) -> bool:
    """Does loop_ or a label stand on the next line that says something?"""
    for line in data[position : position + 4096].splitlines():
        if line.strip() and not line.strip().startswith(b"#"):
            return line.strip().lower() == b"loop_" or line.strip().startswith(b"_")
    return False


def _values(line: bytes) -> list[str]:
    text = line.decode("utf-8", "surrogateescape")
    return [a or b or c for a, b, c in _VALUE.findall(text)]


def _shown(line: bytes) -> str:
    text = "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in line[:40])
    return repr(text + ("..." if len(line) > 40 else ""))

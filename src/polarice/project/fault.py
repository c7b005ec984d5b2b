"""A fault of Polarice's own: what no check foresaw ends in two lines and a file to send, not in a traceback."""

from __future__ import annotations

import html
import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from polarice import __version__
from polarice.io.atomic import replacing
from polarice.types import InputError

SHOWN = 300  # characters of an error's text


def tell(words: Sequence[str], error: BaseException) -> int:
    """Say on stderr what went wrong and where it is written down, and give the exit code.

    words: the command line behind `polarice`. What the system refuses (a disk that fails, memory that is not there) is
    no fault of the program: it is said in its own words. Nothing that was written before is touched.
    """
    name = f"polarice {words[0]}" if words else "polarice"
    if isinstance(error, MemoryError):
        print(f"{name}: error: out of memory; give a smaller --memory, or fewer --threads", file=sys.stderr)
        return 1
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{name}: error: {where}{error.strerror}; what is done is kept, run the command again", file=sys.stderr)
        return 1
    kind = type(error).__name__
    print(f"{name}: a fault of polarice: {kind}: {one_line(str(error))}", file=sys.stderr)
    with suppress(OSError, InputError):
        print(f"{name}: what is done is kept; please send the file {_write(words, error)}", file=sys.stderr)
    return 1


def spared(write: Callable[[], Path], page: Path) -> Path:
    """A report's page as `write` makes it; a fault in it costs the page and not the job, whose results are on disk.

    In its place stands a page that says what went wrong. Raises InputError where the page cannot be written at all.
    """
    try:
        return write()
    except InputError:
        raise
    except Exception as error:
        note_fault(error, page)
        with replacing(page, "w") as stream:
            stream.write(_PAGE.format(html.escape(_named(error))))
        return page


def note_fault(error: Exception, page: Path) -> None:
    """Say on stderr what went wrong in a report, and where it is written down."""
    print(f"warning: {page}: a fault of polarice in the report: {_named(error)}; all results are kept", file=sys.stderr)
    with suppress(OSError, InputError):
        print(f"warning: please send the file {_write(sys.argv[1:], error)}", file=sys.stderr)


_PAGE = (
    '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Polarice</title>'
    "<p>This page could not be drawn, by a fault of Polarice ({}). The results beside it are whole.</p></html>\n"
)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(str(error))}"


def one_line(text: str) -> str:
    """A library's message as one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."


def _write(words: Sequence[str], error: BaseException) -> Path:
    """The file to send: versions, the command, the traceback; nothing of the data."""
    content = [
        f"polarice {__version__}, Python {platform.python_version()}, {platform.platform()}",
        shlex.join(["polarice", *words]),
        "".join(traceback.format_exception(error)),
    ]
    handle, path = tempfile.mkstemp(prefix="polarice-fault-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write("\n".join(content))
    return Path(path)

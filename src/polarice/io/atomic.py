"""Files that are either complete or not there: written beside the target, then renamed over it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from polarice.types import InputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_IMPOSSIBLE = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; when the block ends well it is flushed to the disk and takes its place.

    On any exception, Ctrl-C included, the temporary is removed and what stood at `path` before is untouched. A
    symbolic link at `path` is followed. `mode` is "wb", "wb+" or "w" (UTF-8, in which names of files keep their bytes;
    line ends as written).

    Raises InputError where the disk is full, the folder is missing or may not be written.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with naming_target(path):
        stream = open(temporary, mode, **text)  # type: ignore[call-overload]  # noqa: SIM115
    try:
        with naming_full_disk(path), stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        with naming_target(path):
            os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


@contextmanager
def naming_full_disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the system's "no space left" into an InputError that names `path`; anything else passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        message = f"disk full while writing {path}; free some space or choose another folder, then run again"
        raise InputError(message) from error


@contextmanager
def naming_target(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the system says against opening or renaming a file at `path` into an InputError with a remedy."""
    folder = Path(path).absolute().parent
    try:
        with naming_full_disk(path):
            yield
    except FileNotFoundError as error:
        raise InputError(f"cannot write {path}: there is no folder {folder}; make it first") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"cannot write {path}: a folder stands there, or a file where a folder should be") from error
    except OSError as error:
        if error.errno in _IMPOSSIBLE:
            raise InputError(f"cannot write {str(path)[:300]}: {error.strerror}; choose another name") from error
        if error.errno not in _FORBIDDEN:
            raise
        raise InputError(f"no permission to write {path}; choose another folder or change its permissions") from error


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last through a power cut, where the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""One process at a time in a folder, or on a file: by the system's lock, or, where a file system has none, by a note.

Local disks, NFS and most parallel file systems lock for all nodes (flock). Where that is refused, a hidden file beside
says which process on which host is at work; of one that is gone from this host it is taken over, and one of another
host has to be removed by hand if nothing works there. A Lustre that is mounted with localflock locks within each node
alone: there, two nodes can take the same folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from polarice.types import InputError

_UNABLE = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


@contextmanager
def alone(path: Path, what: str = "there; wait for its end, or choose another folder with --o") -> Iterator[None]:
    """Keep other processes away from a folder or a file while the block runs.

    A folder that is not there is made, and removed at the end if nothing is in it. Raises InputError where another
    process is at work, which the message goes on about with `what`, and where the folder cannot be made.
    """
    new = not path.exists()
    try:
        if new:
            path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}; choose another with --o") from None
    note: Path | None = None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another process is at work {what}") from None
        except OSError as error:
            note = _noted(path, what) if error.errno in _UNABLE else None
        yield
    finally:
        if note is not None:
            note.unlink(missing_ok=True)
        os.close(handle)
        if new:
            with suppress(OSError):  # it holds results
                path.rmdir()


def _noted(path: Path, what: str) -> Path | None:
    """The file that keeps others away; None where none can be written."""
    note = (path if path.is_dir() else path.parent) / f".{path.name}.at_work"
    own = f"{socket.gethostname()} {os.getpid()}\n"
    for _ in range(2):
        try:
            with open(note, "x") as stream:
                stream.write(own)
            return note
        except FileExistsError:
            host, number = [*_words(note), "", ""][:2]
            if host != socket.gethostname() or Path(f"/proc/{number or '-'}").exists():
                raise InputError(
                    f"{path}: process {number} on {host} is at work {what}; if it has ended, remove {note}"
                ) from None
            note.unlink(missing_ok=True)
        except OSError:
            return None
    return None


def _words(note: Path) -> list[str]:
    try:
        return note.read_text().split()
    except OSError:
        return []

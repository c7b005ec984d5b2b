"""Stacks copied to a disk of one's own: checked, shared by the jobs that want the same ones, removed with the last.

A set of copies is a folder `polarice-copy-KEY` beside a file `polarice-copy-KEY.lock`, KEY made of the stacks' names,
sizes, times of change and sections, and of the user. Only the user can look into the folder. Its file `complete` holds
the checksums of what was read from the stacks: a job that finds a set there compares it with them, and makes it anew
where owner, permissions or bytes are not as they should be. A job holds the lock as long as it reads, together with
others; who can have it alone may remove the copies. The system lets go of the locks of a job that is killed: what that
one leaves is removed by the next.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polarice.io.mrc import read_header
from polarice.types import InputError, Particles

PREFIX = "polarice-copy-"
COMPLETE = "complete"
PIECE_BYTES = 8 << 20
TRIES = 3  # at a set of copies, that others may remove as soon as it is there


@dataclass(frozen=True)
class Copy:
    """Sections first .. stop - 1 of a stack, at their places in a file that is as long as the stack, and else empty."""

    source: str
    path: Path
    first: int
    stop: int
    ranges: tuple[tuple[int, int], ...]  # of bytes: the header, and the sections

    @property
    def size(self) -> int:
        """Bytes that are copied."""
        return sum(stop - start for start, stop in self.ranges)


@contextmanager
def copied(
    folder: Path, particles: Particles, parts: Sequence[np.ndarray], unsigned: bool
) -> Iterator[dict[str, Copy]]:
    """Copies of the sections that `parts` (rows) need, by the stacks' names, as long as the block runs.

    Every byte is read back and compared by its checksum. Gzipped stacks are left where they are. Raises InputError
    where the folder is missing, has too little room, or a copy is not what was read.
    """
    if not folder.is_dir():
        raise InputError(f"--copy-to {folder}: no such folder; make it on every node, or name another")
    wanted = _wanted(particles, np.concatenate(parts), unsigned)
    key = hashlib.blake2b(repr([os.geteuid(), *map(_named, wanted)]).encode(), digest_size=8).hexdigest()
    place = folder / f"{PREFIX}{key}"
    wanted = [
        Copy(each.source, place / f"{number:06d}.mrcs", each.first, each.stop, each.ranges)
        for number, each in enumerate(wanted)
    ]
    _sweep(folder, place)
    lock = _locked(place, fcntl.LOCK_SH)
    tries = 0
    while not _trusted(place, wanted):
        os.close(lock)
        if (tries := tries + 1) > TRIES:
            raise InputError(f"--copy-to {folder}: keeps no files that are the user's alone; name another folder")
        _fill(place, wanted)
        lock = _locked(place, fcntl.LOCK_SH)  # before that another job may have had the lock alone, and removed them
    try:
        yield {each.source: each for each in wanted}
    finally:
        _remove(place, lock)


def _wanted(particles: Particles, rows: np.ndarray, unsigned: bool) -> list[Copy]:
    found = []
    for stack in np.unique(particles.stack_of[rows]).tolist():
        source = particles.stacks[stack]
        header = read_header(source, unsigned)
        if header.gzipped:
            continue
        sections = particles.section[rows[particles.stack_of[rows] == stack]]
        first, stop = int(sections.min()), int(sections.max()) + 1
        each = header.ny * header.nx * header.dtype.itemsize
        ranges = ((0, header.offset), (header.offset + first * each, header.offset + stop * each))
        found.append(Copy(source, Path(), first, stop, ranges))
    return found


def _named(copy: Copy) -> tuple[str, int, int, int, int]:
    status = os.stat(copy.source)
    return os.path.realpath(copy.source), status.st_size, status.st_mtime_ns, copy.first, copy.stop


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"--copy-to {folder}: the particles take {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; name another "
            "folder, or leave the option out"
        )


def _fill(place: Path, wanted: Sequence[Copy]) -> None:
    """Make the copies, unless another job just did. InputError where others read copies that are not as they were."""
    try:
        lock = _locked(place, fcntl.LOCK_EX | (fcntl.LOCK_NB if (place / COMPLETE).exists() else 0))
    except BlockingIOError:
        raise InputError(
            f"--copy-to {place.parent}: {place.name} is not what was copied, and another job reads it; name another "
            "folder, or leave the option out"
        ) from None
    if _trusted(place, wanted):
        os.close(lock)
        return
    try:
        shutil.rmtree(place, ignore_errors=True)
        _require_room(place.parent, sum(each.size for each in wanted))
        _copy_all(place, wanted)
    except BaseException:
        _remove(place, lock)
        raise
    os.close(lock)


def _copy_all(place: Path, wanted: Sequence[Copy]) -> None:
    try:
        place.mkdir(mode=0o700)
        checksums = [_copy(each) for each in wanted]
        (place / COMPLETE).write_text(json.dumps(checksums))
    except OSError as error:
        raise InputError(f"--copy-to {place.parent}: {error.strerror}; name another folder") from error


def _trusted(place: Path, wanted: Sequence[Copy]) -> bool:
    """Whether a set of copies is whole, the user's alone, and what was read from the stacks."""
    try:
        if not _own(status := os.lstat(place)) or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077:
            return False
        with open(_opened(place / COMPLETE, os.O_RDONLY)) as stream:
            checksums = json.load(stream)
        return bool(checksums == [_checksums(each) for each in wanted])
    except (OSError, ValueError):
        return False


def _own(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid()


def _opened(path: Path, flags: int) -> int:
    """A plain file of the user's own, no link to another; else OSError."""
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    status = os.fstat(file)
    if not _own(status) or not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(file)
        raise PermissionError(errno.EPERM, f"{path.name} belongs to another user, or is a link")
    return file


def _checksums(copy: Copy) -> list[list[int]]:
    """Of a copy's ranges, as they are on the disk; empty where its length is not the stack's."""
    file = _opened(copy.path, os.O_RDONLY)
    try:
        if os.fstat(file).st_size != os.stat(copy.source).st_size:
            return []
        return [list(_pieces(file, each)) for each in copy.ranges]
    finally:
        os.close(file)


def _copy(copy: Copy) -> list[list[int]]:
    """One stack's sections, written, flushed to the disk, and read from there again; their checksums."""
    made = os.open(copy.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(copy.source, "rb", buffering=0) as source, open(made, "rb+", buffering=0) as target:
        target.truncate(os.fstat(source.fileno()).st_size)
        read = [_pieces(source.fileno(), each, target.fileno()) for each in copy.ranges]
        os.fsync(target.fileno())
        if hasattr(os, "posix_fadvise"):  # so that the disk is asked, not the memory
            os.posix_fadvise(target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if read != [_pieces(target.fileno(), each) for each in copy.ranges]:
            raise InputError(f"{copy.path} is not what was read from {copy.source}; is this disk in order?")
        return [list(each) for each in read]


def _pieces(source: int, extent: tuple[int, int], target: int | None = None) -> tuple[int, int]:
    """Bytes read and their checksum; what is read is also written to `target`."""
    place, checksum = extent[0], 0
    while place < extent[1]:
        piece = os.pread(source, min(PIECE_BYTES, extent[1] - place), place)
        if not piece:
            break
        checksum = zlib.crc32(piece, checksum)
        written = 0
        while target is not None and written < len(piece):
            written += os.pwrite(target, piece[written:], place + written)
        place += len(piece)
    return place - extent[0], checksum


def _locked(place: Path, how: int) -> int:
    """The lock of a set of copies, waited for; BlockingIOError where `how` says not to wait and another job has it.

    InputError where the folder takes no files, or holds another user's of this name.
    """
    path = place.with_name(f"{place.name}.lock")
    while True:
        try:
            lock = _opened(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise InputError(
                f"--copy-to {place.parent}: takes no files of ours ({error.strerror}); name another folder"
            ) from error
        try:
            fcntl.flock(lock, how)
            if path.exists() and os.path.samestat(os.fstat(lock), os.stat(path)):  # else it was removed meanwhile
                return lock
        except OSError:
            os.close(lock)
            raise
        os.close(lock)


def _remove(place: Path, lock: int) -> None:
    """Let go of the copies; with the last job that reads them they go."""
    try:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place, ignore_errors=True)
            place.with_name(f"{place.name}.lock").unlink(missing_ok=True)
    finally:
        os.close(lock)


def _sweep(folder: Path, but: Path) -> None:
    """Remove what jobs that were killed have left."""
    for path in folder.glob(f"{PREFIX}*.lock"):
        place = path.with_suffix("")
        if place != but:
            with suppress(OSError, InputError):
                _remove(place, _locked(place, fcntl.LOCK_EX | fcntl.LOCK_NB))

"""The files that a job read, and whether they are still the same: the same content is the same file.

Size and time of change are asked first. Where only the time differs, or the place (`touch`, `cp -r`, a project that was
moved or is mounted elsewhere), the content decides: that of tables and small files as a whole, that of large images by
blocks spread evenly over the file, so that a terabyte is not read twice. An edit in place that keeps the size and all
of these blocks is not noticed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import Any

WHOLE_BYTES = 1 << 22  # files up to here, and text, are taken as a whole
TEXT = (".star", ".cs", ".json", ".txt", ".toml", ".mdoc", ".npy", ".npz")
BLOCK_BYTES, BLOCKS = 1 << 14, 16  # of others, the first and the last block among them
READERS = 8  # threads: it is the disk that they wait for


def fingerprint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Name, size in bytes and time of change (nanoseconds) of a file; size None where it is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # a name with a null byte
        return {"path": str(path), "size": None, "mtime_ns": None}
    return {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def content_of(path: str | os.PathLike[str]) -> str | None:
    """A digest of a file's content, whole or of blocks; None where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return _digest(stream, Path(path).suffix.lower() in TEXT)
    except (OSError, ValueError):
        return None


def _digest(stream: BufferedReader, whole: bool) -> str:
    if whole or os.fstat(stream.fileno()).st_size <= WHOLE_BYTES:
        return hashlib.file_digest(stream, "blake2b").hexdigest()[:32]
    digest, last = hashlib.blake2b(), os.fstat(stream.fileno()).st_size - BLOCK_BYTES
    for number in range(BLOCKS):
        digest.update(os.pread(stream.fileno(), BLOCK_BYTES, last * number // (BLOCKS - 1)))
    return digest.hexdigest()[:32]


def record_of(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What to keep of an input in the job's `folder`: its fingerprint, its content, and its place seen from there."""
    record = fingerprint(path) | {"content": content_of(path)}
    if folder is not None:
        record["beside"] = os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
    return record


def records_of(
    paths: Iterable[str | os.PathLike[str] | dict[str, Any]], folder: str | os.PathLike[str]
) -> list[dict[str, Any]]:
    """`record_of` each of them, in order; what is a record already stays."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda path: path if isinstance(path, dict) else record_of(path, folder), paths))


def is_same(record: Mapping[str, Any], path: str | os.PathLike[str]) -> bool:
    """Whether the file at `path` is the one that was recorded, whatever its name and time are now."""
    now = fingerprint(path)
    if now["size"] is None or now["size"] != record.get("size"):
        return False
    if now["mtime_ns"] == record.get("mtime_ns"):
        return True
    kept = record.get("content")
    return kept is not None and content_of(path) == kept


def located(record: Mapping[str, Any], folder: Path) -> Path | None:
    """The recorded file where it is now: as it was named, or as it lies seen from the job's folder; None: nowhere."""
    names = [record.get("path"), os.path.join(folder, str(record["beside"])) if record.get("beside") else None]
    return next((Path(str(name)) for name in names if name and is_same(record, name)), None)

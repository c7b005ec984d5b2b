"""Where a job may write: never over its inputs, another job's results, or a file that is not in its own record.

    claim = Outputs("motion", folder, ("micrographs.star", "report.html"), stems, (".mrc", ".star"))
    record = claim.require_free([*movies, gain])     # before anything is written
    write_job_json(..., more={"outputs": record})    # then what a kill leaves behind is known as the job's own

The record names all files that the job has ever set out to write, so that the same command again may replace them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarice.project.provenance import NAME
from polarice.types import InputError

RECORD = "_polarice.json"  # behind a micrograph's stem: what was made of it
KEY = "outputs"  # of job.json
_LISTS = ("files", "stems", "endings")
_ANOTHER = "choose another folder with --o"
_TEMPORARY = re.compile(r"\.(.+)\.tmp-\d+")


@dataclass(frozen=True)
class Outputs:
    """What a job sets out to write."""

    job: str
    folder: Path
    files: tuple[str, ...] = ()  # names in the folder
    stems: tuple[str, ...] = ()  # paths; each gets all endings
    endings: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()  # names in the folder that are the job's own wherever job.json is

    def require_free(self, inputs: Iterable[str | os.PathLike[str] | None] = ()) -> dict[str, Any]:
        """The record for job.json; InputError where an input, another job's file or a stranger's would be replaced."""
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise InputError(f"cannot make the folder {self.folder}: a file stands there; {_ANOTHER}")
        job, own = _read(self.folder)
        if job is not None and job != self.job:
            raise InputError(f"{self.folder}: holds the results of a job ({job}); {_ANOTHER}")
        there = sorted(self._there())
        given = _identities(inputs) if there else {}
        for path in there:
            if (source := given.get(_identity(path))) is not None:
                raise InputError(f"{source}: an input of this job, which {path} would write over; {_ANOTHER}")
        known = {each: set((own or {}).get(each, ())) for each in _LISTS}
        strangers = [path for path in there if not self._is_own(path, job, known, own is None)]
        if strangers:
            more = f" (and {len(strangers) - 1} more)" if len(strangers) > 1 else ""
            raise InputError(
                f"{strangers[0]}{more}: stands where {self.job} would write, and is not one of its results; "
                f"move it away, or {_ANOTHER}"
            )
        return {
            "files": sorted({*known["files"], *self.files}),
            "stems": sorted({*known["stems"], *(self._below(stem) for stem in self.stems)}),
            "endings": sorted({*known["endings"], *self.endings}),
        }

    def sweep(self) -> None:
        """Remove what a killed job left half-written of these files; no other process is at work in the folder."""
        for folder, names in self._by_folder().items():
            for name in _listed(folder):
                if (match := _TEMPORARY.fullmatch(name)) and match[1] in names:
                    with suppress(OSError):
                        os.unlink(os.path.join(folder, name))

    def _by_folder(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {str(self.folder): {*self.files, *self.loose, NAME}}
        for stem in self.stems:
            folder, name = os.path.split(stem)
            found.setdefault(folder, set()).update(name + ending for ending in self.endings)
        return found

    def _there(self) -> Iterator[str]:
        for folder, names in self._by_folder().items():
            yield from (os.path.join(folder, name) for name in _listed(folder) if name in names and name != NAME)

    def _is_own(self, path: str, job: str | None, known: dict[str, set[str]], unrecorded: bool) -> bool:
        """`unrecorded`: job.json is of a version that kept no record; the micrographs' own records stand in for it."""
        if job is None:
            return False
        below = self._below(path)
        if below in known["files"] or below in self.loose or (unrecorded and below in self.files):
            return True
        endings = [ending for ending in self.endings if path.endswith(ending)]
        if unrecorded:
            return any(os.path.exists(path[: -len(ending)] + RECORD) for ending in endings)
        return any(below[: -len(ending)] in known["stems"] for ending in known["endings"] if below.endswith(ending))

    def _below(self, path: str) -> str:
        return os.path.relpath(path, self.folder)


def _read(folder: Path) -> tuple[str | None, dict[str, Any] | None]:
    """The job whose job.json is in the folder, and its record of outputs; None where there is none."""
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        job, record = str(content["job"]), content.get(KEY)
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "of some kind", None
    good = isinstance(record, dict) and all(
        isinstance(record.get(each), list) and all(isinstance(text, str) for text in record[each]) for each in _LISTS
    )
    return job, record if good else None


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder or ".")
    except OSError:
        return []


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Device and inode of a file, links followed."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _identities(inputs: Iterable[str | os.PathLike[str] | None]) -> dict[tuple[int, int] | None, str]:
    found = {_identity(path): str(path) for path in inputs if path}
    found.pop(None, None)
    return found


def files_of(path: str | os.PathLike[str] | None) -> list[str]:
    """The file itself, or all files in a folder and below."""
    if path is None:
        return []
    if not os.path.isdir(path):
        return [str(path)]
    return [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]


def claimed(
    job: str, folder: Path, files: tuple[str, ...], inputs: Iterable[str | os.PathLike[str] | None], held: ExitStack
) -> dict[str, Any]:
    """The record of outputs for job.json of a job that makes these files in its folder, which is made, kept from other
    processes until `held` is closed, and swept of the job's own results. InputError as `Outputs.require_free`, and
    where the folder cannot be made; then nothing is left of it."""
    from polarice.project.folder_lock import alone

    outputs, new = Outputs(job, folder, files), not os.path.lexists(folder)
    kept = outputs.require_free(inputs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder ({error.strerror}); {_ANOTHER}") from error
    held.enter_context(alone(folder))
    kept = kept if new else outputs.require_free(inputs)  # another process may have come between
    outputs.sweep()
    return kept

"""`state.json`: what a job is doing, written by the job and read by whoever wants to know.

One process writes it, as a whole, from when the job has claimed its folder (`claimed`): a folder that is refused stays
as it is. A thread does so every few seconds, so that a reader can tell a job that works from one whose process is gone.
At the end RELION's pipeliner finds the empty file that it looks for, RELION_JOB_EXIT_SUCCESS, _FAILURE or _ABORTED.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from polarice.io.atomic import replacing
from polarice.types import InputError

NAME = "state.json"
WRITTEN_EVERY_S, HEARTBEAT_S = 2.0, 10.0  # while it gets on, and while it does not
LOST_AFTER_S = 60.0  # without a heartbeat, of a job on another host
EXITS = {
    "done": "RELION_JOB_EXIT_SUCCESS",
    "failed": "RELION_JOB_EXIT_FAILURE",
    "stopped": "RELION_JOB_EXIT_ABORTED",
}
FILES = (NAME, *EXITS.values())
MOST_PID = 2**31 - 1
SHOWN = 500  # characters of an error
Condition = Literal["queued", "running", "done", "stopped", "failed"]


@dataclass(frozen=True)
class JobState:
    """What a job says of itself; times are seconds since 1970."""

    job: str
    state: Condition = "running"
    step: str = ""  # what it is at, in words
    done: int = 0
    total: int = 0  # 0: not known
    estimate_s: float | None = None  # seconds left, of this step
    host: str = ""
    pid: int = 0
    started: float = 0.0
    heartbeat: float = 0.0
    error: str = ""

    @property
    def is_lost(self) -> bool:
        """Whether it says that it runs, and its process is gone."""
        if self.state != "running":
            return False
        if self.host == socket.gethostname():
            return not _is_alive(self.pid)
        return time.time() - self.heartbeat > LOST_AFTER_S

    def told(self) -> str:
        """In a few words: `running: iteration 3, 1,200 of 5,000, 2 min left`."""
        if self.is_lost:
            return f"killed, or its node lost, at {self._where()}" if self._where() else "killed, or its node lost"
        if self.state == "running":
            left = f", {_duration(self.estimate_s)} left" if self.estimate_s is not None else ""
            return f"running: {self._where()}{left}" if self._where() else "running"
        return f"{self.state}: {self.error}" if self.error else self.state

    def _where(self) -> str:
        counted = f"{self.done:,} of {self.total:,}" if self.total else ""
        return ", ".join(filter(None, (self.step, counted)))


def read_state(folder: str | os.PathLike[str]) -> JobState | None:
    """What the job in a folder says of itself; None where it says nothing that can be read."""
    try:
        content = json.loads((Path(folder) / NAME).read_text(encoding="utf-8"))
        known = {each.name: content[each.name] for each in fields(JobState) if each.name in content}
        found = JobState(**known)
        sound = all(isinstance(each, int) for each in (found.done, found.total, found.pid))
        sound = sound and 0 <= found.pid <= MOST_PID
        times = (found.started, found.heartbeat, 0 if found.estimate_s is None else found.estimate_s)
        sound = sound and all(isinstance(each, (int, float)) and math.isfinite(each) for each in times)
        sound = sound and all(isinstance(each, str) for each in (found.job, found.step, found.host, found.error))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return found if sound and found.state in ("queued", "running", "done", "stopped", "failed") else None


class Life:
    """The one writer of a folder's state."""

    def __init__(self, job: str, folder: Path) -> None:
        self.folder, self.claimed = folder, False
        self._state = JobState(job, host=socket.gethostname(), pid=os.getpid(), started=time.time())
        self._since = time.monotonic()  # of the step
        self._before = 0  # done when the step began
        self._changed, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="state", daemon=True)

    def claim(self) -> None:
        """The folder is this job's now: write from here on."""
        if self.claimed:
            return
        self.claimed = True
        for name in EXITS.values():
            with suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)
        self._thread.start()

    def report(self, step: str, done: int, total: int) -> None:
        """Say how far a step is; costs nothing but on the first call of a step."""
        state = self._state
        if total != state.total or done < state.done:  # another count begins; words alone may change within one
            self._since, self._before = time.monotonic(), done
        spent, made = time.monotonic() - self._since, done - self._before
        estimate = spent / made * (total - done) if made > 0 and total else None
        self._state = replace(state, step=step, done=done, total=total, estimate_s=estimate)
        self._changed.set()

    def end(self, state: Condition, error: str = "") -> None:
        """The last word."""
        self._ended.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join()
        shown = " ".join(error.split())[:SHOWN]
        self._state = replace(self._state, state=state, error=shown, estimate_s=None)
        if self.claimed and self.folder.is_dir():
            self._write()
            with suppress(OSError):
                (self.folder / EXITS[state]).touch()

    def _keep_writing(self) -> None:
        while not self._ended.is_set():
            self._write()
            self._changed.clear()
            self._ended.wait(WRITTEN_EVERY_S)
            if not self._ended.is_set():
                self._changed.wait(HEARTBEAT_S - WRITTEN_EVERY_S)

    def _write(self) -> None:
        """What cannot be written ends no job."""
        told = replace(self._state, heartbeat=time.time())
        with suppress(OSError, InputError), replacing(self.folder / NAME, "w") as stream:
            stream.write(json.dumps(asdict(told), indent=2) + "\n")


_LIVES: list[Life] = []  # of the jobs at work in this process, one inside the other


@contextmanager
def working(job: str, folder: Path | None) -> Iterator[None]:
    """Write a job's state while the block runs, once it has claimed its folder, and how it ended.

    folder  None: it has none, nothing is written
    """
    if folder is None:
        yield
        return
    life = Life(job, folder)
    _LIVES.append(life)
    try:
        yield
    except KeyboardInterrupt:
        life.end("stopped")
        raise
    except BaseException as error:
        life.end("failed", str(error) or type(error).__name__)
        raise
    else:
        life.end("done")
    finally:
        _LIVES.remove(life)


def claimed(folder: Path) -> None:
    """Tell that a job of this process has made this folder its own."""
    for life in _LIVES:
        if os.path.abspath(life.folder) == os.path.abspath(folder):
            life.claim()


def report_progress(step: str, done: int, total: int) -> None:
    """Tell how far the innermost job at work in this process is."""
    if _LIVES:
        _LIVES[-1].report(step, done, total)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""Jobs as processes of their own: started from a list of words, without a shell, and stopped by SIGINT.

They outlive the server. What state.json names is stopped only where it is a process of this user's, on this host, that
runs polarice, is no younger than the job, and was told this folder.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from polarice.project.state import read_state
from polarice.types import InputError
from polarice.web.found import CHAINS, ERR, OUT

SLACK_S = 5.0  # between the clocks of the system and of a process
MOST_RUNNING = 16


class Processes:
    """Those that this server has started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def is_running(self, folder: Path) -> bool:
        with self._lock:
            started = self._running.get(os.path.abspath(folder))
        return started is not None and started.poll() is None

    def start(self, words: Sequence[str], folder: Path, cwd: Path) -> None:
        """Start `polarice WORDS` in `cwd`; what it prints goes to run.out and run.err in its folder.

        Raises InputError where too many run, one runs there, or the folder cannot be made.
        """
        with self._lock:
            running = [each for each in self._running.values() if each.poll() is None]
            if len(running) >= MOST_RUNNING:
                raise InputError(f"{len(running)} jobs run already; wait for one to end, or stop one")
            before = self._running.get(os.path.abspath(folder))
            if before is not None and before.poll() is None:
                raise InputError(f"{folder.name}: a job is at work there")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with open(folder / OUT, "ab") as out, open(folder / ERR, "ab") as err:
                    err.write(f"$ {shlex.join(['polarice', *words])}\n".encode())
                    err.flush()
                    started = subprocess.Popen(
                        [sys.executable, "-P", "-m", "polarice", *words], cwd=cwd, stdin=subprocess.DEVNULL,
                        stdout=out, stderr=err, start_new_session=True, env=_environment(),
                    )  # fmt: skip
            except OSError as error:
                raise InputError(f"{folder}: cannot start a job there ({error.strerror})") from None
            self._running[os.path.abspath(folder)] = started
        threading.Thread(target=started.wait, daemon=True, name="reap").start()  # or it stays as a zombie


def _environment() -> dict[str, str]:
    """A file called torch.py in the project is no module of ours, in processes that the job starts either."""
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


def stop(folder: Path) -> str:
    """Send SIGINT to the job in the folder; returns what was done. Raises InputError where it is not ours to stop."""
    said = read_state(folder)
    if said is None or said.state != "running":
        raise InputError("no job runs there")
    if said.host != socket.gethostname():
        raise InputError(f"it runs on {said.host}; stop it there, or with the queue's own command")
    if why := why_not_ours(said.pid, said.started, folder):
        raise InputError(f"process {said.pid} is not stopped: {why}")
    os.kill(said.pid, signal.SIGINT)
    return f"SIGINT sent to process {said.pid}"


def why_not_ours(pid: int, started: float, folder: Path) -> str:
    """Why the process that state.json names may not be the job's; "" where it is."""
    if pid <= 1 or pid == os.getpid():
        return "state.json names none"
    place = Path("/proc", str(pid))
    try:
        owner, words = place.stat().st_uid, (place / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        cwd = os.readlink(place / "cwd")
        age_s = time.time() - _born(place)
    except (OSError, ValueError, IndexError):
        return "there is no such process of yours"
    if owner != os.getuid():
        return "it is another user's"
    if not _is_polarice(words):
        return "it is not polarice"
    if time.time() - age_s > started + SLACK_S:
        return "it is younger than the job"
    if not _was_told(words, cwd, folder):
        return "it was not told this folder"
    return ""


def _is_polarice(words: Sequence[str]) -> bool:
    """Whether a command line is `python -m polarice ...` or `python .../polarice ...`, flags of Python before it."""
    for place, word in enumerate(words[1:], 1):
        if word == "-m":
            return words[place + 1] == "polarice"
        if not word.startswith("-") or word == "-c":
            return os.path.basename(word) == "polarice"
    return False


def _born(place: Path) -> float:
    """When a process began, in seconds since 1970."""
    fields = (place / "stat").read_text().rpartition(")")[2].split()
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    return int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _was_told(words: Sequence[str], cwd: str, folder: Path) -> bool:
    """Whether a command line is of the job in a folder: by --o, --continue, the job's default, or a chain of jobs."""
    from polarice.project.params import options_of
    from polarice.project.registry import JOBS, load

    real = os.path.realpath(folder)
    job = next((word for word in words[1:] if word in JOBS), "")
    if job in CHAINS or "bench" in words:
        named = [os.path.realpath(os.path.join(cwd, word)) for word in words[1:] if word]
        return any(real.startswith(os.path.dirname(place) + os.sep) for place in named if os.path.exists(place))
    told = {flag: _behind(flag, words) for flag in ("--o", "--continue")}
    if told["--continue"]:
        place = os.path.realpath(os.path.join(cwd, told["--continue"]))
        return real in (place, os.path.dirname(place))
    default = next((str(each.default) for each in options_of(load(job).Params) if each.field == "o"), "") if job else ""
    place = told["--o"] or default
    return bool(place) and real == os.path.realpath(os.path.join(cwd, place))


def _behind(flag: str, words: Sequence[str]) -> str:
    """The value of an option, behind it or joined by an equals sign; "" where it is not given."""
    for place, word in enumerate(words):
        if word == flag and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return ""

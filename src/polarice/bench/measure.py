"""What a program takes: wall and processor time, peak memory, bytes read.

The kernel counts the memory of whoever starts a program to that program's peak, so it is started by a small process:
this file, run as a script without any package.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_STARTED = 127  # exit code, as a shell's
_OURS = "GOMP_SPINCOUNT"  # set by our command line for itself


@dataclass(frozen=True)
class Usage:
    """What a program took, its children that it waited for included."""

    exit_code: int  # below 0: ended by that signal
    wall_s: float
    cpu_s: float
    peak_bytes: int  # of resident memory, of the largest process
    bytes_read: int | None  # by read calls; files mapped into memory are not counted
    storage_bytes_read: int | None  # that came from the disk, not from the system's cache


def measure(command: Sequence[str], log: Path) -> Usage:
    """Run a command to its end, what it prints going to `log`. When this is interrupted, the command is ended."""
    environment = {name: value for name, value in os.environ.items() if name != _OURS}
    words = [sys.executable, "-I", "-S", __file__, str(log), *command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment, start_new_session=True) as process:
        try:
            told = process.communicate()[0]
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
    return Usage(**json.loads(told))


def last_lines(log: Path, count: int = 8) -> str:
    """The end of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([line for line in lines if line.strip()][-count:])


def _run(log: str, command: list[str]) -> dict[str, Any]:
    since = time.perf_counter()
    with open(log, "ab") as stream:
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        except OSError as error:
            stream.write(f"{command[0]}: {error.strerror}\n".encode())
            return vars(Usage(NOT_STARTED, 0.0, 0.0, 0, None, None))
    if sys.platform == "linux":  # ended, but not yet collected: its counters can still be read
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    counters = _counters(child.pid)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    usage = Usage(
        exit_code=child.returncode,
        wall_s=time.perf_counter() - since,
        cpu_s=used.ru_utime + used.ru_stime,
        peak_bytes=used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        bytes_read=counters.get("rchar"),
        storage_bytes_read=counters.get("read_bytes"),
    )
    return vars(usage)


def _counters(pid: int) -> dict[str, int]:
    """/proc/PID/io; empty where there is none."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        return {name: int(value) for name, value in (line.split(":") for line in lines)}
    return {}


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1], sys.argv[2:])))

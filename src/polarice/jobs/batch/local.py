"""`polarice cluster local`: a script for this machine, run beside the terminal."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from polarice.jobs import batch
from polarice.jobs.batch import Batch
from polarice.project.params import option

SUMMARY = "write a script for this machine, and start it in the background where asked"


@dataclass(frozen=True)
class Params(Batch):
    """One node: this one."""

    nodes: int = option(1, "number of nodes: this one", low=1, high=1)

    @property
    def node_cores(self) -> int:
        return self.cores or len(os.sched_getaffinity(0))


def run(params: Params) -> None:
    """Write, and start with --submit; what it prints goes to NAME.log. InputError for a job that is none."""
    path = batch.write(params, "local", [], f"mpirun -n {params.total}")
    if params.submit:
        with open(f"{params.title}.log", "ab") as log:
            words, none = [str(path.absolute())], subprocess.DEVNULL
            process = subprocess.Popen(words, stdin=none, stdout=log, stderr=log, start_new_session=True)
        process.returncode = 0  # it is left to itself
        batch.remember("local", f"{process.pid}.{_began(process.pid)}@{socket.gethostname()}", params)


def state(id: str) -> str:
    """Whether the process still runs on this host."""
    process, _, host = id.partition("@")
    number, _, began = process.partition(".")
    if host != socket.gethostname():
        return f"started on {host}"
    return f"RUNNING on {host}" if _began(number) == (began or "?") else "ended"


def _began(number: int | str) -> str:
    """When a process began, in the kernel's ticks, by which it differs from others that had its number; "" once it
    has ended."""
    try:
        state, *rest = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else rest[18]

"""`polarice cluster pbs`: a batch script for PBS."""

from __future__ import annotations

import re
from dataclasses import dataclass

from polarice.jobs import batch
from polarice.jobs.batch import Batch

SUMMARY = "write a batch script for PBS, and submit it where asked"
STATES = {"Q": "PENDING", "R": "RUNNING", "H": "HELD", "E": "ENDING", "F": "ended", "C": "ended"}


@dataclass(frozen=True)
class Params(Batch):
    """As all schedulers'."""


def run(params: Params) -> None:
    """Write, and submit with --submit. InputError for a job that is none, or where qsub refuses."""
    path = batch.write(params, "pbs", head(params), f"mpirun -n {params.total} -ppn {params.per_node}")
    if params.submit:
        batch.remember("pbs", batch.asked(["qsub", str(path)]), params)


def head(params: Params) -> list[str]:
    """The lines for qsub, and the way to the folder it was called in."""
    cores = params.per_node * params.cores_of_rank
    cards = f":ngpus={params.gpus}" if params.gpus else ""
    chunk = f"select={params.nodes}:ncpus={cores}:mpiprocs={params.per_node}:ompthreads={params.cores_of_rank}{cards}"
    found = [f"-N {params.title}", f"-l {chunk}", f"-l walltime={batch.clock(batch.hours(params))}", "-j oe", "-r y"]
    found += [f"-q {params.queue}"] if params.queue else []
    found += [f"-A {params.account}"] if params.account else []
    return [*(f"#PBS {each}" for each in found), "", 'cd "$PBS_O_WORKDIR"']


def state(id: str) -> str:
    """'RUNNING on node1', 'PENDING', or that it has ended."""
    told = dict(re.findall(r"^\s*(\w+) = (.*)$", batch.asked(["qstat", "-x", "-f", id]), re.MULTILINE))
    hosts = ", ".join(dict.fromkeys(re.findall(r"([\w.-]+)/\d", told.get("exec_host", ""))))
    letter = told.get("job_state", "F")
    word = STATES.get(letter) or letter
    return f"{word} on {hosts}" if hosts and word == "RUNNING" else word

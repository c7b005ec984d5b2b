"""`polarice cluster slurm`: a batch script for Slurm."""

from __future__ import annotations

from dataclasses import dataclass

from polarice.jobs import batch
from polarice.jobs.batch import Batch
from polarice.types import InputError

SUMMARY = "write a batch script for Slurm, and submit it where asked"
ENDS = {
    "COMPLETED": "done",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "TIMEOUT": "timed out",
    "NODE_FAIL": "node lost",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted",
    "BOOT_FAIL": "node lost",
    "DEADLINE": "timed out",
}


@dataclass(frozen=True)
class Params(Batch):
    """As all schedulers'."""


def run(params: Params) -> None:
    """Write, and submit with --submit. InputError for a job that is none, or where sbatch refuses."""
    path = batch.write(params, "slurm", head(params), "srun --mpi=pmi2 --kill-on-bad-exit=1")
    if params.submit:
        batch.remember("slurm", batch.asked(["sbatch", "--parsable", str(path)]).partition(";")[0], params)


def head(params: Params) -> list[str]:
    """The lines for sbatch."""
    found = [
        f"--job-name={params.title}",
        f"--nodes={params.nodes}",
        f"--ntasks-per-node={params.per_node}",
        f"--cpus-per-task={params.cores_of_rank}",
        f"--time={batch.clock(batch.hours(params))}",
        f"--output={params.title}-%j.log",
        "--requeue",
    ]
    found += [f"--gpus-per-node={params.gpus}"] if params.gpus else []
    found += [f"--partition={params.queue}"] if params.queue else []
    found += [f"--account={params.account}"] if params.account else []
    # MPICH names its shared memory after job and step; what a killed step has left stops one of the same name.
    restarts = 'for _ in $(seq "${SLURM_RESTART_COUNT:-0}"); do srun --nodes=1 --ntasks=1 --mpi=none true; done'
    asked = [f"#SBATCH {each}" for each in found]
    cores = 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun asks for itself, from 22.05 on'
    return [*asked, "", cores, restarts]


def state(id: str) -> str:
    """'RUNNING on node[1-4]', 'PENDING', or how it has ended, where Slurm still knows; else that it has ended."""
    try:
        told = batch.asked(["squeue", "--noheader", "--states=all", f"--jobs={id}", "--format=%T on %N"])
    except InputError as error:
        if "Invalid job id" not in str(error):
            raise
        told = _recorded(id)
    word, _, hosts = told.partition(" on")  # no host before it has begun
    if word in ENDS:
        return ENDS[word]
    return f"{word} on{hosts}" if hosts else word or "ended"


def _recorded(id: str) -> str:
    """The state that Slurm's accounting keeps, where there is one; "" where not."""
    try:
        said = batch.asked(["sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={id}", "--format=State"])
    except InputError:
        return ""
    return said.split()[0] if said else ""  # CANCELLED by 1000

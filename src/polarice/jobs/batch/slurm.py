"""`polarice cluster slurm`: a batch script for Slurm."""

from __future__ import annotations

from dataclasses import dataclass

from polarice.jobs import batch
from polarice.jobs.batch import Batch

SUMMARY = "write a batch script for Slurm, and submit it where asked"


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
    return [f"#SBATCH {each}" for each in found]


def state(id: str) -> str:
    """'RUNNING on node[1-4]', 'PENDING', or that it has ended."""
    return batch.asked(["squeue", "--noheader", f"--jobs={id}", "--format=%T on %N"]).removesuffix(" on ") or "ended"

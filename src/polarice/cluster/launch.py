"""What mpirun or srun tell a process about itself, before any MPI library is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

# variables of the rank, of the number of ranks, and of that on this node; the first pair that is there counts
_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),  # Open MPI's mpirun
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),  # MPICH's and Intel's, and srun --mpi=pmi2
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ""),  # srun --mpi=pmix
)


@dataclass(frozen=True)
class Launch:
    """This process among those that were started together."""

    rank: int
    size: int
    open_mpi: bool  # whose library has to be the launcher's
    one_node: bool = False  # whether all of them are known to run on this node


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """How this process was launched; None where it is alone."""
    for rank, size, here in _VARIABLES:
        if environment.get(rank, "").isdigit() and environment.get(size, "").isdigit():
            number = int(environment[size])
            one_node = environment.get(here) == environment[size] or environment.get("SLURM_STEP_NUM_NODES") == "1"
            return Launch(int(environment[rank]), number, rank.startswith("OMPI"), one_node) if number > 1 else None
    return None

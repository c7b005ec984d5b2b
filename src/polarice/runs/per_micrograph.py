"""Parameters of the jobs that treat micrographs, or movies, one by one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from polarice.project.params import MICROGRAPHS, argument, option, output
from polarice.runs.resources import Computing

LONGEST_S = 7200.0  # of one micrograph or movie


@dataclass(frozen=True)
class PerMicrograph(Computing):
    """Parameters that all these jobs have; a job names its own table, folder and files."""

    micrographs: Path = argument("micrograph table (STAR)", flags=("--i",), path=MICROGRAPHS)
    o: Path = output("job")
    workers: int | None = option(
        None, "micrographs side by side", derived="one for each thread", low=1, high=1024, resource=True
    )
    price: float | None = option(
        None, "price of a node for an hour; the report then states what they cost", low=0, resource=True
    )
    time_limit: float = option(
        LONGEST_S, "longest time for one of them; it is left out then", unit="s", low=1, high=1e7, resource=True
    )

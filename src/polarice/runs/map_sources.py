"""Where half maps come from: the job of their folder, its particles and its symmetry."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polarice.types import InputError

TABLES = ("run_data.star",)
MOST_JOBS = 20  # that a chain is followed back


@dataclass(frozen=True)
class Source:
    """The job that made some maps; all None where nothing is known."""

    folder: Path
    record: dict[str, Any] = field(default_factory=dict)  # job.json
    table: Path | None = None  # with angles

    @property
    def job(self) -> str:
        return str(self.record.get("job", ""))

    @property
    def sym(self) -> str | None:
        return self.param("sym")

    def param(self, name: str) -> Any:
        """A parameter of the job; None where it has none."""
        params = self.record.get("params")
        return params.get(name) if isinstance(params, dict) else None


def source_of(folder: Path) -> Source:
    """What is known of the maps in a folder. A job.json that cannot be read counts as none."""
    from polarice.project.provenance import read_job_json

    try:
        record = read_job_json(folder)
    except InputError:
        record = {}
    found = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    given = record.get("params", {}).get("particles") if isinstance(record.get("params"), dict) else None
    if found is None and record.get("job") == "reconstruct" and isinstance(given, str):
        table = Path(record.get("working_directory", ".")) / given
        found = table if table.is_file() else None
    return Source(folder, record, found)


def angles_of_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """rot and tilt, each (n,) degrees. Raises InputError where the table has none."""
    from polarice.io.star import read_star

    for block in read_star(path):
        table = block.table
        if table is not None and "rlnAngleRot" in table and "rlnAngleTilt" in table and len(table):
            return table.finite("rlnAngleRot", 1e6), table.finite("rlnAngleTilt", 1e6)
    raise InputError(f"{path}: no table with _rlnAngleRot and _rlnAngleTilt is in it")

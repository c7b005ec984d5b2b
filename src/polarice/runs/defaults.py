"""What a job takes where nothing is said: from its particles, and from jobs that its table came from."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from polarice.project.provenance import NAME, inputs_of, read_job_json
from polarice.types import InputError

PER_NODE = 20  # particles of a map's node
MOST_NODES, FEWEST_NODES = 1000, 2
LONGEST_CHAIN = 12  # jobs one after another
OVER_PICK = 1.1  # a mask is a little wider than the particle, which is what picking is told
BOX_OF_DIAMETER = 1.5
FIRST_LOOK_A = 3.5  # pixel size for a first classification
_FULL_WIDTH = ("pick",)  # jobs that are told the particle's diameter, and not that of a mask


def settled_defaults(params: Any) -> Any:
    """The parameters with nodes and diameter filled in, so that they are kept; what was found is told."""
    if "k" in vars(params) and params.k is None:
        params = replace(params, k=str(nodes_for(params)))
        print(f"--k {params.k}: from the number of particles", file=sys.stderr)
    if "particle_diameter" in vars(params) and params.particle_diameter is None:
        known = diameter_of(Path(params.particles))
        if known is not None:
            value, job, folder = known
            params = replace(params, particle_diameter=value)
            what = f"{OVER_PICK:g} times what" if job in _FULL_WIDTH else "as"
            print(f"--particle-diameter {value:g} A: {what} {job} was told in {folder}", file=sys.stderr)
    return params


def nodes_for(params: Any) -> int:
    """Nodes of a map: one for PER_NODE particles, of a class with --search, at most MOST_NODES."""
    from polarice.io.rows import read_rows

    table = read_rows(params.particles).table
    count = len(table)
    if getattr(params, "search", False) and "rlnClassNumber" in table:
        count //= max(1, len(table.codes("rlnClassNumber")[0]))
    return min(MOST_NODES, max(FEWEST_NODES, count // PER_NODE))


def diameter_of(table: Path) -> tuple[float, str, Path] | None:
    """The mask's diameter in A that a job was told from which the table came, in how many steps ever; that job and its
    folder. None where none was told, or nobody knows where the table came from."""
    folder = table if table.is_dir() else table.parent
    for _ in range(LONGEST_CHAIN):
        try:
            job = read_job_json(folder)
            inputs = inputs_of(job, folder)
        except InputError:
            return None
        told, name = job["params"].get("particle_diameter"), str(job.get("job"))
        if isinstance(told, int | float) and not isinstance(told, bool) and told > 0:
            return (round(told * OVER_PICK, 1) if name in _FULL_WIDTH else float(told)), name, folder
        before = next((path for record in inputs for path in _places(record, folder)), None)
        if before is None or before == folder:
            return None
        folder = before
    return None


def proposed_box(table: Path, pixel_size_A: float) -> str:
    """A box and a scale for extraction as options, from the diameter that picking was told; "" where none was."""
    known = diameter_of(table)
    if known is None or not pixel_size_A > 0:
        return ""
    box_px = 2 * math.ceil(BOX_OF_DIAMETER * known[0] / OVER_PICK / pixel_size_A / 2)
    scale_px = min(box_px, 2 * math.ceil(box_px * pixel_size_A / FIRST_LOOK_A / 2))
    words = f"--box {box_px}" + (f" --scale {scale_px}" if scale_px < box_px else "")
    return f"for the diameter that {known[1]} was told in {known[2]}: {words} ({FIRST_LOOK_A:g} A per pixel or finer)"


def _places(record: dict[str, Any], folder: Path) -> list[Path]:
    """Folders of jobs in which an input may lie: as it was named, or seen from the folder that it was read from."""
    names = [str(record["path"])] + ([str(folder / record["beside"])] if record.get("beside") else [])
    return [Path(name).parent for name in names if (Path(name).parent / NAME).is_file()]

"""The report of a classification job: one HTML file that opens by double click, and pictures beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarice.cluster import SERIAL, Comm
from polarice.jobs.report.history import (
    Row,
    append_history,
    class_counts,
    read_history,
    rewind_history,
    summary_of,
)
from polarice.types import Iteration

if TYPE_CHECKING:
    from polarice.jobs.params import Parameters
    from polarice.jobs.report.chart_processes import ChartProcesses
    from polarice.jobs.report.index import Chapter

__all__ = [
    "LeftOut",
    "Parameter",
    "Report",
    "Row",
    "append_history",
    "class_counts",
    "parameters_of",
    "read_history",
    "rewind_history",
    "summary_of",
    "write_report",
]


@dataclass(frozen=True)
class Parameter:
    """One line of the report's table of parameters."""

    name: str
    value: str
    unit: str
    help: str


@dataclass(frozen=True)
class LeftOut:
    """A particle that took no part, and why."""

    where: str  # section@stack, and the table's row
    reason: str


@dataclass(frozen=True)
class Report:
    """What a report is made of."""

    title: str
    job: str  # class2d, align2d
    history: Sequence[Row]  # as `read_history` gives it
    iteration: Iteration  # the last one
    command: str  # runs the job again
    continue_command: str  # goes on from the last iteration; "" where that makes no sense
    parameters: Sequence[Parameter] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    left_out: Sequence[LeftOut] = ()
    optics_names: Sequence[str] = ()  # one for each row of the model's noise_power
    particle_diameter_A: float | None = None
    working_directory: str = ""
    chapters: Sequence[Chapter] = ()  # further parts of the page, behind the classes
    notes: Mapping[str, str] = field(default_factory=dict)  # what else is to be said under a part of the page, by name
    usage: Sequence[tuple[str, str]] = ()  # (what, figure): what the job took


def parameters_of(params: Parameters) -> list[Parameter]:
    """Every field of a job's Params with its value, unit and help."""
    from polarice.jobs.params import as_dict, options_of

    values = as_dict(params)
    return [Parameter(each.flag, _words(values[each.field]), each.unit, each.help) for each in options_of(params)]


def _words(value: Any) -> str:
    if value is None:
        return "from the data"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def write_report(
    folder: str | os.PathLike[str], report: Report, comm: Comm = SERIAL, chart_processes: ChartProcesses | None = None
) -> Path:
    """Write report.html and its pictures into the job's folder; returns the page's path.

    Several ranks share out the charts, which take longer to draw than all else, or the processes of `drawers` do;
    rank 0 writes.

    Pictures: run_itNNN_classes.png (the montage) and report_convergence.png, _classes, _occupancy, _poses, _spectra,
    _times.
    Every file is replaced as a whole; what goes wrong in a chart or the page is told, and does not end the job.
    InputError where the disk is full or the folder may not be written.
    """
    from polarice.io.atomic import replacing
    from polarice.jobs.fault import note_fault, spared
    from polarice.jobs.report import page
    from polarice.jobs.report.montage import write_montage

    folder = Path(folder)

    def write() -> Path:
        number = report.iteration.number
        write_montage(folder / f"run_it{number:03d}_classes.png", report.iteration, report.particle_diameter_A)
        for name, chart in charts.items():
            with replacing(folder / f"report_{name}.png") as stream:
                stream.write(chart.png)
        content = page.html(report, charts)
        with replacing(folder / "report.html", "w") as stream:
            stream.write(content)
        return folder / "report.html"

    try:
        drawn = page.drawn(report, comm.rank, comm.size) if chart_processes is None else chart_processes.drawn(report)
    except Exception as error:  # the page does without these charts
        note_fault(error, folder / "report.html")
        drawn = []
    charts = {name: chart for part in comm.collect(drawn) for name, chart in part}
    return spared(write, folder / "report.html") if comm.rank == 0 else folder / "report.html"

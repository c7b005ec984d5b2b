"""The report of a classification job: one HTML file that opens by double click, and pictures beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from polarice.cluster import SERIAL, Comm
from polarice.report.content import LeftOut, Parameter, Report, parameters_of
from polarice.report.history import (
    Row,
    append_history,
    class_counts,
    read_history,
    rewind_history,
    summary_of,
)

if TYPE_CHECKING:
    from polarice.report.chart_processes import ChartProcesses

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
    from polarice.project.fault import note_fault, spared
    from polarice.report import page
    from polarice.report.montage import write_montage

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

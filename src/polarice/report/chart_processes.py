"""Who draws a report's charts: processes side by side that load matplotlib while the job still computes, or the ranks.

A process reads the report from its standard input, and answers with its charts; it ends when its input does, so that
nothing is left behind by a job that is killed. One of them is
`python -m polarice.report.chart_processes RANK SIZE`.
"""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from polarice.cluster import SERIAL, Comm

if TYPE_CHECKING:
    from polarice.report import Report
    from polarice.report.charts import Chart

MOST = 3  # processes; there are six charts


class ChartProcesses:
    """As many processes as there are threads to use. With one thread, charts are drawn here; of several ranks each
    draws its part."""

    def __init__(self, threads: int = 1, comm: Comm = SERIAL) -> None:
        self._comm = comm
        self._count = min(threads, MOST) if threads > 1 and comm.size == 1 else 0
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> ChartProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
        self._leave()

    def load(self) -> None:
        """Start the processes: the charts are wanted soon."""
        for rank in range(len(self._processes), self._count):
            words = [sys.executable, "-m", __name__, str(rank), str(self._count)]
            self._processes.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))

    def drawn(self, report: Report) -> list[tuple[str, Chart]]:
        """Names of the report's charts, and the charts; of several ranks, this one's."""
        self.load()
        if not self._processes:
            return _drawn(report, self._comm.rank, self._comm.size)
        content = pickle.dumps(_for_charts(report))
        found: list[tuple[str, Chart]] = []
        try:
            for process in self._processes:
                assert process.stdin is not None
                process.stdin.write(content)
                process.stdin.close()
            for process in self._processes:
                assert process.stdout is not None
                found += pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):  # a process has been killed
            return _drawn(report, 0, 1)
        finally:
            self._leave()
        return found

    def _leave(self) -> None:
        for process in self._processes:
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with suppress(BrokenPipeError):
                    stream.close()
            process.wait()
        self._processes = []


def _for_charts(report: Report) -> Report:
    """Without what no chart shows, which may be gigabytes: the averages' pixels, and the page's further parts."""
    model = report.iteration.model
    model = replace(model, averages=model.averages[:, :0])
    return replace(report, iteration=replace(report.iteration, model=model), chapters=())


def _drawn(report: Report, rank: int, size: int) -> list[tuple[str, Chart]]:
    from polarice.report import page

    return page.drawn(report, rank, size)


def _main(rank: int, size: int) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the job speaks
    from polarice.report.charts import panels

    panels(1, 1, height=1.0)  # loads matplotlib
    content = sys.stdin.buffer.read()
    if content:
        sys.stdout.buffer.write(pickle.dumps(_drawn(pickle.loads(content), rank, size)))
    gc.freeze()  # the job waits for the end, which need not look for garbage


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))

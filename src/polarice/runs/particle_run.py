"""A job that classifies particles at work: iterations made, written while the next one is made, and reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from polarice.cluster import Comm
from polarice.project.usage import Usage, Watch, write_usage
from polarice.runs.particle_job import CheckedParticles, progress_bar
from polarice.runs.resources import threads_of
from polarice.types import Iteration

if TYPE_CHECKING:
    from polarice.align.fit import IterationResult, State
    from polarice.report import Report
    from polarice.report.chart_processes import ChartProcesses
    from polarice.runs.particle_job import ParticleJob

R = TypeVar("R", bound="IterationResult[Any, Any, Any, Any]")
P = TypeVar("P")  # what all ranks make together for rank 0 to write


def figures_of_pass(result: IterationResult[Any, Any, Any, Any]) -> dict[str, Any]:
    """What of an Iteration is told alike for every model, by the names of its fields."""
    changed_class, changed_psi_deg, changed_shift_px = result.changed
    return {
        "number": result.state.number,
        "log_likelihood": result.found.log_likelihood,
        "max_probability": result.found.max_probability,
        "changed_class": changed_class,
        "changed_psi_deg": changed_psi_deg,
        "changed_shift_px": changed_shift_px,
        "reseeded": result.reseeded,
        "seconds": dict(result.clock.seconds),
    }


class ParticleRun(ABC, Generic[R, P]):
    """What has been read, where the job stands, what it has written. Subclasses know the model."""

    def __init__(self, job: str, params: ParticleJob, looked: CheckedParticles, ranks: tuple[Comm, Watch]) -> None:
        from polarice.runs.resume import rewind

        self.job, self.params, self.looked = job, params, looked
        self.comm, self.watch = ranks
        self.rows, sd = looked.rows, looked.background_sd
        self.columns = {} if sd is None else {"rlnNormCorrection": sd[self.rows]}
        self.done = self.comm.on_root(lambda: rewind(params))
        self.batches = self.images_of_iterations()
        self.bar = progress_bar(
            f"{job} {self.done + 1}/{params.iter}", sum(self.batches), sum(self.batches[: self.done])
        )
        self.images = replace(looked.images, progress=lambda images: self.bar.update(images * self.comm.size))
        self.last: Iteration | None = None
        self.state = self.beginning()

    @abstractmethod
    def images_of_iterations(self) -> list[int]:
        """How many images each iteration compares."""

    @abstractmethod
    def beginning(self) -> State[Any, Any]:
        """The state to go on from; of a run that lacks but its report, `last` is read, too."""

    @abstractmethod
    def results(self) -> Iterator[R]:
        """Every iteration that is left."""

    @abstractmethod
    def following(self, state: State[Any, Any]) -> int:
        """Number of the iteration after a state."""

    @abstractmethod
    def prepared(self, result: R) -> P:
        """What is needed to write an iteration; all ranks make it together."""

    @abstractmethod
    def write(self, result: R, prepared: P) -> Iteration:
        """Put one iteration on disk: files, its line of the history, and last the checkpoint."""

    @abstractmethod
    def report(self, usage: Usage, chart_processes: ChartProcesses) -> Path:
        """Write the report on the last iteration, all ranks together; the page's path."""

    @abstractmethod
    def conclusion(self, page: Path) -> str:
        """What is said at the end."""

    def release(self) -> None:
        """Let go of what the report does not want, once all iterations are made."""

    def finish(self, result: R | None) -> None:
        """What is left to do behind the report; `result` is the last iteration made here."""

    def all(self) -> None:
        """Every iteration that is left, then the report. Rank 0 writes, an iteration while the next one is made."""
        from polarice.io.particles import StackSource
        from polarice.report.chart_processes import ChartProcesses

        result: R | None = None
        writing: Future[None] | None = None
        images, waited_s = 0, 0.0
        chart_processes = ChartProcesses(threads_of(self.params), self.comm)
        with self.bar, chart_processes, ThreadPoolExecutor(1, "writer") as writer:
            for result in self.results():
                if self.following(result.state) == self.params.iter:
                    chart_processes.load()
                self.state = result.state
                images += len(result.found.used)
                waited_s += result.clock.seconds.get("reading", 0.0)
                prepared = self.prepared(result)
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write, result, prepared) if self.comm.rank == 0 else None
            if writing is not None:
                writing.result()
            self.bar.close()  # what is said from here on stands below it
            self.release()
            source = self.images.source
            assert isinstance(source, StackSource)
            self._report(self.watch.usage(source.traffic, images, waited_s, self.params.price), chart_processes)
        if self.comm.rank == 0:
            self.finish(result)

    def _write(self, result: R, prepared: P) -> None:
        self.last = self.write(result, prepared)

    def _report(self, usage: Usage, chart_processes: ChartProcesses) -> None:
        self.comm.on_root(lambda: write_usage(self.params.o, usage))
        path = self.report(usage, chart_processes)
        self.comm.on_root(lambda: write_usage(self.params.o, self.watch.ended(usage)))
        print(self.conclusion(path))


class ClassReportRun(ParticleRun[R, P]):
    """One whose report is that of classes."""

    @abstractmethod
    def page(self, usage: Usage) -> Report:
        """What the report on the last iteration shows."""

    def report(self, usage: Usage, chart_processes: ChartProcesses) -> Path:
        from polarice.report import write_report

        return write_report(self.params.o, self.comm.on_root(lambda: self.page(usage)), self.comm, chart_processes)

"""Runs of the command line: in this process, or in a child that can be killed."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from polarice.cluster import Comm

FOLDER_FILES = ("data.star", "model.star", "classes.mrcs", "sampling.star", "optimiser.star", "polarice.npz")
STOPPED_BY_CRASH = 77
PRELOADED = (
    "jobs.runs", "polarice.cli", "polarice.jobs.class2d", "polarice.jobs.align2d", "polarice.runs.classification",
    "polarice.runs.checkpoint", "polarice.runs.resume", "polarice.report", "polarice.align.image_statistics",
    "polarice.align.classify", "polarice.align.policy",
    "polarice.references.averages", "polarice.io.relion_run.class2d", "tqdm",
)  # fmt: skip
_REPORT_STUB = "a stub, as pages take longer to draw than these runs"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def polarice(line: str) -> Ended:
    """Run `polarice LINE` in this process, in the working directory."""
    from polarice.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(line.split())
        except SystemExit as left:
            code = int(left.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


def stub_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and pictures are not what these tests are about."""
    monkeypatch.setattr("polarice.report.write_report", _write_stub)


def with_stub(words: list[str]) -> int:
    """The command line, in a process of its own."""
    import polarice.report
    from polarice.cli import main

    polarice.report.write_report = _write_stub
    sys.argv[1:] = words
    return main()


def _write_stub(folder: Path, report: Any, comm: Comm, chart_processes: Any = None) -> Path:
    page = Path(folder) / "report.html"
    if comm.rank == 0:
        page.write_text(_REPORT_STUB)
    return page


# -- children ----------------------------------------------------------------------------------------------------------


def _server() -> Any:
    """Children fork off a server that has loaded everything, and has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def child(line: str, folder: Path, crash_at: tuple[str, int] | None = None) -> Any:
    """Start `polarice LINE` in `folder`; crash_at = (what, n): the process is gone at the n-th call of `what`."""
    process = _server().Process(target=_child, args=(line, str(folder), crash_at))
    process.start()
    return process


def crash(line: str, folder: Path, crash_at: tuple[str, int] | None = None) -> int:
    """Run to the end, or to the crash; returns the exit code."""
    process = child(line, folder, crash_at)
    process.join(60)
    assert process.exitcode is not None, "still running after a minute"
    return int(process.exitcode)


def _child(line: str, folder: str, crash_at: tuple[str, int] | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    with open("stdout", "a") as out, open("stderr", "a") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
    import polarice.project.registry
    import polarice.report

    polarice.report.write_report = _write_stub
    # nothing is replaced but by the job itself
    polarice.project.registry.working = lambda job, folder: contextlib.nullcontext()
    if crash_at is not None:
        _crash(*crash_at)
    from polarice.cli import main

    code = main(line.split())
    sys.stderr.flush()
    os._exit(code)


def _crash(what: str, at: int) -> None:
    """The process ends without a word at the `at`-th os.replace, np.savez, ...; at = 0: never."""
    owner, _, name = what.rpartition(".")
    module = sys.modules[owner]
    real: Callable[..., Any] = getattr(module, name)
    calls = 0

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            os._exit(STOPPED_BY_CRASH)
        return real(*args, **more)

    setattr(module, name, counted)


@contextlib.contextmanager
def launched(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A launcher that is gone, its ranks and pipes with it, when the block is left, whatever failed in it."""
    with process:
        try:
            yield process
        finally:
            process.terminate()  # it ends its ranks; of one that has ended, nothing


def ended(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, str]:
    """Exit code of a launcher, and what was said on standard output and on standard error."""
    with launched(process):
        out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def wait_for(what: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until `what` holds."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.002)


# -- what is left ------------------------------------------------------------------------------------------------------


def assert_same_files(a: Path, b: Path, number: int) -> None:
    """Iteration `number` is the same bit for bit in two folders (of one name: it stands in the files)."""
    for kind in FOLDER_FILES:
        one, other = ((folder / f"run_it{number:03d}_{kind}").read_bytes() for folder in (a, b))
        assert one == other, f"run_it{number:03d}_{kind} differs"

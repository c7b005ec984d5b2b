"""A bar where somebody looks, a line now and then where it is a log, and the job's state in both cases."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

from polarice.project.state import report_progress

LINE_EVERY_S, LINE_EVERY_SHARE = 30.0, 0.05  # between two lines of a log, whichever takes longer


class Bar:
    """Counts `total` items; used as tqdm's bar is, whose part that a job needs it has."""

    def __init__(
        self, what: str, total: int, done: int = 0, unit: str = "img", leave: bool = True, quiet: bool = False
    ) -> None:
        """quiet: nothing is shown, and nothing told (another rank does)."""
        from tqdm import tqdm

        self.what, self.total, self.n, self.unit, self._quiet = what, total, done, unit, quiet
        self._bar: Any = tqdm(
            total=total, initial=done, unit=unit, desc=what, smoothing=0.05, file=sys.stderr,
            disable=True if quiet else None, leave=leave,
        )  # fmt: skip
        self._said, self._said_at, self._since, self._begun_at = time.monotonic(), done, time.monotonic(), done
        self._tell()

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.n += count
        self._bar.update(count)
        self._tell()
        if self._bar.disable and not self._quiet and self._is_time():
            print(self._line(), file=sys.stderr)
            self._said, self._said_at = time.monotonic(), self.n

    def write(self, text: str, file: TextIO | None = None) -> None:
        """A line above the bar; in a log it counts as one of progress."""
        self._bar.write(text, file=file or sys.stderr)
        self._said, self._said_at = time.monotonic(), self.n

    def set_description(self, what: str) -> None:
        self.what = what
        self._bar.set_description(what)
        self._tell()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self._bar.set_postfix_str(text, refresh=refresh)

    def close(self) -> None:
        self._bar.close()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self) -> None:
        if not self._quiet:
            report_progress(self.what, self.n, self.total)

    def _is_time(self) -> bool:
        long_ago = time.monotonic() - self._said > LINE_EVERY_S
        return long_ago and self.n - self._said_at >= LINE_EVERY_SHARE * self.total

    def _line(self) -> str:
        spent, made = time.monotonic() - self._since, max(1, self.n - self._begun_at)
        left_s = spent / made * (self.total - self.n)
        share = f"{self.n / self.total:.0%}" if self.total else ""
        return f"{self.what}: {self.n:,} of {self.total:,} {self.unit.strip()} ({share}), {left_s / 60:.1f} min left"

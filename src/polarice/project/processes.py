"""Processes that work beside this one and know nothing of the script that started it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the file of the main program: a child that is started here does not run it.

    A script that calls us then needs no `if __name__ == "__main__"`. What is sent to a child must live in a module.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {
        name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__
    }
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(hidden)


class _Process(SpawnProcess):
    def start(self) -> None:
        with _without_main():
            super().start()


class PlainSpawn(SpawnContext):
    """Spawned processes: the fork of a process that runs threads may hang."""

    Process = _Process


def context_for(work: object) -> SpawnContext:
    """Where processes for some work come from: they know the main program only where the work is defined in it."""
    return SpawnContext() if type(work).__module__ == "__main__" else PlainSpawn()

"""Reading in a thread while the engine works on what was read before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")
_POLL_SECONDS = 0.1


def read_ahead(iterable: Iterable[Item], depth: int = 2) -> Generator[Item]:
    """The items of `iterable`, of which up to `depth` are made beforehand in a thread.

    What is raised there is raised here, in its place. When the consumer stops early (break, exception, close) the
    thread ends after the item it is at, and has ended when this generator is closed.
    """
    made: queue.Queue[tuple[str, object]] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    thread = threading.Thread(target=_make, args=(iterable, made, stop), name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = made.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(item, BaseException)
                raise item
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()


def _make(iterable: Iterable[Item], made: queue.Queue[tuple[str, object]], stop: threading.Event) -> None:
    try:
        iterator = iter(iterable)
        try:
            for item in iterator:
                if not _put(made, ("item", item), stop):
                    return
        finally:
            if isinstance(iterator, Generator):
                iterator.close()
        _put(made, ("end", None), stop)
    except BaseException as error:
        _put(made, ("error", error), stop)


def _put(made: queue.Queue[tuple[str, object]], message: tuple[str, object], stop: threading.Event) -> bool:
    """Hand a message over, waiting for room; False once the consumer has gone."""
    while not stop.is_set():
        try:
            made.put(message, timeout=_POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False

"""Batches worked on side by side: one thread per core, each with its own share of them.

Torch's own threads divide every small operation and wait for each other after it; whole batches do not wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
WAITING = 2  # items per worker that may be read before they are worked on


def in_turn(items: Iterable[Item], work: Callable[[int, Item], Result], workers: int) -> Iterator[Result]:
    """work(worker, item) for every item, in the order of the items; item j goes to worker j % workers.

    So what a worker has seen, and in which order, depends on their number alone. Work that raises ends the iteration.
    """
    if workers == 1:
        for item in items:
            yield work(0, item)
        return
    pools = [ThreadPoolExecutor(1, f"worker-{w}", initializer=_alone) for w in range(workers)]
    pending: deque[Future[Result]] = deque()
    try:
        for j, item in enumerate(items):
            pending.append(pools[j % workers].submit(work, j % workers, item))
            if len(pending) >= WAITING * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)


def workers_on(device: torch.device) -> int:
    """How many to work with: torch's threads on a processor, one where an accelerator does the work."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def _alone() -> None:
    """What a worker thread does first: keep torch from dividing its operations further."""
    torch.set_num_threads(1)

"""Work on as many images at once as the device has room for: what fails for want of memory is done again in halves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from polarice.types import InputError

Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, CUDA's, and what torch says on a processor, which is a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Portions:
    """Does work on runs of images; what was too much once is not tried again."""

    def __init__(self) -> None:
        self._most: int | None = None  # images at once

    def each(self, work: Callable[[slice], Result], count: int) -> list[Result]:
        """work(part) for all of `count` images, or for parts of them, in order, where memory is too short for all.

        `work` must leave nothing behind but its result: what it had done when memory ended is lost. Raises InputError
        where it is too short for a single image.
        """
        done, start = [], 0
        while start < count:
            size = min(count - start, self._most or count)
            try:
                done.append(work(slice(start, start + size)))
                start += size
                continue
            except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise InputError(
                        "out of memory, even for one image at a time; ask for fewer classes (--k), a smaller "
                        "--offset-range or a coarser --strict-highres-exp, or keep less of the images with --memory"
                    ) from error
            # beyond the handler, which keeps what the failed call held
            self._most = size // 2
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        return done

"""Batches on their way to an accelerator: from pinned memory, beside the computing, some batches ahead.

    reading thread    disk -> buffer j (pinned), once the copy that last left buffer j has ended
    side stream       buffer j -> device, without anybody waiting; an event marks its end
    main stream       waits for that event, then computes

So disk, bus and device are at work at the same time. On a processor, batches are handed over as they are: `sent` is
then no more than its `ahead`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

BUFFERS = 3  # one is filled, one is copied, one has just been


def sent(batches: Iterable[Tensor], device: torch.device, ahead: Callable[[Any], Iterable[Any]]) -> Generator[Tensor]:
    """The batches, which lie on the processor, on the device, in their order.

    `ahead` turns an iterable into one whose next items are made in another thread meanwhile: that thread fills the
    pinned buffers and starts the copies.
    """
    lane = prefetch_to(device)
    for on_its_way in ahead(lane.send(batch) for batch in batches):
        yield lane.receive(*on_its_way)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A small array on the device, without waiting for what the device still has to do.

    From memory that is not pinned the driver takes a copy before the call returns, so that the array may go.
    """
    return torch.from_numpy(array).to(device, non_blocking=True)


class Direct:
    """The way to where no copy can run beside the computing: a plain one, and none within a processor."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def send(self, batch: Tensor) -> tuple[Tensor, None]:
        return batch.to(self._device), None

    def receive(self, there: Tensor, _arrived: None) -> Tensor:
        return there


class CudaDevice:
    """What a lane asks of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._side = device, torch.cuda.Stream(device)

    def pinned(self, count: int, dtype: torch.dtype) -> Tensor:
        """(count,) numbers of memory that the device copies from by itself."""
        return torch.empty(count, dtype=dtype, pin_memory=True)

    def copy(self, buffer: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """A copy of pinned memory on the device, begun on the side stream, and the event of its end."""
        with torch.cuda.stream(self._side):
            there = buffer.to(self._device, non_blocking=True)
            ended = torch.cuda.Event()
            ended.record(self._side)
        return there, ended

    def wait(self, ended: torch.cuda.Event) -> None:
        """Hold this thread until the copy has ended."""
        ended.synchronize()

    def receive(self, there: Tensor, ended: torch.cuda.Event) -> None:
        """Hold the main stream, not this thread, until the copy has ended; its memory is then the main stream's."""
        main = torch.cuda.current_stream(self._device)
        main.wait_event(ended)
        there.record_stream(main)


class PinnedPrefetch:
    """The way to a card, through a ring of pinned buffers, none of which is overwritten while a copy is under way."""

    def __init__(self, card: CudaDevice, buffers: int = BUFFERS) -> None:
        self._card = card
        self._buffers = [torch.empty(0)] * buffers
        self._left: list[Any] = [None] * buffers  # the event of the last copy from each
        self._turn = 0

    def send(self, batch: Tensor) -> tuple[Tensor, Any]:
        """Start a batch on its way: what it will be on the device, and the event of its arrival."""
        j = self._turn
        self._turn = (j + 1) % len(self._buffers)
        if self._left[j] is not None:
            self._card.wait(self._left[j])
        if self._buffers[j].numel() < batch.numel() or self._buffers[j].dtype != batch.dtype:
            self._buffers[j] = self._card.pinned(batch.numel(), batch.dtype)
        buffer = self._buffers[j][: batch.numel()].view(batch.shape)
        buffer.copy_(batch)
        there, self._left[j] = self._card.copy(buffer)
        return there, self._left[j]

    def receive(self, there: Tensor, arrived: Any) -> Tensor:
        """The batch, for what is computed from now on."""
        self._card.receive(there, arrived)
        return there


def prefetch_to(device: torch.device) -> PinnedPrefetch | Direct:
    """The way to a device from the processor's memory."""
    return PinnedPrefetch(CudaDevice(device)) if device.type == "cuda" else Direct(device)

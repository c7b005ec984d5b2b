"""Pixels kept on a card: what has been read and brought there once is at hand when a basis with more rings wants it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polarice.align.store import allocate_or_halve
from polarice.align.transfer import to_device


class PixelStore:
    """Room for the images of the rows that come first, as many as `capacity`. Their bits are those that came."""

    def __init__(self, rows: int, capacity: int, device: torch.device) -> None:
        """rows: of the table."""
        self._capacity, self._device = capacity, device
        self._slot = np.full(rows, -1, np.int64)
        self._used = 0
        self._pixels: Tensor | None = None  # (slot, N, N)

    def holds(self, rows: np.ndarray) -> bool:
        """All of these rows are here."""
        return bool((self._slot[rows] >= 0).all())

    def put(self, rows: np.ndarray, pixels: Tensor) -> None:
        """Keep those images (row, N, N) of the rows that are not here yet and find room."""
        if self._pixels is None:
            shape = pixels.shape[1:]
            self._pixels = allocate_or_halve(lambda count: pixels.new_empty(count, *shape), self._capacity)
            self._capacity = len(self._pixels)
        new = np.flatnonzero(self._slot[rows] < 0)[: self._capacity - self._used]
        if len(new) == 0:
            return
        slots = np.arange(self._used, self._used + len(new))
        self._pixels.index_copy_(
            0, to_device(slots, self._device), pixels.index_select(0, to_device(new, self._device))
        )
        self._slot[rows[new]] = slots
        self._used += len(new)

    def take(self, rows: np.ndarray) -> Tensor:
        """Images (row, N, N) of rows that are here."""
        assert self._pixels is not None, "nothing has been put here"
        return self._pixels.index_select(0, to_device(self._slot[rows], self._device))

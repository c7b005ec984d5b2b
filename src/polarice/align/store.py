"""Polar fields kept from one iteration to the next: a field changes only when its image's centre or the basis does."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polarice.align.memory_chunks import is_out_of_memory
from polarice.align.polar import PolarBasis
from polarice.align.transfer import to_device


@dataclass(frozen=True)
class CacheBudget:
    """Where what is kept between iterations may lie."""

    memory_bytes: int = 1 << 30
    scratch: Path | None = None  # folder for a file that holds all instead


class PolarStore:
    """Room for the fields of the first `capacity` of some rows, in memory or in a scratch file.

    Which rows are kept depends on the rows, the basis and the room alone, never on what happened before: a run that
    goes on keeps the same ones.
    """

    def __init__(self, rows: np.ndarray, room: CacheBudget) -> None:
        """rows: all that will ever be used, in the order of the disk."""
        self._rows, self._room = rows, room
        self._basis: PolarBasis | None = None
        self._fields = torch.empty(0)
        self._slot = np.full(int(rows.max(initial=-1)) + 1, -1, np.int64)
        self._centre_px = np.zeros((0, 2))

    def reset(self, basis: PolarBasis) -> None:
        """Forget everything if the basis is another one."""
        if basis == self._basis:
            return
        shape = (basis.r_max, basis.n_theta)
        each = 4 * shape[0] * shape[1]
        capacity = len(self._rows)
        if self._room.scratch is None:
            capacity = min(capacity, self._room.memory_bytes // each)
            self._fields = torch.empty(0)  # give the room back first
            self._fields = allocate_or_halve(lambda count: torch.empty(count, *shape, device=basis.device), capacity)
            capacity = len(self._fields)
        else:
            self._fields = mapped(self._room.scratch, capacity * each).view(capacity, *shape)
        self._basis = basis
        self._slot[:] = -1
        self._slot[self._rows[:capacity]] = np.arange(capacity)
        self._centre_px = np.full((capacity, 2), np.nan)

    def parted(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows that have room here, and those that have not; each in the order given."""
        kept = self._slot[rows] >= 0
        return rows[kept], rows[~kept]

    def missing(self, rows: np.ndarray, centre_px: np.ndarray) -> np.ndarray:
        """Those of the rows whose field is not here for this centre (row, 2)."""
        return rows[(self._centre_px[self._slot[rows]] != centre_px).any(axis=1)]

    def put(self, rows: np.ndarray, fields: Tensor, centre_px: np.ndarray) -> None:
        """Keep fields (row, ring, angle) of images centred at (row, 2)."""
        slots = self._slot[rows]
        self._fields.index_copy_(0, to_device(slots, self._fields.device), fields.to(self._fields.device))
        self._centre_px[slots] = centre_px

    def take(self, rows: np.ndarray) -> Tensor:
        """Fields (row, ring, angle), where they are kept."""
        return self._fields.index_select(0, to_device(self._slot[rows], self._fields.device))

    @property
    def at_hand(self) -> bool:
        """Fields are kept on the basis's own device."""
        return self._basis is None or self._fields.device.type == self._basis.device.type


def allocate_or_halve(allocate: Callable[[int], Tensor], count: int) -> Tensor:
    """allocate(count), or of half as many, and so on, where there is no room for so many."""
    while True:
        try:
            return allocate(count)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or count == 0:
                raise
        count //= 2


def mapped(path: Path, size_bytes: int) -> Tensor:
    """A float32 tensor in a file that has no name any more: nothing is left behind, however the run ends.

    Raises OSError where the disk cannot hold it: the room is claimed now, for a mapping has no way to say so later.
    """
    handle, name = tempfile.mkstemp(prefix="polarice-", suffix=".fields", dir=path)
    try:
        os.posix_fallocate(handle, 0, max(1, size_bytes))
        return torch.from_file(name, shared=True, size=size_bytes // 4)
    finally:
        os.close(handle)
        os.unlink(name)

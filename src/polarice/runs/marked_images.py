"""Images that are told apart by a mark: where two rows of a table are one image, whatever stack they stand in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from polarice.types import ImageSource

MARKED_ROWS = 4  # of an image's pixels, at its middle: noise is never the same twice


@dataclass(frozen=True)
class MarkedSource:
    """An `ImageSource` that keeps a mark of each image that is read: two images with one mark are the same."""

    source: ImageSource
    marks: np.ndarray = field(repr=False)  # (n,) int64, 0 where not read yet

    @property
    def box_px(self) -> int:
        return self.source.box_px

    def __len__(self) -> int:
        return len(self.source)

    def read(self, rows: np.ndarray) -> np.ndarray:
        images = self.source.read(rows)
        start = max(0, self.box_px // 2 - MARKED_ROWS // 2)
        for row, image in zip(np.arange(len(self))[rows].tolist(), images[:, start : start + MARKED_ROWS], strict=True):
            self.marks[row] = int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "little") >> 1
        return images

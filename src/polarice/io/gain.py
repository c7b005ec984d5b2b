"""Gain references and lists of defects, brought to the orientation and the sense in which movies are read.

What is handed out multiplies a frame; 0 marks a defect.

- MRC files: rows as they stand; multiply. TIFF files: upside down, as TIFF movies; multiply.
- `.gain` (of EER): a TIFF file whose rows stay as they stand; multiply.
- Any other reference for EER movies is a flat field: divide, gain = mean / reference (RELION's rule). `divide` and
  `multiply` say it outright.
- First `rotate` times 90 degrees clockwise (rows drawn downwards, as RELION and IMOD show them; MotionCor2's RotGain),
  then `flip` 1 upside down, 2 left to right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from polarice.io.kinds import require_no_other_kind
from polarice.io.mrc import open_sections
from polarice.types import InputError

_TIFF = (".tif", ".tiff", ".gain")
MOST_PIXELS = 1 << 28  # 16,384 along each side, the largest of an EER file
MOST_OF_MEDIAN = 1e6  # such a pixel is a defect; a flat field may be in counts, of any size
MOST_GAIN = 1e30  # a frame times it is still a number


@dataclass(frozen=True)
class GainRule:
    """How a gain reference is to be taken."""

    rotate: int = 0  # times 90 degrees clockwise
    flip: int = 0  # 1 upside down, 2 left to right, after turning
    sense: Literal["auto", "multiply", "divide"] = "auto"


def read_gain(path: Path, shape: tuple[int, int], events: bool, rule: GainRule | None = None) -> np.ndarray:
    """The gain (ny, nx) float32 for frames of `shape`, `events` where these come from EER files.

    For EER movies a reference of a multiple or a part of the size is brought to it. Raises InputError where it cannot
    be read, has another size, or is zero everywhere.
    """
    rule = rule or GainRule()
    gain = np.rot90(_read_image(path), -rule.rotate)
    gain = {0: gain, 1: gain[::-1], 2: gain[:, ::-1]}[rule.flip]
    gain = _resized(gain, shape) if events else gain
    if gain.shape != shape:
        hint = "; turn it with --gain-rot 1" if gain.shape[::-1] == shape != gain.shape else ""
        raise InputError(
            f"{path}: the gain reference is {gain.shape[1]} x {gain.shape[0]} pixels, the movie "
            f"{shape[1]} x {shape[0]}{hint or '; check that they belong together'}"
        )
    usable = np.isfinite(gain) & (gain > 0) & (gain < MOST_GAIN)
    if not usable.any():
        raise InputError(f"{path}: the gain reference is nowhere above 0 and below {MOST_GAIN:g}")
    usable &= gain < MOST_OF_MEDIAN * np.median(gain[usable])
    divide = rule.sense == "divide" or (rule.sense == "auto" and events and path.suffix.lower() != ".gain")
    safe = np.where(usable, gain, 1)
    told = safe[usable].mean() / safe if divide else safe
    usable &= told < MOST_OF_MEDIAN * np.median(told[usable])  # a pixel that all but sees nothing is a defect
    return np.where(usable, told, 0).astype(np.float32)


def read_defects(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """True (ny, nx) where the camera is defective: a text of lines `x y width height` from 0, or an image, not 0 there.

    Coordinates are those of frames as they are read. Raises InputError naming file and line.
    """
    if path.suffix.lower() in (".mrc", *_TIFF):
        image = _read_image(path)
        if image.shape != shape:
            size = f"{image.shape[1]} x {image.shape[0]} pixels, the movie {shape[1]} x {shape[0]}"
            raise InputError(f"{path}: the map of defects is {size}")
        return image != 0
    require_no_other_kind(path, "a text of lines x y width height, nor an image", but=("a text", "a STAR"))
    mask = np.zeros(shape, bool)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            x, y, width, height = (int(float(word)) for word in words[:4])
        except (ValueError, OverflowError):
            raise InputError(
                f"{path}, line {number}: {line.strip()[:80]!r}: four numbers x y width height are wanted"
            ) from None
        if not (0 <= x < shape[1] and 0 <= y < shape[0] and width > 0 and height > 0):
            raise InputError(
                f"{path}, line {number}: {line.strip()[:80]!r} lies outside of {shape[1]} x {shape[0]} pixels"
            )
        mask[y : y + height, x : x + width] = True
    return mask


def _read_image(path: Path) -> np.ndarray:
    """One image (ny, nx) float64, rows as the kind of file has them."""
    if path.suffix.lower() not in _TIFF:
        sections = open_sections(path)
        if len(sections) != 1:
            raise InputError(f"{path} holds {len(sections)} images; one is wanted")
        return sections[0].astype(np.float64)
    import tifffile

    if not path.exists():
        raise InputError(f"{path}: no such file; check the name and the folder")
    require_no_other_kind(path, "a TIFF file", but=("TIFF",))
    try:
        with tifffile.TiffFile(path) as file:
            size = math.prod(file.series[0].shape)
            if not 0 < size <= MOST_PIXELS:
                raise InputError(
                    f"{path}: an image of {size:,} pixels; {MOST_PIXELS:,} are the most that any camera has"
                )
            image = np.asarray(file.series[0].asarray(), np.float64)
    except InputError:
        raise
    except Exception as error:  # each codec has its own
        raise InputError(f"{path} cannot be read as TIFF ({error})") from None
    if image.ndim != 2:
        raise InputError(f"{path} holds an array of {' x '.join(map(str, image.shape))}; one image is wanted")
    return image if path.suffix.lower() == ".gain" else image[::-1]


def _resized(gain: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels repeated, or averaged, where one size is a multiple of the other."""
    (ny, nx), (sy, sx) = shape, gain.shape
    if ny % sy == 0 and nx % sx == 0 and ny // sy == nx // sx:
        return np.repeat(np.repeat(gain, ny // sy, 0), nx // sx, 1)
    if sy % ny == 0 and sx % nx == 0 and sy // ny == sx // nx:
        step = sy // ny
        return gain.reshape(ny, step, nx, step).mean((1, 3))
    return gain

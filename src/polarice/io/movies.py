"""Movies as cameras and their programs write them: MRC, TIFF and EER, one interface.

Rows of TIFF movies are turned upside down, as RELION, MotionCor2 and IMOD do; those of MRC and EER files are not. A
frame keeps the type of the file; of an EER file it is a fraction, the sum of a number of raw frames.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polarice.io import eer
from polarice.io.kinds import require_no_other_kind
from polarice.io.mrc import (
    LEAST_VOXEL_A,
    MOST_VOXEL_A,
    PACKED,
    PACKED_SIZES,
    MrcHeader,
    Sections,
    cut_off,
    nibbles,
    read_header,
)
from polarice.types import InputError

MRC_ENDINGS = (".mrc", ".mrcs", ".st", ".map")
TIFF_ENDINGS = (".tif", ".tiff")
EER_ENDING = ".eer"
MOST_PAGES = 1_000_000  # of a TIFF file; the longest EER movies have some ten thousand


@dataclass(frozen=True)
class Events:
    """How the electrons of an EER file become frames."""

    group: int = 40  # raw frames to a fraction; what is left over at the end is not used
    upsampling: int = 1  # pixels along each side of a sensor pixel: 1, 2 or 4


class Movie(Protocol):
    """An open movie."""

    path: Path
    frames: int
    shape: tuple[int, int]  # ny, nx
    pixel_size_A: float  # as the file says; 0 where it does not

    def read(self, frame: int) -> np.ndarray:
        """Frame (ny, nx), from 0, in the file's type. InputError where the file is damaged there."""
        ...


@contextmanager
def open_movie(path: str | os.PathLike[str], events: Events | None = None) -> Iterator[Movie]:
    """Open a movie of any kind for reading; the ending tells the kind.

    Raises InputError naming the file: not there, another kind of file, cut off, frames of different sizes.
    """
    path = Path(path)
    ending = Path(path.stem).suffix.lower() if path.suffix == ".gz" else path.suffix.lower()
    if not path.exists():
        raise InputError(f"{path}: no such file; check the name and the folder")
    if not path.is_file():
        raise InputError(f"{path} is not a file (a folder, a pipe or a device); give the name of a file")
    if ending in MRC_ENDINGS:
        yield MrcMovie(path, read_header(path))
    elif ending in TIFF_ENDINGS or ending == EER_ENDING:
        with _tiff(path) as pages:
            yield EerMovie(path, pages, events or Events()) if ending == EER_ENDING else TiffMovie(path, pages)
    else:
        raise InputError(f"{path}: a movie's name ends in .mrc, .mrcs, .tif, .tiff or .eer")


def read_frames(movie: Movie, threads: int = 1, chosen: range | None = None) -> np.ndarray:
    """Frames (n, ny, nx), all or those `chosen`, in the movie's own type, each read once, `threads` at a time."""
    chosen = range(movie.frames) if chosen is None else chosen
    first = movie.read(chosen[0])
    frames = np.empty((len(chosen), *movie.shape), first.dtype)
    frames[0] = first

    def fill(place: int) -> None:
        frames[place] = movie.read(chosen[place])

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fill, range(1, len(chosen))):
            pass
    return frames


class MrcMovie:
    """Frames are the sections of an MRC file, 4-bit ones included."""

    def __init__(self, path: Path, header: MrcHeader) -> None:
        if header.there < header.n:
            raise InputError(cut_off(path, header, header.there))
        self.path, self.frames, self.shape = path, header.n, (header.ny, header.nx)
        self.pixel_size_A, self._header = header.pixel_size_A, header
        self._sections = Sections(path, header, packed=True)

    def read(self, frame: int) -> np.ndarray:
        section = self._sections[frame]
        if self._header.mode == PACKED:
            return nibbles(section, self._header.nx)
        return section.astype(section.dtype.newbyteorder("="), copy=False)


class TiffMovie:
    """Frames are the pages of a TIFF file, LZW, deflate or not compressed, classic or BigTIFF, upside down.

    Bytes of the size of a packed K2 or K3 frame in super-resolution hold two pixels each, the lower four bits first.
    """

    def __init__(self, path: Path, pages: Sequence[Any]) -> None:
        self.path, self._pages, self.frames = path, pages, len(pages)
        sizes = {page.shape for page in pages}
        if len(sizes) > 1 or any(len(size) != 2 for size in sizes):
            listed = ", ".join(" x ".join(map(str, size)) for size in sorted(sizes, key=str)[:4])
            raise InputError(f"{path}: pages of {listed} pixels are not the frames of one movie")
        self._packed = pages[0].shape in PACKED_SIZES and pages[0].dtype == np.uint8
        ny, nx = pages[0].shape
        self.shape = (ny, 2 * nx if self._packed else nx)
        self.pixel_size_A = _tiff_pixel_size(pages[0])

    def read(self, frame: int) -> np.ndarray:
        with _naming(self.path, frame):
            rows = self._pages[frame].asarray(maxworkers=1)[::-1]
            if rows.shape != self._pages[frame].shape or rows.dtype.kind not in "iuf":
                raise ValueError(f"an array of {rows.dtype} {list(rows.shape)}")
        return nibbles(rows, self.shape[1]) if self._packed else rows


class EerMovie:
    """Frames are fractions of an EER file."""

    def __init__(self, path: Path, pages: Sequence[Any], events: Events) -> None:
        self._pages = [page for page in pages if int(page.compression) in eer.COMPRESSIONS]
        if not self._pages:
            raise InputError(f"{path} holds no electron events; is it an EER file?")
        self.path, self._events = path, events
        self.raw_frames = len(self._pages)
        self.frames = self.raw_frames // events.group
        if self.frames == 0:
            raise InputError(
                f"{path} has {self.raw_frames} raw frames, fewer than the {events.group} of one fraction; take fewer"
            )
        first = self._pages[0]
        if other := {page.shape[:2] for page in self._pages} - {first.shape[:2]}:
            sizes = f"{first.shape[1]} x {first.shape[0]} and {' x '.join(map(str, min(other)[::-1]))}"
            raise InputError(f"{path}: raw frames of {sizes} pixels are not those of one movie")
        self.shape = (first.imagelength * events.upsampling, first.imagewidth * events.upsampling)
        self.metadata: dict[str, Any] = first.eer_tags or {}
        self.pixel_size_A = _sensor_pixel_A(self.metadata) / events.upsampling

    @property
    def unused(self) -> str:
        """What to tell of the raw frames at the end that make no whole fraction; "" where there are none."""
        left = self.raw_frames - self.frames * self._events.group
        if not left:
            return ""
        told = (
            f"the last {left} of {self.raw_frames} raw frames ({left / self.raw_frames:.0%} of the dose) make no whole "
            "fraction and are not used"
        )
        group = self._events.group
        near = [each for each in range(max(1, group // 2), 2 * group + 1) if self.raw_frames % each == 0]
        near = [each for each in near if self.raw_frames // each > 1]  # motion wants two fractions
        if not near:
            return told
        return f"{told}; --eer-grouping {min(near, key=lambda each: abs(each - group))} leaves none"

    def read(self, frame: int) -> np.ndarray:
        group = self._events.group
        with _naming(self.path, frame):
            return eer.fraction(self._pages[frame * group : (frame + 1) * group], self._events.upsampling)


def _sensor_pixel_A(metadata: dict[str, Any]) -> float:
    """Of the specimen, as an EER file says in metres; 0 where it says nothing that a microscope could have."""
    try:
        size_A = float(metadata.get("sensorPixelSize.width", 0) or 0) * 1e10
    except (TypeError, ValueError):
        return 0.0
    return size_A if LEAST_VOXEL_A <= size_A <= MOST_VOXEL_A else 0.0


@contextmanager
def _tiff(path: Path) -> Iterator[list[Any]]:
    """The pages of a TIFF file whose chain of directories is whole."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it would print what we raise
    require_no_other_kind(path, "a TIFF file", but=("TIFF",))
    try:
        expected = _directories(path)
        file = tifffile.TiffFile(path)
        file.filehandle.set_lock(True)  # frames are read by several threads
    except (ValueError, struct.error, OSError, TypeError) as error:
        raise InputError(f"{path}: not a TIFF file, or cut off ({error}); copy it again") from None
    with file:
        try:
            pages = [page.aspage() for page in file.pages]
        except (ValueError, RuntimeError, struct.error, TypeError, IndexError, KeyError) as error:
            raise InputError(f"{path} is damaged ({error}); copy it again") from None
        if len(pages) != expected:
            raise InputError(f"{path}: only {len(pages)} of {expected} frames can be read; copy it again")
        yield pages


def _directories(path: Path) -> int:
    """How many pages the chain of a TIFF file has; ValueError where it leads outside of the file."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 16:
            raise ValueError("it does not begin as one")
        big = struct.unpack(order + "H", head[2:4])[0] == 43
        place = struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0]
        count, entry, width = (("Q", 20, 8) if big else ("H", 12, 4)) if order else ("", 0, 0)
        pages, seen = 0, set()
        while place:
            if place in seen or pages == MOST_PAGES:
                raise ValueError(f"page {pages + 1} leads back to one before it, or there is no end of them")
            seen.add(place)
            if place + 2 > size:
                raise ValueError(f"page {pages + 1} lies behind its end")
            stream.seek(place)
            number = struct.unpack(order + count, stream.read(struct.calcsize(count)))[0]
            stream.seek(number * entry, os.SEEK_CUR)
            link = stream.read(width)
            if len(link) < width:
                raise ValueError(f"page {pages + 1} is cut off")
            place, pages = struct.unpack(order + ("Q" if big else "I"), link)[0], pages + 1
    return pages


def _tiff_pixel_size(page: Any) -> float:
    """Angstrom, of resolution tags in centimetres; 0 where there are none that mean something."""
    try:
        numerator, denominator = page.tags["XResolution"].value
        unit = int(page.tags["ResolutionUnit"].value)
    except (KeyError, TypeError, ValueError):
        return 0.0
    size = 1e8 * denominator / numerator if unit == 3 and numerator else 0.0
    return size if 0.05 < size < 100 else 0.0


@contextmanager
def _naming(path: Path, frame: int) -> Iterator[None]:
    """What the decoders say of damaged data as an InputError that names file and frame."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each codec has its own
        what = str(error) or type(error).__name__
        raise InputError(f"{path}, frame {frame + 1}: damaged or cut off ({what}); copy it again") from None

"""MRC files: headers, stacks, volumes, and writers that RELION reads.

Modes 0 (signed, or unsigned when told), 1, 2, 6, 12 (float16) and 101 (4-bit, for movies), little and big endian,
extended headers, gzip. A gzipped file is unpacked once into a temporary file in the system's temporary folder
($TMPDIR) and read from there.
Format: MRC2014 (Cheng et al. 2015, J. Struct. Biol. 192, 146).
"""

from __future__ import annotations

import gzip
import os
import stat
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from polarice.io.atomic import naming_full_disk, replacing
from polarice.io.gzipped import MAGIC, naming_source
from polarice.io.kinds import require_no_other_kind
from polarice.types import InputError

HEADER_BYTES = 1024
_FIELDS = [
    ("nx", "i4"), ("ny", "i4"), ("nz", "i4"), ("mode", "i4"),
    ("start", "i4", 3), ("m", "i4", 3), ("cell_A", "f4", 3), ("cell_deg", "f4", 3), ("axes", "i4", 3),
    ("dmin", "f4"), ("dmax", "f4"), ("dmean", "f4"), ("ispg", "i4"), ("nsymbt", "i4"),
    ("extra1", "V8"), ("exttyp", "S4"), ("nversion", "i4"), ("extra2", "V84"), ("origin", "f4", 3),
    ("map", "S4"), ("machst", "u1", 4), ("rms", "f4"), ("nlabl", "i4"), ("label", "S80", 10),
]  # fmt: skip
LEAST_VOXEL_A, MOST_VOXEL_A = 1e-2, 100.0
MOST_OF_MAP = 0.5  # of the squared density: no voxel of a molecule holds so much
PACKED = 101  # two pixels a byte, the lower four bits first; a row of odd length ends with half a byte
_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2", PACKED: "u1"}
IMOD_STAMP = 1146047817  # word 39 of a header that IMOD or SerialEM wrote; the next one holds flags
IMOD_SIGNED, IMOD_PACKED = 1, 16  # bytes run from -128 to 127; each byte holds two pixels, and nx counts bytes
PACKED_LABEL = b"4 bits packed"  # SerialEM's word for the same
# (ny, nx in bytes) of K2 and K3 frames in super-resolution, as the camera has them and rotated, two pixels a byte; no
# camera has as many pixels as these bytes, so that a file says by its size that it is packed, as IMOD takes it too
PACKED_SIZES = frozenset({(7420, 3838), (7676, 3710), (8184, 5760), (11520, 4092)})
_OTHER_MODES = {3: "complex int16", 4: "complex float32", 16: "RGB colour"}
_MODE_OF = {np.dtype(np.int8): 0, np.dtype(np.float32): 2, np.dtype(np.float16): 12}


@dataclass(frozen=True)
class MrcHeader:
    """What the first 1024 bytes say; lengths in pixels, `offset` in bytes."""

    n: int  # sections
    ny: int
    nx: int
    mode: int
    endian: str  # "<" or ">"
    pixel_size_A: float  # along x; 0.0 where the header does not say
    offset: int  # where the pixels begin
    dtype: np.dtype
    gzipped: bool
    there: int  # whole sections in the file (n where it is gzipped)
    voxel_size_A: tuple[float, float, float]  # x, y, z
    axes: tuple[int, int, int]  # which of x = 1, y = 2, z = 3 runs along columns, rows, sections
    stack: bool  # the header says images, not a volume (space group 0 and mz = 1)

    @property
    def row_items(self) -> int:
        """Items of `dtype` in a row."""
        return (self.nx + 1) // 2 if self.mode == PACKED else self.nx

    @property
    def section_bytes(self) -> int:
        return self.ny * self.row_items * self.dtype.itemsize

    @property
    def file_bytes(self) -> int:
        """Of a file that is whole."""
        return self.offset + self.n * self.section_bytes


def header_dtype(endian: str) -> np.dtype:
    """The 1024-byte header as a NumPy record, `endian` "<" or ">"."""
    return np.dtype(_FIELDS).newbyteorder(endian)  # type: ignore[arg-type]


def read_header(path: str | os.PathLike[str], unsigned: bool = False) -> MrcHeader:
    """Read a header; `unsigned` takes mode 0 for bytes 0..255, as the stamp of IMOD and SerialEM does, and a header
    whose own maximum is more than a signed byte can hold.

    Bytes that hold two pixels each by that stamp's flag, SerialEM's label or their size are mode 101, nx in pixels.

    A file that is shorter than its header says is told by `there` < `n`. Raises InputError where there is no such
    file or it is no MRC file of a mode that can be read.
    """
    path = Path(path)
    raw, size, gzipped = _first_bytes(path)
    if len(raw) < HEADER_BYTES:
        require_no_other_kind(path, "an MRC file", but=("gzip", "MRC"))
        raise InputError(f"{path} is not an MRC file: only {len(raw)} bytes; copy or extract it again")
    if raw[208:211] != b"MAP":  # of old programs, or another kind of file
        require_no_other_kind(path, "an MRC file", but=("gzip", "MRC"))
    endian, fields = _fields(path, raw)
    nx, ny, nz, mode = (int(fields[name]) for name in ("nx", "ny", "nz", "mode"))
    flags = _imod_flags(raw, endian)
    if mode == 0 and (flags & IMOD_PACKED or PACKED_LABEL in raw[224:HEADER_BYTES] or (ny, nx) in PACKED_SIZES):
        mode, nx = PACKED, 2 * nx
    beyond_signed = fields["dmin"] >= 0 and 127 < fields["dmax"] < 256
    dtype = _pixel_type(path, mode, endian, unsigned or not flags & IMOD_SIGNED or bool(beyond_signed))
    extended = max(0, int(fields["nsymbt"]))
    offset = HEADER_BYTES + extended
    row = (nx + 1) // 2 if mode == PACKED else nx * dtype.itemsize
    there = nz if gzipped else max(0, min(nz, (size - offset) // (row * ny)))
    if extended and not gzipped and there < nz and size == HEADER_BYTES + row * ny * nz:
        raise InputError(
            f"{path}: its header announces an extended header of {extended} bytes, which is not there; set the field "
            "(nsymbt, bytes 93 to 96) to 0"
        )
    voxel = tuple(_voxel_size_A(c, m) for c, m in zip(fields["cell_A"], fields["m"], strict=True))
    axes = tuple(int(axis) for axis in fields["axes"])
    return MrcHeader(
        nz, ny, nx, mode, endian, voxel[0], offset, dtype, gzipped, there,
        voxel_size_A=voxel,  # type: ignore[arg-type]
        axes=axes if sorted(axes) == [1, 2, 3] else (1, 2, 3),  # type: ignore[arg-type]
        stack=int(fields["ispg"]) == 0 and int(fields["m"][2]) == 1 and nz > 1,
    )  # fmt: skip


def _voxel_size_A(cell_A: float, count: int) -> float:
    """Of one axis; 0.0 where a header says nothing that a microscope's image could have."""
    size = float(cell_A) / int(count) if count > 0 else 0.0
    return size if LEAST_VOXEL_A <= size <= MOST_VOXEL_A else 0.0


def _imod_flags(raw: bytes, endian: str) -> int:
    """The flags of IMOD's stamp; without one, as if it said that bytes are signed (MRC2014)."""
    stamp, flags = np.frombuffer(raw, f"{endian}i4", 2, 152).tolist()
    return int(flags) if stamp == IMOD_STAMP else IMOD_SIGNED


def _first_bytes(path: Path) -> tuple[bytes, int, bool]:
    """The header's bytes, the size of the file, and whether it is gzipped."""
    with naming_source(path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{path} is not a file (a folder, a pipe or a device); give the name of a file")
        with open(path, "rb") as stream:
            raw = stream.read(HEADER_BYTES)
            size = os.fstat(stream.fileno()).st_size
        if not raw.startswith(MAGIC):
            return raw, size, False
        with gzip.open(path) as stream:
            return stream.read(HEADER_BYTES), size, True


def _fields(path: Path, raw: bytes) -> tuple[str, np.void]:
    """Byte order and fields; the machine stamp is asked first, but a plausible size and mode decide."""
    for endian in "><" if raw[212:213] == b"\x11" else "<>":
        fields = np.frombuffer(raw, header_dtype(endian), 1)[0]
        sizes = [int(fields[name]) for name in ("nx", "ny", "nz")]
        plausible = all(0 < size < 1 << 24 for size in sizes) and 0 <= fields["nsymbt"] < 1 << 28
        if plausible and int(fields["mode"]) in {*_MODES, *_OTHER_MODES}:
            return endian, fields
    nx, ny, nz, mode = np.frombuffer(raw, "<i4", 4).tolist()
    raise InputError(
        f"{path} is not an MRC file, or its header is damaged (size {nx} x {ny} x {nz}, mode {mode}); "
        "copy or extract it again"
    )


def _pixel_type(path: Path, mode: int, endian: str, unsigned: bool) -> np.dtype:
    if mode not in _MODES:
        raise InputError(
            f"{path}: MRC mode {mode} ({_OTHER_MODES[mode]}) cannot be read; convert it to mode 2 (float32)"
        )
    return np.dtype("u1" if mode == 0 and unsigned else endian + _MODES[mode])


def open_stack(path: str | os.PathLike[str], unsigned: bool = False) -> np.ndarray:
    """All sections (n, ny, nx) in the file's own type and byte order.

    Raises InputError where it cannot be read or holds fewer sections than its header says.
    """
    return open_sections(path, unsigned)[:]


def open_sections(path: str | os.PathLike[str], unsigned: bool = False) -> Sections:
    """The sections, read as they are asked for. Raises InputError as `open_stack` does."""
    return Sections(path, read_header(path, unsigned))


def nibbles(packed: np.ndarray, nx: int) -> np.ndarray:
    """4-bit pixels (..., nx) uint8 of the bytes (..., (nx + 1) // 2) of mode 101."""
    pixels = np.stack([packed & 15, packed >> 4], axis=-1)
    return pixels.reshape(*packed.shape[:-1], -1)[..., :nx]


class Sections:
    """The sections of an open file: `sections[a:b]` reads a .. b - 1 as (b - a, ny, nx), `sections[a]` one (ny, nx).

    What is read is copied, and not mapped into memory: a file that others cut off, or a disk that fails, gives an
    InputError and not a bus error. A gzipped file is unpacked when it is opened. The file is closed when nobody refers
    to the object any longer, so that a thread may still read what another has let go.
    """

    def __init__(self, path: str | os.PathLike[str], header: MrcHeader, packed: bool = False) -> None:
        """Of a 4-bit file, where `packed` ones are welcome, sections are the bytes (ny, (nx + 1) // 2).

        Raises InputError where the file cannot be opened, is shorter than `header` says, or is 4-bit.
        """
        if header.mode == PACKED and not packed:
            raise InputError(
                f"{path}: pixels of 4 bits (mode 101, or packed into bytes) are for movies; "
                "convert it to mode 2 (float32)"
            )
        self._path, self._header = path, header
        self._file = _opened(path, header)
        weakref.finalize(self, os.close, self._file)
        there = max(0, os.fstat(self._file).st_size - header.offset) // self._header.section_bytes
        if there < header.n:
            raise InputError(cut_off(path, header, there))

    def __len__(self) -> int:
        return self._header.n

    def __getitem__(self, which: int | slice) -> np.ndarray:
        """In one sequential read. Raises InputError where the file ends before, or the disk fails."""
        if isinstance(which, int):
            first = range(len(self))[which]
            return self._read(first, first + 1)[0]
        first, stop, step = which.indices(len(self))
        assert step == 1
        return self._read(first, max(first, stop))

    def _read(self, first: int, stop: int) -> np.ndarray:
        header, path = self._header, self._path
        found = np.empty((stop - first, header.ny, header.row_items), header.dtype)
        view = memoryview(found.reshape(-1).view(np.uint8).data)
        start, done = header.offset + first * self._header.section_bytes, 0
        while done < len(view):
            try:
                count = os.preadv(self._file, [view[done:]], start + done)
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror}; copy it again") from None
            if count == 0:
                raise InputError(cut_off(path, header, (start + done - header.offset) // self._header.section_bytes))
            done += count
        return found


def _opened(path: str | os.PathLike[str], header: MrcHeader) -> int:
    """A descriptor of the file, or of a temporary one without a name into which it is unpacked."""
    if not header.gzipped:
        try:
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
    with tempfile.TemporaryFile(prefix="polarice-") as plain:
        unpack(path, plain, header.file_bytes)
        return os.dup(plain.fileno())


def cut_off(path: str | os.PathLike[str], header: MrcHeader, there: int) -> str:
    """The message for a file that is shorter than its header says."""
    return (
        f"{path} is cut off: its header says {header.n} sections of {header.nx} x {header.ny} pixels, "
        f"{there} are there; copy or extract it again"
    )


def unpack(path: str | os.PathLike[str], target: IO[bytes], most_bytes: int) -> None:
    """Decompress a gzip file into an open one, `most_bytes` at the most: what its header announces.

    Raises InputError where it is damaged or the disk is full.
    """
    with (
        naming_source(path),
        naming_full_disk(f"{tempfile.gettempdir()} (unpacking {path})"),
        gzip.open(path) as stream,
    ):
        left = most_bytes
        while left > 0 and (piece := stream.read(min(left, 1 << 22))):
            left -= target.write(piece)
        target.flush()


def read_volume(path: str | os.PathLike[str], unsigned: bool = False) -> tuple[np.ndarray, float]:
    """A volume as (z, y, x) float32, whatever the axis order in the file, and its pixel size in Angstrom.

    The pixel size is 0.0 where the header does not say. Raises InputError for a stack of images and for voxels that
    are not cubes to 1 %.
    """
    header = read_header(path, unsigned)
    if header.n < 2 or header.stack or Path(path).suffix == ".mrcs":
        raise InputError(f"{path} holds {header.n} image(s), not a volume; give a map (.mrc or .map)")
    voxel = header.voxel_size_A
    if min(voxel) > 0 and max(voxel) > 1.01 * min(voxel):
        sizes = " x ".join(f"{size:.4g}" for size in voxel)
        raise InputError(f"{path}: voxels of {sizes} A are not cubes; resample the map to one pixel size first")
    sections = Sections(path, header)[:].astype(np.float32)
    order = [(3, 2, 1).index(axis) for axis in header.axes[::-1]]  # where sections, rows, columns go in (z, y, x)
    return np.ascontiguousarray(np.moveaxis(sections, (0, 1, 2), order)), header.pixel_size_A


def require_density(path: str | os.PathLike[str], volume: np.ndarray) -> None:
    """Raise InputError where a volume (z, y, x) is no molecule's: a voxel is no number, all are the same, or one holds
    most of the map."""
    if not np.isfinite(volume).all():
        raise InputError(f"{path}: holds voxels that are not numbers (NaN or infinite); mask or mend the map")
    if volume.max() == volume.min():
        raise InputError(f"{path}: every voxel is the same, so there is no density; give a map")
    far = np.square(volume - np.median(volume).astype(np.float64))
    if far.max() > MOST_OF_MAP * far.sum():
        x, y, z = (int(place) for place in np.unravel_index(far.argmax(), volume.shape)[::-1])
        raise InputError(
            f"{path}: voxel {x}, {y}, {z} (from 0) holds more than all others; set it to their mean, or mask the map"
        )


class StackWriter:
    """Writes a stack of `n` square images a batch at a time; the file is complete or not there.

    with StackWriter("averages.mrcs", n=50, box=128, pixel_size_A=1.3) as writer:
        writer.append(images)  # (batch, box, box)

    `dtype` is float32 (mode 2), float16 (mode 12) or int8 (mode 0, rounded). The header is RELION's: space group 0;
    minimum, maximum, mean and standard deviation are those of the stored values, summed in float64.
    """

    def __init__(
        self, path: str | os.PathLike[str], n: int, box: int, pixel_size_A: float, dtype: object = np.float32
    ) -> None:
        self._path, self._shape, self._pixel_size_A = Path(path), (n, box, box), pixel_size_A
        self._dtype = np.dtype(dtype)  # type: ignore[call-overload]
        self._mode = _MODE_OF[self._dtype]
        self._statistics = _Statistics()
        self._done = 0
        self._file = replacing(path)

    def __enter__(self) -> StackWriter:
        self._stream = self._file.__enter__()
        self._stream.write(bytes(HEADER_BYTES))
        return self

    def append(self, images: np.ndarray) -> None:
        """Add images (batch, box, box). Raises ValueError on another shape or values that the type cannot hold."""
        if images.ndim != 3 or images.shape[1:] != self._shape[1:] or self._done + len(images) > self._shape[0]:
            raise ValueError(f"{images.shape} does not fit {self._shape} with {self._done} already written")
        stored = np.ascontiguousarray(_converted(np.asarray(images, np.float32), self._dtype))
        self._statistics.add(stored)
        self._stream.write(stored.data)
        self._done += len(images)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if error is None:
            try:
                self._finish()
            except BaseException as failure:
                self._file.__exit__(type(failure), failure, failure.__traceback__)
                raise
        return self._file.__exit__(kind, error, trace)

    def _finish(self) -> None:
        if self._done != self._shape[0]:
            raise ValueError(f"{self._path}: {self._done} of {self._shape[0]} images written")
        self._stream.seek(0)
        self._stream.write(_new_header(self._shape, self._mode, self._pixel_size_A, self._statistics, stack=True))


def write_stack(
    path: str | os.PathLike[str], images: np.ndarray, pixel_size_A: float, dtype: object = np.float32
) -> None:
    """Write images (n, box, box) as `StackWriter` does."""
    with StackWriter(path, len(images), images.shape[-1], pixel_size_A, dtype) as writer:
        writer.append(images)


def write_image(path: str | os.PathLike[str], image: np.ndarray, pixel_size_A: float, dtype: Any = np.float32) -> None:
    """Write one image (ny, nx), a micrograph say, as float32 or float16.

    Raises ValueError where the type cannot hold its values.
    """
    kind = np.dtype(dtype)
    values = _converted(np.ascontiguousarray(image, np.float32), kind)
    statistics = _Statistics()
    statistics.add(values)
    with replacing(path) as stream:
        stream.write(_new_header((1, *values.shape), _MODE_OF[kind], pixel_size_A, statistics, stack=True))
        stream.write(values.data)


def write_volume(path: str | os.PathLike[str], volume: np.ndarray, pixel_size_A: float) -> None:
    """Write a volume (z, y, x) as float32, space group 1."""
    values = np.ascontiguousarray(volume, np.float32)
    statistics = _Statistics()
    statistics.add(values)
    with replacing(path) as stream:
        stream.write(_new_header(values.shape, 2, pixel_size_A, statistics, stack=False))
        stream.write(values.data)


def _converted(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype == np.float32:
        return values.astype("<f4", copy=False)
    limits = (-128, 127) if dtype == np.int8 else (-65504, 65504)
    rounded = np.rint(values) if dtype == np.int8 else values
    if not ((rounded >= limits[0]) & (rounded <= limits[1])).all():
        raise ValueError(f"values {values.min():g} .. {values.max():g} do not fit {dtype}; scale them or use float32")
    return rounded.astype(dtype.newbyteorder("<"))


class _Statistics:
    """Minimum, maximum, mean and standard deviation, summed in float64."""

    def __init__(self) -> None:
        self.low, self.high, self.count, self.sum, self.squares = np.inf, -np.inf, 0, 0.0, 0.0

    def add(self, pixels: np.ndarray) -> None:
        values = pixels.astype(np.float32, copy=False)
        if values.size:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
            self.count += values.size
            self.sum += float(values.sum(dtype=np.float64))
            self.squares += float(np.einsum("i,i->", values.ravel(), values.ravel(), dtype=np.float64))

    @property
    def mean(self) -> float:
        return self.sum / max(1, self.count)

    @property
    def deviation(self) -> float:
        return float(np.sqrt(max(0.0, self.squares / max(1, self.count) - self.mean**2)))


def _new_header(shape: tuple[int, ...], mode: int, pixel_size_A: float, statistics: _Statistics, stack: bool) -> bytes:
    header = np.zeros((), header_dtype("<"))
    nz, ny, nx = shape
    header["nx"], header["ny"], header["nz"], header["mode"] = nx, ny, nz, mode
    header["m"] = nx, ny, 1 if stack else nz
    header["cell_A"] = np.array(header["m"]) * pixel_size_A
    header["cell_deg"], header["axes"] = 90.0, (1, 2, 3)
    header["ispg"], header["nversion"], header["map"] = 0 if stack else 1, 20140, b"MAP "
    header["machst"] = 0x44, 0x44, 0, 0
    if statistics.count:
        header["dmin"], header["dmax"] = statistics.low, statistics.high
        header["dmean"], header["rms"] = statistics.mean, statistics.deviation
    header["nlabl"] = 1
    header["label"][0] = b"Polarice"
    return header.tobytes()

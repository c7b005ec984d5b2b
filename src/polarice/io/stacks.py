"""Particle images on disk: finding the stacks a table names, checking them, and reading them in disk order."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from polarice.io.copies import Copy
from polarice.io.mrc import PACKED, MrcHeader, Sections, cut_off, open_sections, open_stack, read_header, unpack
from polarice.io.optics import TOLD, UNSET_PIXEL_A
from polarice.io.star import read_star
from polarice.types import InputError, Particles

OPEN_STACKS = 64  # tables may name 10,000 stacks; so many are kept open


MRC_FORMATS = ("mrcs", "mrc", "st", "map")


def plain_name(name: str) -> str:
    """The file's name of RELION's NAME.ext:format, which reads a file as of another kind than its ending says.

    Raises InputError for a format other than MRC's.
    """
    file, colon, kind = name.rpartition(":")
    if not colon or "/" in kind or not file or os.path.lexists(name):
        return name
    if kind.lower() not in MRC_FORMATS:
        raise InputError(f"image stack {name}: read as {kind!r}; only MRC stacks can be read: convert it to .mrcs")
    return file


def relion_name(path: str) -> str:
    """A stack's name as RELION reads it, which knows a stack of images by its ending, or by `:mrcs` behind the name.

    A gzipped stack, which RELION does not read at all, keeps its name.
    """
    return path if path.lower().endswith((".mrcs", ".gz")) else f"{path}:mrcs"


def find_stacks(
    names: Sequence[str], rows: Sequence[int], table: Path, image_dir: str | Path | None = None
) -> tuple[str, ...]:
    """The files behind the stack names of a table, `rows` being a row (from 0) where each name stands.

    A relative name is looked for in `image_dir`, in the working directory, beside the table and in the folders above
    it (RELION's names start at the project's folder). In `image_dir` the longest tail of the name that is there counts,
    down to the bare file name, for absolute names too. Raises InputError naming table, row, stack and the places, for
    an `image_dir` that is no folder, and where two names would be one file of it.
    """
    if image_dir is not None and not os.path.isdir(image_dir):
        raise InputError(f"--image-dir {image_dir}: no such folder; name the one that image names are relative to")
    beside = table.absolute().parent
    roots = [str(root) for root in (Path.cwd(), beside, *beside.parents)]
    missing: list[int] = []
    found: list[str] = []
    folders: dict[str, bool] = {}
    for number, name in enumerate(names):
        places: Iterable[str] = (os.path.join(root, name) for root in roots)
        if image_dir is not None:
            places = chain(_tails(str(image_dir), name, folders), places)
        place = next(filter(os.path.isfile, places), None)
        found.append(str(place))
        if place is None:
            missing.append(number)
    if missing:
        first = missing[0]
        looked = ([str(image_dir)] if image_dir is not None else []) + roots
        more = f" (and {len(missing) - 1} more stacks)" if len(missing) > 1 else ""
        raise InputError(
            f"{table}, row {rows[first] + 1}: image stack {names[first][:1000]} not found{more}; looked in "
            f"{', '.join(dict.fromkeys(looked))[:1000]}; give the folder the names are relative to with --image-dir"
        )
    if image_dir is not None:
        _require_apart(names, rows, found, table, image_dir)
    return tuple(found)


def _tails(image_dir: str, name: str, folders: dict[str, bool]) -> Iterator[str]:
    """Where `name` may be in `image_dir`: the whole name, then ever shorter tails; `folders` remembers which exist."""
    yield os.path.join(image_dir, name.lstrip("/"))
    parts = [part for part in name.split("/") if part not in ("", ".")]
    parts = parts[len(parts) - parts[::-1].index("..") :] if ".." in parts else parts
    for first in range(len(parts)):
        folder = os.path.join(image_dir, *parts[first:-1])
        if folder not in folders:
            folders[folder] = os.path.isdir(folder)
        if folders[folder]:
            yield os.path.join(folder, parts[-1])


def _require_apart(
    names: Sequence[str], rows: Sequence[int], found: Sequence[str], table: Path, image_dir: str | Path
) -> None:
    """Raise InputError where two names became one file, neither being the other's tail."""
    name_of: dict[str, tuple[str, int]] = {}
    for name, row, path in zip(names, rows, found, strict=True):
        path_key = os.path.normpath(path)
        other, its_row = name_of.setdefault(path_key, (name, row))
        short, long = sorted((os.path.normpath(each).lstrip("/") for each in (name, other)), key=len)
        if not f"/{long}".endswith(f"/{short}"):
            raise InputError(
                f"{table}, rows {its_row + 1} and {row + 1}: image stacks {other} and {name} would both be {path}; "
                f"keep the folders of their names below --image-dir {image_dir}, or link them there"
            )
        if long == os.path.normpath(name).lstrip("/"):
            name_of[path_key] = (name, row)


def read_named(path: str | os.PathLike[str], label: str) -> tuple[np.ndarray, float]:
    """Images (n, N, N) float32 of a stack, or those that a STAR table names in column `label`; and their pixel size in
    Angstrom, 0.0 where their header does not say.

    Raises InputError where they cannot be read, or are of several sizes.
    """
    path = Path(path)
    if path.suffix.lower() != ".star":
        return open_stack(path).astype(np.float32), read_header(path).pixel_size_A
    table = next((block.table for block in read_star(path) if block.table and label in block.table), None)
    if table is None or not len(table):
        raise InputError(f"{path}: no table with _{label}; give a stack of images (.mrcs), or a table that names some")
    parts = [text.rpartition("@") for text in table.text(label).tolist()]
    files = find_stacks([plain_name(name) for _, _, name in parts], list(range(len(parts))), path)
    images, opened = [], dict[str, Sections]()
    for row, ((section, _, name), file) in enumerate(zip(parts, files, strict=True), 1):
        if file not in opened:
            opened[file] = open_sections(file)
        sections = opened[file]
        number = int(section) if section.isdecimal() and section.isascii() else 0 if section else 1
        if not 1 <= number <= len(sections):
            raise InputError(f"{path}, row {row}: {section}@{name}: the stack has sections 1 to {len(sections)}")
        images.append(sections[number - 1].astype(np.float32))
        if images[-1].shape != images[0].shape:
            raise InputError(f"{path}, row {row}: {name} has images of another size than the first row's")
    return np.stack(images), read_header(files[0]).pixel_size_A


def disk_order(particles: Particles) -> np.ndarray:
    """Row numbers (n,) sorted by stack and section: reading in this order walks the disk forwards."""
    return np.lexsort((particles.section, particles.stack_of))


@dataclass
class Traffic:
    """What has been read, and how long the readers took (of several threads, together)."""

    bytes: int = 0
    seconds: float = 0.0


class StackSource:
    """The images of a table of particles, an `ImageSource`: read in disk order whatever was asked.

    Gzipped stacks are unpacked once, when first read, into a temporary folder ($TMPDIR) that goes with the object.
    Reading is safe from several threads. `table` names the table in error messages, `copies` says which stacks have
    been copied, in part, to a faster disk. `traffic` counts what is read.
    """

    def __init__(
        self,
        particles: Particles,
        unsigned: bool = False,
        table: str | Path = "particle table",
        copies: Mapping[str, Copy] | None = None,
    ) -> None:
        if len(particles) == 0:
            raise InputError(f"{table} has no particles; check how it was selected")
        self._particles, self._unsigned, self._table = particles, unsigned, str(table)
        self._headers: dict[int, MrcHeader] = {}
        self._open: OrderedDict[tuple[int, bool], Sections] = OrderedDict()
        self._copies = copies or {}
        self.traffic = Traffic()
        self._lock = threading.RLock()
        self._unpacked: dict[int, Path] = {}
        self._folder: Path | None = None
        self._box_px = self._header(int(particles.stack_of[0])).nx

    @property
    def box_px(self) -> int:
        return self._box_px

    def __len__(self) -> int:
        return len(self._particles)

    def check(self) -> None:
        """Open the header of every stack once.

        Raises InputError naming file, row and remedy where a stack is missing, cut off, has fewer sections than the
        table asks for, or images that are not square or not of the box of the others.
        """
        for stack, row, last_row in self._stacks_in_use():
            header = self._header(stack)
            section = int(self._particles.section[last_row])
            if header.there <= section or header.there < header.n:
                raise InputError(self._too_short(stack, header, last_row if header.there <= section else row))
            self._check_box(stack, header, row)

    def mixed_sizes(self) -> str:
        """What to tell where headers of one optics group's stacks state pixel sizes more than 1 % apart; "": nothing.

        Some have been made anew then, or stand in the wrong group.
        """
        first: dict[int, tuple[float, str]] = {}
        for stack, row, _ in self._stacks_in_use():
            size_A, path = self._header(stack).pixel_size_A, self._particles.stacks[stack]
            if size_A in (0.0, UNSET_PIXEL_A):
                continue
            group = int(self._particles.optics_of[row])
            one_A, one = first.setdefault(group, (size_A, path))
            if abs(size_A / one_A - 1) > TOLD:
                optics = self._particles.optics[group]
                return (
                    f"{self._table}, row {row + 1}: stacks of optics group {optics.name} state several pixel sizes, "
                    f"{one} {one_A:.4g} A and {path} {size_A:.4g} A; {optics.pixel_size_A:.4g} A is used for all"
                )
        return ""

    def _stacks_in_use(self) -> Iterator[tuple[int, int, int]]:
        """Each stack with the first row of the table that names it, and the row that asks for its highest section."""
        particles = self._particles
        order = disk_order(particles)
        stacks, first = np.unique(particles.stack_of, return_index=True)
        ends = np.searchsorted(particles.stack_of[order], stacks, side="right") - 1
        yield from zip(stacks.tolist(), first.tolist(), order[ends].tolist(), strict=True)

    def _too_short(self, stack: int, header: MrcHeader, row: int) -> str:
        path, section = self._particles.stacks[stack], int(self._particles.section[row]) + 1
        where = f"{self._table}, row {row + 1} (image {section}@{path})"
        if header.there < header.n:
            return f"{where}: {cut_off(path, header, header.there)}"
        return (
            f"{where}: the stack holds {header.n} sections, section {section} was asked for; "
            "check that the table belongs to this stack"
        )

    def _check_box(self, stack: int, header: MrcHeader, row: int) -> None:
        where = f"{self._table}, row {row + 1}: {self._particles.stacks[stack]}"
        if header.mode == PACKED:
            raise InputError(f"{where}: MRC mode 101 (4-bit) is for movies; convert it to mode 2 (float32)")
        if header.nx != header.ny:
            raise InputError(f"{where} has images of {header.nx} x {header.ny} pixels; extract square ones")
        if header.nx != self._box_px:
            raise InputError(
                f"{where} has a box of {header.nx} pixels, {self._particles.stacks[int(self._particles.stack_of[0])]} "
                f"one of {self._box_px}; rescale them to one box, or split the table"
            )
        group = self._particles.optics[int(self._particles.optics_of[row])]
        if group.box_px not in (0, header.nx):
            raise InputError(
                f"{where} has a box of {header.nx} pixels, the table says {group.box_px} for optics group "
                f"{group.name}; check that the table belongs to this stack"
            )

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Images of `rows`, (len(rows), N, N) float32, in the order asked for.

        Raises InputError as `check` does, for the stacks that are touched.
        """
        rows = np.arange(len(self._particles))[rows]
        stack_of, section = self._particles.stack_of[rows], self._particles.section[rows]
        order = np.lexsort((section, stack_of))
        stack_of, section = stack_of[order], section[order]
        images = np.empty((len(rows), self._box_px, self._box_px), np.float32)
        edges = np.flatnonzero(np.diff(stack_of, prepend=-1, append=-1))
        for low, high in pairwise(edges.tolist()):
            self._read_stack(int(stack_of[low]), section[low:high], order[low:high], rows, images)
        return images

    def _read_stack(
        self, stack: int, section: np.ndarray, target: np.ndarray, rows: np.ndarray, images: np.ndarray
    ) -> None:
        """Copy sorted sections of one stack to `images[target]`, neighbouring ones in one piece."""
        copy = self._copies.get(self._particles.stacks[stack])
        copied = copy is not None and copy.first <= section[0] and section[-1] < copy.stop
        sections = self._sections(stack, int(rows[target[-1]]), copied)
        if int(section[-1]) >= len(sections):
            raise InputError(self._too_short(stack, self._headers[stack], int(rows[target[-1]])))
        edges = np.flatnonzero(np.diff(section, prepend=section[0] - 2, append=section[-1] + 2) != 1).tolist()
        for low, high in pairwise(edges):
            start = int(section[low])
            since = time.perf_counter()
            found = sections[start : start + high - low]
            with self._lock:
                self.traffic.bytes += found.nbytes
                self.traffic.seconds += time.perf_counter() - since
            images[target[low:high]] = found

    def _sections(self, stack: int, row: int, copied: bool = False) -> Sections:
        with self._lock:
            key = (stack, copied)
            if key not in self._open:
                path, header = self._plain(stack)
                self._check_box(stack, header, row)
                if header.there < header.n:
                    raise InputError(self._too_short(stack, header, row))
                self._open[key] = Sections(self._copies[self._particles.stacks[stack]].path if copied else path, header)
                while len(self._open) > OPEN_STACKS:
                    self._open.popitem(last=False)
            self._open.move_to_end(key)
            return self._open[key]

    def _header(self, stack: int) -> MrcHeader:
        with self._lock:
            if stack not in self._headers:
                self._headers[stack] = read_header(self._particles.stacks[stack], self._unsigned)
            return self._headers[stack]

    def _plain(self, stack: int) -> tuple[Path, MrcHeader]:
        """The stack itself, or its unpacked copy, and its header."""
        path, header = Path(self._particles.stacks[stack]), self._header(stack)
        if header.gzipped:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="polarice-"))
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            self._unpacked[stack] = self._folder / f"{stack}.mrcs"
            with open(self._unpacked[stack], "wb") as stream:
                unpack(path, stream, header.file_bytes)
            try:
                self._headers[stack] = read_header(self._unpacked[stack], self._unsigned)
            except InputError as error:  # of what is in it
                raise InputError(str(error).replace(str(self._unpacked[stack]), str(path))) from None
        return self._unpacked.get(stack, path), self._headers[stack]

"""Particles as an object: of a table on disk, or of an array in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.io.particles import ParticleTable, StackSource, read_particles, write_particles
from polarice.io.table import Table
from polarice.types import CTFParameters, ImageSource, InputError, Optics, Particles, Pose2D

if TYPE_CHECKING:
    import pandas

MEMORY = "memory"  # the name of a stack that is an array
LEAST_DEFOCUS_A = 100.0  # anything smaller is in micrometres
SHOWN = 5  # particles in a notebook's preview


@dataclass(frozen=True, eq=False)
class ParticleSet:
    """Particles with their images, in the order of a table.

    table   the particles and every column of their table
    source  reads their images
    whole   these are all the rows of the table's file, as they stand there
    held    keeps the folder of the images, where that is a temporary one
    """

    table: ParticleTable
    source: ImageSource
    whole: bool = False
    held: object | None = None

    def __len__(self) -> int:
        return len(self.table.particles)

    def __getitem__(self, rows: Any) -> ParticleSet:
        """The particles of a slice, of indices or of a boolean mask, in that order."""
        chosen = np.atleast_1d(np.arange(len(self))[rows])
        if len(chosen) == 0:
            raise InputError("no particles are left")
        return replace(self, table=self.table.take(chosen), source=_Chosen(self.source, chosen), whole=False)

    @property
    def box_px(self) -> int:
        return self.source.box_px

    @property
    def pixel_size_A(self) -> float:
        particles = self.table.particles
        return particles.optics[int(particles.optics_of[0])].pixel_size_A

    @property
    def pose(self) -> Pose2D:
        """Class, in-plane angle and shift of each, as far as known."""
        return self.table.particles.pose

    @property
    def in_memory(self) -> bool:
        """Whether images lie in an array, and not in files."""
        return self.table.particles.stacks == (MEMORY,)

    def images(self, rows: Sequence[int] | np.ndarray | slice = slice(None)) -> np.ndarray:
        """(n, N, N) float32 of the particles in `rows`; all without."""
        return self.source.read(np.atleast_1d(np.arange(len(self))[rows]))

    def to_pandas(self) -> pandas.DataFrame:
        """The table, a column for each of RELION's labels; numbers as numbers. Raises InputError without pandas."""
        return frame_of(self.table.table)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the table (STAR); of an array its images too, beside it as .mrcs. Returns the table's path.

        Raises InputError where the disk is full or the folder may not be written.
        """
        from polarice.io.mrc import write_stack

        path, table = Path(path), self.table
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.in_memory:
            stack = path.with_suffix(".mrcs")
            write_stack(stack, self.images(), self.pixel_size_A)
            names = [f"{row + 1:06d}@{stack}" for row in range(len(self))]
            table = replace(table, table=table.table.with_columns({"rlnImageName": names}))
        write_particles(path, table)
        return path

    def _repr_html_(self) -> str:
        from polarice.api.pictures import strip_html

        where = "in memory" if self.in_memory else escape(str(self.table.path))
        head = f"<p>{len(self):,} particles of {self.box_px} px, {self.pixel_size_A:.4g} Å per pixel, {where}</p>"
        return head + strip_html(self.images(slice(0, SHOWN)), [f"particle {row + 1}" for row in range(SHOWN)])

    def __repr__(self) -> str:
        where = "in memory" if self.in_memory else str(self.table.path)
        return f"ParticleSet({len(self)} particles of {self.box_px} px, {self.pixel_size_A:.4g} A/px, {where})"


@dataclass(frozen=True, eq=False)
class _Array:
    """Images in memory."""

    array: np.ndarray  # (n, N, N) float32

    @property
    def box_px(self) -> int:
        return int(self.array.shape[-1])

    def __len__(self) -> int:
        return len(self.array)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.array[rows].astype(np.float32)  # a copy: preparing images changes them in place


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Some images of a source."""

    source: ImageSource
    rows: np.ndarray

    @property
    def box_px(self) -> int:
        return self.source.box_px

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.source.read(self.rows[rows])


def particles(
    data: str | os.PathLike[str] | np.ndarray,
    *,
    pixel_size_A: float | None = None,
    voltage_kV: float = 300.0,
    cs_mm: float = 2.7,
    amplitude_contrast: float = 0.1,
    defocus_A: float | Sequence[float] | np.ndarray | None = None,
    image_dir: str | os.PathLike[str] | None = None,
) -> ParticleSet:
    """Particles of a table (STAR; a .cs after `polarice.import_`), or of images (n, N, N) in an array.

    pixel_size_A  of an array it must be given; of a table it takes the place of the table's own
    defocus_A     of an array: one for all, (n,), or (n, 3) of defocus U, V in A and the angle of U in degrees;
                  without, images are compared without a CTF
    voltage_kV, cs_mm, amplitude_contrast  of an array
    image_dir     folder that the image names of a table are relative to

    Raises InputError for what cannot be used.
    """
    if isinstance(data, np.ndarray):
        if pixel_size_A is None:
            raise InputError("pixel_size_A: give the pixel size of the images, in Angstrom")
        optics = Optics("opticsGroup1", pixel_size_A, voltage_kV, cs_mm, amplitude_contrast, int(data.shape[-1]))
        return _of_array(data, optics, defocus_A)
    if defocus_A is not None:
        raise InputError("defocus_A: goes with an array; a table has its own")
    table = read_particles(data, image_dir, need_ctf=False, pixel_size_A=pixel_size_A)
    source = StackSource(table.particles, False, table.path)
    source.check()
    return ParticleSet(table, source, whole=pixel_size_A is None)


def of_result(path: str | os.PathLike[str], held: object | None) -> ParticleSet:
    """Particles of a job's table, whose images may have gone since; `held` keeps a temporary folder."""
    table = read_particles(path, need_ctf=False)
    return ParticleSet(table, StackSource(table.particles, False, table.path), whole=True, held=held)


def _of_array(images: np.ndarray, optics: Optics, defocus_A: Any) -> ParticleSet:
    if images.ndim != 3 or images.shape[1] != images.shape[2] or len(images) == 0:
        raise InputError(f"images of shape {images.shape}: give (n, N, N), n square images")
    if images.dtype.kind not in "fiu":
        raise InputError(f"images of {images.dtype}: give real numbers")
    if not 10 <= optics.voltage_kV <= 3000:
        raise InputError(f"voltage_kV {optics.voltage_kV:g}: must be 10 to 3000 kV")
    if not 0.01 <= optics.pixel_size_A <= 100:
        raise InputError(f"pixel_size_A {optics.pixel_size_A:g}: must be 0.01 to 100 A")
    n, nobody = len(images), np.zeros(len(images), np.int32)
    ctf = None if defocus_A is None else _ctf_of(defocus_A, n)
    particles = Particles(
        (MEMORY,), nobody, np.arange(n, dtype=np.int64), (optics,), nobody, (MEMORY,), nobody, ctf, Pose2D.unknown(n)
    )
    columns: dict[str, Any] = {
        "rlnImageName": [f"{row + 1:06d}@{MEMORY}" for row in range(n)],
        "rlnOpticsGroup": np.ones(n, np.int64),
    }
    if ctf is not None:
        columns |= {"rlnDefocusU": ctf.defocus_u_A, "rlnDefocusV": ctf.defocus_v_A}
        columns |= {"rlnDefocusAngle": ctf.defocus_angle_deg}
    stated = {
        "rlnOpticsGroupName": [optics.name],
        "rlnOpticsGroup": [1],
        "rlnImagePixelSize": [optics.pixel_size_A],
        "rlnVoltage": [optics.voltage_kV],
        "rlnSphericalAberration": [optics.cs_mm],
        "rlnAmplitudeContrast": [optics.amplitude_contrast],
        "rlnImageSize": [optics.box_px],
        "rlnImageDimensionality": [2],
    }
    table = ParticleTable(particles, Table.of(columns), Table.of(stated), Path(MEMORY))
    return ParticleSet(table, _Array(images))


def _ctf_of(defocus_A: Any, n: int) -> CTFParameters:
    """Terms of the CTF from one defocus, one for each particle, or U, V and angle for each."""
    values = np.asarray(defocus_A, dtype=np.float64)
    if values.ndim == 2 and values.shape == (n, 3):
        u, v, angle = values.T
    elif values.ndim == 0 or values.shape == (n,):
        u = v = np.broadcast_to(values, (n,))
        angle = np.zeros(n)
    else:
        raise InputError(f"defocus_A of shape {values.shape}: give one number, ({n},), or ({n}, 3)")
    if not np.isfinite(values).all():
        raise InputError("defocus_A: holds what is not a number")
    if 0 < (largest := float(np.abs(np.concatenate([u, v])).max())) < LEAST_DEFOCUS_A:
        raise InputError(f"defocus_A up to {largest:g}: give Angstrom; 1.5 micrometres are 15000")
    return CTFParameters(u.copy(), v.copy(), angle.copy(), np.zeros(n), np.zeros(n), np.ones(n))


def frame_of(table: Table) -> pandas.DataFrame:
    """A table as pandas has it: numbers where all of a column's cells are numbers, else text."""
    try:
        import pandas
    except ImportError:
        raise InputError("to_pandas needs pandas: pip install pandas") from None
    columns: dict[str, Any] = {}
    for label in table.labels:
        try:
            columns[label] = table.numbers(label)
        except InputError:
            columns[label] = table.text(label)
    return pandas.DataFrame(columns)

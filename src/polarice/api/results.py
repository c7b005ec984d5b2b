"""What a job leaves, as objects: of a folder on disk, or of iterations in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING
from weakref import finalize

import numpy as np

from polarice.api.particles import ParticleSet, frame_of, of_result
from polarice.types import InputError

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

REPORT = "report.html"
MAPS = {  # job: the map that it makes
    "initial3d": "initial_model.mrc", "refine3d": "run_class001.mrc", "class3d": "run_class001.mrc",
    "reconstruct": "run_class001.mrc", "mask": "mask.mrc", "postprocess": "postprocess.mrc", "map": "map.mrc",
}  # fmt: skip
TABLES = ("micrographs.star", "particles.star", "movies.star", "micrographs_ctf.star", "particles.cs")


class KeptFolder:
    """A temporary folder that goes when nothing holds this object any more, or when Python ends."""

    def __init__(self, job: str) -> None:
        self.path = Path(mkdtemp(prefix=f"polarice-{job}-"))
        finalize(self, rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True, eq=False)
class JobResult:
    """A job that has ended; where `out` was left out, its folder is gone with this object."""

    job: str
    folder: Path
    held: KeptFolder | None = field(default=None, repr=False)  # the folder, where it is only kept as long as this

    @property
    def report(self) -> Path | None:
        """The page about it."""
        page = self.folder / REPORT
        return page if page.exists() else None

    def _repr_html_(self) -> str:
        link = f' <a href="{escape(str(self.report))}">report</a>' if self.report else ""
        return f"<p>{escape(self.job)} in {escape(str(self.folder))}{link}</p>"


@dataclass(frozen=True, eq=False)
class TableResult(JobResult):
    """A job whose result is a table: of micrographs, movies or particles."""

    @property
    def table(self) -> Path:
        """The table, as the next job takes it. Raises InputError where none was written."""
        for name in TABLES:
            if (self.folder / name).exists():
                return self.folder / name
        raise InputError(f"{self.folder}: {self.job} has left no table")

    @property
    def particles(self) -> ParticleSet:
        """Its particles. Raises InputError where the table is not of particles."""
        return of_result(self.table, self.held)

    def to_pandas(self) -> pandas.DataFrame:
        """The table, a column for each of RELION's labels. Raises InputError without pandas."""
        from polarice.io.star import read_star

        star = read_star(self.table)
        name = next((each for each in ("particles", "micrographs", "movies") if each in star), "")
        if not name:
            raise InputError(f"{self.table}: no block of particles, micrographs or movies")
        return frame_of(star.table(name))


@dataclass(frozen=True, eq=False)
class MapResult(JobResult):
    """A job whose result is a density."""

    name: str = "run_class001.mrc"

    @property
    def map(self) -> np.ndarray:
        """The density (z, y, x) float32."""
        return self._read(self.name)[0]

    @property
    def maps(self) -> np.ndarray:
        """(K, z, y, x) of class3d: the map of each class."""
        paths = sorted(self.folder.glob("run_class[0-9][0-9][0-9].mrc"))
        return np.stack([self._read(path.name)[0] for path in paths])

    @property
    def pixel_size_A(self) -> float:
        return self._read(self.name)[1]

    @property
    def half_maps(self) -> tuple[np.ndarray, np.ndarray]:
        """Densities of the two half sets, unfiltered. Raises InputError where there are none."""
        first, second = (self._read(f"run_half{half}_class001_unfil.mrc")[0] for half in (1, 2))
        return first, second

    @property
    def fsc(self) -> tuple[np.ndarray, np.ndarray]:
        """(resolution in Angstrom, FSC of the half maps) of each shell. Raises InputError where there is none."""
        from polarice.io.star import read_star

        table = read_star(self.folder / "run_fsc.star").table("fsc")
        return table.numbers("rlnAngstromResolution"), table.numbers("rlnFourierShellCorrelation")

    @property
    def particles(self) -> ParticleSet:
        """The particles with their angles. Raises InputError where the job wrote none."""
        return of_result(self.folder / "run_data.star", self.held)

    def plot(self) -> Figure:
        """Central slices and projections along x, y and z."""
        from polarice.api.pictures import slices_of

        return slices_of(self.map, self.pixel_size_A)

    def _repr_html_(self) -> str:
        from polarice.api.pictures import figure_html

        return super()._repr_html_() + figure_html(self.plot())

    def _read(self, name: str) -> tuple[np.ndarray, float]:
        from polarice.io.mrc import read_volume

        return read_volume(self.folder / name)


@dataclass(frozen=True, eq=False)
class Classification:
    """Class averages and their particles; classes count from 1, as in files and pictures.

    averages      (K, N, N) float32
    weights       (K,) share of the particles, sums to 1
    resolution_A  (K,) where the spectral signal-to-noise ratio falls below 1
    particles     with class, in-plane angle and shift
    iteration     its number
    result        the job's folder; None where nothing was written
    """

    averages: np.ndarray
    weights: np.ndarray
    resolution_A: np.ndarray
    particles: ParticleSet
    iteration: int
    result: JobResult | None = None

    @property
    def folder(self) -> Path | None:
        return None if self.result is None else self.result.folder

    @property
    def class_of(self) -> np.ndarray:
        """(n,) class of each particle, from 1."""
        return self.particles.pose.class_of + 1

    @property
    def counts(self) -> np.ndarray:
        """(K,) particles of each class."""
        return np.bincount(self.particles.pose.class_of, minlength=len(self.averages))

    def select(self, classes: int | Iterable[int]) -> ParticleSet:
        """The particles of these classes, counted from 1. Raises InputError for a class that is not there, or none."""
        chosen = sorted({classes} if isinstance(classes, int) else set(classes))
        if wrong := [number for number in chosen if not 1 <= number <= len(self.averages)]:
            raise InputError(f"class {wrong[0]}: there are classes 1 to {len(self.averages)}")
        return self.particles[np.isin(self.class_of, chosen)]

    def plot(self, most: int = 60) -> Figure:
        """The averages of the largest classes, at most so many, with number, share and resolution."""
        from polarice.api.pictures import grid_of

        order = np.argsort(-self.weights, kind="stable")[:most]
        titles = [f"{k + 1}: {self.weights[k]:.1%}, {self.resolution_A[k]:.1f} Å" for k in order]
        return grid_of(self.averages[order], titles)

    def _repr_html_(self) -> str:
        from polarice.api.pictures import figure_html

        head = f"<p>{len(self.particles):,} particles in {len(self.averages)} classes, iteration {self.iteration}</p>"
        return head + figure_html(self.plot()) + (self.result._repr_html_() if self.result else "")

    def __repr__(self) -> str:
        kept = f" in {self.folder}" if self.folder else ""
        return f"Classification({len(self.particles)} particles, {len(self.averages)} classes{kept})"


def open_result(folder: str | os.PathLike[str]) -> Classification | JobResult:
    """The result in a job's folder: of Polarice, or a Class2D folder of RELION.

    Raises InputError where the folder holds none that can be read.
    """
    from polarice.io.relion_run.class2d import complete_iterations
    from polarice.project.provenance import read_job_json

    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    job = str(read_job_json(folder).get("job")) if (folder / "job.json").exists() else ""
    return result_of(job or ("class2d" if complete_iterations(folder) else ""), folder)


def result_of(job: str, folder: Path, held: KeptFolder | None = None) -> Classification | JobResult:
    """The result that `job` has left in its folder. Raises InputError where it left none."""
    if job in ("align2d", "class2d", "sml"):
        return _classification(JobResult(job, folder, held))
    if job == "deep2d":
        return _classification(JobResult("sml", folder / "sml", held))
    if job in MAPS:
        return MapResult(job, folder, held, MAPS[job])
    if job in ("import", "motion", "ctf", "pick", "extract", "simulate", "select"):
        return TableResult(job, folder, held)
    if job:
        return JobResult(job, folder, held)
    raise InputError(f"{folder}: no result of a job is in it")


def _classification(result: JobResult) -> Classification:
    """From the files of the last iteration that was written to the end."""
    from polarice.io.relion_run.class2d import complete_iterations
    from polarice.io.stacks import read_named
    from polarice.io.star import read_star

    done = complete_iterations(result.folder)
    if not done:
        raise InputError(f"{result.folder}: no iteration has been written to the end")
    root = result.folder / f"run_it{done[-1]:03d}"
    classes = read_star(f"{root}_model.star").table("model_classes")
    return Classification(
        averages=read_named(f"{root}_classes.mrcs", "rlnReferenceImage")[0],
        weights=classes.numbers("rlnClassDistribution"),
        resolution_A=classes.numbers("rlnEstimatedResolution"),
        particles=of_result(f"{root}_data.star", result.held),
        iteration=done[-1],
        result=result,
    )

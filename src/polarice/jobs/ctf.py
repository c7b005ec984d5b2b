"""`polarice ctf`: the contrast transfer function of every micrograph, from its Thon rings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.cluster import Comm
from polarice.io.micrographs import MicrographTable, read_micrographs, require_pixel_sizes, write_micrographs
from polarice.project.params import option, output
from polarice.runs.micrographs import (
    Item,
    Outcome,
    TaskPool,
    Writes,
    begin,
    cells_of,
    end,
    items_of,
    on_ranks,
    treat,
)
from polarice.runs.per_micrograph import PerMicrograph
from polarice.types import InputError, Optics

if TYPE_CHECKING:
    from polarice.contrast_transfer.estimate import Fit, Search
    from polarice.contrast_transfer.quality import Quality
    from polarice.contrast_transfer.spectrum import Spectrum

RANKS = True
SUMMARY = "fit the contrast transfer function: defocus, astigmatism, phase shift, fit resolution"
EXAMPLE = "polarice ctf MotionCorr/job002/micrographs.star --o CtfFind/job003"
SPECTRUM = "rlnCtfPowerSpectrum"
DRIFT = "drift (above 1: it drifted)"
REMARKS = {
    "no rings": "no Thon rings",
    "drift": "it drifted: rings, or all slow waves, are weak in one direction",
    "ice": "ice rings",
}


@dataclass(frozen=True)
class Params(PerMicrograph):
    """What is searched, and what is kept."""

    o: Path = output("ctf", "folder for micrographs.star, the fits' pictures and the report")
    box: int = option(512, "tile of the power spectrum", unit="px", low=64, high=8192, flags=("--Box",))
    res_min: float = option(30.0, "coarsest resolution of the fit", unit="A", low=5, high=200, flags=("--ResMin",))
    res_max: float = option(5.0, "finest resolution of the fit", unit="A", low=1, high=30, flags=("--ResMax",))
    defocus_min: float = option(5000.0, "least defocus", unit="A", low=500, high=200_000, flags=("--dFMin",))
    defocus_max: float = option(50_000.0, "largest defocus", unit="A", low=1000, high=200_000, flags=("--dFMax",))
    defocus_step: float = option(50.0, "step of the first search", unit="A", low=5, high=500)
    astigmatism: float = option(2000.0, "largest difference of the two defoci in the first search", unit="A", low=0)
    phase_shift: bool = option(False, "fit a phase shift, of a phase plate", flags=("--do-phaseshift",))
    phase_min: float = option(0.0, "least phase shift", unit="deg", low=0, high=180)
    phase_max: float = option(180.0, "largest phase shift", unit="deg", low=0, high=180)
    phase_step: float = option(10.0, "step of the first search", unit="deg", low=1, high=90)
    angpix: float | None = option(
        None, "pixel size", derived="the table's", unit="A", low=0.05, flags=("--pixel-size",)
    )
    power_spectra: bool = option(True, "use the movies' summed power spectra where the table names them")
    keep_ringless: bool = option(False, "keep micrographs without Thon rings in micrographs.star")

    def faults(self) -> Iterator[str]:
        for low, high in (("res_max", "res_min"), ("defocus_min", "defocus_max"), ("phase_min", "phase_max")):
            if getattr(self, low) >= getattr(self, high):
                flags = [f"--{name.replace('_', '-')} {getattr(self, name):g}" for name in (low, high)]
                yield f"{flags[0]} must be less than {flags[1]}"


def run(params: Params) -> None:
    """Fit all micrographs; raises InputError for what cannot be used."""
    on_ranks("ctf", params, _fit_all)


def _fit_all(params: Params, comm: Comm) -> None:
    """What rank 0 does; others help to treat."""
    from polarice.report.micrographs import MicrographReport

    table = read_micrographs(params.micrographs)
    _check_optics(table, params.angpix)
    items = _items(table, params)
    begin("ctf", params, Writes(params.o, ("micrographs.star",), items, (".ctf", "_ctf.png")), [params.micrographs])
    outcomes = treat(items, Fitting(params), TaskPool.of("ctf", params, comm=comm))
    cells = cells_of(outcomes)
    kept = _kept(cells.rows, outcomes, params)
    of_row = {row: place for place, row in enumerate(cells.rows)}
    columns = {label: [values[of_row[row]] for row in kept] for label, values in cells.columns.items()}
    write_micrographs(params.o / "micrographs.star", table.take(np.array(kept, int)), columns)
    ringless = len(cells.rows) - len(kept)
    numbers = [("without rings, left out of micrographs.star", f"{ringless:,}")] if ringless else []
    beside = f"without Thon rings not in micrographs.star (--keep-ringless keeps {'it' if ringless == 1 else 'them'})"
    report = MicrographReport("ctf", params.o, params, items, outcomes, text=_TEXT, numbers=numbers)
    end(report, f"{ringless} {beside}" if ringless else "")


_TEXT = (
    "Each picture shows the measured Thon rings on the left and the fitted CTF² on the right; the dotted circle is the "
    "fit resolution. Below, along lines of equal phase: the spectrum (blue), the fitted CTF² (orange), and how well "
    "the two agree within a few rings (green).",
)


def _check_optics(table: MicrographTable, angpix: float | None) -> None:
    for number in np.unique(table.optics_of):
        optics = table.optics[number]
        if optics.voltage_kV <= 0:
            raise InputError(f"{table.path}: optics group {optics.name} has no _rlnVoltage; add it to data_optics")
    if not angpix:
        require_pixel_sizes(table)


def _items(table: MicrographTable, params: Params) -> list[Item]:
    """With the power spectrum among an item's files where there is one."""
    items = items_of(table, params.o)
    if not params.power_spectra or SPECTRUM not in table.table:
        return items
    from polarice.io.micrographs import found

    spectra = [found(name, table.path) for name in table.table.text(SPECTRUM).tolist()]
    return [replace(item, inputs=(spectrum,)) for item, spectrum in zip(items, spectra, strict=True)]


def _kept(rows: Sequence[int], outcomes: Sequence[Outcome], params: Params) -> list[int]:
    kept = [row for row in rows if params.keep_ringless or REMARKS["no rings"] not in outcomes[row].remarks]
    if not kept:
        raise InputError(f"no micrograph has Thon rings; see {params.o}, or keep them all with --keep-ringless")
    return kept


@dataclass(frozen=True)
class Fitting:
    """Fits one micrograph: writes STEM.ctf (measured and fitted rings) and STEM_ctf.png."""

    params: Params

    def __call__(self, item: Item) -> Outcome:
        from polarice.contrast_transfer.estimate import estimate
        from polarice.contrast_transfer.quality import judge

        optics, remarks = self._optics(item)
        spectrum, more = self._spectrum(item, optics.pixel_size_A)
        search = self._search()
        fit = estimate(spectrum, optics, search)
        quality = judge(spectrum, optics, fit, search.resolution_A)
        thumbnail = self._draw(item, spectrum, optics, fit, quality)
        figures = {
            "defocus (Å)": fit.defocus_A,
            "astigmatism (Å)": fit.astigmatism_A,
            "fit resolution (Å)": quality.resolution_A,
            "figure of merit": fit.correlation,
            "ice": quality.ice,
            DRIFT: quality.drifted,
        }
        if search.fits_phase:
            figures["phase shift (°)"] = fit.phase_shift_deg
        flags = tuple(REMARKS[flag] for flag in quality.flags)
        return Outcome(self._columns(item, fit, quality), figures, (*remarks, *more, *flags), thumbnail)

    def _search(self) -> Search:
        from polarice.contrast_transfer.estimate import Search

        p = self.params
        phases = (p.phase_min, p.phase_max) if p.phase_shift else (0.0, 0.0)
        resolution, defocus = (p.res_min, p.res_max), (p.defocus_min, p.defocus_max)
        return Search(resolution, defocus, p.defocus_step, p.astigmatism, phases, p.phase_step)

    def _optics(self, item: Item) -> tuple[Optics, tuple[str, ...]]:
        optics = Optics(**item.settings["optics"])
        if not self.params.angpix:
            return optics, ()
        return replace(optics, pixel_size_A=self.params.angpix), ()

    def _spectrum(self, item: Item, pixel_size_A: float) -> tuple[Spectrum, tuple[str, ...]]:
        """The spectrum to fit, and what is odd about its file."""
        from polarice.contrast_transfer.spectrum import of_power, spectrum_of
        from polarice.io.pictures import other_size, read_picture, read_power_spectrum

        if item.inputs:
            power = read_power_spectrum(item.inputs[0])
            return of_power(power.pixels.astype(np.float64), power.pixel_size_A or pixel_size_A), ()
        picture = read_picture(item.file)
        return spectrum_of(picture.pixels, pixel_size_A, self.params.box), other_size(picture, pixel_size_A)

    def _columns(self, item: Item, fit: Fit, quality: Quality) -> dict[str, Any]:
        columns = {
            "rlnCtfImage": f"{item.stem}.ctf:mrc",
            "rlnDefocusU": fit.defocus_u_A,
            "rlnDefocusV": fit.defocus_v_A,
            "rlnCtfAstigmatism": fit.astigmatism_A,
            "rlnDefocusAngle": fit.defocus_angle_deg,
            "rlnCtfFigureOfMerit": fit.correlation,
            "rlnCtfMaxResolution": quality.resolution_A,
            "rlnCtfIceRingDensity": quality.ice,
            "polariceCtfDrift": quality.drifted,
        }
        if self.params.phase_shift:
            columns["rlnPhaseShift"] = fit.phase_shift_deg
        return columns

    def _draw(self, item: Item, spectrum: Spectrum, optics: Optics, fit: Fit, quality: Quality) -> str:
        from polarice.io.atomic import replacing
        from polarice.io.mrc import write_stack
        from polarice.report.micrographs import figure_png
        from polarice.report.rings import half_and_half, picture

        both = half_and_half(spectrum, optics, fit)
        write_stack(f"{item.stem}.ctf", both[None], spectrum.pixel_size_A)
        title = (
            f"{fit.defocus_A:.0f} Å, astigmatism {fit.astigmatism_A:.0f} Å at {fit.defocus_angle_deg:.0f}°, "
            f"rings to {quality.resolution_A:.1f} Å" + "".join(f"; {flag}" for flag in quality.flags)
        )
        path = f"{item.stem}_ctf.png"
        with replacing(path) as stream:
            stream.write(figure_png(picture(both, quality.curve, fit, quality.resolution_A, title)))
        return path

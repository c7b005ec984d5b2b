"""`polarice motion`: movies become micrographs, aligned, weighted by dose and summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polarice.cluster import Comm
from polarice.io.gain import GainRule, read_defects, read_gain
from polarice.io.micrographs import read_micrographs, write_micrographs
from polarice.io.motion import MovieFacts, write_motion
from polarice.io.movies import EER_ENDING, EerMovie, Events, Movie, open_movie, read_frames
from polarice.io.mrc import write_image
from polarice.project.params import MICROGRAPHS, argument, option, output
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
from polarice.types import InputError, Motion

if TYPE_CHECKING:
    from polarice.motion_correction.aligned_sum import AlignedSum
    from polarice.motion_correction.dose import Dose
    from polarice.motion_correction.exposure import Exposure

RANKS = True
IMAGES = True  # that other tables name: other options want another folder
SUMMARY = "align the frames of movies, weight them by dose, and sum them to micrographs"
EXAMPLE = "polarice motion Import/job001/movies.star --o MotionCorr/job002 --gainref gain.mrc --dose-per-frame 1.2"
EARLY_DOSE = 4.0  # e/A^2: motion up to here counts as early, as in RELION
HALVES = ("rlnMicrographNameEven", "rlnMicrographNameOdd")
LOOKED_AT = 5  # movies, until one is found that the gain reference suits
HEADER_AGREES = 0.02  # relative difference of pixel sizes that nobody minds
SMALLEST_FRAME_PX = 70  # smaller ones hold no shift that can be told


@dataclass(frozen=True)
class Params(PerMicrograph):
    """What to do with every movie; names are RELION's where RELION has them."""

    micrographs: Path = argument("movie table (STAR)", flags=("--i",), path=MICROGRAPHS)
    o: Path = output("MotionCorr")
    workers: int = option(1, "movies side by side, each wholly in memory", low=1, high=1024, resource=True)
    gainref: Path | None = option(None, "gain reference: MRC, TIFF, or EER .gain")
    gain_rot: int = option(0, "turn the gain reference so many times by 90 degrees clockwise", low=0, high=3)
    gain_flip: int = option(0, "then flip it: 1 upside down, 2 left to right", low=0, high=2)
    gain_sense: Literal["auto", "multiply", "divide"] = option(
        "auto", "frames are multiplied by it, or divided; auto: divided by flat fields of EER movies that are no .gain"
    )
    defect_file: Path | None = option(None, "defects of the camera: lines of x y width height, or an image, 1 there")
    hot_pixels: bool = option(True, "find and replace hot and dead pixels")
    first_frame: int = option(1, "first frame that is used, from 1", low=1, flags=("--first-frame-sum",))
    last_frame: int | None = option(
        None, "last frame that is used", derived="the movie's last", low=1, flags=("--last-frame-sum",)
    )
    dose_per_frame: float | None = option(
        None, "dose of a frame (of EER: of a fraction)", derived="the table's", unit="e/A2", low=0
    )
    total_dose: float | None = option(
        None, "dose of the whole movie, instead of a frame's", derived="from --dose-per-frame", unit="e/A2", low=0
    )
    preexposure: float = option(0.0, "dose before the first frame", unit="e/A2", low=0)
    dose_weighting: bool = option(True, "weight frequencies by what radiation has left of them")
    save_noDW: bool = option(False, "write the sum without dose weights too")
    even_odd_split: bool = option(False, "write the sums of even and of odd frames too, for denoisers")
    angpix: float | None = option(None, "pixel size of the movies", derived="the table's", unit="A", low=0.01, high=100)
    bin_factor: float = option(1.0, "make pixels so much larger, by Fourier cropping", low=1, high=16)
    patch_x: int | None = option(None, "patches along x", derived="one for about 250 px, at most 7", low=1, high=15)
    patch_y: int | None = option(None, "patches along y", derived="one for about 250 px, at most 7", low=1, high=15)
    bfactor: float = option(
        0.0, "extra B-factor on high frequencies, beyond the weights that the movie itself gives", unit="px2", low=0
    )
    eer_grouping: int = option(40, "raw frames to a fraction", low=1)
    eer_dose: float | None = option(
        None,
        "dose of a fraction, instead of --eer-grouping; needs --total-dose",
        derived="from --eer-grouping",
        unit="e/A2",
        low=0,
    )
    eer_upsampling: Literal["1", "2", "4"] = option(
        "1", "pixels along each side of a sensor pixel of EER; the pixel size is that of the smaller pixels"
    )
    dose_for_ps: float = option(
        4.0, "dose of the frames summed before their power spectrum is taken; 0: no spectrum", unit="e/A2", low=0
    )
    float16: bool = option(False, "write half-precision micrographs; RELION reads them from 4.0 on, 3.1 does not")


def run(params: Params) -> None:
    """Correct the motion of every movie of the table. Raises InputError for what cannot be used at all."""
    on_ranks("motion", params, _correct_all)


def _correct_all(params: Params, comm: Comm) -> None:
    """What rank 0 does; others help to treat."""
    from polarice.report.micrographs import MicrographReport

    table = read_micrographs(params.micrographs, "movies")
    check(params, table.optics, "rlnMicrographDoseRate" in table.table)
    references = [path for path in (params.gainref, params.defect_file) if path is not None]
    farm = TaskPool.of("motion", params, "movies", map(str, references), comm)
    items = items_of(table, params.o)
    work = Correct(params, farm.threads)
    _require_fitting(items, work)
    writes = Writes(params.o, ("micrographs.star",), items, _endings(params), images=IMAGES)
    begin("motion", params, writes, [params.micrographs, *references])
    outcomes = treat(items, work, farm)
    rows, columns = cells_of(outcomes)
    kept = table.take(np.array(rows))
    pixel_A = [(params.angpix or group.pixel_size_A) * params.bin_factor for group in table.optics]
    optics = {"rlnMicrographPixelSize": pixel_A}
    optics |= {"rlnMicrographOriginalPixelSize": [params.angpix] * len(pixel_A)} if params.angpix else {}
    kept = replace(kept, table=kept.table.without("rlnMicrographMovieName"))
    write_micrographs(params.o / "micrographs.star", kept, columns, "micrographs", optics)
    end(MicrographReport("motion", params.o, params, items, outcomes, "movies", TEXT))


def _endings(params: Params) -> tuple[str, ...]:
    """Of the files that are written of each movie."""
    more = (("_noDW.mrc",) if params.save_noDW else ()) + (("_PS.mrc",) if params.dose_for_ps else ())
    return (".mrc", ".star", "_track.png", *more, *(("_EVN.mrc", "_ODD.mrc") if params.even_odd_split else ()))


TEXT = (
    "Each picture is a micrograph with its motion drawn 20 times larger than it was: in yellow that of the whole "
    "frame, in its middle; in blue what places on the specimen did beside it. A dot is where the movie began.",
    "Motion is the length of the way in Angstrom, early up to a dose of 4 e/A2; local motion is the RMS displacement "
    "against the whole frame in the last frame.",
)


def check(params: Params, optics: Any, dose_in_table: bool) -> None:
    """Raise InputError for options that do not go together, before the work starts."""
    with_dose = params.dose_weighting and not (params.dose_per_frame or params.total_dose)
    wrong = {
        "give --dose-per-frame or --total-dose for dose weighting, or leave it out with --no-dose-weighting": with_dose
        and not dose_in_table,
        "--dose-per-frame and --total-dose say the same thing; give one": params.dose_per_frame and params.total_dose,
        f"--last-frame {params.last_frame} must be more than --first-frame {params.first_frame}": params.last_frame
        is not None
        and params.last_frame <= params.first_frame,
        "--eer-dose needs --total-dose": params.eer_dose is not None and not params.total_dose,
        "--gain-rot, --gain-flip and --gain-sense need --gainref": params.gainref is None
        and (params.gain_rot or params.gain_flip or params.gain_sense != "auto"),
        "--save-noDW is for dose weighting; without, the micrograph itself is not weighted": params.save_noDW
        and not params.dose_weighting,
        "--patch-x and --patch-y go together": (params.patch_x is None) != (params.patch_y is None),
        f"--gainref {params.gainref}: no such file": params.gainref is not None and not params.gainref.is_file(),
        f"--defect-file {params.defect_file}: no such file": params.defect_file is not None
        and not params.defect_file.is_file(),
        "the table states no pixel size; give it with --angpix": not params.angpix
        and not all(group.pixel_size_A > 0 for group in optics),
        "the table states no voltage; import the movies with --voltage": params.dose_weighting
        and not all(group.voltage_kV > 0 for group in optics),
    }
    if found := [message for message, is_wrong in wrong.items() if is_wrong]:
        raise InputError(f"{params.micrographs}: {'; '.join(found)}")


@dataclass(frozen=True)
class Correct:
    """Makes one movie a micrograph."""

    params: Params
    threads: int

    def __call__(self, item: Item) -> Outcome:
        from polarice.motion_correction.align import Alignment, align
        from polarice.motion_correction.aligned_sum import sum_frames
        from polarice.motion_correction.exposure import binned
        from polarice.runs.classification import device_of

        params = self.params
        device = device_of(replace(params, threads=self.threads))
        pixel_A = params.angpix or float(item.settings["optics"]["pixel_size_A"])
        facts, exposure, remarks = self._open(item, pixel_A)
        if min(exposure.shape) < SMALLEST_FRAME_PX:
            size = f"{exposure.shape[1]} x {exposure.shape[0]}"
            raise InputError(f"{item.file}: frames of {size} pixels; {SMALLEST_FRAME_PX} along each side are the least")
        dose = self._dose(facts)
        patches = (params.patch_x, params.patch_y) if params.patch_x and params.patch_y else None
        alignment = Alignment(pixel_A, params.bfactor, patches)
        frames = binned(exposure, alignment.factor, device)
        motion = align(frames, exposure.numbers, exposure.shape, alignment)
        group = max(1, round(params.dose_for_ps / (facts.dose_per_frame or 1))) if params.dose_for_ps else 0
        made = sum_frames(exposure, motion, pixel_A, dose, group, device, params.even_odd_split)
        columns = self._write(item, made, motion, facts, exposure)
        figures, moved = _figures(motion, facts, exposure)
        return Outcome(columns | moved, figures, tuple(remarks), item.stem + "_track.png")

    def _open(self, item: Item, pixel_A: float) -> tuple[MovieFacts, Exposure, list[str]]:
        """The movie's frames, and what it says of itself; remarks are for the user."""
        from polarice.motion_correction.exposure import expose

        params, remarks = self.params, []
        with open_movie(item.file, self._events(item)) as movie:
            gain, defects = _references(params, movie.shape, isinstance(movie, EerMovie))
            if movie.pixel_size_A and abs(movie.pixel_size_A / pixel_A - 1) > HEADER_AGREES:
                remarks.append(f"the file says {movie.pixel_size_A:.4g} A/px; {pixel_A:.4g} is used")
            chosen = range(params.first_frame - 1, min(params.last_frame or movie.frames, movie.frames))
            if len(chosen) < 2:
                raise InputError(f"{item.file} has {movie.frames} frames; two from --first-frame on are wanted")
            if params.last_frame and params.last_frame > movie.frames:
                remarks.append(f"it has {movie.frames} frames; --last-frame is {params.last_frame}")
            if isinstance(movie, EerMovie) and movie.unused:
                remarks.append(movie.unused)
            frames, facts = read_frames(movie, self.threads, chosen), self._facts(item, movie, pixel_A)
        try:
            exposure, wrong = expose(frames, gain, defects, params.hot_pixels, params.first_frame)
        except InputError as error:
            raise InputError(f"{item.file}: {error}") from None
        remarks += [f"frame {number + facts.first_frame} {what}; left out" for number, what in wrong.items()]
        return facts, exposure, remarks

    def _events(self, item: Item) -> Events:
        """How to group the raw frames of an EER movie."""
        params = self.params
        events = Events(params.eer_grouping, int(params.eer_upsampling))
        if params.eer_dose is None or not item.file.lower().endswith(EER_ENDING):
            return events
        with open_movie(item.file, Events(1)) as movie:
            assert params.total_dose is not None
            return replace(events, group=max(1, round(params.eer_dose / params.total_dose * movie.frames)))

    def _facts(self, item: Item, movie: Movie, pixel_A: float) -> MovieFacts:
        params, events = self.params, isinstance(movie, EerMovie)
        per_frame = params.dose_per_frame or float(item.settings["cells"].get("rlnMicrographDoseRate", 0))
        group = self._events(item).group if events else 0
        if params.total_dose:
            per_frame = params.total_dose / movie.frames
            if isinstance(movie, EerMovie):
                per_frame = params.total_dose * group / movie.raw_frames
        return MovieFacts(
            item.name, pixel_A, params.bin_factor, per_frame, params.preexposure,
            float(item.settings["optics"]["voltage_kV"]), str(params.gainref or ""), str(params.defect_file or ""),
            group, int(params.eer_upsampling) if events else 0, params.first_frame, movie.frames,
        )  # fmt: skip

    def _dose(self, facts: MovieFacts) -> Dose | None:
        from polarice.motion_correction.dose import Dose

        if not self.params.dose_weighting:
            return None
        if not facts.dose_per_frame > 0:
            raise InputError(f"{facts.movie}: no dose per frame; give it with --dose-per-frame")
        return Dose(facts.dose_per_frame, facts.dose_at_start, facts.voltage_kV)

    def _write(
        self, item: Item, made: AlignedSum, motion: Motion, facts: MovieFacts, exposure: Exposure
    ) -> dict[str, Any]:
        """All files of one movie; the names for its row of the table."""
        from polarice.io.atomic import replacing
        from polarice.report.track import track_png

        dtype = np.float16 if self.params.float16 else np.float32
        pixel_A = facts.pixel_size_A * self.params.bin_factor
        images = {"": made.plain if made.weighted is None else made.weighted}
        images |= {"_noDW": made.plain} if self.params.save_noDW else {}
        columns: dict[str, Any] = {"rlnMicrographNameNoDW": item.stem + "_noDW.mrc"} if self.params.save_noDW else {}
        for ending, label, half in zip(("_EVN", "_ODD"), HALVES, made.halves, strict=False):
            images[ending], columns[label] = half, f"{item.stem}{ending}.mrc"
        for ending, image in images.items():
            write_image(f"{item.stem}{ending}.mrc", _binned(image, self.params.bin_factor), pixel_A, dtype)
        if made.spectrum is not None:
            write_image(item.stem + "_PS.mrc", _centred_amplitude(made.spectrum), facts.pixel_size_A)
            columns["rlnCtfPowerSpectrum"] = item.stem + "_PS.mrc"
        write_motion(item.stem + ".star", motion, facts, exposure.bad)
        with replacing(item.stem + "_track.png") as stream:
            stream.write(track_png(images[""], motion))
        return columns | {"rlnMicrographName": item.stem + ".mrc", "rlnMicrographMetadata": item.stem + ".star"}


def _require_fitting(items: Sequence[Item], work: Correct) -> None:
    """Raise InputError where gain reference or defects suit none of the first movies: said once, before any is done."""
    refused: InputError | None = None
    for item in items[:LOOKED_AT] if work.params.gainref or work.params.defect_file else ():
        try:
            with open_movie(item.file, work._events(item)) as movie:
                shape, events = movie.shape, isinstance(movie, EerMovie)
        except InputError:  # told when its turn comes
            continue
        try:
            _references(work.params, shape, events)
            return
        except InputError as error:
            refused = refused or error
    if refused is not None:
        raise refused


@lru_cache(maxsize=2)
def _references(params: Params, shape: tuple[int, int], events: bool) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Gain and defects for frames of this shape, read once."""
    rule = GainRule(params.gain_rot, params.gain_flip, params.gain_sense)
    gain = None if params.gainref is None else read_gain(params.gainref, shape, events, rule)
    defects = None if params.defect_file is None else read_defects(params.defect_file, shape)
    return gain, defects


def _binned(image: np.ndarray, factor: float) -> np.ndarray:
    """Fourier-cropped to even sides."""
    from polarice.fourier import resample

    if factor == 1:
        return image
    import torch

    ny, nx = (2 * round(length / factor / 2) for length in image.shape)
    return resample(torch.from_numpy(image), (ny, nx)).numpy()


def _centred_amplitude(power: np.ndarray) -> np.ndarray:
    """Square root of a half spectrum (side, side // 2 + 1), whole and with frequency 0 in the middle, as RELION's."""
    side = len(power)
    other = np.roll(power[:, 1 : side - side // 2][::-1, ::-1], 1, axis=0)
    return np.fft.fftshift(np.sqrt(np.concatenate([power, other], 1))).astype(np.float32)


def _figures(motion: Motion, facts: MovieFacts, exposure: Exposure) -> tuple[dict[str, float], dict[str, float]]:
    """What the report shows of one movie, and RELION's columns of accumulated motion (A)."""
    steps = np.hypot(*np.diff(motion.shifts_px, axis=0).T) * facts.pixel_size_A
    last = len(steps)
    early = round((EARLY_DOSE - facts.dose_at_start) / facts.dose_per_frame) if facts.dose_per_frame else last
    early = min(max(early, 0), last)
    y, x = np.meshgrid(*((np.arange(5) + 0.5) / 5 * length for length in motion.shape), indexing="ij")
    local = (motion.at(last, x, y) - motion.shifts_px[last]) * facts.pixel_size_A
    accumulated = {
        "rlnAccumMotionTotal": float(steps.sum()),
        "rlnAccumMotionEarly": float(steps[:early].sum()),
        "rlnAccumMotionLate": float(steps[early:].sum()),
    }
    figures = {
        "motion (A)": float(steps.sum()),
        "early (A)": float(steps[:early].sum()),
        "local (A)": float(np.sqrt((local**2).sum(-1).mean())),
        "counts/px/frame": exposure.mean,
        "bad pixels": float(len(exposure.bad)),
    }
    return figures, accumulated

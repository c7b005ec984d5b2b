"""A movie's motion as RELION keeps it: the STAR file beside each micrograph.

RELION states the shift that brings a frame back, in pixels of the movie: the opposite of `types.Motion`, both for
whole frames and for the local polynomial (model version 1).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from polarice.io.star import Block, read_star, write_star
from polarice.io.table import Table
from polarice.types import InputError, Motion

MOST_SHIFT_PX = 1e5
NOT_USED = -9999.0  # RELION's shift of frames before the first and behind the last that is used
LOCAL_MODEL = 1  # rlnMotionModelVersion of the polynomial


@dataclass(frozen=True)
class MovieFacts:
    """What the STAR file says of the movie beside its motion."""

    movie: str
    pixel_size_A: float  # of the movie
    binning: float
    dose_per_frame: float  # e/A^2
    dose_before: float  # the movie's first frame
    voltage_kV: float
    gain: str = ""
    defects: str = ""
    eer_group: int = 0  # raw frames to a frame; 0 where the movie is no EER file
    eer_upsampling: int = 0
    first_frame: int = 1  # of those used, counted from 1
    frames: int = 0  # of the movie; 0: those used are all

    @property
    def dose_at_start(self) -> float:
        """Taken before the first frame that is used, e/A^2."""
        return self.dose_before + (self.first_frame - 1) * self.dose_per_frame


def write_motion(path: str | os.PathLike[str], motion: Motion, facts: MovieFacts, hot: np.ndarray) -> None:
    """Write the motion, with hot pixels (n, 2) x, y, as RELION reads it.

    Raises InputError where the disk is full or the folder may not be written.
    """
    frames = len(motion.shifts_px)
    general: dict[str, object] = {
        "rlnImageSizeX": motion.shape[1],
        "rlnImageSizeY": motion.shape[0],
        "rlnImageSizeZ": facts.frames or frames,
        "rlnMicrographMovieName": facts.movie,
    }
    general |= {"rlnMicrographGainName": facts.gain} if facts.gain else {}
    general |= {"rlnMicrographDefectFile": facts.defects} if facts.defects else {}
    if facts.eer_group:
        general |= {"rlnEERGrouping": facts.eer_group, "rlnEERUpsampling": facts.eer_upsampling}
    general |= {
        "rlnMicrographBinning": float(facts.binning),
        "rlnMicrographOriginalPixelSize": float(facts.pixel_size_A),
        "rlnMicrographDoseRate": float(facts.dose_per_frame),
        "rlnMicrographPreExposure": float(facts.dose_before),
        "rlnVoltage": float(facts.voltage_kV),
        "rlnMicrographStartFrame": facts.first_frame,
        "rlnMotionModelVersion": LOCAL_MODEL,
    }
    shifts = {
        "rlnMicrographFrameNumber": np.arange(frames) + facts.first_frame,
        "rlnMicrographShiftX": -motion.shifts_px[:, 0] + 0.0,
        "rlnMicrographShiftY": -motion.shifts_px[:, 1] + 0.0,
    }
    local = -motion.local_px.reshape(-1) + 0.0
    model = {"rlnMotionModelCoeffsIdx": np.arange(len(local)), "rlnMotionModelCoeff": local}
    blocks = [
        Block.of_pairs("general", general),
        Block("global_shift", table=Table.of(shifts)),
        Block("local_motion_model", table=Table.of(model, {"rlnMotionModelCoeff": "%.9e"})),
    ]
    if len(hot):
        places = {"rlnCoordinateX": hot[:, 0].astype(float), "rlnCoordinateY": hot[:, 1].astype(float)}
        blocks.append(Block("hot_pixels", table=Table.of(places)))
    write_star(path, blocks)


def read_motion(path: str | os.PathLike[str]) -> Motion:
    """The motion in a movie's STAR file, RELION's or ours, of the frames that were used, the first of them 0.

    Raises InputError where something is missing or the local model is of another kind.
    """
    star = read_star(path)
    general = star["general"].pairs
    try:
        shape = (int(general["rlnImageSizeY"]), int(general["rlnImageSizeX"]))
        version = int(general.get("rlnMotionModelVersion", "0"))
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}, data_general: {error} is missing or no number") from None
    whole = star.table("global_shift")
    shifts = np.stack([whole.finite(f"rlnMicrographShift{axis}", MOST_SHIFT_PX) for axis in "XY"], -1)
    shifts = shifts[shifts[:, 0] > NOT_USED]
    local = np.zeros((2, 6, 3))
    if version == LOCAL_MODEL and "local_motion_model" in star:
        values = star.table("local_motion_model").finite("rlnMotionModelCoeff", MOST_SHIFT_PX)
        if len(values) != local.size:
            raise InputError(f"{path}: {len(values)} coefficients of local motion; {local.size} are wanted")
        local = values.reshape(local.shape)
    elif version not in (0, LOCAL_MODEL):
        raise InputError(f"{path}: local motion of model {version} is not known")
    return Motion(-shifts + 0.0, shape, -local + 0.0)

#!/usr/bin/env python3
"""How many apoferritin classes are in use, how far their shells lie from the centre, and what resolution they reach.

usage: measure_apoferritin.py JOB OUT.json [--relion run_itNNN_model.star]

JOB       folder of a class2d run on particles of apoferritin (a hollow shell of about 130 A)
--relion  model file that relion_refine --continue wrote after one iteration from JOB: its own estimate of resolution
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np

from polarice.io.mrc import open_stack, read_header
from polarice.io.star import read_star

RIM_A, RIM_WIDTH_A, HOLLOW_A, REACH_A = (
    48.0,
    10.0,
    28.0,
    75.0,
)  # radii of the shell's bright rim, its hollow, and beyond
SEARCH_PX = 20


def shell_centres(averages: np.ndarray, pixel_size_A: float) -> np.ndarray:
    """(K, 2) x, y in px from the box's centre: where a bright rim around a dark hollow matches each average best."""
    box = averages.shape[-1]
    x = np.arange(box) - box // 2
    radius_A = np.hypot(x[:, None], x) * pixel_size_A
    template = np.exp(-(((radius_A - RIM_A) / RIM_WIDTH_A) ** 2)) - 0.6 * np.exp(-((radius_A / HOLLOW_A) ** 2))
    template = np.where(radius_A < REACH_A, template - template[radius_A < REACH_A].mean(), 0)
    spectrum = np.conj(np.fft.rfft2(np.fft.ifftshift(template)))
    match = np.fft.irfft2(np.fft.rfft2(averages) * spectrum, s=(box, box))
    match[:, np.hypot(x[:, None], x) > SEARCH_PX] = -np.inf
    row, column = np.unravel_index(match.reshape(len(match), -1).argmax(axis=1), (box, box))
    return np.stack([column, row], axis=1) - box // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--relion", type=Path)
    given = parser.parse_args()
    stack = sorted(given.job.glob("run_it*_classes.mrcs"))[-1]
    averages = np.array(open_stack(stack), np.float64)
    model = read_star(str(stack).replace("_classes.mrcs", "_model.star"))
    classes = read_star(str(stack).replace("_classes.mrcs", "_data.star")).table("particles").integers("rlnClassNumber")
    off_px = np.linalg.norm(shell_centres(averages, read_header(stack).pixel_size_A), axis=1)
    result = {
        "command": re.sub(r" --o \S+", "", json.loads((given.job / "job.json").read_text())["command"]),
        "particles": len(classes),
        "particles_in_class": np.bincount(classes, minlength=len(averages) + 1)[1:].tolist(),
        "off_centre_px": np.round(off_px, 1).tolist(),
        "within_3_px": int((off_px <= 3).sum()),
        "resolution_A": model.table("model_classes").numbers("rlnEstimatedResolution").round(1).tolist(),
    }
    if given.relion:
        relion = read_star(given.relion)
        result["relion_after_one_more_iteration_A"] = (
            relion.table("model_classes").numbers("rlnEstimatedResolution").round(1).tolist()
        )
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

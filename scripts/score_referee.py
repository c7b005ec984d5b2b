#!/usr/bin/env python3
"""Classify simulated particles whose truth is known, with several seeds, and score the results by a referee's program.

usage: score_referee.py REFEREE DATA OUT.json [--command class2d] [--seeds 1 2 3] [--threads 2]

REFEREE  folder with make_particles.py and score_class2d.py (and the maps in ../data/maps)
DATA     folder where the four particle sets lie or will be made: p0.2, p0.05 (26S proteasome), r0.2, r0.05 (70S)
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

MAPS = {
    "p": ("proteasome26S_u123_b1_c1.mrc", ["--box", "96"]),
    "r": ("clean70SRibosome_vol_65p.mrc", ["--apix", "5", "--box", "80"]),
}
DIAMETER_A = {"p": 440, "r": 320}
RELION5 = {  # RELION 5.0.1, 25 iterations, K = 20, as the referee's README states them
    "p0.2": {"effective": 11.32, "pose_deg": 48.9, "good": 0.172, "shift_px": 1.02},
    "r0.2": {"effective": 12.83, "pose_deg": 23.5, "good": 0.406, "shift_px": 0.63},
    "p0.05": {"effective": 9.48, "pose_deg": 63.3, "good": 0.125, "shift_px": 1.28},
    "r0.05": {"effective": 12.23, "pose_deg": 52.5, "good": 0.161, "shift_px": 1.36},
}


def make_set(referee: Path, data: Path, name: str) -> Path:
    """The particle set `name` (p or r and its SNR), made where it is not there yet."""
    folder = data / name
    if not (folder / "truth.npz").exists():
        map_name, options = MAPS[name[0]]
        command = [sys.executable, referee / "make_particles.py", referee / "../data/maps" / map_name, folder]
        subprocess.run([*map(str, command), *options, "--snr", name[1:]], check=True)
    return folder


def run(folder: Path, name: str, arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """One run and its scores."""
    out = folder / f"{arguments.command}_seed{seed}_{int(time.time())}"
    polarice = Path(sys.executable).with_name("polarice")
    words = [arguments.command, folder / "particles.star", "--o", out, "--k", 20, "--seed", seed]
    words += ["--particle-diameter", DIAMETER_A[name[0]], "--threads", arguments.threads]
    since = time.perf_counter()
    subprocess.run([polarice, *map(str, words)], check=True, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - since
    last = sorted(out.glob("run_it*_data.star"))[-1]
    score = subprocess.run(
        [sys.executable, arguments.referee / "score_class2d.py", last, folder / "truth.npz"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return {"seed": seed, "seconds": round(seconds, 1), **json.loads(score.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("referee", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--command", default="class2d", choices=["class2d", "align2d"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sets", nargs="+", default=list(RELION5))
    arguments = parser.parse_args()
    result: dict[str, object] = {
        "command": f"polarice {arguments.command} SET/particles.star --k 20 --particle-diameter 440 (p) or 320 (r) "
        "--seed SEED",
        "machine": f"{platform.machine()}, {arguments.threads} threads",
    }
    for name in arguments.sets:
        folder = make_set(arguments.referee, arguments.data, name)
        runs = [run(folder, name, arguments, seed) for seed in arguments.seeds]
        median = {key: statistics.median(each[key] for each in runs) for key in runs[0] if key not in ("seed",)}
        result[name] = {"runs": runs, "median": median, "relion_5.0.1": RELION5[name]}
        print(name, json.dumps(median), flush=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

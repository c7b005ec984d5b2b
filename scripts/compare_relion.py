#!/usr/bin/env python3
"""Time one iteration of Polarice and of RELION on the same particles, threads and K, one after the other.

usage: compare_relion.py OUT.json [--particles 2000] [--box 128] [--k 20] [--relion-particles 200] [--threads 2]

Simulates particles of the bundled 70S ribosome. RELION is timed on a part of them, by the times at which it wrote its
first two iterations; Polarice on all, over a whole run: the first iteration with all K classes (21 shifts over the
whole range), the mean of those with all K, and the slowest (29 fine shifts). Needs relion_refine on PATH.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DIAMETER_A = 330


def simulate(folder: Path, particles: int, box: int, snr: float) -> Path:
    from polarice.jobs import simulate

    model = Path(simulate.__file__).parents[1] / "data/ribosome70S.mrc"
    params = simulate.Params((model,), o=folder, particles=particles, box=box, angpix=3.5, snr=snr, seed=1)
    simulate.run(params)
    return folder / "particles.star"


def time_polarice(table: Path, out: Path, k: int, threads: int) -> dict[str, float]:
    """Milliseconds per image and iteration."""
    program = str(Path(sys.executable).with_name("polarice"))
    options = ["--k", str(k), "--iter", "8", "--particle-diameter", str(DIAMETER_A), "--threads", str(threads)]
    command = [program, "align2d", str(table), "--o", str(out), *options]
    subprocess.run(command, check=True, capture_output=True, cwd=table.parent)
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    full = [row for row in rows if row["classes"] == k]
    spent = [1e3 * sum(row["seconds"].values()) / row["particles_used"] for row in full]
    return {"wide_search_ms": spent[0], "mean_ms": sum(spent) / len(spent), "slowest_ms": max(spent)}


def time_relion(table: Path, out: Path, k: int, threads: int, particles: int) -> dict[str, float]:
    """Milliseconds per image and iteration, by the times at which it wrote its first two iterations."""
    from polarice.io.particles import read_particles, write_particles

    whole = read_particles(table)
    part = table.with_name("part.star")
    write_particles(part, whole.take(slice(0, particles)))  # type: ignore[arg-type]
    out.mkdir()
    options = (
        "--iter 2 --tau2_fudge 2 --zero_mask --ctf --oversampling 1 --psi_step 12 --offset_range 5 --offset_step 2"
    )
    command = f"relion_refine --i {part.name} --o {out}/run --K {k} --j {threads} --particle_diameter {DIAMETER_A}"
    words = f"{command} {options} --norm --scale --flatten_solvent --pad 2 --random_seed 1".split()
    subprocess.run(words, check=True, capture_output=True, cwd=table.parent)
    written = [(out / f"run_it00{i}_optimiser.star").stat().st_mtime for i in (0, 1, 2)]
    first, second = (1e3 * (later - earlier) / particles for earlier, later in itertools.pairwise(written))
    return {"ms": second, "first_iteration_ms": first, "particles": particles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--particles", type=int, default=2000)
    parser.add_argument("--relion-particles", type=int, default=200)
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--snr", type=float, default=0.05)
    given = parser.parse_args()
    if shutil.which("relion_refine") is None:
        raise SystemExit("relion_refine is not on PATH; on Debian: apt-get install relion")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        table = simulate(folder, given.particles, given.box, given.snr)
        ours = time_polarice(table, folder / "polarice", given.k, given.threads)
        relion = time_relion(table, folder / "relion", given.k, given.threads, given.relion_particles)
        again = time_polarice(table, folder / "again", given.k, given.threads)
    result = {
        "what": f"one iteration, {given.particles} images of {given.box} px, K = {given.k}, {given.threads} threads",
        "snr": given.snr,
        "machine": f"{platform.machine()}, {platform.system()}",
        "polarice": ours,
        "polarice_after_relion": again,
        "relion_refine": relion,
        "ratio_first_wide_search": relion["first_iteration_ms"] / max(ours["wide_search_ms"], again["wide_search_ms"]),
        "ratio_mean": (relion["ms"] + relion["first_iteration_ms"]) / 2 / max(ours["mean_ms"], again["mean_ms"]),
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

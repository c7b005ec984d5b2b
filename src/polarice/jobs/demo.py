"""`polarice demo`: the main job on bundled data: ribosome particles whose truth is known, and real apoferritin."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarice.project import registry, state
from polarice.project.fault import spared
from polarice.project.params import as_dict, command_line, option, output
from polarice.runs.resources import Computing
from polarice.types import InputError

if TYPE_CHECKING:
    from polarice.report.index import Chapter, Picture
    from polarice.simulation.score import Score

SUMMARY = "classify simulated 70S ribosomes and real apoferritin, and make a page of the results"
EXAMPLE = "polarice demo --o demo"
DATA = Path(__file__).parents[1] / "data"
APOFERRITIN_CLASSES = 10
RIBOSOME_DIAMETER_A, APOFERRITIN_DIAMETER_A = 290.0, 140.0
SNR = 0.1
PAGE = "report.html"
RAW_SHOWN, RAW_SIDE_PX = 10, 96
# What a demo leaves in its folder, and so what the next one may remove.
_EVERY = ("job.json", *state.FILES, ".*.tmp-*")
_SIMULATED = (*_EVERY, "particles.mrcs", "particles.star", "truth.npz", "truth.star")
_CLASSIFIED = (*_EVERY, "usage.json", "history.jsonl", "report.html", "report_*.png", "run_it[0-9]*_*")
_MADE = {"simulated": _SIMULATED, "ribosome": _CLASSIFIED, "apoferritin": _CLASSIFIED, ".": (PAGE, *_EVERY[1:])}


@dataclass(frozen=True)
class Params(Computing):
    """How large the demo is; the rest is fixed."""

    o: Path = output("demo", "folder for everything the demo makes; an earlier demo's is replaced")
    particles: int = option(2000, "number of simulated ribosome particles", low=30, high=1_000_000)
    k: int = option(20, "number of ribosome classes; apoferritin has 10", low=1, high=10_000, flags=("-k", "--K"))
    iter: int = option(20, "number of iterations", low=1, high=999)
    seed: int = option(1, "seed of everything random", low=0)


def run(params: Params) -> None:
    """Simulate, classify both sets, score, write the page. Raises InputError for what cannot be used."""
    seconds: dict[str, float] = {}
    _make_room(params)
    print(f"1/3  simulating {params.particles} particles of the 70S ribosome", flush=True)
    with _timed(seconds, "simulated"):
        _simulate(params)
    print(f"2/3  sorting them into {params.k} classes", flush=True)
    with _timed(seconds, "ribosome"):
        _classify(params, "ribosome")
    score = score_of(params.o / "ribosome" / f"run_it{params.iter:03d}_data.star", params.o / "simulated/truth.npz")
    print(f"     against the truth: {_words(score)}", flush=True)
    print(f"3/3  sorting 550 real particles of apoferritin into {APOFERRITIN_CLASSES} classes", flush=True)
    with _timed(seconds, "apoferritin"):
        _classify(params, "apoferritin")
    page = spared(lambda: _write_page(params, score, seconds), params.o / PAGE)
    print(f"done in {sum(seconds.values()):.0f} s; open {page}")


def score_of(data_star: Path, truth_npz: Path) -> Score:
    """The score of a run on simulated particles; the truth's row is the image's section."""
    import numpy as np

    from polarice.io.particles import read_particles
    from polarice.simulation.score import score

    particles = read_particles(data_star, need_ctf=False).particles
    with np.load(truth_npz) as truth:
        return score(particles.pose, truth["quat"][particles.section], truth["shift"][particles.section])


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    since = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - since


def _make_room(params: Params) -> None:
    """The folder, without what an earlier demo left in it; a folder that is somebody else's is refused."""
    from polarice.project.provenance import NAME, read_job_json, write_job_json

    folder = params.o
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            ours = (folder / NAME).is_file() and read_job_json(folder).get("job") == "demo"
            if not ours:
                raise InputError(f"{folder}: holds files that no demo made; choose another folder with --o")
            _remove_earlier(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be used ({error.strerror}); choose another folder with --o") from error
    inputs = [DATA / "ribosome70S.mrc", DATA / "apoferritin/particles.star", DATA / "apoferritin/particles.mrcs"]
    write_job_json(folder, "demo", as_dict(params), command_line("demo", params), inputs=inputs, seed=params.seed)


def _remove_earlier(folder: Path) -> None:
    for name, patterns in _MADE.items():
        inner = folder / name
        if inner.is_symlink() or not inner.is_dir():
            continue
        for path in [path for pattern in patterns for path in inner.glob(pattern) if not path.is_dir()]:
            path.unlink(missing_ok=True)
        if name != "." and not any(inner.iterdir()):
            inner.rmdir()


def _simulation(params: Params) -> Any:
    from polarice.jobs import simulate

    return simulate.Params(
        inputs=(DATA / "ribosome70S.mrc",),
        o=params.o / "simulated",
        particles=params.particles,
        snr=SNR,
        seed=params.seed,
        threads=params.threads,
    )


def _classification(params: Params, name: str) -> Any:
    from polarice.jobs import class2d

    ribosome = name == "ribosome"
    return class2d.Params(
        particles=params.o / "simulated/particles.star" if ribosome else DATA / "apoferritin/particles.star",
        o=params.o / name,
        k=params.k if ribosome else APOFERRITIN_CLASSES,
        iter=params.iter,
        particle_diameter=RIBOSOME_DIAMETER_A if ribosome else APOFERRITIN_DIAMETER_A,
        seed=params.seed,
        device=params.device,
        threads=params.threads,
    )


def _simulate(params: Params) -> None:
    registry.run("simulate", _simulation(params))


def _classify(params: Params, name: str) -> None:
    registry.run("class2d", _classification(params, name))


def _words(score: Score) -> str:
    return (
        f"half of the particles lie within {score.view_deg:.1f} degrees of their class's view, {score.pose_deg:.1f} "
        f"degrees of its pose, {score.shift_px:.2f} px of its centre; {score.effective:.1f} effective classes"
    )


def _write_page(params: Params, score: Score, seconds: dict[str, float]) -> Path:
    from polarice.project.provenance import versions
    from polarice.report.index import write_index

    machine = versions()
    where = machine["GPU"] if params.device != "cpu" and machine["GPU"] != "none" else machine["CPU"]
    return write_index(
        params.o / PAGE,
        "Polarice demo",
        f"Polarice {machine['polarice']} · {time.strftime('%Y-%m-%d %H:%M')} · {where} · "
        f"{sum(seconds.values()):.0f} s in all",
        [_ribosome_chapter(params, score, seconds), _apoferritin_chapter(params, seconds), _next_chapter(params)],
    )


def _ribosome_chapter(params: Params, score: Score, seconds: dict[str, float]) -> Chapter:
    from polarice.report.index import Chapter
    from polarice.simulation.score import least_view_deg

    least = least_view_deg(params.k)
    return Chapter(
        "Simulated 70S ribosome",
        text=(
            f"{params.particles:,} projections of a 12 Å map in random orientations and off-centre, with a CTF of 1.0 "
            "to 2.5 µm defocus and white noise: in the particle's circle the noise has "
            f"{1 / SNR:.0f} times the variance of the signal. The classification was told nothing but the CTF.",
            "The truth is known, so the result can be scored. Particles of one class should have been seen from one "
            f"direction: half of them lie within {score.view_deg:.1f}° of their class's mean ({params.k} classes that "
            f"share all directions evenly cannot do better than {least:.1f}°). With the in-plane angle counted too it "
            f"is {score.pose_deg:.1f}°; {100 * score.good:.0f} % of the particles are within 20°. Half of the "
            f"particles are centred to {score.shift_px:.2f} px or better.",
        ),
        numbers=[
            *_run_numbers(params, "ribosome", seconds),
            ("views, median", f"{score.view_deg:.1f}°"),
            ("poses, median", f"{score.pose_deg:.1f}°"),
            ("centres, median", f"{score.shift_px:.2f} px"),
        ],
        pictures=[
            _raw(params.o / "simulated/particles.mrcs", f"{RAW_SHOWN} of the particles, as they went in."),
            _montage(params, "ribosome"),
        ],
        commands=[
            ("Made by", command_line("simulate", _simulation(params))),
            ("and", command_line("class2d", _classification(params, "ribosome"))),
        ],
        links=[("Full report of this run", "ribosome/report.html"), ("Its folder", "ribosome/")],
    )


def _apoferritin_chapter(params: Params, seconds: dict[str, float]) -> Chapter:
    from polarice.report.index import Chapter

    return Chapter(
        "Real apoferritin",
        text=(
            "550 particles from 11 micrographs of EMPIAR-10146 (CC0), 64 px of 3.375 Å, picked by hand; the movies "
            "were averaged without motion correction, and the defocus is one plain fit for each micrograph.",
            "Apoferritin is a hollow shell about 130 Å wide that looks much the same from all sides. Good classes "
            "are centred rings with a dark inside; a bright patch at the edge of a circle is a neighbour in the "
            "crowded ice.",
        ),
        numbers=_run_numbers(params, "apoferritin", seconds),
        pictures=[
            _raw(DATA / "apoferritin/particles.mrcs", f"{RAW_SHOWN} of the particles, as they went in."),
            _montage(params, "apoferritin"),
        ],
        commands=[("Made by", command_line("class2d", _classification(params, "apoferritin")))],
        links=[("Full report of this run", "apoferritin/report.html"), ("Its folder", "apoferritin/")],
    )


def _next_chapter(params: Params) -> Chapter:
    from polarice.report.index import Chapter

    optimiser = params.o / "ribosome" / f"run_it{params.iter:03d}_optimiser.star"
    return Chapter(
        "Now with your own particles",
        text=(
            "Any particle table of RELION will do, with the stacks that it names: picks of a few thousand particles, "
            "scaled down to 3 or 4 Å per pixel, show within minutes what is there.",
        ),
        commands=[
            (
                "Classify your particles; the diameter is the mask's, a little more than the particle's longest side",
                "polarice class2d particles.star --o Class2D/job001 --k 100 --particle-diameter 180",
            ),
            ("Every option", "polarice class2d --help"),
            (
                "Go on with a run that was stopped, or ask a finished one for more iterations",
                command_line("class2d", _more(params)),
            ),
            ("Look at the classes in RELION, and select from them", f"relion_display --gui --i {optimiser}"),
        ],
    )


def _more(params: Params) -> Any:
    from polarice.jobs import class2d

    more = min(params.iter + 10, 999)
    return class2d.Params(particles=None, continue_=params.o / "ribosome", iter=more)  # type: ignore[arg-type]


def _run_numbers(params: Params, name: str, seconds: dict[str, float]) -> list[tuple[str, str]]:
    from polarice.report import read_history

    last = read_history(params.o / name)[-1]
    resolution = last["resolution_A"]
    return [
        ("particles", f"{last['particles_assigned']:,}"),
        (f"of {last['classes']} classes in use", f"{last['classes_in_use']}"),
        ("best class", "–" if resolution is None else f"{resolution:.1f} Å"),
        (f"wall clock, {last['number']} iterations", f"{seconds[name]:.0f} s"),
    ]


def _montage(params: Params, name: str) -> Picture:
    from polarice.report.index import Picture

    png = (params.o / name / f"run_it{params.iter:03d}_classes.png").read_bytes()
    return Picture(
        png,
        "All class averages, the fullest first. Under each: its number, its share of the particles, how many "
        "they are, and its resolution.",
    )


def _raw(stack: Path, caption: str) -> Picture:
    """The first images of a stack in a row."""
    import numpy as np

    from polarice.io.mrc import open_sections
    from polarice.report.index import Picture
    from polarice.report.montage import png_bytes, strip

    images = open_sections(stack)[:RAW_SHOWN].astype(np.float32)
    return Picture(png_bytes(strip(images, RAW_SIDE_PX)), caption)

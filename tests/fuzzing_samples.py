"""One small sound file of every kind that Polarice reads, how it is read, and what is sane of the values read."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

BOX, N = 16, 24
LARGEST = 1e12  # nothing that a table says is larger, in its unit
LONGEST = 1_000_000  # characters of a text


@dataclass(frozen=True)
class Sample:
    """A kind of file; `make` writes it (and what belongs to it) into a folder, `read` takes that folder."""

    kind: str
    file: str  # the one that is damaged
    texture: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    rows: Callable[[Any], int] | None = None
    pixels: bool = False  # what is read is pixels: these may be anything
    own: bool = False  # Polarice's own figures: a large one cannot be told from a right one

    def complaint(self, value: Any) -> str:
        """What is not plausible about the values read; "" where nothing is."""
        found = () if self.pixels else complaints(value)
        return next((each for each in found if not (self.own and " a number beyond " in each)), "")


def complaints(value: Any, name: str = "") -> Iterator[str]:
    """Numbers that are none, or larger than anything; looked for in arrays, dataclasses and collections."""
    if value is None or isinstance(value, (bool, bytes, Path)):
        return
    if isinstance(value, str):
        if len(value) > LONGEST:
            yield f"hands out a text of {len(value)} characters {name}".strip()
    elif isinstance(value, (int, float)):
        if not math.isfinite(value) or abs(value) > LARGEST:
            what = f"a number beyond {LARGEST:g}" if math.isfinite(value) else f"{value}"
            yield f"hands out {what} {name}".strip()
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "fiu" and value.size:
            if not np.isfinite(value).all():
                yield f"hands out nan or inf {name}".strip()
            elif max(abs(float(value.max())), abs(float(value.min()))) > LARGEST and value.dtype.kind == "f":
                yield f"hands out a number beyond {LARGEST:g} {name}".strip()
    elif hasattr(value, "detach"):
        yield from complaints(value.detach().cpu().numpy(), name)
    elif is_dataclass(value):
        for each in fields(value):
            yield from complaints(getattr(value, each.name), each.name)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from complaints(each, str(key))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from complaints(each, name)


def equal(one: Any, two: Any) -> bool:
    """Whether two values are the same in every number and text; paths are not looked at."""
    if type(one) is not type(two):
        return False
    if isinstance(one, np.ndarray):
        return one.shape == two.shape and one.dtype == two.dtype and bool(np.array_equal(one, two))
    if is_dataclass(one):
        return all(equal(getattr(one, each.name), getattr(two, each.name)) for each in fields(one))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(equal, one, two))
    return isinstance(one, (Path, str)) or not isinstance(one, (int, float)) or one == two


# -- tables ------------------------------------------------------------------------------------------------------------


def _star(path: Path, blocks: dict[str, dict[str, list]]) -> None:
    lines = ["# version 30001", ""]
    for name, columns in blocks.items():
        lines += [f"data_{name}", "", "loop_", *(f"_{label} #{n}" for n, label in enumerate(columns, 1))]
        lines += [" ".join(map(str, row)) for row in zip(*columns.values(), strict=True)] + [""]
    path.write_text("\n".join(lines))


OPTICS = {
    "rlnOpticsGroup": [1, 2],
    "rlnOpticsGroupName": ["opticsGroup1", "opticsGroup2"],
    "rlnImagePixelSize": ["1.500000"] * 2,
    "rlnMicrographPixelSize": ["1.500000"] * 2,
    "rlnMicrographOriginalPixelSize": ["1.500000"] * 2,
    "rlnVoltage": ["300.000000"] * 2,
    "rlnSphericalAberration": ["2.700000"] * 2,
    "rlnAmplitudeContrast": ["0.100000"] * 2,
    "rlnImageSize": [BOX] * 2,
    "rlnImageDimensionality": [2] * 2,
}
DEFOCI = {
    "rlnDefocusU": [f"{15000 + 10 * n}.5" for n in range(N)],
    "rlnDefocusV": [f"{14900 + 10 * n}.5" for n in range(N)],
    "rlnDefocusAngle": [f"{n * 7}.25" for n in range(N)],
}
NAMES = [f"{n + 1:06d}@particles.mrcs" for n in range(N)]
MICROGRAPHS = [f"mic{n // 6}.mrc" for n in range(N)]


def _particles(folder: Path) -> None:
    from polarice.io.mrc import write_stack

    write_stack(
        folder / "particles.mrcs", np.random.default_rng(1).normal(size=(N + 1, BOX, BOX)).astype(np.float32), 1.5
    )
    pose = {
        "rlnClassNumber": [n % 3 + 1 for n in range(N)],
        "rlnAnglePsi": [f"{n * 11 - 100}.5" for n in range(N)],
        "rlnOriginXAngst": [f"{n * 0.25 - 2:.2f}" for n in range(N)],
        "rlnOriginYAngst": [f"{2 - n * 0.25:.2f}" for n in range(N)],
    }
    columns = {"rlnImageName": NAMES, "rlnMicrographName": MICROGRAPHS, "rlnOpticsGroup": [n % 2 + 1 for n in range(N)]}
    _star(folder / "particles.star", {"optics": OPTICS, "particles": columns | DEFOCI | pose})


def _old_particles(folder: Path) -> None:
    _particles(folder)
    more = {
        "rlnVoltage": ["300.0"] * N,
        "rlnSphericalAberration": ["2.7"] * N,
        "rlnAmplitudeContrast": ["0.1"] * N,
        "rlnMagnification": ["33333.3"] * N,
        "rlnDetectorPixelSize": ["5.0"] * N,
        "rlnOriginX": ["0.5"] * N,
        "rlnOriginY": ["-0.5"] * N,
    }
    _star(folder / "particles.star", {"": {"rlnImageName": NAMES, "rlnMicrographName": MICROGRAPHS} | DEFOCI | more})


def _read_particles(folder: Path) -> Any:
    from polarice.io.particles import read_particles

    return read_particles(folder / "particles.star", need_ctf=True).particles


def _stack_read(folder: Path) -> Any:
    """The stack is what is damaged: its pixels as the jobs get them."""
    from polarice.io.particles import StackSource, read_particles

    source = StackSource(read_particles(folder / "particles.star").particles)
    images = source.read(np.arange(N))
    assert images.shape == (N, BOX, BOX) and images.dtype == np.float32
    return images


def _table(kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        label = {"movies": "rlnMicrographMovieName", "micrographs": "rlnMicrographName"}[kind]
        optics = {name: values for name, values in OPTICS.items() if "Image" not in name}
        columns = {label: [f"{kind}/m{n}.mrc" for n in range(6)], "rlnOpticsGroup": [n % 2 + 1 for n in range(6)]}
        more = {name: values[:6] for name, values in DEFOCI.items()} if kind == "micrographs" else {}
        _star(folder / "table.star", {"optics": optics, kind: columns | more})

    return make


def _read_table(kind: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from polarice.io.micrographs import read_micrographs
        from polarice.runs.micrographs import items_of

        table = read_micrographs(folder / "table.star", kind)
        items = items_of(table, folder / "out")
        assert len(items) == len(table) == len(table.optics_of)
        return table.names, table.optics, table.optics_of

    return read


def _coordinates(name: str, text: str) -> Sample:
    def make(folder: Path) -> None:
        (folder / name).write_text(text)

    def read(folder: Path) -> Any:
        from polarice.io.coordinates import read_coordinates

        found = read_coordinates(folder / name)
        n = len(found.xy_px)
        assert found.xy_px.shape == (n, 2) and all(
            len(x) == n for x in (found.scores, found.micrograph) if x is not None
        )
        return found

    texture = "star" if "loop_" in text else "rows"
    return Sample(f"coordinates {name}", name, texture, make, read, lambda found: len(found.xy_px))


_CENTRES = [(100.5 + 31 * n, 900.25 - 17 * n) for n in range(12)]
_LOOP = "data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n_rlnAutopickFigureOfMerit #3\n"
_CBOX = "data_global\n\n_cbox_format_version   1.0\n\ndata_cryolo\n\nloop_\n" + "".join(
    f"_{name} #{n}\n" for n, name in enumerate(("CoordinateX", "CoordinateY", "Width", "Height", "Confidence"), 1)
)
_TOPAZ = "image_name\tx_coord\ty_coord\tscore\n" + "".join(f"m1\t{x:.0f}\t{y:.0f}\t1.25\n" for x, y in _CENTRES)
COORDINATES = [
    _coordinates("picks.star", _LOOP + "".join(f"{x} {y} 0.5\n" for x, y in _CENTRES)),
    _coordinates("picks.box", "".join(f"{x:.0f}\t{y:.0f}\t64\t64\n" for x, y in _CENTRES)),
    _coordinates("picks.cbox", _CBOX + "".join(f"{x} {y} 64 64 0.75\n" for x, y in _CENTRES)),
    _coordinates("rows.cbox", "".join(f"{x} {y} 64 64 0.75\n" for x, y in _CENTRES)),
    _coordinates("picks.txt", _TOPAZ),
]


def _motion(folder: Path) -> None:
    from polarice.io.motion import MovieFacts, write_motion
    from polarice.types import Motion

    rng = np.random.default_rng(2)
    motion = Motion(rng.normal(size=(5, 2)), (48, 64), rng.normal(size=(2, 6, 3)) / 10)
    write_motion(folder / "motion.star", motion, MovieFacts("m.mrc", 1.5, 1.0, 1.25, 0.0, 300.0), np.array([[3, 4]]))


def _read_motion(folder: Path) -> Any:
    from polarice.io.motion import read_motion

    return read_motion(folder / "motion.star")


# -- images ------------------------------------------------------------------------------------------------------------


def _mrc(name: str, mode: int, n: int = 3) -> Callable[[Path], None]:
    """Written by hand: modes that Polarice reads and does not write are among them."""

    def make(folder: Path) -> None:
        nx, ny = 20, 12
        header = bytearray(1024)
        struct.pack_into("<10i", header, 0, nx, ny, n, mode, 0, 0, 0, nx, ny, n)
        struct.pack_into("<6f3i3f", header, 40, nx * 1.5, ny * 1.5, n * 1.5, 90, 90, 90, 1, 2, 3, 1, 9, 5)
        header[104:108], header[208:212], header[212:216] = b"MRCO", b"MAP ", b"\x44\x44\0\0"
        struct.pack_into("<i", header, 108, 20140)
        rng = np.random.default_rng(mode)
        pixels = rng.integers(1, 9, (n, ny, nx // 2 if mode == 101 else nx))
        kind = {0: "i1", 1: "<i2", 2: "<f4", 6: "<u2", 12: "<f2", 101: "u1"}[mode]
        data = bytes(header) + pixels.astype(kind).tobytes()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    return make


def _read_movie(name: str, group: int = 2) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from polarice.io.movies import Events, open_movie, read_frames

        with open_movie(folder / name, Events(group, 1)) as movie:
            frames = read_frames(movie)
            assert frames.shape == (movie.frames, *movie.shape), "frames of another shape"
            if next(complaints(movie.pixel_size_A), ""):
                raise AssertionError("pixel size is no number")
            return frames

    return read


def _read_mrc(folder: Path) -> Any:
    from polarice.io.mrc import open_stack, read_header

    header, sections = read_header(folder / "stack.mrcs"), open_stack(folder / "stack.mrcs")
    assert sections.shape == (header.n, header.ny, header.nx) and sections.size > 0, "sections of another shape"
    assert math.isfinite(header.pixel_size_A) and header.pixel_size_A >= 0, "pixel size is no number"
    return np.array(sections)


def _read_picture(folder: Path) -> Any:
    from polarice.io.pictures import read_picture

    return read_picture(folder / "picture.mrc")


def _read_map(folder: Path) -> Any:
    from polarice.simulation.volume import species_of_map

    found = species_of_map(folder / "map.mrc")
    assert np.isfinite(found.density).all() and 0 < found.pixel_size_A <= LARGEST, "density or pixel size is no number"
    return found.density


def _read_gain(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from polarice.io.gain import read_gain

        gain = read_gain(folder / name, (12, 20), events=False)
        assert gain.shape == (12, 20) and (gain >= 0).all(), "gain of another shape, or below 0"
        assert np.isfinite(gain).all(), "gain is no number"
        return gain

    return read


def _defects(folder: Path) -> None:
    (folder / "defects.txt").write_text("# x y width height\n3 4 2 1\n10 0 1 12\n0 0 5 5\n")


def _read_defects(folder: Path) -> Any:
    from polarice.io.gain import read_defects

    return read_defects(folder / "defects.txt", (12, 20))


def _tiff(name: str, pages: int = 4, compression: str | None = "lzw", big: bool = False) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import tifffile

        pixels = np.random.default_rng(3).integers(1, 9, (pages, 12, 20))
        pixels = pixels.astype(np.uint8) if pages > 1 else pixels[0].astype(np.float32)
        with tifffile.TiffWriter(folder / name, bigtiff=big) as writer:
            for page in pixels if pages > 1 else [pixels]:
                writer.write(page, compression=compression, contiguous=False, metadata=None)

    return make


def _eer(folder: Path) -> None:
    from polarice.io.eer import write_eer

    rng = np.random.default_rng(4)
    frames = [(np.sort(rng.choice(12 * 20, 30, replace=False)), rng.integers(0, 16, 30)) for _ in range(6)]
    write_eer(folder / "movie.eer", frames, (12, 20), [("sensorPixelSize.width", "1.5e-10")])


def _mdoc(folder: Path) -> None:
    (folder / "movie.tif").write_bytes(b"")
    (folder / "movie.tif.mdoc").write_text(
        "[T = SerialEM: Acquired]\n\n[FrameSet = 0]\nPixelSpacing = 0.83\nExposureDose = 50.5\nNumSubFrames = 40\n"
        "ImageShift = 0.5 -1.25\nVoltage = 300\nGainReference = gain.mrc\nDefectFile = defects.txt\n"
    )


def _read_mdoc(folder: Path) -> Any:
    from polarice.io.sessions import read_mdoc

    found = read_mdoc(folder / "movie.tif")
    assert found is not None and all(x is None or x > 0 for x in (found.pixel_size_A, found.dose_e_A2, found.frames))
    return found


# -- other programs' tables and models ---------------------------------------------------------------------------------


def _cs(folder: Path) -> None:
    from polarice.io.cryosparc import cs_of_tables, write_cs
    from polarice.io.particles import read_particles

    _particles(folder)
    table = read_particles(folder / "particles.star")
    write_cs(folder / "particles.cs", cs_of_tables(table.optics_table, table.table))


def _read_cs(folder: Path) -> Any:
    from polarice.io.cryosparc import read_cs, tables_of_cs
    from polarice.io.star import Block, write_star

    optics, particles = tables_of_cs(read_cs(folder / "particles.cs"), where=str(folder / "particles.cs"))
    write_star(folder / "out.star", [Block("optics", table=optics), Block("particles", table=particles)])
    shutil.copy(folder / "out.star", folder / "particles.star")
    return _read_particles(folder)


_ATOMS = [("N", "N", 0.0), ("CA", "C", 1.5), ("C", "C", 2.4), ("O", "O", 3.6), ("CB", "C", 4.1)]


def _pdb(folder: Path) -> None:
    lines = [
        f"ATOM  {n * 5 + m + 1:5d} {name:^4s} ALA A{n + 1:4d}    {x + 3 * n:8.3f}{n:8.3f}{m:8.3f}"
        f"  1.00 20.00          {element:>2s}"
        for n in range(4)
        for m, (name, element, x) in enumerate(_ATOMS)
    ]
    (folder / "model.pdb").write_text("\n".join([*lines, "TER", "END", ""]))


def _cif(folder: Path) -> None:
    import gemmi

    _pdb(folder)
    structure = gemmi.read_structure(str(folder / "model.pdb"))
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(folder / "model.cif"))


def _read_model(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from polarice.simulation.volume import species_of_model

        found = species_of_model(folder / name, 3.0)
        assert found.density.any(), "no density"
        return found.density

    return read


# -- a job's own files -------------------------------------------------------------------------------------------------


def _run(job: str) -> Callable[[Path], None]:
    """The folder of a small run."""

    def make(folder: Path) -> None:
        _particles(folder)
        words = f"{job} particles.star --o out --k 3 --iter 2 --particle-diameter 18 --threads 1 --device cpu".split()
        done = subprocess.run([sys.executable, "-m", "polarice", *words], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{job}: {done.stderr[-500:]}")
        job_json = folder / "out/job.json"
        content = json.loads(job_json.read_text())
        content["working_directory"], content["inputs"] = ".", []
        job_json.write_text(json.dumps(content, indent=2))

    return make


def _read_checkpoint(folder: Path) -> Any:
    import torch

    from polarice.runs.checkpoint import read_checkpoint

    state = read_checkpoint(folder / "out", 2, torch.device("cpu"))
    return state.model.field, state.assignment, state.carried.crop_centre_px, state.changed_class


def _read_map_checkpoint(folder: Path) -> Any:
    import torch

    from polarice.runs.checkpoint import read_map_checkpoint

    state = read_map_checkpoint(folder / "out", 2, torch.device("cpu"))
    model, latent = state.model, state.carried
    return state.assignment, latent.anchor, latent.mean, model.weights, model.noise_power, model.tau2


def _reference(folder: Path) -> None:
    from polarice.io.mrc import write_volume

    _particles(folder)
    rng = np.random.default_rng(5)
    write_volume(folder / "ref.mrc", rng.normal(size=(BOX,) * 3).astype(np.float32), 1.5)


def _read_reference(folder: Path) -> Any:
    """As refine3d begins with it: nothing in it is beyond single precision, squares included."""
    from types import SimpleNamespace

    from polarice.runs.refinement import read_reference

    images = SimpleNamespace(preparation=SimpleNamespace(box_px=BOX), pixel_size_A=1.5)
    density = read_reference(folder / "ref.mrc", images)
    assert density.shape == (BOX,) * 3 and density.dtype == np.float32, "density of another shape"
    assert density.std() > 0 and np.isfinite(np.square(density).sum()), "no density, or beyond single precision"
    return density


def _known_angles(folder: Path) -> None:
    _particles(folder)
    pose = {f"rlnAngle{name}": [f"{n * step - 90}.25" for n in range(N)] for name, step in (("Rot", 11), ("Tilt", 7))}
    pose |= {"rlnAnglePsi": [f"{n * 5}.5" for n in range(N)], "rlnRandomSubset": [n % 2 + 1 for n in range(N)]}
    columns = {"rlnImageName": NAMES, "rlnMicrographName": MICROGRAPHS, "rlnOpticsGroup": [n % 2 + 1 for n in range(N)]}
    _star(folder / "particles.star", {"optics": OPTICS, "particles": columns | DEFOCI | pose})


def _read_known_angles(folder: Path) -> Any:
    from polarice.io.particles import read_particles
    from polarice.jobs.reconstruct import _angles
    from polarice.runs.half_sets import given_halves

    table = read_particles(folder / "particles.star")
    angles, half_of = _angles(table), given_halves(table)
    assert half_of is None or set(np.unique(half_of)) <= {0, 1}, "halves of another kind"
    return angles, half_of


def _refinement(folder: Path) -> None:
    _reference(folder)
    line = "refine3d particles.star --ref ref.mrc --o out --iter 2 --particle-diameter 18 --threads 1 --device cpu"
    words = f"{line} --ini-high 8 --low-resol-join-halves 8".split()
    done = subprocess.run([sys.executable, "-m", "polarice", *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"refine3d: {done.stderr[-500:]}")


def _read_refinement(folder: Path) -> Any:
    import torch

    from polarice.runs.checkpoint3d import read_refinement

    state = read_refinement(folder / "out", 2, torch.device("cpu"))
    model, progress = state.model, state.carried
    assert {*np.unique(progress.set_of)} <= {-1, 0, 1}, "halves of another kind"
    maps = (model.densities, model.unfiltered, model.joined, model.fsc, model.noise_power)
    return maps, progress.direction, progress.crop_centre_px, state.assignment.pose


def _read_first_classes(folder: Path) -> Any:
    """What initial3d takes from the folder of a run."""
    import torch

    from polarice.jobs.initial3d import _diameter_of, _record
    from polarice.references.abinitio import ClassImages
    from polarice.runs.checkpoint import read_checkpoint

    diameter_A = _diameter_of(_record(folder / "out"), folder / "out")
    model = read_checkpoint(folder / "out", 2, torch.device("cpu")).model
    images = ClassImages.of(model)
    assert len(images.number) <= len(model.weights), "more images than classes"
    return diameter_A, images.number


def _read_job(folder: Path) -> Any:
    from dataclasses import replace

    from polarice.jobs import align2d, status
    from polarice.runs.resume import continued

    params = replace(align2d.Params(particles=None), continue_=folder / "out", iter=3)
    status.run(status.Params(folder=(folder / "out",)))
    return vars(continued("align2d", params))


def _read_history(folder: Path) -> Any:
    from polarice.runs.checkpoint import read_iteration

    found = read_iteration(folder / "out", 2, 2, np.arange(N))
    return [getattr(found, each.name) for each in fields(found) if each.name != "model"]


def _workflow(folder: Path) -> None:
    _particles(folder)
    (folder / "flow.toml").write_text(
        'threads = 1\n\n[[step]]\njob = "align2d"\nname = "first"\nparticles = "particles.star"\nk = 3\niter = 2\n'
        'tau2_fudge = 2.5\n\n[[step]]\njob = "class2d"\nparticles = "{first}/run_it002_data.star"\nk = 5\n'
    )


def _read_workflow(folder: Path) -> Any:
    from polarice.jobs import workflow

    before = os.getcwd()
    try:
        workflow.run(workflow.Params(workflow=folder / "flow.toml", dry_run=True))
        return [dict(step.options) for step in workflow.read_steps(folder / "flow.toml")]
    finally:
        os.chdir(before)


@dataclass(frozen=True)
class Plain:
    """Work that gives every item the same outcome."""

    def __call__(self, item: Any) -> Any:
        from polarice.runs.micrographs import Outcome

        return Outcome({"rlnDefocusU": 12345.5, "rlnMicrographName": "m.mrc"}, {"defocus (A)": 12345.5}, ("a remark",))


def _treated(folder: Path) -> Any:
    """As a job goes on: a record that is sound is kept, any other one made anew; the outcome is the same."""
    from polarice.runs.micrographs import Item, TaskPool, cells_of, treat

    item = Item("m.mrc", 0, "m.mrc", str(folder / "m"))
    outcomes = treat([item], Plain(), TaskPool({"job": "plain"}))
    cells = cells_of(outcomes)
    [outcome] = outcomes
    assert isinstance(outcome.reason, str) and all(isinstance(text, str) for text in outcome.remarks), "kind of values"
    assert isinstance(outcome.seconds, (int, float)) and outcome.seconds >= 0, "seconds are no time"
    assert isinstance(outcome.thumbnail, str) and {*map(type, outcome.figures.values())} <= {int, float}, (
        "kind of values"
    )
    assert {*map(type, outcome.columns.values())} <= {int, float, str}, "kind of cells"
    return outcome, cells.columns


def _kept_record(folder: Path) -> None:
    _treated(folder)


STAR = [
    Sample("particles", "particles.star", "star", _particles, _read_particles, len),
    Sample("particles of RELION 3.0", "particles.star", "star", _old_particles, _read_particles, len),
    Sample("micrographs", "table.star", "star", _table("micrographs"), _read_table("micrographs"), lambda x: len(x[0])),
    Sample("movies", "table.star", "star", _table("movies"), _read_table("movies"), lambda x: len(x[0])),
    Sample("motion", "motion.star", "star", _motion, _read_motion),
]
IMAGES = [
    Sample("particle stack", "particles.mrcs", "binary", _particles, _stack_read, pixels=True),
    *(
        Sample(f"MRC mode {m}", "stack.mrcs", "binary", _mrc("stack.mrcs", m), _read_mrc, pixels=True)
        for m in (0, 1, 2, 6, 12)
    ),
    Sample("MRC movie of 4 bits", "m.mrc", "binary", _mrc("m.mrc", 101), _read_movie("m.mrc"), pixels=True),
    Sample("MRC movie", "m.mrcs", "binary", _mrc("m.mrcs", 1), _read_movie("m.mrcs"), pixels=True),
    Sample("gzipped MRC movie", "m.mrc.gz", "binary", _mrc("m.mrc.gz", 1), _read_movie("m.mrc.gz"), pixels=True),
    Sample("micrograph", "picture.mrc", "binary", _mrc("picture.mrc", 2, 1), _read_picture, pixels=True),
    Sample("map", "map.mrc", "binary", _mrc("map.mrc", 2, 8), _read_map, pixels=True),
    Sample("MRC gain", "gain.mrc", "binary", _mrc("gain.mrc", 2, 1), _read_gain("gain.mrc"), pixels=True),
    Sample("TIFF gain", "gain.tif", "tiff", _tiff("gain.tif", 1), _read_gain("gain.tif"), pixels=True),
    Sample("TIFF movie", "m.tif", "tiff", _tiff("m.tif"), _read_movie("m.tif"), pixels=True),
    Sample("BigTIFF movie", "m.tif", "tiff", _tiff("m.tif", 4, None, True), _read_movie("m.tif"), pixels=True),
    Sample("EER movie", "movie.eer", "tiff", _eer, _read_movie("movie.eer"), pixels=True),
    Sample("defects", "defects.txt", "rows", _defects, _read_defects),
]
OTHERS = [
    Sample("mdoc", "movie.tif.mdoc", "text", _mdoc, _read_mdoc),
    Sample("cs", "particles.cs", "npy", _cs, _read_cs),
    Sample("PDB", "model.pdb", "text", _pdb, _read_model("model.pdb")),
    Sample("mmCIF", "model.cif", "text", _cif, _read_model("model.cif")),
    Sample("checkpoint", "out/run_it002_polarice.npz", "npz", _run("align2d"), _read_checkpoint),
    Sample("checkpoint of a map", "out/run_it002_polarice.npz", "npz", _run("sml"), _read_map_checkpoint),
    Sample("checkpoint of halves", "out/run_it002_polarice.npz", "npz", _refinement, _read_refinement),
    Sample("reference", "ref.mrc", "binary", _reference, _read_reference, pixels=True),
    Sample("known angles", "particles.star", "star", _known_angles, _read_known_angles),
    Sample("job.json", "out/job.json", "json", _run("align2d"), _read_job),
    Sample("job.json of classes", "out/job.json", "json", _run("align2d"), _read_first_classes),
    Sample("history", "out/history.jsonl", "json", _run("align2d"), _read_history, own=True),
    Sample("workflow", "flow.toml", "json", _workflow, _read_workflow),
    Sample("record", "m_polarice.json", "json", _kept_record, _treated, own=True),
]
SAMPLES = [*STAR, *COORDINATES, *IMAGES, *OTHERS]


def make_samples(folder: Path) -> None:
    """Every sample, in a folder of its kind."""
    for sample in SAMPLES:
        place = folder / sample.kind
        if sample.kind in ("job.json", "job.json of classes", "history"):  # the same run
            shutil.copytree(folder / "checkpoint", place)
            continue
        place.mkdir(parents=True)
        sample.make(place)


def load() -> None:
    """What readers import, before time and memory are limited."""
    import importlib

    for name in (
        "io.movies",
        "io.cryosparc",
        "simulation.volume",
        "runs.checkpoint",
        "runs.checkpoint3d",
        "jobs.initial3d",
        "jobs.reconstruct",
        "runs.refinement",
        "jobs.workflow",
        "jobs.align2d",
        "align.fit",
        "references.averages",
        "references.abinitio",
        "references.manifold.mapping",
        "references.refinement",
        "runs.resume",
        "report.history",
    ):
        importlib.import_module(f"polarice.{name}")
    for name in ("gemmi", "tifffile", "imagecodecs", "torch", "tqdm"):
        importlib.import_module(name)

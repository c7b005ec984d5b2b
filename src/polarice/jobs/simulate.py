"""polarice simulate: particles with their truth, from maps and atomic models."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from polarice.project import state
from polarice.project.folder_lock import alone
from polarice.project.outputs import KEY, Outputs
from polarice.project.params import Parameters, argument, as_dict, command_line, option, output
from polarice.project.progress import Bar
from polarice.types import InputError

if TYPE_CHECKING:
    import numpy as np

    from polarice.io.star import Block
    from polarice.simulation import SimulatedParticles, Simulation, Species

SUMMARY = "make simulated particles, with their truth, from density maps or atomic models"
EXAMPLE = "polarice simulate model.pdb --o simulated --particles 2000 --box 128 --angpix 2.5 --snr 0.05"
INT8_SCALE = 20.0  # grey values of an int8 stack, per standard deviation of the background
FILES = ("particles.mrcs", "particles.star", "truth.npz", "truth.star")  # the last one is written last
MOST_ANGLE_DEG, MOST_POWER = 1e6, 1e30
LEAST_QUATERNION = 1e-6  # length; what is far from 1 is no orientation
BATCH = 128  # images made and written at a time
LARGEST_BOX_PX = 4096


@dataclass(frozen=True)
class Params(Parameters):
    """What to simulate; the images depend on these values alone, not on threads or batches."""

    inputs: tuple[Path, ...] = argument("maps (.mrc, .map) or atomic models (.pdb, .cif), also .gz; one species each")
    o: Path = output("simulated", "folder for particles.mrcs, particles.star, truth.npz and truth.star")
    particles: int | None = option(
        None, "number of particles", derived="2000, or one for each given orientation", low=1, flags=("--n",)
    )
    box: int | None = option(
        None, "box of the images", derived="from the first input", unit="px", low=8, high=LARGEST_BOX_PX
    )
    angpix: float | None = option(
        None,
        "pixel size of the images, of models, and of maps that state none",
        derived="from the first map",
        unit="A",
        low=1e-3,
    )
    map_angpix: float | None = option(None, "pixel size of the maps", derived="their headers'", unit="A", low=1e-3)
    fractions: tuple[float, ...] = option((), "share of each species", derived="equal", low=0)
    threshold: float | None = option(None, "density of a map below this becomes 0", derived="from the map's faces")
    model_bfactor: float | None = option(None, "B-factor of all atoms", derived="the file's", unit="A2", low=0)
    model_resolution: float | None = option(
        None, "blur models to this resolution", derived="not blurred", unit="A", low=0
    )
    orientations: str = option("uniform", "uniform, preferred, or a file: STAR with Euler angles, or .npz with quat")
    concentration: float = option(10.0, "von Mises-Fisher concentration of preferred views", low=0)
    preferred_axis: tuple[float, ...] = option((0.0, 0.0, 1.0), "x y z of each preferred view direction in the map")
    shift_sigma: float = option(2.0, "standard deviation of the shifts, each coordinate", unit="px", low=0)
    shift_limit: float = option(5.0, "largest shift, each coordinate", unit="px", low=0)
    ctf: bool = option(True, "apply the contrast transfer function")
    voltage: float = option(300.0, "acceleration voltage", unit="kV", low=10, high=3000, flags=("--kV",))
    cs: float = option(2.7, "spherical aberration", unit="mm", low=0, flags=("--Cs",))
    amplitude_contrast: float = option(0.1, "amplitude contrast", low=0, high=1, flags=("--Q0",))
    defocus_min: float = option(1.0, "least mean defocus of a micrograph: micrometres, or A from 100 on", low=0)
    defocus_max: float = option(2.5, "largest mean defocus of a micrograph: micrometres, or A from 100 on", low=0)
    defocus_spread: float = option(200.0, "standard deviation of the defocus within a micrograph", unit="A", low=0)
    astigmatism: float = option(400.0, "largest difference of the two defoci", unit="A", low=0)
    phase_shift: float = option(0.0, "phase shift of a phase plate", unit="deg", low=0, high=180)
    bfactor: float = option(0.0, "B-factor that damps the CTF", unit="A2", low=0)
    micrographs: int | None = option(
        None, "number of micrographs (defocus groups)", derived="one for each 100 particles", low=1
    )
    snr: float = option(
        0.05, "variance of signal over noise inside the particle's circle (42 % of box); inf: no noise", low=0, high=inf
    )
    noise_exponent: float = option(0.0, "noise power falls as 1 / |k| to this; 0 is white", low=0, high=4)
    noise_spectrum: Path | None = option(
        None, "text file of relative noise power, from frequency 0 to Nyquist", derived="from --noise-exponent"
    )
    junk: float = option(
        0.0, "share of images that are no particles; their truth labels follow the species'", low=0, high=1
    )
    junk_kinds: tuple[str, ...] = option(
        ("noise", "edge", "contamination"), "kinds of junk, in equal parts", choices=("noise", "edge", "contamination")
    )
    invert: bool = option(False, "particles dark, as in a micrograph")
    dtype: Literal["float32", "float16", "int8"] = option("float32", "grey values of the stack; int8 holds 20 x")
    seed: int = option(1, "seed of everything random", low=0)
    threads: int | None = option(None, "CPU threads", derived="all cores", resource=True, low=1, flags=("--j",))


def run(params: Params) -> None:
    """Make the particles and write them. Raises InputError for what cannot be used."""
    from polarice.simulation import simulate

    outputs, inputs = Outputs("simulate", params.o, (*FILES, *state.FILES)), _files(params)
    outputs.require_free(inputs)
    source = simulate(simulation_of(params), params.threads or len(os.sched_getaffinity(0)))
    with alone(params.o):
        _make_folder(params, outputs, inputs)
        _write_stack(source, params.o / "particles.mrcs", params.dtype)
        _write_truth(source, params.o / "truth.npz")
        _write_tables(source, params.o)
    junk = int(source.truth.is_junk.sum())
    print(f"{len(source)} images of {source.box_px} px ({junk} of them junk) in {params.o}")


def _files(params: Params) -> list[Path]:
    """What it reads."""
    given = None if params.orientations in ("uniform", "preferred") else Path(params.orientations)
    return [path for path in (*params.inputs, given, params.noise_spectrum) if path is not None]


def _make_folder(params: Params, outputs: Outputs, inputs: list[Path]) -> None:
    """The folder with its job.json, without tables and truth of an earlier simulation: they would not belong to the
    new stack. Raises InputError where it cannot be made, and where files stand there that no simulation made.
    """
    from polarice.project.provenance import write_job_json

    record = outputs.require_free(inputs)
    outputs.sweep()
    for name in FILES[1:]:
        (params.o / name).unlink(missing_ok=True)
    command = command_line("simulate", params)
    told = {name: "inf" if value == inf else value for name, value in as_dict(params).items()}  # JSON has none
    write_job_json(params.o, "simulate", told, command, inputs=inputs, seed=params.seed, more={KEY: record})


def simulation_of(params: Params) -> Simulation:
    """The simulation that the parameters ask for, its files read. Raises InputError for what cannot be used."""
    from polarice.simulation import Junk, Microscope, NoiseModel, Simulation

    species = _read_species(params)
    pixel_A = params.angpix or species[0].pixel_size_A
    box = params.box or _default_box(species[0], pixel_A)
    _warn_of_cut(species, box * pixel_A)
    orientations = _orientations(params)
    given = 2000 if orientations.quat is None else len(orientations.quat)
    return Simulation(
        species=species,
        particles=params.particles or given,
        box_px=box,
        pixel_size_A=pixel_A,
        orientations=orientations,
        microscope=Microscope(
            voltage_kV=params.voltage,
            cs_mm=params.cs,
            amplitude_contrast=params.amplitude_contrast,
            defocus_min_A=_angstrom(params.defocus_min),
            defocus_max_A=_angstrom(params.defocus_max),
            defocus_spread_A=params.defocus_spread,
            astigmatism_A=params.astigmatism,
            phase_shift_deg=params.phase_shift,
            bfactor_A2=params.bfactor,
            micrographs=params.micrographs,
            ctf=params.ctf,
        ),
        noise=NoiseModel(params.snr, params.noise_exponent, _read_spectrum(params.noise_spectrum)),
        junk=Junk(params.junk, params.junk_kinds),
        shift_sigma_px=params.shift_sigma,
        shift_limit_px=params.shift_limit,
        invert=params.invert,
        seed=params.seed,
    )


def _angstrom(defocus: float) -> float:
    return defocus if defocus >= 100 else defocus * 1e4


def _read_species(params: Params) -> tuple[Species, ...]:
    from polarice.simulation.volume import is_model, species_of_map, species_of_model

    fractions = params.fractions or (1.0,) * len(params.inputs)
    if len(fractions) != len(params.inputs):
        raise InputError(f"--fractions has {len(fractions)} values for {len(params.inputs)} inputs; give one for each")
    species: list[Species] = []
    for path, fraction in zip(params.inputs, fractions, strict=True):
        if not is_model(path):
            pixel_A = params.map_angpix or _stated_pixel(path) or params.angpix
            species.append(species_of_map(path, pixel_A, params.threshold, fraction))
            continue
        pixel_A = params.angpix or (species[0].pixel_size_A if species else None)
        if pixel_A is None:
            raise InputError(f"{path}: an atomic model has no pixel size; give the images' with --angpix")
        species.append(species_of_model(path, pixel_A, params.model_bfactor, params.model_resolution, fraction))
    return tuple(species)


def _stated_pixel(path: Path) -> float | None:
    from polarice.io.mrc import read_header

    pixel_A = read_header(path).pixel_size_A
    return pixel_A if pixel_A and pixel_A > 0 else None


def _default_box(species: Species, pixel_A: float) -> int:
    """The species' own field of view, to an even number of pixels. InputError where these are too many."""
    box = max(8, 2 * round(len(species.density) * species.pixel_size_A / pixel_A / 2))
    if box > LARGEST_BOX_PX:
        raise InputError(f"--angpix {pixel_A:g}: the box would be {box} px wide; give a larger one, or a --box")
    return box


def _warn_of_cut(species: tuple[Species, ...], field_A: float) -> None:
    from polarice.simulation.volume import share_outside

    for each in species:
        lost = share_outside(each, field_A)
        if lost > 0.05:
            print(f"warning: {lost:.0%} of {each.name} lies outside of the box and is cut; see --box", file=sys.stderr)


def _orientations(params: Params):
    from polarice.simulation import Orientations

    if params.orientations == "uniform":
        return Orientations()
    if params.orientations == "preferred":
        axes = params.preferred_axis
        directions = tuple((axes[i], axes[i + 1], axes[i + 2]) for i in range(0, len(axes) - 2, 3))
        if len(axes) % 3 or not directions or not all(any(each) for each in directions):
            raise InputError("--preferred-axis wants three numbers x y z, not all 0, for each direction")
        return Orientations("preferred", params.concentration, directions)
    path = Path(params.orientations)
    if not path.is_file():
        raise InputError(f"--orientations {path}: neither uniform nor preferred nor a file")
    return Orientations("given", quat=_read_quat(path))


def _read_quat(path: Path) -> np.ndarray:
    """Orientations (m, 4) xyzw of a STAR table or an .npz file."""
    import numpy as np

    from polarice.io.arrays import read_arrays
    from polarice.io.star import read_star
    from polarice.simulation import quat_of_euler

    if path.suffix == ".npz":
        quat = read_arrays(path).get("quat", np.zeros(0))
        if quat.dtype.kind not in "iuf" or quat.ndim != 2 or quat.shape[1] != 4 or not len(quat):
            raise InputError(f"{path}: wanted an array quat of (n, 4) quaternions, x y z w")
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(quat.astype(np.float64), axis=1)
        if not ((lengths > LEAST_QUATERNION) & (lengths < 1 / LEAST_QUATERNION)).all():
            row = int(np.argmin((lengths > LEAST_QUATERNION) & (lengths < 1 / LEAST_QUATERNION)))
            raise InputError(f"{path}: quaternion {row + 1} of quat has the length {lengths[row]:g}; remove it")
        return np.asarray(quat, np.float64)
    labels = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    tables = [block.table for block in read_star(path) if block.table is not None]
    for table in tables:
        if all(label in table for label in labels):
            return quat_of_euler(np.stack([table.finite(label, MOST_ANGLE_DEG) for label in labels], axis=1))
    raise InputError(f"{path}: no table with _{', _'.join(labels)}")


def _read_spectrum(path: Path | None) -> np.ndarray | None:
    import numpy as np

    if path is None:
        return None
    try:
        spectrum = np.atleast_1d(np.loadtxt(path, dtype=np.float64))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as one number a line ({str(error).splitlines()[0][:200]})") from None
    usable = spectrum.ndim == 1 and len(spectrum) >= 2 and (np.abs(spectrum) <= MOST_POWER).all()
    if not usable or not np.all(spectrum >= 0) or not np.any(spectrum > 0):
        raise InputError(f"{path}: wanted two or more finite numbers, none negative, not all 0, one a line")
    return spectrum


def _write_stack(source: SimulatedParticles, path: Path, dtype: str) -> None:
    import numpy as np

    from polarice.io.mrc import StackWriter

    grey = np.dtype(dtype)
    n, pixel_A = len(source), source.simulation.pixel_size_A
    bar = Bar("simulate", n, unit=" images")
    with bar, StackWriter(path, n, source.box_px, pixel_A, grey) as writer:
        for first in range(0, n, BATCH):
            images = source.read(np.arange(first, min(first + BATCH, n)))
            if grey == np.int8:
                images = np.clip(np.rint(images * INT8_SCALE), -128, 127)
            writer.append(images)
            bar.update(len(images))


def _write_truth(source: SimulatedParticles, path: Path) -> None:
    import numpy as np

    from polarice.io.atomic import replacing

    truth = source.truth
    with replacing(path) as stream:
        np.savez(
            stream,
            quat=truth.quat,
            shift=truth.shift_px,
            pixel_size=source.simulation.pixel_size_A,
            label=truth.label,
            label_names=np.array(truth.label_names),
        )


def _write_tables(source: SimulatedParticles, folder: Path) -> None:
    """particles.star, and truth.star with the true poses as RELION states them."""
    from polarice.io.star import Block, write_star
    from polarice.simulation import euler_of_quat

    optics, particles = _optics_block(source), _particle_table(source, folder / "particles.mrcs")
    write_star(folder / "particles.star", [optics, Block("particles", table=particles)])
    truth, pixel_A = source.truth, source.simulation.pixel_size_A
    angles = euler_of_quat(truth.quat)
    posed = particles.with_columns(
        {
            "rlnAngleRot": angles[:, 0],
            "rlnAngleTilt": angles[:, 1],
            "rlnAnglePsi": angles[:, 2],
            "rlnOriginXAngst": -truth.shift_px[:, 0] * pixel_A,
            "rlnOriginYAngst": -truth.shift_px[:, 1] * pixel_A,
            "rlnClassNumber": truth.label + 1,
        }
    )
    write_star(folder / "truth.star", [optics, Block("particles", table=posed)])


def _optics_block(source: SimulatedParticles) -> Block:
    from polarice.io.star import Block, Table

    optics = source.optics
    columns = {
        "rlnOpticsGroupName": [optics.name],
        "rlnOpticsGroup": [1],
        "rlnMicrographOriginalPixelSize": [optics.pixel_size_A],
        "rlnVoltage": [optics.voltage_kV],
        "rlnSphericalAberration": [optics.cs_mm],
        "rlnAmplitudeContrast": [optics.amplitude_contrast],
        "rlnImagePixelSize": [optics.pixel_size_A],
        "rlnImageSize": [optics.box_px],
        "rlnImageDimensionality": [2],
    }
    return Block("optics", table=Table.of(columns))


def _particle_table(source: SimulatedParticles, stack: Path):
    """Names, micrographs and CTF. The stack is named as RELION looks for it: from the working directory."""
    from polarice.io.star import Table

    table = source.particles
    columns: dict[str, Any] = {
        "rlnImageName": [f"{i + 1:06d}@{stack}" for i in range(len(table))],
        "rlnMicrographName": [table.group_names[i] for i in table.group_of],
    }
    if table.ctf is not None:
        columns |= {
            "rlnDefocusU": table.ctf.defocus_u_A,
            "rlnDefocusV": table.ctf.defocus_v_A,
            "rlnDefocusAngle": table.ctf.defocus_angle_deg,
            "rlnPhaseShift": table.ctf.phase_shift_deg,
            "rlnCtfBfactor": table.ctf.bfactor_A2,
        }
    return Table.of(columns | {"rlnOpticsGroup": table.optics_of + 1})

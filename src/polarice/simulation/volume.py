"""Densities to simulate from: published maps and atomic models."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from scipy import fft

from polarice.io.mrc import read_volume, require_density
from polarice.simulation.settings import Species
from polarice.types import InputError

MAP_SUFFIXES = (".mrc", ".map", ".ccp4", ".rec")
MODEL_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
MOST_BFACTOR_A2 = 1e4  # atoms as wide as 36 A
CALPHA_BFACTOR_A2 = 300.0  # a residue as one Gaussian of 1.9 A standard deviation
FARTHEST_ATOM, ATOM_ALONE_A = 10, 100.0  # times the middle distance from the centre, and so far beyond: one is wrong
COPIES_OF_GRID = 4  # grid, array, and its transform
OVERSAMPLING = 1.5  # of the grid on which a model's atoms are laid down
ALIAS_BLUR = 37.0  # blur in squared grid steps that keeps aliasing below 1e-3 at that oversampling


def is_model(path: str | os.PathLike[str]) -> bool:
    """Whether the file's name says that it holds atoms (PDB, mmCIF); InputError where it is neither model nor map."""
    name = Path(path).name.lower().removesuffix(".gz")
    if name.endswith(MODEL_SUFFIXES):
        return True
    if name.endswith(MAP_SUFFIXES):
        return False
    wanted = ", ".join(MAP_SUFFIXES + MODEL_SUFFIXES)
    raise InputError(f"{path}: neither a map nor an atomic model by its name; wanted: {wanted}, or one of them .gz")


def species_of_map(
    path: str | os.PathLike[str],
    pixel_size_A: float | None = None,
    threshold: float | None = None,
    fraction: float = 1.0,
) -> Species:
    """The density of a map, of any shape, in a cube about its centre voxel (n // 2 on each axis).

    pixel_size_A: in the place of what the header says, in Angstrom. threshold: density below it becomes 0; by default
    the solvent's level, the median over the map's faces, is subtracted and what is then negative becomes 0.
    Raises InputError where the map states no pixel size, or holds NaN or nothing.
    """
    volume, header_pixel_A = read_volume(path)
    pixel = pixel_size_A or header_pixel_A
    if not pixel or not np.isfinite(pixel):
        raise InputError(f"{path}: the header states no pixel size; give it with --angpix")
    require_density(path, volume)
    if threshold is None:
        density = np.clip(volume - solvent_level(volume), 0, None)
    else:
        density = np.where(volume >= threshold, volume, 0)
    return Species(Path(path).name, _one_scale(path, pad_to_cube(density)), float(pixel), fraction)


def solvent_level(volume: np.ndarray) -> float:
    """Median over the six faces of a volume."""
    faces = [np.take(volume, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    return float(np.median(np.concatenate(faces)))


def pad_to_cube(volume: np.ndarray) -> np.ndarray:
    """A volume of any shape in a cube of its longest side, voxel n // 2 of each axis on voxel D // 2."""
    size = max(volume.shape)
    cube = np.zeros((size,) * 3, np.float32)
    cube[tuple(slice(size // 2 - n // 2, size // 2 - n // 2 + n) for n in volume.shape)] = volume
    return cube


def fit_to_box(species: Species, field_A: float) -> np.ndarray:
    """The density inside a sphere as wide as the images' field of view (soft by two voxels), without empty margins."""
    radius = field_A / species.pixel_size_A / 2
    size = min(len(species.density), 2 * int(np.ceil(radius)) + 2)
    first = len(species.density) // 2 - size // 2
    density = species.density[(slice(first, first + size),) * 3]
    distance = _radius(size)
    return (density * np.clip((radius - distance) / 2, 0, 1)).astype(np.float32)


def share_outside(species: Species, field_A: float) -> float:
    """Share of the squared density that does not fit into images of this field of view."""
    power = species.density.astype(np.float64) ** 2
    outside = _radius(len(power)) > field_A / species.pixel_size_A / 2
    return float(power[outside].sum() / max(power.sum(), 1e-300))


def species_of_model(
    path: str | os.PathLike[str],
    pixel_size_A: float,
    bfactor_A2: float | None = None,
    resolution_A: float | None = None,
    fraction: float = 1.0,
) -> Species:
    """The density of an atomic model (PDB, mmCIF, gzipped or not) on a cube about its centre of mass.

    Atoms scatter as electrons see them (gemmi's table: Peng 1996, c4322) with the file's B-factors, or `bfactor_A2` for
    all; a model of C-alpha (or P) atoms alone takes 300 A^2. Waters are left out. resolution_A: blurred so that the
    amplitude has fallen to 1/e there. Raises InputError where the file holds no atoms or cannot be read.
    """
    model = _read_model(path, bfactor_A2)
    diameter = _centre_model(path, model)
    if not np.isfinite(diameter):
        raise InputError(f"{path}: an atom's place is not a finite number; correct the model")
    size = fft.next_fast_len(int(np.ceil(diameter / pixel_size_A * 1.1)) + 8)
    size += size % 2
    if size > 1024:
        raise InputError(f"{path}: {diameter:.0f} A across, {size} voxels of {pixel_size_A} A; give a larger --angpix")
    blur = 4 * resolution_A**2 if resolution_A else 0.0
    density = _density_of_model(model, size, pixel_size_A, blur)
    return Species(Path(path).name, _one_scale(path, density), float(pixel_size_A), fraction)


def _read_model(path: str | os.PathLike[str], bfactor_A2: float | None):
    """The first model of the file, as gemmi holds it, waters out and B-factors set."""
    import gemmi

    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError, IndexError) as error:
        what = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a readable atomic model: {what}") from error
    structure.setup_entities()
    structure.remove_waters()
    if len(structure) == 0 or structure[0].count_atom_sites() == 0:
        raise InputError(f"{path}: holds no atoms")
    model = structure[0]
    try:
        names = {atom.name for chain in model for residue in chain for atom in residue}
    except UnicodeDecodeError:
        raise InputError(f"{path}: names of atoms that are no text; correct the model") from None
    if bfactor_A2 is None and names <= {"CA", "P"}:
        bfactor_A2 = CALPHA_BFACTOR_A2
    if bfactor_A2 is None:
        stated = [atom.b_iso for chain in model for residue in chain for atom in residue]
        if not np.max(stated) <= MOST_BFACTOR_A2:
            raise InputError(f"{path}: a B factor of {np.max(stated):g} A^2; correct the model, or give one for all")
    for chain in model:
        for residue in chain:
            for atom in residue:
                atom.b_iso = max(atom.b_iso, 0.0) if bfactor_A2 is None else bfactor_A2
                atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    return model.clone()


def _centre_model(path: str | os.PathLike[str], model) -> float:
    """Move the model's centre of mass to the origin; returns the diameter about it in Angstrom.

    Raises InputError for an atom far away from all others.
    """
    import gemmi

    centre = model.calculate_center_of_mass()
    model.transform_pos_and_adp(gemmi.Transform(gemmi.Mat33(), gemmi.Vec3(-centre.x, -centre.y, -centre.z)))
    away_A = np.array([atom.pos.length() for chain in model for residue in chain for atom in residue])
    reach_A, middle_A = float(away_A.max()), float(np.median(away_A))
    if reach_A > FARTHEST_ATOM * middle_A + ATOM_ALONE_A:
        raise InputError(
            f"{path}: an atom lies {reach_A:.0f} A from the model's centre, and half of all within {middle_A:.0f} A; "
            "correct or remove it"
        )
    return 2 * reach_A


def _density_of_model(model, size: int, pixel_size_A: float, blur_A2: float) -> np.ndarray:
    """Density (D, D, D) [z, y, x] at `pixel_size_A`, band-limited at its Nyquist frequency.

    The atoms are laid down on a finer grid, blurred so far that sampling does no harm; the blur is taken back, and
    `blur_A2` put in its place, in Fourier space.
    """
    import gemmi

    fine = fft.next_fast_len(int(np.ceil(size * OVERSAMPLING)))
    fine += fine % 2
    edge, spacing = size * pixel_size_A, size * pixel_size_A / fine
    model = model.clone()
    model.transform_pos_and_adp(gemmi.Transform(gemmi.Mat33(), gemmi.Vec3(edge / 2, edge / 2, edge / 2)))
    calculator = gemmi.DensityCalculatorE()
    calculator.blur = ALIAS_BLUR * (spacing * OVERSAMPLING) ** 2
    calculator.cutoff = 1e-5
    calculator.grid.set_unit_cell(gemmi.UnitCell(edge, edge, edge, 90, 90, 90))
    calculator.grid.spacegroup = gemmi.SpaceGroup("P 1")
    wanted, there = COPIES_OF_GRID * 4 * fine**3, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    too_large = InputError(
        f"a model {edge:.0f} A across takes {wanted / 2**30:.1f} GiB at {pixel_size_A} A per voxel, more than there "
        "are; give a larger --angpix"
    )
    if wanted > there:
        raise too_large
    try:
        calculator.grid.set_size(fine, fine, fine)
    except MemoryError:
        raise too_large from None
    calculator.add_model_density_to_grid(model)
    density = np.ascontiguousarray(np.asarray(calculator.grid.array, np.float32).transpose(2, 1, 0))
    return _crop_and_filter(density, size, edge, blur_A2 - calculator.blur)


def _crop_and_filter(density: np.ndarray, size: int, edge_A: float, bfactor_A2: float) -> np.ndarray:
    """Fourier crop from F to D voxels (both even) and exp(-B s^2 / 4), inside the Nyquist sphere."""
    fine, half = len(density), size // 2
    transform = fft.rfftn(density)
    rows = np.r_[0:half, fine - half : fine]
    transform = transform[np.ix_(rows, rows, range(half + 1))]
    k = np.rint(np.fft.fftfreq(size, 1 / size))
    squared = k[:, None, None] ** 2 + k[None, :, None] ** 2 + np.arange(half + 1)[None, None, :] ** 2
    filtered = transform * np.where(squared < half**2, np.exp(-bfactor_A2 / 4 * squared / edge_A**2), 0)
    return (fft.irfftn(filtered, s=(size,) * 3) * (size / fine) ** 3).astype(np.float32)


def _one_scale(path: str | os.PathLike[str], density: np.ndarray) -> np.ndarray:
    """Divided by the 99th percentile of what is positive, so that maps of any grey scale can be mixed."""
    positive = density[density > 0]
    if positive.size == 0:
        raise InputError(f"{path}: no density above the threshold or the solvent")
    return (density / np.quantile(positive, 0.99)).astype(np.float32)


def _radius(size: int) -> np.ndarray:
    squared = (np.arange(size) - size // 2) ** 2
    return np.sqrt(sum(np.ix_(squared, squared, squared), np.int64(0)))

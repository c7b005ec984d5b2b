"""Maps as jobs take them: read, looked at, and held against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from polarice.postprocessing.result import Map
from polarice.types import InputError

PIXELS_AGREE = 0.01  # relative


def read_map(path: Path, angpix: float | None = None, unsigned: bool = False) -> Map:
    """A cubic map with a pixel size, `angpix` in its header's place. Raises InputError where it is none, holds NaN, or
    is the same everywhere."""
    from polarice.io.mrc import read_volume

    density, header_A = read_volume(path, unsigned)
    pixel_A = angpix or header_A
    if len(set(density.shape)) != 1:
        shape = " x ".join(map(str, density.shape[::-1]))
        raise InputError(f"{path}: a box of {shape} voxels; the same number along each axis is needed: cut or pad it")
    if not pixel_A:
        raise InputError(f"{path}: the header states no pixel size; give it with --angpix")
    wrong = int((~np.isfinite(density)).sum())
    if wrong:
        raise InputError(f"{path}: {wrong:,} voxels are no numbers (NaN or infinite); make the map anew")
    if density.min() == density.max():
        raise InputError(f"{path}: all voxels are {density.flat[0]:g}; this map is empty")
    return Map(path, density, pixel_A)


def require_same_grid(one: Map, other: Map) -> None:
    """InputError where two maps are of other boxes or pixel sizes."""
    if one.box_px != other.box_px:
        raise InputError(
            f"{other.path}: a box of {other.box_px} voxels, that of {one.path} has {one.box_px}; "
            f"bring it there first: polarice map {other.path} --new-box {one.box_px}"
        )
    if abs(one.pixel_A - other.pixel_A) > PIXELS_AGREE * one.pixel_A:
        raise InputError(
            f"{other.path}: pixels of {other.pixel_A:.4g} A, {one.path} has {one.pixel_A:.4g} A; resample it "
            f"(polarice map {other.path} --rescale-angpix {one.pixel_A:.4g}), or give both --angpix"
        )


def read_mask(path: Path, beside: Map, angpix: float | None = None) -> np.ndarray:
    """A mask (N, N, N) on the grid of a map. Raises InputError where it is on another, is empty, or leaves 0 to 1."""
    from polarice.io.mrc import read_volume

    mask, header_A = read_volume(path)
    if not np.isfinite(mask).all():
        raise InputError(f"{path}: holds values that are no numbers (NaN or infinite); make the mask anew")
    if mask.shape == beside.density.shape and (mask.max() <= 0):
        raise InputError(f"{path}: this mask is empty; make it with a lower --ini-threshold")
    if len(set(mask.shape)) != 1:
        raise InputError(f"{path}: not a cube; make the mask from the map itself: polarice mask {beside.path}")
    require_same_grid(beside, Map(path, mask, angpix or header_A or beside.pixel_A))
    if mask.min() < -1e-4 or mask.max() > 1 + 1e-4:
        raise InputError(
            f"{path}: values from {mask.min():.4g} to {mask.max():.4g}; a mask lies between 0 and 1. "
            f"If this is a map, make a mask of it: polarice mask {path}"
        )
    return np.clip(mask, 0, 1)


def require_folder(folder: Path) -> None:
    """InputError where --o is named as a map is."""
    if folder.suffix.lower() in (".mrc", ".map", ".ccp4", ".star"):
        raise InputError(f"--o {folder}: is the folder for the results; leave out the file's name")

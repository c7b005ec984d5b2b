"""Particle tables of cryoSPARC (`.cs`: a NumPy structured array) and their way to RELION's columns and back.

Conventions, as the field's converters have them: psi, and the shifts in pixels, are RELION's rlnAnglePsi (in radians)
and origins; a 3D pose is the rotation vector of RELION's ZYZ Euler angles; classes, exposure groups and sections count
from 0. Coordinates are fractions of the micrograph from its first row and column; micrographs of cryoSPARC's patch
motion are upside down against those of RELION and MotionCor2, whose coordinates are got with `flip_y`.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from typing import Any

import numpy as np

from polarice.io.atomic import replacing
from polarice.io.table import Table
from polarice.types import InputError

_DEFOCUS = {"rlnDefocusU": "ctf/df1_A", "rlnDefocusV": "ctf/df2_A"}
_DEGREES = {"rlnDefocusAngle": "ctf/df_angle_rad", "rlnPhaseShift": "ctf/phase_shift_rad"}
_PLAIN = {"rlnCtfBfactor": "ctf/bfactor", "rlnCtfScalefactor": "ctf/scale"}
_OPTICS = {
    "rlnVoltage": "ctf/accel_kv",
    "rlnSphericalAberration": "ctf/cs_mm",
    "rlnAmplitudeContrast": "ctf/amp_contrast",
}


def read_cs(path: str | os.PathLike[str]) -> np.ndarray:
    """The rows (n,) of a .cs file. Raises InputError where it is no such file, or empty."""
    try:
        rows = np.load(path, max_header_size=1 << 20)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the name and the folder") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as a .cs table ({error}); export it again") from None
    if rows.dtype.names is None or "uid" not in rows.dtype.names:
        raise InputError(f"{path}: no column uid; is it a .cs table of cryoSPARC?")
    if not len(rows):
        raise InputError(f"{path} has no rows; check how it was selected")
    return rows


def join(rows: np.ndarray, passed: np.ndarray) -> np.ndarray:
    """`rows` with the columns that only `passed` (a passthrough table) has, matched by uid; rows without a mate go."""
    order = np.argsort(passed["uid"])
    place = np.searchsorted(passed["uid"][order], rows["uid"]).clip(max=len(passed) - 1)
    mate = order[place]
    both = passed["uid"][mate] == rows["uid"]
    assert rows.dtype.names is not None and passed.dtype.names is not None
    extra = [name for name in passed.dtype.names if name not in rows.dtype.names]
    made = np.empty(int(both.sum()), rows.dtype.descr + [(name, passed.dtype[name]) for name in extra])
    for name in rows.dtype.names:
        made[name] = rows[name][both]
    for name in extra:
        made[name] = passed[name][mate[both]]
    return made


def tables_of_cs(rows: np.ndarray, flip_y: bool = False, where: str = "particles.cs") -> tuple[Table, Table]:
    """(optics, particles) in RELION 3.1's layout. Raises InputError where there are no images."""
    names = set(rows.dtype.names or ())
    if "blob/path" not in names:
        raise InputError(f"{where}: no column blob/path; give the table that has the particles' images")
    if missing := [name for name in ("blob/idx", "blob/psize_A") if name not in names]:
        raise InputError(f"{where}: no column {missing[0]}; export the particles again with their images")
    group = rows["ctf/exp_group_id"] if "ctf/exp_group_id" in names else np.zeros(len(rows), int)
    numbers, first, group_of = np.unique(group, return_index=True, return_inverse=True)
    size_A = rows["blob/psize_A"].astype(float)
    columns: dict[str, Any] = {
        "rlnImageName": [
            f"{index + 1:06d}@{_text(path)}" for index, path in zip(rows["blob/idx"], rows["blob/path"], strict=True)
        ]
    }
    columns |= {label: rows[name].astype(float) for label, name in (_DEFOCUS | _PLAIN).items() if name in names}
    columns |= {label: np.rad2deg(rows[name].astype(float)) for label, name in _DEGREES.items() if name in names}
    columns |= _pose_of_cs(rows, names, size_A) | _place_of_cs(rows, names, flip_y)
    columns["rlnOpticsGroup"] = group_of + 1
    optics: dict[str, Any] = {
        "rlnOpticsGroupName": [f"expGroup{number + 1}" for number in numbers.tolist()],
        "rlnOpticsGroup": np.arange(1, len(numbers) + 1),
        "rlnImagePixelSize": size_A[first],
        "rlnImageSize": rows["blob/shape"][first, 0].astype(int),
        "rlnImageDimensionality": np.full(len(numbers), 2),
    }
    optics |= {label: rows[name][first].astype(float) for label, name in _OPTICS.items() if name in names}
    return Table.of(optics, where=f"{where} (optics)"), Table.of(columns, where=where)


def _pose_of_cs(rows: np.ndarray, names: set[str], size_A: np.ndarray) -> dict[str, Any]:
    kind = next((each for each in ("alignments3D", "alignments2D") if f"{each}/pose" in names), None)
    if kind is None:
        return {}
    scale = rows[f"{kind}/psize_A"].astype(float) if f"{kind}/psize_A" in names else size_A
    shift_A = rows[f"{kind}/shift"].astype(float) * scale[:, None]
    found: dict[str, Any] = {"rlnOriginXAngst": shift_A[:, 0], "rlnOriginYAngst": shift_A[:, 1]}
    pose = rows[f"{kind}/pose"].astype(float)
    if kind == "alignments2D":
        found["rlnAnglePsi"] = np.rad2deg(pose)
    else:
        found |= dict(zip(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), euler_of_pose(pose).T, strict=True))
    if f"{kind}/class" in names:
        found["rlnClassNumber"] = rows[f"{kind}/class"].astype(int) + 1
    if f"{kind}/split" in names:
        found["rlnRandomSubset"] = rows[f"{kind}/split"].astype(int) + 1
    if f"{kind}/class_posterior" in names:
        found["rlnMaxValueProbDistribution"] = rows[f"{kind}/class_posterior"].astype(float)
    return found


def _place_of_cs(rows: np.ndarray, names: set[str], flip_y: bool) -> dict[str, Any]:
    if "location/center_x_frac" not in names:
        return {}
    ny, nx = rows["location/micrograph_shape"].astype(float).T
    y = rows["location/center_y_frac"].astype(float)
    found = {
        "rlnCoordinateX": rows["location/center_x_frac"].astype(float) * nx,
        "rlnCoordinateY": (1 - y if flip_y else y) * ny,
    }
    return found | {"rlnMicrographName": [_text(path) for path in rows["location/micrograph_path"]]}


def euler_of_pose(pose: np.ndarray) -> np.ndarray:
    """RELION's rot, tilt, psi (n, 3) in degrees of cryoSPARC's rotation vectors (n, 3) in radians."""
    from scipy.spatial.transform import Rotation

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # tilt 0: rot and psi are one angle
        return Rotation.from_rotvec(pose).as_euler("ZYZ", degrees=True)


def pose_of_euler(angles_deg: np.ndarray) -> np.ndarray:
    """The inverse of `euler_of_pose`."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("ZYZ", angles_deg, degrees=True).as_rotvec()


def cs_of_tables(
    optics: Table, particles: Table, shape: tuple[int, int] | None = None, flip_y: bool = False
) -> np.ndarray:
    """Rows of a .cs table from RELION's tables; `shape` is (ny, nx) of the micrographs, without which no locations.

    Raises InputError where a needed column is missing.
    """
    n = len(particles)
    numbers = optics.integers("rlnOpticsGroup")
    group = np.searchsorted(np.sort(numbers), particles.integers("rlnOpticsGroup"))
    row_of = np.argsort(numbers)[group]
    names = [text.partition("@") for text in particles.text("rlnImageName").tolist()]
    size_A = optics.numbers("rlnImagePixelSize")[row_of]
    box = optics.integers("rlnImageSize")[row_of]
    made: dict[str, tuple[Any, np.ndarray]] = {
        "uid": ("<u8", np.array([_uid("".join(name)) for name in names], np.uint64)),
        "blob/path": ("S", np.array([path.encode() for _, _, path in names])),
        "blob/idx": ("<u4", np.array([int(index) - 1 for index, _, _ in names])),
        "blob/shape": ("<u4", np.stack([box, box], -1)),
        "blob/psize_A": ("<f4", size_A),
        "blob/sign": ("<f4", np.ones(n)),
        "ctf/exp_group_id": ("<u4", group),
    }
    for label, name in (_DEFOCUS | _PLAIN).items():
        if label in particles:
            made[name] = ("<f4", particles.numbers(label))
    for label, name in _DEGREES.items():
        if label in particles:
            made[name] = ("<f4", np.deg2rad(particles.numbers(label)))
    made |= {name: ("<f4", optics.numbers(label)[row_of]) for label, name in _OPTICS.items() if label in optics}
    made |= _pose_columns(particles, size_A) | _place_columns(particles, shape, flip_y)
    return _structured(made, n)


def _pose_columns(particles: Table, size_A: np.ndarray) -> dict[str, tuple[Any, np.ndarray]]:
    if "rlnAnglePsi" not in particles or "rlnOriginXAngst" not in particles:
        return {}
    tilted = "rlnAngleTilt" in particles and bool(particles.numbers("rlnAngleTilt").any())
    kind = "alignments3D" if tilted else "alignments2D"
    shift = np.stack([particles.numbers(f"rlnOrigin{axis}Angst") / size_A for axis in "XY"], -1)
    made: dict[str, tuple[Any, np.ndarray]] = {f"{kind}/shift": ("<f4", shift), f"{kind}/psize_A": ("<f4", size_A)}
    if kind == "alignments2D":
        made[f"{kind}/pose"] = ("<f4", np.deg2rad(particles.numbers("rlnAnglePsi")))
    else:
        angles = np.stack([particles.numbers(f"rlnAngle{name}") for name in ("Rot", "Tilt", "Psi")], -1)
        made[f"{kind}/pose"] = ("<f4", pose_of_euler(angles))
    for label, name in (("rlnClassNumber", "class"), ("rlnRandomSubset", "split")):
        if label in particles:
            made[f"{kind}/{name}"] = ("<u4", particles.integers(label) - 1)
    if "rlnMaxValueProbDistribution" in particles:
        made[f"{kind}/class_posterior"] = ("<f4", particles.numbers("rlnMaxValueProbDistribution"))
    return made


def _place_columns(particles: Table, shape: tuple[int, int] | None, flip_y: bool) -> dict[str, tuple[Any, np.ndarray]]:
    if shape is None or "rlnCoordinateX" not in particles or "rlnMicrographName" not in particles:
        return {}
    y = particles.numbers("rlnCoordinateY") / shape[0]
    names = particles.text("rlnMicrographName").tolist()
    return {
        "location/micrograph_path": ("S", np.array([name.encode() for name in names])),
        "location/micrograph_uid": ("<u8", np.array([_uid(name) for name in names], np.uint64)),
        "location/micrograph_shape": ("<u4", np.tile(np.array(shape), (len(names), 1))),
        "location/center_x_frac": ("<f4", particles.numbers("rlnCoordinateX") / shape[1]),
        "location/center_y_frac": ("<f4", 1 - y if flip_y else y),
    }


def _structured(columns: dict[str, tuple[Any, np.ndarray]], n: int) -> np.ndarray:
    fields = [
        (name, values.dtype if kind == "S" else np.dtype(kind), values.shape[1:])
        for name, (kind, values) in columns.items()
    ]
    rows = np.empty(n, fields)
    for name, (_, values) in columns.items():
        rows[name] = values
    return rows


def write_cs(path: str | os.PathLike[str], rows: np.ndarray) -> None:
    """Write a .cs table; InputError where the disk is full or the folder may not be written."""
    with replacing(path) as stream:
        np.save(stream, rows, allow_pickle=False)


def _uid(text: str) -> int:
    """A number of 64 bits that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _text(value: bytes) -> str:
    return os.fsdecode(value).lstrip(">")

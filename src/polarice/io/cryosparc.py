"""Particle tables of cryoSPARC (`.cs`: a NumPy structured array) and their way to RELION's columns and back.

Conventions, as the field's converters have them: psi, and the shifts in pixels, are RELION's rlnAnglePsi (in radians)
and origins; a 3D pose is the rotation vector of RELION's ZYZ Euler angles; classes, exposure groups and sections count
from 0. Coordinates are fractions of the micrograph from its first row and column; micrographs of cryoSPARC's patch
motion are upside down against those of RELION and MotionCor2, whose coordinates are got with `flip_y`.
"""

from __future__ import annotations

import hashlib
import math
import os
import tokenize
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from polarice.io.atomic import replacing
from polarice.io.kinds import require_no_other_kind
from polarice.io.optics import LEAST_PIXEL_SIZE_A, MOST_PIXEL_SIZE_A, PLAUSIBLE
from polarice.io.stacks import plain_name, relion_name
from polarice.io.table import Table
from polarice.types import InputError

ALIGNMENTS = ("alignments2D/", "alignments3D/")
HEADER_CHARACTERS = 1 << 20  # of a table's description; those of cryoSPARC have some thousand
NO_CLASS = 2**31 - 1  # from here on a class's number is none that was counted
MOST_SIDE_PX, MOST_SHIFT_A = 1e6, 1e5  # of a micrograph; from the centre of a box
FARTHEST_OFF_CENTRE = 1.0  # of a micrograph's side; picks beyond half of it lie outside

_DEFOCUS = {"rlnDefocusU": "ctf/df1_A", "rlnDefocusV": "ctf/df2_A"}
_DEGREES = {"rlnDefocusAngle": "ctf/df_angle_rad", "rlnPhaseShift": "ctf/phase_shift_rad"}
_PLAIN = {"rlnCtfBfactor": "ctf/bfactor", "rlnCtfScalefactor": "ctf/scale"}
_OPTICS = {
    "rlnVoltage": "ctf/accel_kv",
    "rlnSphericalAberration": "ctf/cs_mm",
    "rlnAmplitudeContrast": "ctf/amp_contrast",
}
_NOT_CONVERTED = ("ctf/anisomag", "ctf/tilt_A", "ctf/trefoil_A", "ctf/tetra_A", "ctf/shift_A")
_COUNTED = {"rlnClassNumber": "class", "rlnRandomSubset": "split"}


def read_cs(path: str | os.PathLike[str]) -> np.ndarray:
    """The rows (n,) of a .cs file. Raises InputError where it is no such file, is cut off, or is empty."""
    require_no_other_kind(path, "a .cs table of cryoSPARC", but=("NumPy",))
    try:
        rows = _load(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the name and the folder") from None
    except (OSError, ValueError, TypeError, SyntaxError, EOFError, tokenize.TokenError, RecursionError, MemoryError):
        raise InputError(
            f"{path} cannot be read as a .cs table: it is another kind of file, cut off or damaged; export it again"
        ) from None
    if rows.dtype.names is None or "uid" not in rows.dtype.names:
        raise InputError(f"{path}: no column uid; is it a .cs table of cryoSPARC?")
    if rows.dtype["uid"].kind not in "ui" or rows.dtype["uid"].shape or rows.ndim != 1:
        raise InputError(f"{path}: uid is not one whole number a row; is it a .cs table of cryoSPARC?")
    if not len(rows):
        raise InputError(f"{path} has no rows; check how it was selected")
    return rows


def _load(path: str | os.PathLike[str]) -> np.ndarray:
    """A NumPy array whose header claims no more than the file holds; ValueError for any other, Python objects too."""
    with open(path, "rb") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream, max_header_size=HEADER_CHARACTERS)
        count = math.prod(shape)
        left = os.fstat(stream.fileno()).st_size - stream.tell()
        if dtype.hasobject or dtype.itemsize == 0 or min(shape, default=1) < 0 or count * dtype.itemsize > left:
            raise ValueError
        return np.fromfile(stream, dtype, count).reshape(shape)


def join(rows: np.ndarray, passed: np.ndarray, where: str = "passthrough table") -> np.ndarray:
    """`rows` with the columns that only `passed` (a passthrough table) has, matched by uid; rows without a mate go.

    Alignments of `passed` are those of an earlier job: they count only where `rows` has none of its own. Raises
    InputError where a uid of `passed` (named `where`) has two rows that differ.
    """
    order = np.argsort(passed["uid"], kind="stable")
    sorted_uid = passed["uid"][order]
    twice = np.flatnonzero(sorted_uid[1:] == sorted_uid[:-1])
    differing = [at for at in twice.tolist() if passed[order[at]].tobytes() != passed[order[at + 1]].tobytes()]
    if differing:
        raise InputError(
            f"{where}: uid {sorted_uid[differing[0]]} stands there more than once, with other values (so do "
            f"{len(differing)} in all); export the passthrough table again"
        )
    place = np.searchsorted(passed["uid"][order], rows["uid"]).clip(max=len(passed) - 1)
    mate = order[place]
    both = passed["uid"][mate] == rows["uid"]
    assert rows.dtype.names is not None and passed.dtype.names is not None
    aligned = any(name.startswith(ALIGNMENTS) for name in rows.dtype.names)
    extra = [
        name
        for name in passed.dtype.names
        if name not in rows.dtype.names and not (aligned and name.startswith(ALIGNMENTS))
    ]
    fields = [(name, rows.dtype[name]) for name in rows.dtype.names] + [(name, passed.dtype[name]) for name in extra]
    made = np.empty(int(both.sum()), fields)
    for name in rows.dtype.names:
        made[name] = rows[name][both]
    for name in extra:
        made[name] = passed[name][mate[both]]
    return made


def tables_of_cs(rows: np.ndarray, flip_y: bool = False, where: str = "particles.cs") -> tuple[Table, Table]:
    """(optics, particles) in RELION 3.1's layout; rows of one exposure group that differ in pixel size, box or optics
    become optics groups of their own.

    Raises InputError where there are no images, and naming the column and row where a value is missing or no number.
    """
    names = set(rows.dtype.names or ())
    if "blob/path" not in names:
        raise InputError(f"{where}: no column blob/path; give the table that has the particles' images")
    size_A, shape = _numbers(rows, "blob/psize_A", where), _numbers(rows, "blob/shape", where, 2)
    index = _numbers(rows, "blob/idx", where)
    for name, bad in (
        ("blob/psize_A", ~((size_A >= LEAST_PIXEL_SIZE_A) & (size_A <= MOST_PIXEL_SIZE_A))),
        ("blob/shape", shape[:, 0] != shape[:, 1]),
        ("blob/idx", (index < 0) | (index != np.rint(index))),
    ):
        if bad.any():
            raise InputError(
                f"{where}, row {int(np.argmax(bad)) + 1}: {name} is {rows[name][np.argmax(bad)]}; remove the row"
            )
    optics, group_of = _optics_of_cs(rows, names, size_A, shape[:, 0], where)
    paths = _texts(rows, "blob/path", where)
    columns: dict[str, Any] = {
        "rlnImageName": [
            f"{section + 1:06d}@{relion_name(path)}" for section, path in zip(index.astype(int), paths, strict=True)
        ]
    }
    columns |= {label: _numbers(rows, name, where) for label, name in (_DEFOCUS | _PLAIN).items() if name in names}
    columns |= {label: np.rad2deg(_numbers(rows, name, where)) for label, name in _DEGREES.items() if name in names}
    columns |= _pose_of_cs(rows, names, size_A, where) | _place_of_cs(rows, names, flip_y, where)
    columns["rlnOpticsGroup"] = group_of + 1
    return Table.of(optics, where=f"{where} (optics)"), Table.of(columns, where=where)


def _optics_of_cs(
    rows: np.ndarray, names: set[str], size_A: np.ndarray, box_px: np.ndarray, where: str
) -> tuple[dict[str, Any], np.ndarray]:
    """Columns of the optics table, and each row's place in it (n,)."""
    exposure = _numbers(rows, "ctf/exp_group_id", where) if "ctf/exp_group_id" in names else np.zeros(len(rows))
    known = {label: _numbers(rows, name, where) for label, name in _OPTICS.items() if name in names}
    for label, values in known.items():
        low, high = PLAUSIBLE[label]
        if (wrong := (values < low) | (values > high)).any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"{where}, row {row + 1}: {_OPTICS[label]} is {values[row]:g}, and not between {low:g} and {high:g}; "
                "correct or remove the row"
            )
    keys = np.stack([exposure, size_A, box_px, *known.values()], axis=1)
    groups, first, group_of = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    called = [f"expGroup{int(number) + 1}" for number in groups[:, 0]]
    called = [
        name if called.count(name) == 1 else f"{name}_{called[: place + 1].count(name)}"
        for place, name in enumerate(called)
    ]
    optics: dict[str, Any] = {
        "rlnOpticsGroupName": called,
        "rlnOpticsGroup": np.arange(1, len(groups) + 1),
        "rlnImagePixelSize": size_A[first],
        "rlnImageSize": box_px[first].astype(int),
        "rlnImageDimensionality": np.full(len(groups), 2),
    }
    return optics | {label: values[first] for label, values in known.items()}, group_of.reshape(-1)


def _pose_of_cs(rows: np.ndarray, names: set[str], size_A: np.ndarray, where: str) -> dict[str, Any]:
    kind = next((each for each in ("alignments3D", "alignments2D") if f"{each}/pose" in names), None)
    if kind is None:
        return {}
    scale = _numbers(rows, f"{kind}/psize_A", where) if f"{kind}/psize_A" in names else size_A
    shift_A = _numbers(rows, f"{kind}/shift", where, 2) * scale[:, None]
    _require_near(np.abs(shift_A).max(axis=1), MOST_SHIFT_A, f"{kind}/shift", where)
    found: dict[str, Any] = {"rlnOriginXAngst": shift_A[:, 0], "rlnOriginYAngst": shift_A[:, 1]}
    if kind == "alignments2D":
        found["rlnAnglePsi"] = np.rad2deg(_numbers(rows, f"{kind}/pose", where))
    else:
        pose = _numbers(rows, f"{kind}/pose", where, 3)
        found |= dict(zip(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), euler_of_pose(pose).T, strict=True))
    if f"{kind}/class" in names:
        found["rlnClassNumber"] = _counted_from_one(rows, f"{kind}/class", where)
    if f"{kind}/split" in names:
        half = _counted_from_one(rows, f"{kind}/split", where)
        if {1, 2} <= set(np.unique(half)):  # all in one half: never split
            found["rlnRandomSubset"] = half
    if f"{kind}/class_posterior" in names:
        found["rlnMaxValueProbDistribution"] = _numbers(rows, f"{kind}/class_posterior", where)
    return found


def _require_near(values: np.ndarray, most: float, name: str, where: str) -> None:
    """Raise InputError for the first row of values (n,) beyond `most`."""
    if (values > most).any():
        row = int(np.argmax(values > most))
        raise InputError(f"{where}, row {row + 1}: {name} is {values[row]:g}, more than {most:g}; remove the row")


def _counted_from_one(rows: np.ndarray, name: str, where: str) -> np.ndarray:
    """A column that counts from 0 as one that counts from 1; the largest unsigned number, no class, becomes 0."""
    values = _numbers(rows, name, where)
    return np.where(values >= NO_CLASS, 0, values + 1).astype(np.int64)


def _place_of_cs(rows: np.ndarray, names: set[str], flip_y: bool, where: str) -> dict[str, Any]:
    if "location/center_x_frac" not in names:
        return {}
    ny, nx = _numbers(rows, "location/micrograph_shape", where, 2).T
    x, y = (_numbers(rows, f"location/center_{axis}_frac", where) for axis in "xy")
    _require_near(np.maximum(nx, ny), MOST_SIDE_PX, "location/micrograph_shape", where)
    far = (np.maximum(np.abs(x - 0.5), np.abs(y - 0.5)) > FARTHEST_OFF_CENTRE) | (np.minimum(nx, ny) < 1)
    if far.any():
        row = int(np.argmax(far))
        raise InputError(f"{where}, row {row + 1}: location/center_*_frac lies far off the micrograph; remove the row")
    found = {"rlnCoordinateX": x * nx, "rlnCoordinateY": (1 - y if flip_y else y) * ny}
    return found | {"rlnMicrographName": _texts(rows, "location/micrograph_path", where)}


def not_converted(rows: np.ndarray) -> list[str]:
    """Columns of aberrations that RELION's table does not get, where some are not 0 (or no identity), and in how many
    rows: `ctf/tilt_A (12 rows)`."""
    found = []
    for name in _NOT_CONVERTED:
        if name in (rows.dtype.names or ()) and rows[name].dtype.kind in "iuf":
            values = rows[name].reshape(len(rows), -1).astype(np.float64)
            count = int((np.abs(values) > 1e-6).any(axis=1).sum())
            found += [f"{name} ({count:,} rows)"] if count else []
    return found


def dark(rows: np.ndarray, where: str = "particles.cs") -> np.ndarray:
    """Which particles are dark on bright, (n,) bool. Raises InputError where blob/sign is not a number."""
    if "blob/sign" not in (rows.dtype.names or ()):
        return np.zeros(len(rows), bool)
    return _numbers(rows, "blob/sign", where) < 0


def _column(rows: np.ndarray, name: str, where: str, kinds: str, width: int = 0) -> np.ndarray:
    """A column whose type is one of `kinds`, of `width` values a row (0: one, no array)."""
    if name not in (rows.dtype.names or ()):
        raise InputError(f"{where}: no column {name}; export the particles again with it")
    values = rows[name]
    if values.dtype.kind not in kinds or values.shape[1:] != ((width,) if width else ()):
        raise InputError(f"{where}: column {name} has type {values.dtype} {list(values.shape[1:])}; export it again")
    return values


def _numbers(rows: np.ndarray, name: str, where: str, width: int = 0) -> np.ndarray:
    """A column of finite numbers as float64 (n,) or (n, width). Raises InputError naming column and row."""
    values = _column(rows, name, where, "iuf", width).astype(np.float64)
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise InputError(f"{where}, row {int(np.argmax(bad)) + 1}: {name} is not a finite number; remove the row")
    return values


def _texts(rows: np.ndarray, name: str, where: str) -> list[str]:
    found = [_text(value) for value in _column(rows, name, where, "SU").tolist()]
    for row, text in enumerate(found, 1):
        if not text or any(character.isspace() or not character.isprintable() for character in text):
            shown = repr(text[:80])
            raise InputError(f"{where}, row {row}: {name} is {shown}, which a STAR file cannot name; rename the file")
    return found


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


def cs_of_tables(optics: Table, particles: Table, shapes: ArrayLike | None = None, flip_y: bool = False) -> np.ndarray:
    """Rows of a .cs table from RELION's tables.

    shapes  ny, nx of each particle's micrograph (n, 2), or of all of them (2,), without which there are no locations

    Raises InputError where a needed column is missing, or an optics group.
    """
    n = len(particles)
    group, row_of = _exposure_groups(optics, particles)
    images = (text.rpartition("@") for text in particles.text("rlnImageName").tolist())
    names = [(section or "1", at, plain_name(path)) for section, at, path in images]
    size_A = optics.numbers("rlnImagePixelSize")[row_of]
    box = optics.integers("rlnImageSize")[row_of]
    made: dict[str, tuple[Any, np.ndarray]] = {
        "uid": ("<u8", np.array([_uid("".join(name)) for name in names], np.uint64)),
        "blob/path": ("S", np.array([os.fsencode(path) for _, _, path in names])),
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
    made |= _pose_columns(particles, size_A) | _place_columns(particles, shapes, flip_y)
    return _structured(made, n)


def _exposure_groups(optics: Table, particles: Table) -> tuple[np.ndarray, np.ndarray]:
    """Of each particle: the number of its group, counted from 0 in their order, and its row of the optics table."""
    numbers, wanted = optics.integers("rlnOpticsGroup"), particles.integers("rlnOpticsGroup")
    order = np.argsort(numbers, kind="stable")
    group = np.searchsorted(numbers[order], wanted).clip(max=len(numbers) - 1)
    row_of = order[group]
    strange = numbers[row_of] != wanted
    if strange.any():
        row = int(np.argmax(strange))
        raise InputError(
            f"{particles.where}, row {row + 1}: optics group {wanted[row]} is not in the optics table; remove the row"
        )
    return group, row_of


def unknown(optics: Table, particles: Table) -> list[str]:
    """Columns of RELION's tables that a .cs table has no place for, as they stand in the file (_rlnX)."""
    held = {*_DEFOCUS, *_DEGREES, *_PLAIN, *_OPTICS, *_COUNTED, "rlnImageName", "rlnMicrographName", "rlnOpticsGroup"}
    held |= {f"rlnAngle{name}" for name in ("Rot", "Tilt", "Psi")} | {"rlnMaxValueProbDistribution"}
    held |= {f"rln{name}{axis}" for name in ("Coordinate", "Origin") for axis in "XY"}
    held |= {"rlnOriginXAngst", "rlnOriginYAngst", "rlnOpticsGroupName", "rlnImagePixelSize", "rlnImageSize"}
    held |= {"rlnImageDimensionality", "rlnMicrographOriginalPixelSize", "rlnMicrographPixelSize"}
    return [f"_{label}" for table in (optics, particles) for label in table.labels if label not in held]


def not_held(particles: Table) -> list[str]:
    """Columns of classes and half sets that a .cs table cannot hold, since rows have none (0 or less in RELION)."""
    return [label for label in _COUNTED if label in particles and not _is_counted(particles.integers(label))]


def _is_counted(values: np.ndarray) -> bool:
    return bool(((values >= 1) & (values <= NO_CLASS)).all())


def _pose_columns(particles: Table, size_A: np.ndarray) -> dict[str, tuple[Any, np.ndarray]]:
    if "rlnAnglePsi" not in particles or "rlnOriginXAngst" not in particles:
        return {}
    views = [f"rlnAngle{name}" for name in ("Rot", "Tilt")]
    tilted = any(label in particles and bool(particles.numbers(label).any()) for label in views)
    kind = "alignments3D" if tilted else "alignments2D"
    shift = np.stack([particles.numbers(f"rlnOrigin{axis}Angst") / size_A for axis in "XY"], -1)
    made: dict[str, tuple[Any, np.ndarray]] = {f"{kind}/shift": ("<f4", shift), f"{kind}/psize_A": ("<f4", size_A)}
    if kind == "alignments2D":
        made[f"{kind}/pose"] = ("<f4", np.deg2rad(particles.numbers("rlnAnglePsi")))
    else:
        zeros = np.zeros(len(particles))
        rot_tilt = [particles.numbers(label) if label in particles else zeros for label in views]
        angles = np.stack([*rot_tilt, particles.numbers("rlnAnglePsi")], -1)
        made[f"{kind}/pose"] = ("<f4", pose_of_euler(angles))
    for label, name in _COUNTED.items():
        if label in particles and label not in not_held(particles):
            made[f"{kind}/{name}"] = ("<u4", particles.integers(label) - 1)
    if "rlnMaxValueProbDistribution" in particles:
        made[f"{kind}/class_posterior"] = ("<f4", particles.numbers("rlnMaxValueProbDistribution"))
    return made


def _place_columns(particles: Table, shapes: ArrayLike | None, flip_y: bool) -> dict[str, tuple[Any, np.ndarray]]:
    if shapes is None or "rlnCoordinateX" not in particles or "rlnMicrographName" not in particles:
        return {}
    shapes = np.broadcast_to(np.asarray(shapes), (len(particles), 2))
    y = particles.numbers("rlnCoordinateY") / shapes[:, 0]
    names = particles.text("rlnMicrographName").tolist()
    return {
        "location/micrograph_path": ("S", np.array([os.fsencode(name) for name in names])),
        "location/micrograph_uid": ("<u8", np.array([_uid(name) for name in names], np.uint64)),
        "location/micrograph_shape": ("<u4", shapes),
        "location/center_x_frac": ("<f4", particles.numbers("rlnCoordinateX") / shapes[:, 1]),
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
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:8], "little")


def _text(value: bytes | str) -> str:
    return os.fsdecode(value).lstrip(">")

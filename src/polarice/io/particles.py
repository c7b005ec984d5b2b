"""Tables of particles in, RELION 3.1 and later or 3.0 and before, and out again in the layout of 3.1.

Conventions are turned here and nowhere else: psi_deg = -rlnAnglePsi, shift_px = -rlnOriginX/YAngst / pixel size,
classes and sections from 0 (RELION's from 1).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from polarice.io import optics as optics_
from polarice.io.cells import first_rows
from polarice.io.mrc import read_header
from polarice.io.optics import UNSET_PIXEL_A
from polarice.io.read_ahead import read_ahead
from polarice.io.stacks import StackSource, disk_order, find_stacks, plain_name, relion_name
from polarice.io.star import Block, StarFile, read_star, write_star
from polarice.io.table import Table
from polarice.types import CTFParameters, InputError, Optics, Particles, Pose2D

__all__ = [
    "ParticleTable", "StackSource", "disk_order", "pose_columns", "read_ahead", "read_particles", "write_particles",
]  # fmt: skip

_DEFOCUS_LABELS = (*optics_.DEFOCUS_LABELS, "rlnDefocusAngle")
_NO_CTF = "estimate the CTF and extract again, or leave the CTF out with --no-ctf"
_PLAUSIBLE_PIXEL_A = (0.05, 100.0)
_SAME_SCALE = 1e-4  # relative difference of pixel sizes that is rounding
MOST_SECTIONS = 2**31 - 1  # what the header of a stack can say
MOST_CLASSES = 2**31 - 1
MOST_ANGLE_DEG = 1e6
MOST_ORIGIN = 1e7  # px or A; no micrograph is so wide


@dataclass(frozen=True, eq=False)
class ParticleTable:
    """Particles and the table they stood in; row i of `table` is particle i. Both tables are in RELION 3.1's layout."""

    particles: Particles
    table: Table
    optics_table: Table
    path: Path
    remark: str = ""  # what the user should know of it

    def take(self, rows: np.ndarray) -> ParticleTable:
        """The particles of `rows` (int indices or a boolean mask), in that order."""
        return replace(self, particles=self.particles.take(rows), table=self.table.take(rows))


def read_particles(
    path: str | os.PathLike[str],
    image_dir: str | os.PathLike[str] | None = None,
    need_ctf: bool = True,
    pixel_size_A: float | None = None,
) -> ParticleTable:
    """Read a table of particles; `pixel_size_A` holds where the table states none, or another one (a `remark` then).

    Origins in Angstrom were written with the pixel size that the table states: they are rescaled with it.

    Without `need_ctf` the CTF columns are taken where they are complete, else `particles.ctf` is None. Raises
    InputError naming table, row (from 1) and remedy: no particles, stack not found, optics group not defined or groups
    that cannot be mixed, CTF columns missing, a value that is not a number.
    """
    star = read_star(path)
    table = _particle_block(star)
    if len(table) == 0:
        raise InputError(f"{table.where} has no particles; check how it was selected")
    _require_no_subtomograms(star, table)
    optics_table = _optics_table(star)
    optics_.require_plane_images(table if optics_table is None else optics_table)
    stacks, stack_of, section = _images(table, star.path, image_dir)
    old = optics_table is None
    if optics_table is None:
        optics_table, optics_of = optics_.optics_from_columns(table)
    else:
        optics_of = optics_.groups_of_particles(table, optics_table)
    ctf = _ctf(table, optics_table, need_ctf)
    stated, remarks = _held_to_headers(optics_table, optics_of, stacks, stack_of, pixel_size_A)
    groups = _with_scale(stated, optics_of, stacks, stack_of, table.where, pixel_size_A)
    other = [was for was, now in zip(stated, groups, strict=True) if 0 < was.pixel_size_A != now.pixel_size_A]
    written_with = [was.pixel_size_A or now.pixel_size_A for was, now in zip(stated, groups, strict=True)]
    pose = _pose(table, np.array(written_with)[optics_of])
    group_names, group_of = _micrographs(table, stacks, stack_of)
    particles = Particles(stacks, stack_of, section, groups, optics_of, group_names, group_of, ctf, pose)
    old_size = optics_.other_pixel_size(table, optics_table) if old else ""
    table = _modern(table, particles, optics_table, old, bool(other))
    optics_table = optics_.completed(optics_table.without("rlnImagePixelSize") if other else optics_table, groups)
    remarks += [f"it states {other[0].pixel_size_A:.4g} A per pixel; {pixel_size_A:.4g} A is used"] if other else []
    remarks += [text for text in (old_size,) if text and not other]
    if ctf is not None:
        remarks += filter(None, (optics_.strange_defoci(table), optics_.not_corrected(optics_table)))
    return ParticleTable(particles, table, optics_table, star.path, f"{path}: {'; '.join(remarks)}" if remarks else "")


def write_particles(
    path: str | os.PathLike[str],
    table: ParticleTable,
    rows: np.ndarray | None = None,
    columns: Mapping[str, Any] | None = None,
) -> None:
    """Write the particles of `rows` (all without) as RELION 3.1 reads them, `columns` (len(rows),) replaced or added.

    Every other column keeps its text exactly. Raises InputError where the disk is full or the folder may not be
    written.
    """
    chosen = table.table if rows is None else table.table.take(rows)
    chosen = chosen.with_columns(columns or {})
    write_star(path, [Block("optics", table=table.optics_table), Block("particles", table=chosen)])


def pose_columns(pose: Pose2D, pixel_size_A: float | np.ndarray) -> dict[str, np.ndarray]:
    """RELION's columns for a pose: class from 1, psi in degrees from -180 to 180, origins in Angstrom."""
    psi_deg = -pose.psi_deg
    return {
        "rlnClassNumber": pose.class_of.astype(np.int64) + 1,
        "rlnAnglePsi": psi_deg - 360.0 * np.ceil((psi_deg - 180.0) / 360.0) + 0.0,
        "rlnOriginXAngst": -pose.shift_px[:, 0] * pixel_size_A + 0.0,
        "rlnOriginYAngst": -pose.shift_px[:, 1] * pixel_size_A + 0.0,
    }


def _particle_block(star: StarFile) -> Table:
    """The particles, under whatever name programs have given the block."""
    if "particles" in star:
        return star.table("particles")
    for block in star:
        if block.table is not None and "rlnImageName" in block.table:
            return block.table
    raise InputError(f"{star.path}: no block data_particles and no column _rlnImageName; is this a table of particles?")


def _require_no_subtomograms(star: StarFile, table: Table) -> None:
    """Raise InputError for particles of tomograms, be they volumes or stacks of a tilt series."""
    label = "rlnTomoSubTomosAre2DStacks"
    general = next((block for block in star if block.name == "general"), None)
    if general is not None and (label in general.pairs or (general.table is not None and label in general.table)):
        raise InputError(
            f"{star.path}, data_general: _{label}: the particles are those of tomograms, not single images; extract "
            "particles from micrographs"
        )
    if "rlnTomoParticleName" in table and "rlnImageName" not in table:
        raise InputError(f"{table.where}: _rlnTomoParticleName names particles of tomograms; extract from micrographs")


def _require_single(stacks: tuple[str, ...], stack_of: np.ndarray, numbered: np.ndarray, table: Table) -> None:
    """Raise InputError for a name without a section that is a stack of several."""
    first = first_rows(np.where(numbered, len(stacks), stack_of), len(stacks) + 1)[: len(stacks)]
    for number in np.flatnonzero(first >= 0).tolist():
        count = read_header(stacks[number]).n
        if count > 1:
            raise InputError(
                f"{table.where}, row {first[number] + 1}: _rlnImageName names {stacks[number]} without a section, and "
                f"it has {count}; write SECTION@STACK for an image of a stack; subtomograms cannot be used"
            )


def _optics_table(star: StarFile) -> Table | None:
    """data_optics, None where there is none; some programs write a single group as pairs."""
    if "optics" not in star or star["optics"].table is not None or not star["optics"].pairs:
        return star["optics"].table if "optics" in star else None
    columns = {label: np.array([text], object) for label, text in star["optics"].pairs.items()}
    return Table.of(columns, {label: "%s" for label in columns}, f"{star.path}, data_optics")


def names_from_here(table: ParticleTable, rows: np.ndarray) -> dict[str, np.ndarray]:
    """rlnImageName where RELION, which looks from the working directory alone, would not find what the table says."""
    particles = table.particles
    stacks, first = np.unique(particles.stack_of[rows], return_index=True)
    said = table.table.take(rows[first]).text("rlnImageName")
    names = [text.rpartition("@")[2] for text in said]
    if all(
        name == relion_name(plain_name(name)) and _same(plain_name(name), particles.stacks[s])
        for s, name in zip(stacks, names, strict=True)
    ):
        return {}
    paths = [relion_name(from_here(stack)) for stack in particles.stacks]
    pairs = zip((particles.section[rows] + 1).tolist(), particles.stack_of[rows].tolist(), strict=True)
    images = [f"{section:06d}@{paths[stack]}" for section, stack in pairs]
    return {"rlnImageName": np.array(images, dtype=object)}


def from_here(stack: str) -> str:
    """The path from the working directory where the stack lies below it, as RELION's projects have it."""
    path, here = Path(os.path.abspath(stack)), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) and here != here.parent else str(path)


def _same(said: str, stack: str) -> bool:
    with suppress(OSError):
        return os.path.samefile(said, stack)
    return said == stack


def _images(
    table: Table, path: Path, image_dir: str | os.PathLike[str] | None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """The stack files, which of them each image lies in, (n,) int32, and at which section from 0, (n,) int64."""
    number, name, numbered = table.cells("rlnImageName").split_at(b"@")
    section = np.zeros(len(table), np.int64)
    try:
        values = np.ones(len(table))
        if numbered.all():
            values = number.numbers()
        else:  # a file of its own for each image
            values[numbered] = [float(text) for text, there in zip(number.texts(), numbered, strict=True) if there]
        bad = ~((values >= 1) & (values <= MOST_SECTIONS) & (values == np.rint(values)))
        section[~bad] = values[~bad].astype(np.int64) - 1
    except ValueError:
        bad = np.array([there and not text.isdigit() for text, there in zip(number.texts(), numbered, strict=True)])
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{table.where}, row {row + 1}: _rlnImageName is {str(table.text('rlnImageName')[row])!r}; "
            "it should read SECTION@STACK with sections from 1"
        )
    names, stack_of = name.codes()
    first = first_rows(stack_of, len(names))
    texts = [plain_name(os.fsdecode(text)) for text in names]
    stacks = find_stacks(texts, first.tolist(), path, None if image_dir is None else Path(image_dir))
    if not numbered.all():
        _require_single(stacks, stack_of, numbered, table)
    return stacks, stack_of, section


def _ctf(table: Table, optics_table: Table, need_ctf: bool) -> CTFParameters | None:
    missing = [label for label in _DEFOCUS_LABELS if label not in table]
    missing += [label for label in optics_.MICROSCOPE_LABELS if label not in optics_table]
    if missing:
        if not need_ctf:
            return None
        raise InputError(f"{table.where}: no column {', '.join('_' + label for label in missing)}; {_NO_CTF}")
    columns = [table.numbers(label) for label in _DEFOCUS_LABELS]
    for label, default in (("rlnPhaseShift", 0.0), ("rlnCtfBfactor", 0.0), ("rlnCtfScalefactor", 1.0)):
        columns.append(table.numbers(label) if label in table else np.full(len(table), default))
    for label, values in zip(
        (*_DEFOCUS_LABELS, "rlnPhaseShift", "rlnCtfBfactor", "rlnCtfScalefactor"), columns, strict=True
    ):
        bad = ~np.isfinite(values)
        bad |= np.abs(values) > MOST_ANGLE_DEG if label in ("rlnDefocusAngle", "rlnPhaseShift") else False
        if bad.any():
            if not need_ctf:
                return None
            row = int(np.argmax(bad))
            raise InputError(f"{table.where}, row {row + 1}: _{label} is {values[row]:g}; remove the row, or {_NO_CTF}")
    if need_ctf:
        optics_.require_defoci(table, f"correct or remove the row, or {_NO_CTF}")
    return CTFParameters(*columns)


def _held_to_headers(
    optics_table: Table,
    optics_of: np.ndarray,
    stacks: tuple[str, ...],
    stack_of: np.ndarray,
    pixel_size_A: float | None,
) -> tuple[tuple[Optics, ...], list[str]]:
    """The optics groups, and what to tell where the header of a group's first stack states another pixel size.

    A table that states the size of micrographs or movies alone does not say that of images: there the header counts.
    """
    stated = list(optics_.optics_groups(optics_table))
    of_images = "rlnImagePixelSize" in optics_table or "rlnPixelSize" in optics_table
    first, told = first_rows(optics_of, len(stated)), list[str]()
    for number in np.flatnonzero(first >= 0).tolist() if not pixel_size_A else ():
        group, stack = stated[number], stacks[int(stack_of[first[number]])]
        header_A = read_header(stack).pixel_size_A
        says_nothing = header_A == UNSET_PIXEL_A or not _PLAUSIBLE_PIXEL_A[0] <= header_A <= _PLAUSIBLE_PIXEL_A[1]
        if says_nothing or not group.pixel_size_A > 0 or abs(header_A / group.pixel_size_A - 1) <= optics_.TOLD:
            continue
        which = "images" if of_images else "micrographs"
        used = group.pixel_size_A if of_images else header_A
        told.append(
            f"optics group {group.name} states {group.pixel_size_A:.4g} A per pixel of {which}, the header of {stack} "
            f"{header_A:.4g} A; {used:.4g} A is used (have the images been made anew? --angpix says which is right)"
        )
        stated[number] = replace(group, pixel_size_A=used)
    more = f" (and {len(told) - 1} more optics groups)" if len(told) > 1 else ""
    return tuple(stated), [told[0] + more] if told else []


def _with_scale(
    groups: tuple[Optics, ...],
    optics_of: np.ndarray,
    stacks: tuple[str, ...],
    stack_of: np.ndarray,
    where: str,
    pixel_size_A: float | None,
) -> tuple[Optics, ...]:
    """The groups with pixel size and box filled in from the stacks' headers where the table says neither."""
    first = first_rows(optics_of, len(groups))
    used = np.flatnonzero(first >= 0)
    filled = list(groups)
    for number in used.tolist():
        group, stack = groups[number], stacks[int(stack_of[first[number]])]
        if group.box_px <= 0:
            group = replace(group, box_px=read_header(stack).nx)
        if pixel_size_A and abs(group.pixel_size_A / pixel_size_A - 1) > _SAME_SCALE:
            group = replace(group, pixel_size_A=pixel_size_A)
        if not group.pixel_size_A > 0:
            found = read_header(stack).pixel_size_A
            if not _PLAUSIBLE_PIXEL_A[0] <= found <= _PLAUSIBLE_PIXEL_A[1]:
                raise InputError(
                    f"{where}: no pixel size for optics group {group.name}, neither in the table nor in {stack}; "
                    "give it with --angpix"
                )
            group = replace(group, pixel_size_A=found)
        filled[number] = group
    optics_.require_one_scale(filled, used, where)
    return tuple(filled)


def _pose(table: Table, pixel_size_A: np.ndarray) -> Pose2D:
    """What the table knows of class, psi and shift; `pixel_size_A` is (n,)."""
    pose = Pose2D.unknown(len(table))
    if "rlnClassNumber" in table:
        pose = replace(pose, class_of=_classes(table))
    if "rlnAnglePsi" in table:
        pose = replace(pose, psi_deg=-table.finite("rlnAnglePsi", MOST_ANGLE_DEG))
    shifts = pose.shift_px
    for axis, letter in enumerate("XY"):
        if f"rlnOrigin{letter}Angst" in table:
            shifts[:, axis] = -table.finite(f"rlnOrigin{letter}Angst", MOST_ORIGIN) / pixel_size_A
        elif f"rlnOrigin{letter}" in table:
            shifts[:, axis] = -table.finite(f"rlnOrigin{letter}", MOST_ORIGIN)
    return pose


def _classes(table: Table) -> np.ndarray:
    """(n,) int32, from 0; RELION's 0, no class, is -1."""
    numbers = table.integers("rlnClassNumber")
    wrong = (numbers < 0) | (numbers > MOST_CLASSES)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"{table.where}, row {row + 1}: _rlnClassNumber is {numbers[row]}; correct or remove the row")
    return (numbers - 1).astype(np.int32)


def _micrographs(table: Table, stacks: tuple[str, ...], stack_of: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    for label in ("rlnGroupName", "rlnMicrographName"):
        if label in table:
            return table.codes(label)
    return stacks, stack_of


def _modern(table: Table, particles: Particles, optics_table: Table, old: bool, rescaled: bool) -> Table:
    """The table in RELION 3.1's layout: origins in Angstrom, optics groups, microscope columns in the optics block.

    `rescaled`: origins in Angstrom are those of another pixel size.
    """
    added: dict[str, np.ndarray] = {}
    pixel_size_A = np.array([group.pixel_size_A for group in particles.optics])[particles.optics_of]
    for axis, letter in enumerate("XY"):
        there = f"rlnOrigin{letter}Angst" in table
        if (rescaled and there) or (f"rlnOrigin{letter}" in table and not there):
            added[f"rlnOrigin{letter}Angst"] = -particles.pose.shift_px[:, axis] * pixel_size_A + 0.0
    if old or "rlnOpticsGroup" not in table:
        added["rlnOpticsGroup"] = optics_table.integers("rlnOpticsGroup")[particles.optics_of]
    table = table.with_columns(added).without("rlnOriginX", "rlnOriginY")
    return table.without(*optics_.MICROSCOPE_LABELS) if old else table

"""Optics groups, from the `data_optics` block of RELION 3.1 and later or from the per-particle columns before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polarice.io.table import Table
from polarice.types import InputError, Optics

PIXEL_SIZE_LABELS = ("rlnImagePixelSize", "rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize", "rlnPixelSize")
MICROSCOPE_LABELS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
PREMULTIPLIED = "rlnCtfDataAreCtfPremultiplied"
PHASE_FLIPPED = "rlnCtfDataArePhaseFlipped"
_OLD_LABELS = (
    *MICROSCOPE_LABELS, "rlnMagnification", "rlnDetectorPixelSize", "rlnImagePixelSize", "rlnPixelSize",
    PREMULTIPLIED, PHASE_FLIPPED,
)  # fmt: skip
DEFOCUS_LABELS = ("rlnDefocusU", "rlnDefocusV")
LEAST_PIXEL_SIZE_A, MOST_PIXEL_SIZE_A = 1e-2, 100.0  # as --angpix may give
PLAUSIBLE = {  # what any microscope may have, 0 where a table does not say
    "rlnVoltage": (10.0, 3000.0),  # kV
    "rlnSphericalAberration": (-100.0, 100.0),  # mm; negative in corrected microscopes
    "rlnAmplitudeContrast": (-1.0, 1.0),
    "rlnImageSize": (0.0, 1e6),  # px
}
LEAST_DEFOCUS_A = 100.0  # no particle is so near to focus, let alone all of them
NEGLIGIBLE = 1e-3  # of a magnification; mrad of a beam tilt
MOST_DEFOCUS_A = 1e7  # a millimetre
UNSET_PIXEL_A = 1.0  # many programs leave it in a header where nobody has said a pixel size
TOLD = 0.01  # relative difference of two pixel sizes that is worth a remark
_AGREE = 1e-3  # relative; a tenth of a pixel across a box of 100


def groups_of_particles(particles: Table, optics: Table) -> np.ndarray:
    """Row of the optics table for each particle, (n,) int32. Raises InputError for a group that is not defined."""
    numbers = _group_numbers(optics)
    _require_distinct(optics, numbers)
    if "rlnOpticsGroup" not in particles:
        if len(numbers) == 1:
            return np.zeros(len(particles), np.int32)
        raise InputError(
            f"{particles.where}: no column _rlnOpticsGroup, and data_optics defines {len(numbers)} groups; "
            "add the column"
        )
    values = particles.integers("rlnOpticsGroup")
    asked = np.unique(values)
    index = np.searchsorted(asked, values)
    row_of = {number: row for row, number in enumerate(numbers.tolist())}
    unknown = np.array([number not in row_of for number in asked.tolist()], bool)[index]
    if unknown.any():
        row = int(np.argmax(unknown))
        raise InputError(
            f"{particles.where}, row {row + 1}: optics group {asked[index[row]]} is not defined in data_optics, which "
            f"has {', '.join(map(str, numbers.tolist()))}; add it there or correct the row"
        )
    return np.array([row_of[number] for number in asked.tolist()], np.int32)[index]


def _require_distinct(optics: Table, numbers: np.ndarray) -> None:
    if not len(numbers):
        raise InputError(f"{optics.where} defines no optics group; add one, or export the table again")
    values, counts = np.unique(numbers, return_counts=True)
    if counts.max() > 1:
        twice = values[counts.argmax()]
        first, second = np.flatnonzero(numbers == twice)[:2] + 1
        raise InputError(
            f"{optics.where}, row {second}: optics group {twice} is defined in row {first} already; give each its own "
            "number"
        )


def optics_groups(optics: Table) -> tuple[Optics, ...]:
    """The groups of an optics table; what it does not say is 0 (the pixel size, too).

    Raises InputError for a pixel size or a box that is negative or not a number.
    """
    names = optics.text("rlnOpticsGroupName") if "rlnOpticsGroupName" in optics else _group_numbers(optics).astype(str)
    pixel = next((label for label in PIXEL_SIZE_LABELS if label in optics), None)
    columns = [_numbers(optics, label) for label in (pixel, *MICROSCOPE_LABELS)]
    flags = [_flags(optics, label) for label in (PREMULTIPLIED, PHASE_FLIPPED)]
    columns.append(optics.integers("rlnImageSize") if "rlnImageSize" in optics else np.zeros(len(optics)))
    for label, values in zip((pixel, *MICROSCOPE_LABELS, "rlnImageSize"), columns, strict=True):
        low, high = PLAUSIBLE.get(label or "", (LEAST_PIXEL_SIZE_A, MOST_PIXEL_SIZE_A))
        wrong = ~((values >= low) & (values <= high) | (values == 0))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"{optics.where}, row {row + 1}: _{label} is {values[row]:g}, and not between {low:g} and {high:g}; "
                "correct it"
            )
    return tuple(
        Optics(str(name), float(pixel_size_A), float(voltage_kV), float(cs_mm), float(contrast), int(box_px), *flag)
        for name, pixel_size_A, voltage_kV, cs_mm, contrast, box_px, flag in zip(
            names, *columns, zip(*flags, strict=True), strict=True
        )
    )


def _flags(optics: Table, label: str) -> list[bool]:
    """A column of 0 and 1, all 0 where it is not there. Raises InputError for anything else."""
    if label not in optics:
        return [False] * len(optics)
    values = optics.numbers(label)
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"{optics.where}, row {row + 1}: _{label} is {values[row]:g}; it should be 0 or 1")
    return [bool(value) for value in values]


def require_plane_images(optics: Table) -> None:
    """Raise InputError where the table says that its images are volumes."""
    if "rlnImageDimensionality" not in optics:
        return
    values = optics.numbers("rlnImageDimensionality")
    wrong = values != 2
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"{optics.where}, row {row + 1}: _rlnImageDimensionality is {values[row]:g}; only plane images can "
            "be used: extract particles from micrographs"
        )


def require_one_treatment(groups: Sequence[Optics], where: str) -> None:
    """Raise InputError where images are said to have been multiplied by their CTF, and by its sign alone, too."""
    for group in groups:
        if group.ctf_premultiplied and group.phase_flipped:
            raise InputError(
                f"{where}: optics group {group.name} has _{PREMULTIPLIED} and phase-flipped images (_{PHASE_FLIPPED} "
                "or --ctf-phase-flipped); it is one or the other: correct the column or leave the option out"
            )


def _group_numbers(optics: Table) -> np.ndarray:
    return optics.integers("rlnOpticsGroup") if "rlnOpticsGroup" in optics else np.arange(1, len(optics) + 1)


def _numbers(table: Table, label: str | None) -> np.ndarray:
    return table.numbers(label) if label is not None and label in table else np.zeros(len(table))


def require_defoci(table: Table, remedy: str = "correct or remove the row") -> None:
    """Raise InputError naming the row where a defocus in the table is one that no microscope has."""
    for label in DEFOCUS_LABELS:
        values = table.numbers(label) if label in table else np.zeros(0)
        wrong = ~(np.abs(values) <= MOST_DEFOCUS_A)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(f"{table.where}, row {row + 1}: _{label} is {values[row]:g}; {remedy}")


def strange_defoci(table: Table) -> str:
    """What to tell of defoci that look like micrometres, or like overfocus of every particle; else ""."""
    if any(label not in table for label in DEFOCUS_LABELS):
        return ""
    values = np.concatenate([table.numbers(label) for label in DEFOCUS_LABELS])
    there = values[values != 0]
    if len(there) and (np.abs(there) < LEAST_DEFOCUS_A).all():
        return f"all defoci are below {LEAST_DEFOCUS_A:g} A ({there[0]:g}): are they in micrometres, and not Angstrom?"
    if len(there) and (there < 0).all():
        return f"all defoci are negative ({there[0]:g}), which is overfocus; underfocus is positive"
    return ""


def not_corrected(optics: Table) -> str:
    """What to tell of aberrations that an optics table states and that are not corrected for; else ""."""
    told = []
    for label in optics.labels:
        usual = 1.0 if label in ("rlnMagMat00", "rlnMagMat11") else 0.0
        if label.startswith("rlnMagMat") or label in ("rlnBeamTiltX", "rlnBeamTiltY"):
            told += [f"_{label}"] if (np.abs(optics.numbers(label) - usual) > NEGLIGIBLE).any() else []
        elif label in ("rlnEvenZernike", "rlnOddZernike"):
            told += [f"_{label}"] if any(_states_something(text) for text in optics.text(label).tolist()) else []
    return f"{', '.join(told)} of the optics table are not corrected for" if told else ""


def _states_something(text: str) -> bool:
    """Whether one of the numbers of a list `[a,b,...]` is not 0."""
    try:
        return any(abs(float(word)) > NEGLIGIBLE for word in text.strip("[] ").split(",") if word.strip())
    except ValueError:
        return False


def optics_from_columns(particles: Table) -> tuple[Table, np.ndarray]:
    """An optics table for a table up to RELION 3.0, a group for every combination of its columns, and (n,) groups.

    Pixel size = rlnImagePixelSize, else rlnDetectorPixelSize [um] * 1e4 / rlnMagnification, else rlnPixelSize.
    """
    labels = [label for label in _OLD_LABELS if label in particles]
    columns = {label: particles.numbers(label) for label in labels}
    group_of = np.zeros(len(particles), np.int64)
    for values in columns.values():
        distinct, index = np.unique(values, return_inverse=True)
        group_of = group_of * len(distinct) + index
    _, first, group_of = np.unique(group_of, return_index=True, return_inverse=True)
    order = np.argsort(first)  # groups in order of appearance
    group_of = np.argsort(order)[group_of].astype(np.int32)
    values_of = {label: values[first[order]] for label, values in columns.items()}
    numbers = np.arange(1, len(order) + 1)
    table: dict[str, object] = {"rlnOpticsGroupName": [f"opticsGroup{n}" for n in numbers], "rlnOpticsGroup": numbers}
    kept = (*MICROSCOPE_LABELS, PREMULTIPLIED, PHASE_FLIPPED)
    table |= {label: values_of[label] for label in kept if label in values_of}
    pixel_size_A = _old_pixel_size(values_of)
    if pixel_size_A is not None:
        table["rlnImagePixelSize"] = pixel_size_A
    return Table.of(table, where=f"{particles.where} (optics)"), group_of


def _old_pixel_size(values: dict[str, np.ndarray]) -> np.ndarray | None:
    """The detector's pixel over the magnification comes before rlnPixelSize, as in RELION's own converter."""
    if "rlnImagePixelSize" in values:
        return values["rlnImagePixelSize"]
    if "rlnMagnification" in values and "rlnDetectorPixelSize" in values:
        magnification = values["rlnMagnification"]
        size = values["rlnDetectorPixelSize"] * 1e4 / np.where(magnification > 0, magnification, np.inf)
        if (size > 0).all():
            return size
    return values.get("rlnPixelSize")


def other_pixel_size(particles: Table, optics: Table) -> str:
    """What to tell where an old table's rlnPixelSize says another size than the one that is taken; else ""."""
    if "rlnPixelSize" not in particles or "rlnImagePixelSize" not in optics:
        return ""
    said, taken = particles.numbers("rlnPixelSize"), optics.numbers("rlnImagePixelSize")
    other = said[~np.isclose(said[:, None], taken, rtol=TOLD, atol=0).any(axis=1)]
    if not len(other):
        return ""
    return f"_rlnPixelSize of {len(other):,} rows says {other[0]:.4g} A; {taken[0]:.4g} A is used, as RELION does"


def completed(optics: Table, groups: Sequence[Optics]) -> Table:
    """The optics table with the columns that RELION 3.1 must have, taken from `groups` where they were not there."""
    needed = {
        "rlnVoltage": [group.voltage_kV for group in groups],
        "rlnSphericalAberration": [group.cs_mm for group in groups],
        "rlnAmplitudeContrast": [group.amplitude_contrast for group in groups],
        "rlnImagePixelSize": [group.pixel_size_A for group in groups],
        "rlnImageSize": [group.box_px for group in groups],
        "rlnImageDimensionality": [2] * len(groups),
        "rlnOpticsGroup": list(range(1, len(groups) + 1)),
        "rlnOpticsGroupName": [group.name for group in groups],
    }
    return optics.with_columns({label: values for label, values in needed.items() if label not in optics})


def require_one_scale(groups: Sequence[Optics], used: np.ndarray, where: str) -> None:
    """Raise InputError where the optics groups in use have different pixel sizes or boxes."""
    chosen = [groups[row] for row in used.tolist()]
    pixel_sizes = [group.pixel_size_A for group in chosen]
    boxes = {group.box_px for group in chosen if group.box_px > 0}
    if max(pixel_sizes) <= min(pixel_sizes) * (1 + _AGREE) and len(boxes) <= 1:
        return
    listed = "; ".join(f"{g.name}: {g.pixel_size_A:.4g} A, box {g.box_px or '?'} px" for g in chosen[:8])
    what = "boxes" if len(boxes) > 1 else "pixel sizes"
    raise InputError(
        f"{where}: optics groups of different {what} cannot be mixed ({listed}{'; ...' if len(chosen) > 8 else ''}); "
        "rescale the particles to one pixel size and box when extracting, or split the table by optics group"
    )

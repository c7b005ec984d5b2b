"""Which micrograph a file of coordinates, or a row of one, belongs to: names decide, with as much of them as there is.

A name is folders and a stem. The stems are equal, or the file's goes on with what a picker adds: `_` or `.` and a word
that begins with a letter (`mic_1_autopick.star` goes with mic_1, `mic_1_2.star` does not). Where both names have
folders, these agree from the last one back, as far as both have them; a job's number (`job012`) and what stands before
it is no part of the name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from polarice.types import InputError

# endings of micrographs and movies; a dot elsewhere in a name is part of it
IMAGE_ENDINGS = (".mrc", ".mrcs", ".map", ".st", ".tif", ".tiff", ".eer", ".rec", ".png", ".jpg")
PACKED_ENDINGS = (".gz", ".bz2", ".xz", ".zst")
SHOWN = 3  # names that a message holds
_JOB = re.compile(r"job\d{3,}|J\d+")
_NUMBERED = re.compile(r"\d{21}_")  # cryoSPARC's unique number before the names of what it imports
_ADDED = re.compile(r"[_.][A-Za-z]")


@dataclass(frozen=True)
class MicrographName:
    """A micrograph's name as names are compared."""

    folders: tuple[str, ...]  # from the last one back
    stem: str

    @staticmethod
    def of(name: str) -> MicrographName:
        """Of a path to a micrograph, with an image's ending or none."""
        path = PurePath(name)
        return MicrographName(_folders(path), stem_of(path.name))

    def agrees(self, folders: Sequence[str]) -> bool:
        """Whether these folders, from the last one back, are not those of another micrograph."""
        return all(mine == other for mine, other in zip(self.folders, folders, strict=False))


def stem_of(name: str) -> str:
    """A file's name without an image's ending, packed or not: mic_1.mrc.gz is mic_1."""
    for endings in (PACKED_ENDINGS, IMAGE_ENDINGS):
        ending = next((each for each in endings if name.lower().endswith(each)), "")
        name = name[: len(name) - len(ending)] if ending and len(name) > len(ending) else name
    return name


def files_of(files: Sequence[PurePath], micrographs: Sequence[str]) -> list[int | None]:
    """Of each micrograph the place of its file among `files`, None where it has none.

    files: paths below the folder that the user gave, whose own name says nothing.

    Raises InputError where a file fits two micrographs, or a micrograph has two files, with both names.
    """
    names = [MicrographName.of(each) for each in micrographs]
    by_stem = _by_stem(names)
    found: list[int | None] = [None] * len(names)
    for place, file in enumerate(files):
        owners = _owners(file, names, by_stem)
        if len(owners) > 1:
            first, second = (micrographs[row] for row in owners[:2])
            raise InputError(
                f"{file}: fits two micrographs, {first} and {second}; put files of coordinates into folders that are "
                "called as the micrographs' folders"
            )
        if not owners:
            continue
        (row,) = owners
        if (other := found[row]) is not None:
            raise InputError(
                f"{files[other]} and {file}: both hold coordinates of {micrographs[row]}; give one of the sets, in a "
                "folder of its own"
            )
        found[row] = place
    return found


def rows_of(named: Sequence[str], micrographs: Sequence[str]) -> list[int | None]:
    """Of each name (of a table's rows) the place of its micrograph, None where it is none of them.

    Raises InputError where a name fits two micrographs.
    """
    names = [MicrographName.of(each) for each in micrographs]
    by_stem = _by_stem(names)
    known: dict[str, int | None] = {}
    for each in dict.fromkeys(named):
        wanted = MicrographName.of(each)
        owners = [row for row in by_stem.get(wanted.stem, ()) if names[row].agrees(wanted.folders)]
        if len(owners) > 1:
            first, second = (micrographs[row] for row in owners[:2])
            raise InputError(f"{each}: fits two micrographs, {first} and {second}; name it with its folder")
        known[each] = owners[0] if owners else None
    return [known[each] for each in named]


def why_none(named: Sequence[str], micrographs: Sequence[str]) -> str:
    """Why none of these names goes with a micrograph, where that can be seen; else "coordinates go by their names"."""
    stems = {MicrographName.of(each).stem for each in micrographs}
    for each in named:
        stem = MicrographName.of(each).stem
        bare = _NUMBERED.sub("", stem)
        if bare != stem and any(bare == known or bare.startswith(known) for known in stems):
            return f"{each} carries cryoSPARC's number of 21 digits before the name {bare}; take these numbers off"
        if any(stem == known or (stem.startswith(known) and _ADDED.match(stem[len(known) :])) for known in stems):
            return f"{each} stands in another folder than the micrograph of that name; name that very folder"
    return "coordinates go with micrographs by their names"


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _by_stem(names: Sequence[MicrographName]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name.stem, []).append(row)
    return rows


def _owners(file: PurePath, names: Sequence[MicrographName], by_stem: dict[str, list[int]]) -> list[int]:
    """Micrographs whose longest stem the file's name begins with, in the same folder as far as that can be told."""
    whole = stem_of(file.name.removesuffix(file.suffix))
    folders = _folders(file)
    for end in range(len(whole), 0, -1):
        if whole[:end] in by_stem and (end == len(whole) or _ADDED.match(whole[end:])):
            return [row for row in by_stem[whole[:end]] if names[row].agrees(folders)]
    return []


def _folders(path: PurePath) -> tuple[str, ...]:
    """The folders of a path, from the last one back, up to a job's number."""
    folders = []
    for part in reversed(path.parts[:-1]):
        if part in (path.anchor, ".", "..") or _JOB.fullmatch(part):
            break
        folders.append(part)
    return tuple(folders)

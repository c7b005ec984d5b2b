"""Which micrograph a file or a row of coordinates belongs to: the name in the table decides.

With folders in both names, the folders must agree, as far back as both have them. Behind the micrograph's name may
stand one of `SUFFIXES` in a file's name, or the one that the user gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from polarice.io.micrographs import bare_name, folders_of
from polarice.types import InputError

SUFFIXES = (
    *("", "_autopick", "_manualpick", "_manual", "_pick", "_picks", "_picked", "_automatch", "_particles"),
    *("_coords", "_coordinates", "_boxes", "_topaz", "_cryolo"),
)
OURS = ("_candidates.star", "_extract.star", "_scaled.star")  # of polarice's jobs; not meant by a folder's name
NUMBERED = re.compile(r"\d{21}_")  # cryoSPARC puts it before names
CRYOSPARC = re.compile(r"_((patch|rigid|full_frame|local)_)?(aligned|motion)?(_?(non)?doseweighted)?$")
LONGEST = 200  # characters of a name that are shown
Rule = Literal["folders", "bare", "cryosparc"]


@dataclass(frozen=True)
class Matching:
    """How names are compared."""

    rule: Rule = "folders"  # bare: folders do not count; cryosparc: nor what cryoSPARC puts before and behind a name
    suffix: str | None = None  # behind the micrograph's name, with or without the ending; one of SUFFIXES where None


@dataclass
class _Left:
    """What fitted no micrograph, of one kind."""

    count: int = 0
    first: str = ""

    def add(self, name: str, count: int = 1) -> None:
        self.first, self.count = self.first or shortened(name), self.count + count


@dataclass
class Names:
    """Micrographs by name, and a count of what belongs to none of them."""

    names: Sequence[str]
    matching: Matching
    _left: dict[str, _Left] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._folders = [folders_of(name) for name in self.names]
        self._rows: dict[str, list[int]] = {}
        for row in range(len(self.names)):
            self._rows.setdefault(self.stem(row), []).append(row)

    def __len__(self) -> int:
        return len(self.names)

    def stem(self, row: int) -> str:
        return self._plain(bare_name(self.names[row]))

    def owner_of_file(self, path: Path, source: Path) -> int | None:
        """The micrograph that a file below `source` belongs to."""
        folders = folders_of(str(path.relative_to(source)))
        rows = self._of(_stems(path.name, self.matching.suffix))
        if rows:
            return self._one(rows, folders, str(path), 1)
        if self._begins_like_one(path.name) and not path.name.endswith(OURS):
            self._leave("suffix", str(path))
        elif NUMBERED.match(path.name):
            self._leave("numbered", str(path))
        return None

    def owner_of_row(self, name: str, count: int, source: str) -> int | None:
        """The micrograph that `count` rows of a table with this name belong to."""
        rows = self._of([bare_name(name)])
        if rows:
            return self._one(rows, folders_of(name), name, count, f"{source}: ")
        self._leave("numbered" if NUMBERED.match(bare_name(name)) else "rows", name, count)
        return None

    def remarks(self, source: str) -> tuple[str, ...]:
        """What was left aside, and the remedy; a sentence each."""
        told = {
            "folders": "of another folder than the micrograph of that name; --coord-names bare if folders do not count",
            "suffix": "with no known suffix behind a micrograph's name; --coord-suffix says which one to take",
            "numbered": "with cryoSPARC's number of 21 digits before the name; --coord-names cryosparc takes it off",
            "rows": "of no micrograph of the table",
        }
        if self.matching.rule == "cryosparc":
            told["numbered"] = "with cryoSPARC's number of 21 digits, of no micrograph of the table"
        return tuple(
            f"{source}: {left.count} left aside {told[kind]} (the first: {left.first})"
            for kind, left in self._left.items()
        )

    def _of(self, stems: Iterable[str]) -> list[int]:
        found = {row: None for stem in stems for row in self._rows.get(self._plain(stem), ())}
        return list(found)

    def _one(self, rows: list[int], folders: tuple[str, ...], given: str, count: int, where: str = "") -> int | None:
        """The one of `rows` whose folders agree."""
        same = [row for row in rows if self._folders[row] == folders]
        if self.matching.rule == "folders" and not same:
            same = [row for row in rows if _agree(self._folders[row], folders)]
        elif not same:
            same = rows
        if len(same) > 1:
            one, other = (shortened(self.names[row]) for row in same[:2])
            raise InputError(
                f"{where}{shortened(given)} fits two micrographs, {one} and {other}; give its folder as theirs, or "
                "say with --coord-suffix what stands behind their names"
            )
        if not same:
            self._leave("folders", given, count)
            return None
        return same[0]

    def _leave(self, kind: str, name: str, count: int = 1) -> None:
        self._left.setdefault(kind, _Left()).add(name, count)

    def _begins_like_one(self, name: str) -> bool:
        ends = (place for place, letter in enumerate(name) if letter in "_.")
        return any(name[:end] in self._rows for end in ends)

    def _plain(self, stem: str) -> str:
        if self.matching.rule != "cryosparc":
            return stem
        number = NUMBERED.match(stem)
        return CRYOSPARC.sub("", stem[number.end() :] if number else stem)


def shortened(name: str) -> str:
    """A name as it is shown; damaged tables have very long ones."""
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}..."


def _stems(name: str, suffix: str | None) -> Iterator[str]:
    """The micrographs' names, without ending, that a file of coordinates may be called after."""
    base = name[: name.rindex(".")]
    if suffix is not None:
        whole = next((word for word in (name, base) if word.endswith(suffix)), None)
        if whole is not None:
            yield bare_name(whole[: len(whole) - len(suffix)])
        return
    for known in SUFFIXES:
        if base.endswith(known):
            yield bare_name(base[: len(base) - len(known)])


def _agree(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    depth = min(len(one), len(other))
    return one[len(one) - depth :] == other[len(other) - depth :]

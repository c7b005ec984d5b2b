"""What `polarice select` can be asked to keep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarice.project.params import Parameters, PathRole, argument, option, output
from polarice.selection.classes import ClassWishes
from polarice.selection.rows import RowWishes

GOOD_SCORE = 0.5  # from which on --auto takes a class


def rule(default: Any, help: str, **more: Any) -> Any:
    """An option that is no rule where nothing is said."""
    return option(default, help, derived="no such rule", **more)


@dataclass(frozen=True)
class SelectionRules(Parameters):
    """Rules, all of which are to be met; what is not said is no rule."""

    table: Path = argument(
        "folder of a job, Polarice's or RELION's, or a table of it",
        flags=("--i",),
        path=PathRole("input", "any", "run"),
    )
    o: Path = output("Select", "folder for the tables and the report")
    classes: str = rule("", "classes to keep, by number: 1,2,5-9")
    exclude: str = rule("", "classes to leave out, by number")
    occupancy: float | None = rule(
        None, "keep classes of at least this share of the particles", unit="%", low=0, high=100
    )
    min_particles: int | None = rule(None, "keep classes of at least so many particles", low=0)
    resolution: float | None = rule(None, "keep classes of this resolution or finer", unit="A", low=0)
    auto: bool = option(False, "keep classes whose averages look like a particle: gates, then --min-score")
    min_score: float | None = rule(None, "least score of a class, 0 (junk) to 1; with --auto, 0.5", low=0, high=1)
    latent: tuple[float, ...] = rule(
        (),
        "keep particles on a part of the manifold of sml: from and to along each axis, or x y of a polygon's corners",
    )
    fit_resolution: float | None = rule(None, "keep where the CTF fits to this resolution or finer", unit="A", low=0)
    defocus: tuple[float, ...] = rule((), "keep this range of mean defocus: least and largest, in A")
    astigmatism: float | None = rule(None, "keep up to this difference of the two defoci", unit="A", low=0)
    figure_of_merit: float | None = rule(None, "keep from this figure of merit of the CTF on")
    ice: float | None = rule(None, "keep up to this power of the ice ring above its surroundings (0.25 is ice)")
    drift: float | None = rule(None, "keep up to this drift as the CTF's rings show it (1 and more is drift)")
    motion: float | None = rule(None, "keep up to this motion in all", unit="A", low=0)
    name: tuple[str, ...] = rule((), "keep micrographs so named; patterns as in a shell, quoted")
    not_name: tuple[str, ...] = rule((), "leave out micrographs so named")
    micrographs: Path | None = rule(None, "keep particles of the micrographs in this table")
    min_probability: float | None = rule(
        None, "keep particles whose best pose has at least this probability", low=0, high=1
    )
    max_shift: float | None = rule(None, "keep particles shifted by this at most", unit="A", low=0)
    min_distance: float | None = rule(
        None, "of particles of one micrograph closer than this, keep the more probable", unit="A", low=0
    )
    where: tuple[str, ...] = rule((), "keep where a column has a value, quoted: 'rlnDefocusU<=20000'")
    micrograph_angpix: float | None = option(
        None,
        "pixel size of the micrographs that coordinates are of",
        derived="the table's",
        unit="A",
        low=0.01,
        high=100,
    )

    @property
    def class_wishes(self) -> ClassWishes:
        share = None if self.occupancy is None else self.occupancy / 100
        score = GOOD_SCORE if self.auto and self.min_score is None else self.min_score
        return ClassWishes(self.classes, self.exclude, self.min_particles, share, self.resolution, score)

    @property
    def row_wishes(self) -> RowWishes:
        return RowWishes(
            self.fit_resolution, self.defocus, self.astigmatism, self.figure_of_merit, self.ice, self.drift,
            self.motion, self.name, self.not_name, self.min_probability, self.max_shift, self.where,
        )  # fmt: skip

"""A selection at work: from the files of a run and the rules of `polarice select` to the tables that come out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.io.class_files import RunFiles, read_classes
from polarice.io.joining import holding
from polarice.io.micrographs import bare_name, folders_of
from polarice.io.rows import RowTable, read_rows
from polarice.io.star import Block
from polarice.io.table import Table
from polarice.report.selection import Classes, Selection
from polarice.selection.choice import Choice, Rule
from polarice.selection.classes import ClassSet, listed, of_particles, rules_of_classes
from polarice.selection.quality import unresolved
from polarice.selection.rows import BEST_FIRST, Places, apart, micrographs_of, rules_of_rows, within
from polarice.types import InputError

if TYPE_CHECKING:
    from polarice.runs.selection_rules import SelectionRules
    from polarice.selection.quality import Judgement

LATENTS = ("polariceLatent1", "polariceLatent2", "polariceLatent3")
LIKELY = 0.2  # score from which on a class that is left out may show a particle
MOST_CLASSES = 2**31 - 1


def select(params: SelectionRules, files: RunFiles) -> Selection:
    """What the rules choose. Raises InputError for rules that cannot be applied, and where nothing is left."""
    rows = holding(read_rows(files.data))
    classes = classes_of(rows, files, params)
    choice = Choice(len(rows)).also(_rules(rows, classes, params))
    if params.min_distance is not None:
        places = _places(rows, params.micrograph_angpix)
        choice = choice.also([apart(places, params.min_distance, choice.kept)])
    if not choice.rules:
        raise InputError("no rule is given, so all would be chosen; polarice select --help lists the rules")
    found = Selection(rows, choice, classes)
    if not found.count:
        said, _, first = max(choice.counts(), key=lambda each: each[2])
        raise InputError(
            f"{rows.path}: none of {len(rows):,} {rows.kind} are left; {first:,} go by the rule {said!r}: loosen it"
        )
    return replace(found, views=_views(found))


def _rules(rows: RowTable, classes: Classes | None, params: SelectionRules) -> list[Rule]:
    rules = [] if classes is None else [of_particles(rule, classes.of) for rule in classes.choice.rules]
    table = rows.table
    if params.max_shift is not None:
        table = table.with_columns(dict(zip(("rlnOriginXAngst", "rlnOriginYAngst"), rows.origins_A().T, strict=True)))
    rules += rules_of_rows(table, params.row_wishes)
    if params.micrographs is not None:
        rules.append(_of_micrographs(rows, params.micrographs))
    if params.latent:
        labels = [label for label in LATENTS if label in rows.table]
        if not labels:
            raise InputError(f"{rows.table.where}: no column _{LATENTS[0]}; --latent is for what sml has made")
        rules.append(within(np.stack([rows.table.numbers(label) for label in labels], axis=1), params.latent))
    return rules


def classes_of(rows: RowTable, files: RunFiles, params: SelectionRules) -> Classes | None:
    """The classes of a table of particles; None where it has none. Raises InputError where rules ask for some."""
    wishes = params.class_wishes
    if rows.kind != "particles" or "rlnClassNumber" not in rows.table:
        if wishes:
            raise InputError(f"{rows.path}: no column _rlnClassNumber, so nothing can be chosen by class")
        return None
    of = _class_of(rows.table)
    known = read_classes(files)
    count = max(int(of.max(initial=-1)) + 1, 0 if known is None else len(known))
    if known is not None and count > len(known):
        raise InputError(f"{rows.path}: has class {count}, and {files.model} {len(known)}; are they of one iteration?")
    counts = np.bincount(of[of >= 0], minlength=count)
    found = ClassSet(counts)
    if known is not None:
        found = ClassSet(counts, known.resolution_A, known.averages, known.pixel_size_A, known.diameter_A)
    judged = _judged(found, wishes.score is not None, files)
    choice = Choice(count).also(rules_of_classes(found, wishes, None if judged is None else judged.scores))
    return Classes(found, of, choice, known, judged)


def _class_of(table: Table) -> np.ndarray:
    """(n,) from 0. Raises InputError for a number that is none of a class."""
    numbers = table.integers("rlnClassNumber")
    wrong = (numbers < 0) | (numbers > MOST_CLASSES)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"{table.where}, row {row + 1}: _rlnClassNumber is {numbers[row]}; correct or remove the row")
    return numbers - 1


def _judged(classes: ClassSet, needed: bool, files: RunFiles) -> Judgement | None:
    from polarice.selection.quality import judge

    if classes.averages is not None and classes.pixel_size_A > 0:
        return judge(classes)
    if needed:
        what = "averages that are images" if files.model is not None else "model file of a run beside it"
        raise InputError(f"{files.data}: there are no {what}, so --auto and --min-score cannot judge classes")
    return None


def _of_micrographs(rows: RowTable, path: Path) -> Rule:
    """Particles (or micrographs) whose micrograph stands in another table, folders of jobs apart."""
    wanted = {micrograph_key(name) for name in micrographs_of(read_rows(path).table).tolist()}
    names, row_of = np.unique(micrographs_of(rows.table), return_inverse=True)
    kept = np.array([micrograph_key(name) in wanted for name in names.tolist()], bool)
    return Rule(f"micrograph in {path}", kept[row_of.reshape(-1)])


def micrograph_key(name: str) -> tuple[str, ...]:
    """What a micrograph is known by in other jobs' tables: folders, those of jobs apart, and the bare name."""
    return (*folders_of(PurePosixPath(name).as_posix()), bare_name(name))


def _places(rows: RowTable, micrograph_angpix: float | None) -> Places:
    """Centres of particles: coordinates less origins, in A. Raises InputError where they cannot be known."""
    table = rows.table
    if rows.kind != "particles" or "rlnCoordinateX" not in table:
        raise InputError(f"{rows.path}: no coordinates of particles (_rlnCoordinateX); --min-distance needs them")
    pixel_A = rows.micrograph_pixel_A() if micrograph_angpix is None else np.full(len(rows), micrograph_angpix)
    if pixel_A is None:
        raise InputError(f"{rows.path}: no pixel size of the micrographs; give it with --micrograph-angpix")
    xy_A = np.stack([table.numbers(f"rlnCoordinate{letter}") for letter in "XY"], axis=1) * pixel_A[:, None]
    if "rlnOriginXAngst" in table or "rlnOriginX" in table:
        xy_A = xy_A - rows.origins_A()
    _, micrograph = np.unique(micrographs_of(table), return_inverse=True)
    label = next((each for each in BEST_FIRST if each in table), None)
    merit = np.zeros(len(rows)) if label is None else table.numbers(label)
    return Places(micrograph.reshape(-1), xy_A, merit)


def _views(found: Selection) -> tuple[str, ...]:
    """What is lost: classes left out that resemble none of those that stay, and the share of the sphere."""
    said = []
    classes = found.classes
    if classes is not None and classes.choice.rules and classes.set.averages is not None:
        said += _lost_classes(classes)
    table = found.rows.table
    if all(label in table for label in ("rlnAngleRot", "rlnAngleTilt")):
        rot, tilt = table.numbers("rlnAngleRot"), table.numbers("rlnAngleTilt")
        if np.ptp(tilt) > 0:
            from polarice.selection.views import sphere_of

            sphere = sphere_of(rot, tilt, found.choice.kept)
            said.append(f"views: {100 * sphere.before:.0f} % of the sphere before, {100 * sphere.after:.0f} % after")
    return tuple(said)


def _lost_classes(classes: Classes) -> list[str]:
    from polarice.selection.quality import median_of_particles
    from polarice.selection.views import ALIKE, resemblance

    kept, of = classes.choice.kept, classes.set
    assert of.averages is not None and classes.judged is not None
    passing = np.array([not gate for gate in classes.judged.gates]) & (classes.judged.scores >= LIKELY)
    out = np.flatnonzero(~kept & (of.counts > 0) & passing)
    if not len(out):
        return ["views: no class that is left out looks like a particle"]
    assert of.resolution_A is not None
    radius_px = (of.diameter_A / of.pixel_size_A or of.averages.shape[-1]) / 2
    usual_px = min(median_of_particles(of.resolution_A, of.counts) / of.pixel_size_A, radius_px / 2)
    alike = resemblance(of.averages[out], of.averages[kept & (of.counts > 0)], radius_px, usual_px)
    lost = out[alike < ALIKE]
    if not len(lost):
        return [f"views: each of the {len(out)} likely classes that are left out resembles one that stays"]
    return [
        f"views: {len(lost)} of {len(out)} likely classes that are left out resemble none that stays (correlation "
        f"below {ALIKE:g}): {listed(lost + 1)}, of {int(of.counts[lost].sum()):,} particles; look at them"
    ]


def lines_of(found: Selection) -> list[str]:
    """The selection in words."""
    n, rows = len(found.rows), found.rows
    lines = [f"{found.count:,} of {n:,} {rows.kind} of {rows.path} chosen: {found.choice.said}"]
    counts = found.choice.counts()
    if len(counts) > 1:
        lines += [f"  {broken:,} not {said} ({first:,} by this alone or first)" for said, broken, first in counts]
    if found.classes is not None and found.classes.choice.rules:
        classes = found.classes
        out = np.flatnonzero(~classes.choice.kept) + 1
        lines.append(f"classes chosen: {listed(classes.numbers)}; left out: {listed(out)}")
        if classes.judged is not None:
            lines += [f"  {text}" for text in _reasons_of(classes) if text]
            lines += [f"warning: {said}"] if (said := unresolved(classes.set)) else []
    return lines + list(found.views)


def _reasons_of(classes: Classes) -> list[str]:
    """Left-out classes by their reason, the same reasons together."""
    assert classes.judged is not None
    by_reason: dict[str, list[int]] = {}
    for k in np.flatnonzero(~classes.choice.kept).tolist():
        by_reason.setdefault(classes.judged.reasons[k], []).append(k + 1)
    return [f"{reason}: {listed(np.array(numbers))}" for reason, numbers in by_reason.items() if reason]


def summary_of(found: Selection) -> dict[str, Any]:
    """The selection as job.json keeps it."""
    told: dict[str, Any] = {
        "rule": found.choice.said,
        "rows": len(found.rows),
        "chosen": found.count,
        "rules": [{"rule": said, "break": broken, "first": first} for said, broken, first in found.choice.counts()],
        "views": list(found.views),
    }
    if found.classes is not None and found.classes.choice.rules:
        told["classes"] = found.classes.numbers.tolist()
    return told


def tables_of(found: Selection) -> dict[str, list[Block]]:
    """What is written, by name: the chosen, the others, and lists of classes as RELION's Select job has them."""
    rows, kept = found.rows, found.choice.kept
    tables = {f"{rows.kind}.star": rows.take(kept).blocks(), f"{rows.kind}_excluded.star": rows.take(~kept).blocks()}
    classes = found.classes
    if classes is not None and classes.known is not None:
        tables |= {
            "class_averages.star": [Block("", table=classes.known.table.take(classes.choice.kept))],
            "backup_selection.star": [Block("", table=Table.of({"rlnSelected": classes.choice.kept.astype(int)}))],
            "classes.star": [Block("classes", table=_class_table(classes))],
        }
    return tables


def _class_table(classes: Classes) -> Table:
    """A row for each class: what is known of it, whether it is chosen, and why not."""
    count, of = len(classes.set), classes.set
    assert of.resolution_A is not None
    columns: dict[str, Any] = {
        "rlnClassNumber": np.arange(1, count + 1),
        "rlnSelected": classes.choice.kept.astype(int),
        "rlnGroupNrParticles": of.counts,
        "rlnClassDistribution": of.shares,
        "rlnEstimatedResolution": np.where(np.isfinite(of.resolution_A), of.resolution_A, 999.0),
    }
    reasons = classes.choice.reasons()
    if classes.judged is not None:
        columns["rlnClassScore"] = classes.judged.scores
        seen = classes.judged.reasons
        reasons = ["; ".join(filter(None, pair)) for pair in zip(reasons, seen, strict=True)]
    columns["polariceReason"] = np.array(reasons, object)
    return Table.of(columns)

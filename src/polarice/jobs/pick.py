"""`polarice pick`: particles in micrographs, by their size, by templates, or as others have picked them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polarice.cluster import Comm
from polarice.io.coordinates import Coordinates, coordinate_files, read_coordinates, twins, write_coordinates
from polarice.io.micrographs import MicrographTable, read_micrographs, require_pixel_sizes, write_micrographs
from polarice.io.optics import require_defoci
from polarice.io.pairing import Matching
from polarice.project.outputs import files_of
from polarice.project.params import option, output
from polarice.runs.micrographs import (
    Item,
    Outcome,
    TaskPool,
    Writes,
    begin,
    cells_of,
    end,
    items_of,
    on_ranks,
    told,
    treat,
)
from polarice.runs.per_micrograph import PerMicrograph
from polarice.types import InputError, Optics

if TYPE_CHECKING:
    from polarice.picking.working import Working

RANKS = True
SUMMARY = "pick particles: by their size, by templates, or as another program has picked them"
EXAMPLE = "polarice pick CtfFind/job003/micrographs.star --o AutoPick/job004 --blob --particle-diameter 180"
CANDIDATES, PICKS, PICTURE = "_candidates.star", "_autopick.star", "_autopick.png"
BARE = "_small.png"  # the micrograph alone, for the picture
DIRT = "polariceInDirt"
CHANCE = "score of chance"
TWINS = "within a pixel of another"
COORDINATES = "rlnMicrographCoordinates"
DEFOCUS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
AFTERWARDS = ("threshold", "keep_dirt", "best")  # options that choose among candidates, without a new search
THUMBNAIL_PX = 420
NEARLY = 0.1  # candidates this far below the threshold are drawn, too


@dataclass(frozen=True)
class Params(PerMicrograph):
    """One way to pick; and what is kept of what was found."""

    o: Path = output("pick", "folder for coordinates, micrographs.star and the report")
    blob: bool = option(False, "by size alone: a Laplacian of a Gaussian, then the micrograph's own mean particle")
    templates: Path | None = option(
        None, "by class averages, white particles: a stack (.mrcs) or a list (.star)", flags=("--ref",)
    )
    picks: Path | None = option(None, "others' picks: a folder, or a file (.star .box .cbox, Topaz .txt)")
    coord_names: Literal["folders", "bare", "cryosparc"] = option(
        "folders", "folders in names of coordinates must agree, or not; and without cryoSPARC's numbers and endings"
    )
    coord_suffix: str | None = option(None, "behind micrographs' names in files of coordinates: _autopick.star, say")
    particle_diameter: float | None = option(
        None,
        "particle diameter",
        unit="A",
        low=10,
        high=5000,
        level="essential",
        derived="must be given, but for --picks",
    )
    threshold: float | None = option(
        None, "score threshold", derived="per micrograph, about 10 % false picks", low=-1, high=1
    )
    keep_dirt: bool = option(False, "keep particles on carbon, ice and other dirt")
    best: int | None = option(
        None, "keep at most so many of a micrograph, those of the highest score", derived="all", low=1
    )
    white: bool = option(False, "particles are white in the micrographs")
    psi_step: float = option(10.0, "step of the templates' angles", unit="deg", low=1, high=360)
    templates_angpix: float | None = option(
        None, "pixel size of the templates", derived="their header's", unit="A", low=0.05
    )
    ctf: bool = option(True, "apply the micrograph's CTF to the templates, where the table has it")
    coordinate_scale: float = option(1.0, "multiply others' coordinates by this, of shrunken micrographs", low=1e-3)
    angpix: float | None = option(
        None, "pixel size", derived="the table's", unit="A", low=0.05, flags=("--pixel-size",)
    )

    def faults(self) -> Iterator[str]:
        ways = [flag for flag in ("blob", "templates", "picks") if getattr(self, flag)]
        if len(ways) > 1:
            yield f"--{ways[0]} and --{ways[1]} are two ways to pick; give one"
        if not self.picks and self.particle_diameter is None:
            yield "--particle-diameter is needed: the particle's longest side, in Angstrom"


def run(params: Params) -> None:
    """Pick in all micrographs; raises InputError for what cannot be used."""
    on_ranks("pick", params, _pick_all)


def _pick_all(params: Params, comm: Comm) -> None:
    """What rank 0 does; others help to treat."""
    from polarice.report.micrographs import MicrographReport

    if params.templates:
        _read_templates(params)
    table = read_micrographs(params.micrographs)
    if not params.angpix and not params.picks:
        require_pixel_sizes(table)
    copies = params.picks is not None and (params.coordinate_scale != 1 or params.picks.is_file())
    files = ("micrographs.star", "autopick.star", "coords_suffix_autopick.star", *(("coords",) if copies else ()))
    endings = (PICKS, CANDIDATES, PICTURE, BARE)
    writes = Writes(params.o, files, items_of(table, params.o), endings, files_of(params.picks))
    begin("pick", params, writes, [params.micrographs, params.templates, params.picks])
    items, asides = _with_coordinates(table, params)
    told(asides)
    outcomes = treat(items, Picking(params), _farm(params, comm))
    done = cells_of(outcomes).rows
    outcomes = [o if o.reason else _select(item, o, params) for item, o in zip(items, outcomes, strict=True)]
    counts = [int(outcomes[row].figures["picked"]) for row in done]
    _write_tables(table, done, items, params.o)
    numbers = [("picked", f"{sum(counts):,}"), ("picked in a micrograph, median", f"{np.median(counts):.0f}")]
    end(MicrographReport("pick", params.o, params, items, outcomes, text=(*_TEXT, *asides), numbers=numbers))
    print(f"{sum(counts)} particles picked")
    if double := int(sum(outcomes[row].figures.get(TWINS, 0) for row in done)):
        told([f"{double} coordinates lie within a pixel of another of their micrograph: the same particle twice"])
    if not any(counts):
        _tell_why_none(params, [outcomes[row] for row in done])


_TEXT = (
    "Green: picked. Yellow: on dirt. Red: a little below the threshold. All candidates and their scores are kept: the "
    "same command with another --threshold, --best or --keep-dirt chooses among them without a new search.",
    "Scores are correlations, from -1 to 1. Unless a threshold is given, it is, in each micrograph, where no more "
    "than one in ten is to be expected in a picture of the same power spectrum with nothing but chance in it.",
)


def _tell_why_none(params: Params, outcomes: Sequence[Outcome]) -> None:
    """Where nothing is picked: what to look at."""
    candidates = sum(int(outcome.figures.get("candidates", 0)) for outcome in outcomes)
    dirty = sum(int(outcome.figures.get("on dirt", 0)) for outcome in outcomes)
    if params.picks:
        hint = f"{params.picks} has {candidates} coordinates; is --coordinate-scale right?"
    elif dirty:
        hint = f"{dirty} lie on dirt; --keep-dirt keeps them"
    elif candidates:
        hint = f"{candidates} candidates lie below the threshold; look at their scores, and lower --threshold"
    else:
        hint = "nothing of that size is there; check --particle-diameter (in Angstrom), --angpix, and --white"
    print(f"hint: {hint}", file=sys.stderr)


def _farm(params: Params, comm: Comm) -> TaskPool:
    """Options that only choose among candidates are no reason to search again."""
    inputs = [str(params.templates)] if params.templates else []
    farm = TaskPool.of("pick", params, inputs=inputs, comm=comm)
    searched = {name: value for name, value in farm.settings["params"].items() if name not in AFTERWARDS}
    return replace(farm, settings={**farm.settings, "params": searched})


def _items(table: MicrographTable, params: Params) -> list[Item]:
    return _with_coordinates(table, params)[0]


def _with_coordinates(table: MicrographTable, params: Params) -> tuple[list[Item], tuple[str, ...]]:
    """Every micrograph, with others' coordinates where they are given; and what was left aside of these."""
    items = items_of(table, params.o)
    require_defoci(table.table)
    if all(label in table.table for label in DEFOCUS):
        labels = (*DEFOCUS, *(label for label in ("rlnPhaseShift",) if label in table.table))
        columns = np.stack([table.table.numbers(label) for label in labels], axis=1).tolist()
        items = [replace(i, settings={**i.settings, "ctf": row}) for i, row in zip(items, columns, strict=True)]
    if params.picks:
        matching = Matching(params.coord_names, params.coord_suffix)
        assigned = coordinate_files(params.picks, table.names, params.o, params.coordinate_scale, matching)
        pairs = zip(items, assigned.files, strict=True)
        return [replace(item, inputs=(file,) if file else ()) for item, file in pairs], assigned.remarks
    return items, ()


def _write_tables(table: MicrographTable, done: Sequence[int], items: Sequence[Item], folder: Path) -> None:
    """micrographs.star, and what RELION knows a picking job by: autopick.star (4, 5) and coords_suffix (3.1)."""
    from polarice.io.atomic import replacing
    from polarice.io.star import Block, Table, write_star

    files = [items[row].stem + PICKS for row in done]
    write_micrographs(folder / "micrographs.star", table.take(np.array(done)), {COORDINATES: files})
    names = [table.names[row] for row in done]
    pairs = Table.of({"rlnMicrographName": names, COORDINATES: files})
    write_star(folder / "autopick.star", [Block("coordinate_files", table=pairs)])
    with replacing(folder / "coords_suffix_autopick.star", "w") as stream:
        stream.write(f"{folder / 'micrographs.star'}\n")


def _select(item: Item, outcome: Outcome, params: Params) -> Outcome:
    """Write the picks of one micrograph out of its candidates, and their picture."""
    from polarice.io.star import read_star

    table = read_star(item.stem + CANDIDATES).blocks[0].table
    found = read_coordinates(item.stem + CANDIDATES)
    scores = np.zeros(len(found.xy_px)) if found.scores is None else found.scores
    dirty = table.numbers(DIRT) > 0 if table is not None and DIRT in table else np.zeros(len(scores), bool)
    level = params.threshold if params.threshold is not None else outcome.figures.get(CHANCE, -np.inf)
    clean = np.ones(len(scores), bool) if params.keep_dirt else ~dirty
    picked = clean & (scores >= level)
    if params.best is not None:
        rank = np.argsort(np.argsort(-np.where(picked, scores, -np.inf), kind="stable"), kind="stable")
        picked &= rank < params.best
    write_coordinates(item.stem + PICKS, found.take(np.flatnonzero(picked)))
    shown = np.flatnonzero(scores >= level - NEARLY)
    kind = np.where(picked, 1, np.where(dirty & (scores >= level), 2, 0))
    thumbnail = _draw(item, found.xy_px[shown], kind[shown], outcome)
    figures = {"picked": float(picked.sum()), "on dirt": float((dirty & (scores >= level)).sum())}
    figures |= {name: outcome.figures[name] for name in (CHANCE, "candidates", TWINS) if name in outcome.figures}
    return replace(outcome, figures=figures, thumbnail=thumbnail)


def _draw(item: Item, xy_px: np.ndarray, kind: np.ndarray, outcome: Outcome) -> str:
    """Circles about candidates: 0 red, 1 green, 2 yellow."""
    from PIL import Image, ImageDraw

    from polarice.io.atomic import replacing
    from polarice.report.montage import png_bytes

    picture = Image.open(item.stem + BARE).convert("RGB")
    scale = outcome.figures["shrunken to"]
    radius = max(2.0, outcome.figures["diameter (px)"] / 2 * scale)
    draw = ImageDraw.Draw(picture)
    for (x, y), each in zip(xy_px * scale, kind, strict=True):
        colour = ((205, 60, 60), (40, 200, 80), (235, 200, 30))[each]
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=colour)
    with replacing(item.stem + PICTURE) as stream:
        stream.write(png_bytes(picture))
    return item.stem + PICTURE


def _read_templates(params: Params) -> tuple[np.ndarray, float]:
    """Templates (n, N, N) that are not empty, and their pixel size."""
    from polarice.io.stacks import read_named

    assert params.templates is not None
    stack, header_A = read_named(params.templates, "rlnReferenceImage")
    pixel_size_A = params.templates_angpix or header_A
    if pixel_size_A <= 0:
        raise InputError(f"{params.templates} does not say its pixel size; give it with --templates-angpix")
    if stack.shape[1] != stack.shape[2]:
        raise InputError(f"{params.templates}: images of {stack.shape[2]} x {stack.shape[1]} pixels are not square")
    kept = stack[np.isfinite(stack).all((1, 2)) & (np.ptp(stack, axis=(1, 2)) > 0)]
    if not len(kept):
        raise InputError(f"{params.templates}: all templates are empty")
    return kept, pixel_size_A


@dataclass(frozen=True)
class Picking:
    """Searches one micrograph: writes STEM_candidates.star, and the micrograph small."""

    params: Params
    cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # templates, read once a process

    def __call__(self, item: Item) -> Outcome:
        from polarice.io.pictures import other_size, read_picture

        picture = read_picture(item.file)
        pixels, size = picture.pixels, other_size(picture, item.settings["optics"]["pixel_size_A"])
        if self.params.picks:
            outcome = self._others(item, pixels)
            return replace(outcome, remarks=(*size, *outcome.remarks))
        from polarice.picking.search import find
        from polarice.picking.working import working_copy

        optics = Optics(**item.settings["optics"])
        pixel_size_A = self.params.angpix or optics.pixel_size_A
        diameter_A = self.params.particle_diameter or 0.0
        if diameter_A / pixel_size_A > min(pixels.shape) / 2:
            raise InputError(
                f"{item.file}: less than two particle diameters wide; check --particle-diameter and --angpix"
            )
        working = working_copy(pixels, pixel_size_A, diameter_A, dark=not self.params.white)
        found = find(working, self._kernels(working, optics, item.settings), self._device())
        more = {DIRT: found.in_dirt.astype(np.int64)}
        write_coordinates(item.stem + CANDIDATES, Coordinates(found.xy_px, found.scores), more)
        figures = {CHANCE: found.chance, "candidates": float(len(found.scores))}
        figures |= self._small(item, pixels, diameter_A / pixel_size_A)
        return Outcome({}, figures, size, thumbnail=item.stem + PICTURE)  # drawn by _select

    def _others(self, item: Item, pixels: np.ndarray) -> Outcome:
        if not item.inputs:
            raise InputError(f"{item.name}: {self.params.picks} has no coordinates for it")
        found = read_coordinates(item.inputs[0])
        size = np.array(pixels.shape[::-1])
        inside = ((found.xy_px >= 0) & (found.xy_px < size)).all(axis=1)
        remarks: tuple[str, ...] = (
            (f"{(~inside).sum()} coordinates lie outside of the micrograph",) if not inside.all() else ()
        )
        found = found.take(np.flatnonzero(inside))
        twin = int(twins(found.xy_px).sum())
        if twin:
            remarks = (*remarks, f"{twin} coordinates lie within a pixel of another: the same particle twice")
        write_coordinates(item.stem + CANDIDATES, found)
        optics = Optics(**item.settings["optics"])
        diameter_px = (self.params.particle_diameter or 0) / (self.params.angpix or optics.pixel_size_A or 1)
        figures = {
            "candidates": float(len(found.xy_px)),
            TWINS: float(twin),
            **self._small(item, pixels, diameter_px or max(size) / 40),
        }
        return Outcome({}, figures, remarks, item.stem + PICTURE)

    def _kernels(self, working: Working, optics: Optics, settings: Mapping[str, Any]) -> np.ndarray | None:
        if not self.params.templates:
            return None
        from polarice.picking.blob import REACH
        from polarice.picking.templates import kernels_of, seen_through
        from polarice.types import CTFParameters

        if "templates" not in self.cache:
            self.cache["templates"] = _read_templates(self.params)
        templates, pixel_size_A = self.cache["templates"]
        if self.params.ctf and "ctf" in settings:
            terms = [*settings["ctf"], 0.0][:4]
            parameters = CTFParameters(*(np.array([term]) for term in (*terms, 0.0, 1.0)))
            templates = seen_through(templates, replace(optics, pixel_size_A=pixel_size_A), parameters)
        shrink = working.pixel_size_A / pixel_size_A
        return kernels_of(templates, shrink, REACH * working.diameter_px, self.params.psi_step)

    def _device(self) -> str:
        import torch

        if self.params.device == "cpu":
            return "cpu"
        if self.params.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: no CUDA device is to be found here; --device cpu")
        return "cuda" if torch.cuda.is_available() else "cpu"

    def _small(self, item: Item, pixels: np.ndarray, diameter_px: float) -> dict[str, float]:
        """Write the micrograph small; how small, and how wide a particle is, for the circles."""
        from polarice.io.atomic import replacing
        from polarice.report.micrographs import thumbnail_png

        with replacing(item.stem + BARE) as stream:
            stream.write(thumbnail_png(pixels, THUMBNAIL_PX))
        return {"shrunken to": 1 / max(1, max(pixels.shape) // THUMBNAIL_PX), "diameter (px)": diameter_px}

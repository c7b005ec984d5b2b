"""`polarice extract`: particle images out of micrographs, as RELION's extraction makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polarice.cluster import Comm
from polarice.io.coordinates import SCORE, Coordinates, coordinate_files, read_coordinates, twins
from polarice.io.micrographs import MicrographTable, found, read_micrographs, require_pixel_sizes
from polarice.io.optics import require_defoci
from polarice.io.pairing import Matching
from polarice.jobs.pick import COORDINATES
from polarice.project.outputs import files_of
from polarice.project.params import MICROGRAPHS, PARTICLES, argument, option, output
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
from polarice.runs.reextract import Source, read_source
from polarice.types import InputError

if TYPE_CHECKING:
    from polarice.extraction.images import Recipe
    from polarice.io.star import Table

RANKS = True
IMAGES = True  # that other tables name: other options want another folder
SUMMARY = "cut particle images out of micrographs: scaled, inverted, normalised as RELION does"
EXAMPLE = "polarice extract AutoPick/job004/micrographs.star --o Extract/job005 --box 256 --scale 128"
STACK, TABLE, PICTURE = ".mrcs", "_extract.star", "_extract.png"
OWN = ("rlnImageName", "rlnMicrographName", "rlnOpticsGroup")  # columns that extraction makes anew
BATCH = 64  # images cut at a time
SHOWN, SHOWN_PX = 12, 96
FROM_MICROGRAPH = {  # columns that a micrograph's particles share, and what stands there where the table lacks them
    "rlnCtfMaxResolution": None,
    "rlnCtfFigureOfMerit": None,
    "rlnDefocusU": None,
    "rlnDefocusV": None,
    "rlnDefocusAngle": None,
    "rlnCtfBfactor": 0.0,
    "rlnCtfScalefactor": 1.0,
    "rlnPhaseShift": 0.0,
}


@dataclass(frozen=True)
class Params(PerMicrograph):
    """The box, and what becomes of it."""

    micrographs: Path | None = argument(  # type: ignore[assignment]
        "micrograph table (STAR); with --particles: those that its table names", flags=("--i",), unless="particles",
        path=MICROGRAPHS,
    )  # fmt: skip
    o: Path = output("extract", "folder for stacks, particles.star and the report")
    particles: Path | None = option(
        None, "cut the particles of this table anew; their other columns stay", path=PARTICLES,
        derived="the coordinates of --coords",
    )  # fmt: skip
    recenter: bool = option(False, "move coordinates to where particles were found", needs=("particles", True))
    coords: Path | None = option(None, "coordinates: a folder or a file", derived="those that the table names")
    coord_names: Literal["folders", "bare", "cryosparc"] = option(
        "folders", "folders in names of coordinates must agree, or not; and without cryoSPARC's numbers and endings"
    )
    coord_suffix: str | None = option(None, "behind micrographs' names in files of coordinates: _autopick.star, say")
    box: int | None = option(
        None,
        "box in the micrograph, even",
        derived="must be given",
        level="essential",
        unit="px",
        low=8,
        high=4096,
        flags=("--extract-size",),
    )
    scale: int | None = option(None, "box of the images, even", derived="as --box", unit="px", low=8, high=4096)
    invert: bool = option(True, "invert the contrast: particles white", flags=("--invert-contrast",))
    norm: bool = option(True, "bring the background to mean 0 and standard deviation 1")
    ramp: bool = option(True, "take a plane off the background first")
    bg_radius: int | None = option(
        None, "radius where the background begins", derived="37.5 % of the images' box", unit="px", low=1
    )
    white_dust: float | None = option(None, "replace pixels so many standard deviations above the background", low=0.5)
    black_dust: float | None = option(None, "replace pixels so many standard deviations below the background", low=0.5)
    float16: bool = option(False, "half the disk space; RELION 4 and later read it")
    whole: bool = option(
        True, "leave out particles whose box leaves the micrograph; else the nearest pixels are repeated, as in RELION"
    )
    min_score: float | None = option(
        None, "score threshold of picks", derived="all picks", flags=("--minimum-pick-fom",)
    )
    angpix: float | None = option(
        None, "pixel size", derived="the table's", unit="A", low=0.05, flags=("--pixel-size",)
    )

    def faults(self) -> Iterator[str]:
        if self.micrographs is None and self.particles is None:
            yield "give a table of micrographs, or --particles"
        if self.particles is not None and self.coords is not None:
            yield "--particles have coordinates; leave out --coords"
        if self.recenter and self.particles is None:
            yield "--recenter is for --particles, whose table has origins"
        if self.box is None:
            needed = "--box is needed: the box in the micrograph, in pixels; 1.5 times the particle's longest side"
            yield f"{needed}; {words}" if (words := _proposed(self)) else needed
            return
        for flag, size in (("--box", self.box), ("--scale", self.scale)):
            if size is not None and size % 2:
                yield f"{flag} {size}: must be even; RELION's programs refuse odd boxes"
        radius, size = self.bg_radius, self.scale or self.box
        if size > self.box:
            yield f"--scale {size}: larger than --box {self.box}; images are only made smaller"
        if radius is not None and 2 * radius > size:
            yield f"--bg-radius {radius}: must be at most half the images' box, {size // 2}"
        if not self.norm and (self.white_dust or self.black_dust or radius):
            yield "--white-dust, --black-dust and --bg-radius are parts of the normalisation; drop --no-norm"


def run(params: Params) -> None:
    """Extract from all micrographs; raises InputError for what cannot be used."""
    on_ranks("extract", params, _extract_all)


def _extract_all(params: Params, comm: Comm) -> None:
    """What rank 0 does; others help to treat."""
    from polarice.report.micrographs import MicrographReport

    source = _source(params)
    table = read_micrographs(params.micrographs) if source is None else source.micrographs  # type: ignore[arg-type]
    _check_table(table, params)
    given = [params.micrographs, params.coords, params.particles]
    begin("extract", params, _writes(table, params), given)
    items, asides = _with_coordinates(table, params, source)
    told(asides)
    outcomes = treat(items, Extraction(params), TaskPool.of("extract", params, comm=comm))
    done = cells_of(outcomes).rows
    totals = {name: int(sum(outcomes[row].figures[name] for row in done)) for name in ("particles", *LOST, TWINS)}
    if not totals["particles"]:
        raise InputError(f"no particle could be extracted: {_why_none(params, totals)}")
    _write_particles(table, [items[row] for row in done if outcomes[row].figures["particles"]], params)
    numbers = [(name, f"{n:,}") for name, n in totals.items()]
    end(MicrographReport("extract", params.o, params, items, outcomes, text=(*_TEXT, *asides), numbers=numbers))
    if double := totals.pop(TWINS):
        told([f"{double} particles lie within a pixel of another of their micrograph: extracted twice"])
    at_edge = "left out" if params.whole else "the nearest pixels repeated"
    words = {LOST[0]: f"{LOST[0]} ({at_edge})"}
    print(", ".join(f"{n} {words.get(name, name)}" for name, n in totals.items()) + f": {params.o / 'particles.star'}")


def _source(params: Params) -> Source | None:
    """Where particles of a table lie; None where micrographs and picks say that."""
    if params.particles is None:
        return None
    return read_source(params.particles, params.micrographs, params.recenter, params.angpix)


def _writes(table: MicrographTable, params: Params) -> Writes:
    """What it writes; the coordinates are not yet shared out over the micrographs."""
    if params.particles is not None:
        return Writes(
            params.o, ("particles.star", "coords"), items_of(table, params.o), (STACK, TABLE, PICTURE), images=True
        )
    if params.coords is not None:
        read = files_of(params.coords)
    else:
        read = [found(name, table.path) for name in table.table.text(COORDINATES).tolist()]
    copies = ("coords",) if params.coords is not None and params.coords.is_file() else ()
    endings = (STACK, TABLE, PICTURE)
    return Writes(params.o, ("particles.star", *copies), items_of(table, params.o), endings, read, images=IMAGES)


def _why_none(params: Params, totals: dict[str, int]) -> str:
    """What took the most of them, and the remedy."""
    partly, wholly, low = (totals[name] for name in LOST)
    if not any((partly, wholly, low)):
        return "the files of coordinates are empty; pick with another --threshold"
    if low >= max(partly, wholly):
        return f"{low} have a score below --min-score {params.min_score:g}; lower it"
    if partly >= wholly:
        return f"{partly} boxes of {params.box} px leave their micrograph; a smaller --box, or --no-whole"
    return f"{wholly} lie wholly off their micrograph; are the coordinates those of a binned one?"


TWINS = "twice, within a pixel of another of their micrograph"
LOST = ("partly off the edge", "wholly off the edge", "below the least score")
_TEXT = (
    "The first particles of each micrograph, as they are in its stack. Particles whose box leaves the micrograph are "
    "left out; with --no-whole the nearest pixels are repeated there, as RELION does, which class averages show as "
    "streaks.",
)


def _proposed(params: Params) -> str:
    """A box for what an earlier job was told of the particle; "" where nothing is known."""
    from polarice.runs.defaults import proposed_box

    if params.micrographs is None or not params.micrographs.is_file():
        return ""
    try:
        return proposed_box(params.micrographs, read_micrographs(params.micrographs).optics[0].pixel_size_A)
    except InputError:  # told when the table is read
        return ""


def _check_table(table: MicrographTable, params: Params) -> None:
    if params.coords is None and params.particles is None and COORDINATES not in table.table:
        raise InputError(
            f"{table.path} names no coordinates (_{COORDINATES}); give --coords, or the table of polarice pick"
        )
    require_defoci(table.table)
    if not params.angpix:
        require_pixel_sizes(table)


def _with_coordinates(
    table: MicrographTable, params: Params, source: Source | None = None
) -> tuple[list[Item], tuple[str, ...]]:
    """Every micrograph with its file of coordinates, and what was left aside."""
    items, asides = items_of(table, params.o), tuple[str, ...]()
    if source is not None:
        files, asides = source.write(params.o / "coords"), source.remarks
    elif params.coords is not None:
        matching = Matching(params.coord_names, params.coord_suffix)
        assigned = coordinate_files(params.coords, table.names, params.o, matching=matching)
        files, asides = assigned.files, assigned.remarks
    else:
        files = [found(name, table.path) for name in table.table.text(COORDINATES).tolist()]
    shared = [label for label in FROM_MICROGRAPH if label in table.table]
    values = {label: table.table.numbers(label).tolist() for label in shared}
    groups = table.optics_table.integers("rlnOpticsGroup")[table.optics_of].tolist()
    items = [
        replace(
            item,
            inputs=(files[row],) if files[row] else (),
            settings={
                **item.settings,
                "group": groups[row],
                "columns": {label: values[label][row] for label in shared},
            },
        )
        for row, item in enumerate(items)
    ]
    return items, asides


def _write_particles(table: MicrographTable, items: Sequence[Item], params: Params) -> None:
    """particles.star: the micrographs' own tables, one after another."""
    from polarice.io.joining import stacked
    from polarice.io.star import Block, read_star, write_star

    particles, _ = stacked([read_star(item.stem + TABLE).table("particles") for item in items])
    write_star(params.o / "particles.star", [_optics(table, params), Block("particles", table=particles)])


def _optics(table: MicrographTable, params: Params) -> Any:
    from polarice.io.optics import completed
    from polarice.io.star import Block

    assert params.box is not None
    size = params.scale or params.box
    groups = [
        replace(group, pixel_size_A=(params.angpix or group.pixel_size_A) * params.box / size, box_px=size)
        for group in table.optics
    ]
    kept = table.optics_table.without("rlnImagePixelSize", "rlnImageSize")
    sizes = [params.angpix or group.pixel_size_A for group in table.optics]
    kept = kept.with_columns({"rlnMicrographPixelSize": np.array(sizes)})  # coordinates are of these pixels
    return Block("optics", table=completed(kept, groups))


@dataclass(frozen=True)
class Extraction:
    """Extracts from one micrograph: writes STEM.mrcs, STEM_extract.star and a picture."""

    params: Params

    def __call__(self, item: Item) -> Outcome:
        from polarice.io.mrc import StackWriter
        from polarice.io.pictures import other_size, read_picture

        picture = read_picture(item.file)
        if not item.inputs:
            raise InputError(f"{item.name}: no coordinates belong to it")
        ny, nx = picture.pixels.shape
        if self.params.box and self.params.box > min(nx, ny):
            raise InputError(f"{item.file}: {nx} x {ny} pixels, less than --box {self.params.box}; take a smaller box")
        found = read_coordinates(item.inputs[0])
        if self.params.min_score is not None and found.scores is None and len(found.xy_px):
            raise InputError(f"{item.inputs[0]}: no scores (_{SCORE}); leave out --min-score")
        chosen, lost, rows = self._chosen(found, (ny, nx))
        twin = int(twins(chosen.xy_px).sum())
        figures = {"particles": float(len(rows)), **lost, TWINS: float(twin)}
        if not len(rows):
            return Outcome({}, figures, ("no particles",))
        pixel_size_A = self.params.angpix or item.settings["optics"]["pixel_size_A"]
        recipe = self._recipe()
        pixel_size_A *= recipe.box_px / recipe.image_px
        shown: list[np.ndarray] = []
        dtype = np.float16 if self.params.float16 else np.float32
        with StackWriter(item.stem + STACK, len(rows), recipe.image_px, pixel_size_A, dtype) as writer:
            for images in self._images(picture.pixels, chosen, rows, recipe):
                writer.append(images)
                shown += list(images[: SHOWN - len(shown)])
        self._write_table(item, chosen, rows)
        remarks = other_size(picture, self.params.angpix or item.settings["optics"]["pixel_size_A"])
        remarks += (f"{twin} coordinates lie within a pixel of another: extracted twice",) if twin else ()
        return Outcome({}, figures, remarks, self._draw(item, np.stack(shown)))

    def _recipe(self) -> Recipe:
        from polarice.extraction.background import Background, default_radius_px
        from polarice.extraction.images import Recipe

        p = self.params
        assert p.box is not None
        size = p.scale or p.box
        background = Background(p.bg_radius or default_radius_px(size), p.ramp, p.white_dust, p.black_dust)
        return Recipe(p.box, size, p.invert, background if p.norm else None)

    def _chosen(self, found: Coordinates, shape: tuple[int, ...]) -> tuple[Coordinates, dict[str, float], np.ndarray]:
        """What is extracted, how many are not and why, and the rows of the file that are."""
        from polarice.extraction.boxes import inside, touching

        assert self.params.box is not None
        size = (shape[0], shape[1])
        good = np.ones(len(found.xy_px), bool)
        if self.params.min_score is not None and found.scores is not None:
            good = found.scores >= self.params.min_score
        touches = touching(found.xy_px, size, self.params.box)
        whole = inside(found.xy_px, size, self.params.box)
        counts = (good & touches & ~whole, good & ~touches, ~good)
        rows = np.flatnonzero(good & (whole if self.params.whole else touches))
        return found.take(rows), {name: float(n.sum()) for name, n in zip(LOST, counts, strict=True)}, rows

    def _images(
        self, pixels: np.ndarray, chosen: Coordinates, rows: np.ndarray, recipe: Recipe
    ) -> Iterator[np.ndarray]:
        from polarice.extraction.images import images_of

        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            yield images_of(pixels, chosen.xy_px[part], recipe, seeds=rows[part].tolist())

    def _write_table(self, item: Item, chosen: Coordinates, rows: np.ndarray) -> None:
        from polarice.io.star import Block, read_star, write_star

        table = self._table(item, chosen)
        if self.params.particles is not None:  # its columns stay as they are, beside the image's own
            old = read_star(item.inputs[0]).table("particles").take(rows)
            new = {label: table.text(label) for label in table.labels if label in OWN or label not in old}
            table = old.with_columns(new)
        write_star(item.stem + TABLE, [Block("particles", table=table)])

    def _table(self, item: Item, chosen: Coordinates) -> Table:
        from polarice.io.star import Table

        n = len(chosen.xy_px)
        columns: dict[str, Any] = {
            "rlnCoordinateX": chosen.xy_px[:, 0],
            "rlnCoordinateY": chosen.xy_px[:, 1],
            "rlnImageName": [f"{row:06d}@{item.stem}{STACK}" for row in range(1, n + 1)],
            "rlnMicrographName": [item.name] * n,
            "rlnOpticsGroup": np.full(n, item.settings["group"]),
        }
        if chosen.scores is not None:
            columns[SCORE] = chosen.scores
        known = item.settings["columns"]
        for label, default in FROM_MICROGRAPH.items():
            if label in known or (default is not None and "rlnDefocusU" in known):
                columns[label] = np.full(n, known.get(label, default), float)
        return Table.of(columns)

    def _draw(self, item: Item, images: np.ndarray) -> str:
        from PIL import Image

        from polarice.io.atomic import replacing
        from polarice.report.montage import png_bytes, thumbnail

        columns = 4
        page = Image.new("L", (columns * SHOWN_PX, -(-len(images) // columns) * SHOWN_PX), 255)
        for place, image in enumerate(images):
            x, y = place % columns * SHOWN_PX, place // columns * SHOWN_PX
            page.paste(thumbnail(image, image.shape[0] / 2, SHOWN_PX), (x, y))
        with replacing(item.stem + PICTURE) as stream:
            stream.write(png_bytes(page))
        return item.stem + PICTURE

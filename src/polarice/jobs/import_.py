"""`polarice import`: movies, micrographs or particles become a table that RELION and the other commands read."""

from __future__ import annotations

import glob
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polarice.cluster import SERIAL
from polarice.io.movies import EER_ENDING, MRC_ENDINGS, TIFF_ENDINGS, Events, open_movie
from polarice.io.optics import DEFOCUS_LABELS, require_defoci
from polarice.io.sessions import Mdoc, clusters, epu_template, read_beside
from polarice.io.star import Block, read_star, write_star
from polarice.io.table import Table
from polarice.project.folder_lock import alone
from polarice.project.params import Parameters, argument, option, output
from polarice.project.patterns import listed
from polarice.project.progress import Bar
from polarice.project.usage import Items, Watch, write_usage
from polarice.runs.micrographs import Item, Outcome, Writes, begin, check_folder, end, told_reason
from polarice.types import InputError

if TYPE_CHECKING:
    from polarice.io.particles import ParticleTable

SUMMARY = "make a table of movies, micrographs or particles: files, RELION's STAR or cryoSPARC's .cs"
EXAMPLE = 'polarice import "movies/*.tiff" --o Import/job001 --angpix 0.885 --voltage 200'
DEFAULT_VOLTAGE_KV = 300.0
_INVERT = "invert the images for RELION: relion_image_handler --multiply_constant -1"
AGREE = 0.02  # relative difference of pixel sizes


@dataclass(frozen=True)
class Params(Parameters):
    """What to import; names are RELION's where RELION has them."""

    inputs: tuple[str, ...] = argument(
        "movies or micrographs (names or quoted patterns), or one .star or .cs", flags=("--i",)
    )
    o: Path = output("Import", "folder for the table")
    angpix: float | None = option(
        None,
        "pixel size, instead of the files'",
        derived="the files'",
        unit="A",
        low=0.01,
        high=100,
        flags=("--pixel-size",),
    )
    voltage: float | None = option(
        None,
        "acceleration voltage",
        derived="that of .mdoc or .xml files, or 300 kV",
        unit="kV",
        low=10,
        high=3000,
        flags=("--kV",),
    )
    cs: float = option(2.7, "spherical aberration", unit="mm", low=0, flags=("--Cs",))
    amplitude_contrast: float = option(0.1, "amplitude contrast", low=0, high=1, flags=("--Q0",))
    optics_group_name: str = option("opticsGroup1", "name of the optics group; numbered where there are more")
    optics_groups: Literal["one", "beam-shift", "epu"] = option(
        "one", "one for all; by clusters of the .mdoc files' image shifts; by the template's place in EPU's names"
    )
    beam_shift_radius: float = option(0.3, "image shifts closer than this are of one group", unit="um", low=1e-6)
    mtf: str | None = option(None, "the camera's MTF, a STAR file, noted in the table")
    passthrough: tuple[Path, ...] = option((), "passthrough tables of a .cs, joined by uid")
    image_dir: Path | None = option(None, "folder that the image names of a table are relative to")
    flip_y: bool = option(False, "turn coordinates upside down: between cryoSPARC's micrographs and RELION's")
    to: Literal["star", "cs"] = option("star", "write particles as RELION's table or as cryoSPARC's")


@dataclass(frozen=True)
class Found:
    """One file that can be used."""

    path: Path
    shape: tuple[int, int]
    frames: int
    pixel_size_A: float  # 0 where nothing says
    mdoc: Mdoc | None
    of_xml: bool = False  # the pixel size is that of EPU's .xml


def run(params: Params) -> None:
    """Write movies.star, micrographs.star, particles.star or particles.cs. Raises InputError for what contradicts."""
    files = _files(params.inputs)
    tables = [path for path in files if path.name.endswith((".star", ".star.gz", ".cs"))]
    if tables and len(files) > 1:
        raise InputError(f"{tables[0]}: one table at a time, and no other files beside it")
    if not tables and (params.passthrough or params.to == "cs"):
        raise InputError("--passthrough and --to cs are for tables of particles")
    check_folder(params.o)
    with alone(params.o):
        if tables:
            _import_particles(tables[0], params)
        else:
            _import_images(files, params)


def _files(inputs: tuple[str, ...]) -> list[Path]:
    """Names and patterns as files, sorted within each pattern; InputError for what is not there."""
    found: list[Path] = []
    for text in inputs:
        matches = [text] if Path(text).exists() else sorted(glob.glob(text, recursive=True))
        if not matches:
            raise InputError(f"{text}: no such file, and no file that fits; check the name and the folder")
        found += map(Path, matches)
    files = [path for path in found if path.suffix not in (".mdoc", ".xml")]
    twice = [path for path, count in Counter(files).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]} is given twice")
    return files


def _import_images(files: list[Path], params: Params) -> None:
    from polarice.report.micrographs import MicrographReport

    watch = Watch(SERIAL, None)
    outcomes, usable = _look(files)
    kind = "movies" if usable and usable[0].frames > 1 else "micrographs"
    outcomes, usable = _alike(outcomes, usable, files)
    items = [Item(str(path), row, str(path), "") for row, path in enumerate(files)]
    pixel_A, remark = _pixel_size(usable, params) if usable else (0.0, "")
    groups = _groups(usable, params) if usable else np.zeros(0, int)
    remarks = [*([remark] if remark else []), *_beside(usable, params)]
    stated, params = params, replace(params, voltage=_voltage_kV(usable, params))
    writes = Writes(params.o, (f"{kind}.star",), read=[item.file for item in items])
    begin("import", params, writes)  # what is refused leaves no folder behind
    if usable:
        for each in remarks:
            print(f"warning: {each}", file=sys.stderr)
        write_star(params.o / f"{kind}.star", _blocks(kind, usable, groups, pixel_A, params))
        print(_optics_line(pixel_A, stated, params))
    text = [f"{len(usable)} {kind} of {usable[0].shape[1]} x {usable[0].shape[0]} pixels."] if usable else []
    write_usage(params.o, Items(**vars(watch.spent(None)), count=len(files), what=kind))
    end(MicrographReport("import", params.o, params, items, outcomes, kind, text))
    if not usable:
        raise InputError("no file could be used")


def _look(files: list[Path]) -> tuple[list[Outcome], list[Found]]:
    """Open every file."""
    outcomes, usable = [], []
    bar = Bar("import", len(files), unit=" files")
    for path in files:
        bar.update()
        try:
            if path.suffix.lower() not in (*MRC_ENDINGS, *TIFF_ENDINGS, EER_ENDING, ".gz"):
                raise InputError(f"{path}: neither a movie nor a micrograph nor a table")
            with open_movie(path, Events(1)) as movie:
                mdoc = read_beside(path)
                size = movie.pixel_size_A or (mdoc.pixel_size_A if mdoc and mdoc.pixel_size_A else 0.0)
                of_xml = bool(mdoc and mdoc.kind == ".xml" and size and not movie.pixel_size_A)
                usable.append(Found(path, movie.shape, movie.frames, size, mdoc, of_xml))
                outcomes.append(Outcome(figures={"frames": movie.frames, "pixel size (A)": size}))
        except InputError as error:
            outcomes.append(Outcome(reason=str(error)))
        except Exception as error:
            outcomes.append(Outcome(reason=f"{path}: {told_reason(error)}"))
    bar.close()
    return outcomes, usable


def _alike(outcomes: list[Outcome], usable: list[Found], files: list[Path]) -> tuple[list[Outcome], list[Found]]:
    """Files of another size, or movies among micrographs, are left out: most of the files decide."""
    if not usable:
        return outcomes, usable
    (shape, moving), _ = Counter((each.shape, each.frames > 1) for each in usable).most_common(1)[0]
    kept, reasons = [], {}
    for each in usable:
        if (each.shape, each.frames > 1) == (shape, moving):
            kept.append(each)
            continue
        what = f"{each.shape[1]} x {each.shape[0]} pixels, {each.frames} frame(s)"
        most = f"{shape[1]} x {shape[0]} pixels, {'several frames' if moving else 'one frame'}"
        reasons[each.path] = f"{each.path}: {what}, where most files have {most}; import it by itself"
    changed = [
        Outcome(reason=reasons[path]) if path in reasons else outcome
        for path, outcome in zip(files, outcomes, strict=True)
    ]
    return changed, kept


def _pixel_size(usable: list[Found], params: Params) -> tuple[float, str]:
    """The pixel size of all files, and a warning."""
    said = [each for each in usable if each.pixel_size_A > 0]
    if params.angpix:
        other = [each for each in said if abs(each.pixel_size_A / params.angpix - 1) > AGREE]
        if not other:
            return params.angpix, ""
        return params.angpix, (
            f"{len(other)} file(s) state another pixel size, {other[0].path} {other[0].pixel_size_A:.4g} A; "
            f"{params.angpix:.4g} A is used"
        )
    if not said:
        raise InputError(f"{usable[0].path}: no file states a pixel size; give it with --angpix")
    first = said[0]
    for each in said:
        if abs(each.pixel_size_A / first.pixel_size_A - 1) > AGREE:
            raise InputError(
                f"{each.path} states a pixel size of {each.pixel_size_A:.4g} A, {first.path} one of "
                f"{first.pixel_size_A:.4g} A; import them one by one, or give the right one with --angpix"
            )
    return first.pixel_size_A, ""


def _voltage_kV(usable: list[Found], params: Params) -> float:
    """As the user says, or the files beside movies, or 300. Raises InputError where these disagree with each other."""
    if params.voltage is not None:
        return params.voltage
    said = {each.mdoc.voltage_kV: each.path for each in usable if each.mdoc and each.mdoc.voltage_kV}
    if len(said) > 1:
        (one, first), (other, second) = list(said.items())[:2]
        raise InputError(
            f"{second}: the file beside it says {other:g} kV, that of {first} {one:g} kV; import them one by one, or "
            "give --voltage"
        )
    return next(iter(said), DEFAULT_VOLTAGE_KV) or DEFAULT_VOLTAGE_KV


def _optics_line(pixel_A: float, stated: Params, params: Params) -> str:
    """The optics as they are written, and where each value comes from; `stated` are the parameters as given."""
    usual = Params(inputs=())

    def source(name: str) -> str:
        return "default" if getattr(stated, name) == getattr(usual, name) else "given"

    voltage = "given" if stated.voltage is not None else "default" if params.voltage == DEFAULT_VOLTAGE_KV else ".mdoc"
    pixel = "given" if stated.angpix else "header"
    return (
        f"optics: {params.voltage:g} kV ({voltage}), Cs {params.cs:g} mm ({source('cs')}), amplitude contrast "
        f"{params.amplitude_contrast:g} ({source('amplitude_contrast')}), {pixel_A:.4g} A/px ({pixel})"
    )


def _beside(usable: list[Found], params: Params) -> list[str]:
    """What the files beside movies say that the user should know: where they disagree, and what they name."""
    known = [(each, each.mdoc) for each in usable if each.mdoc]
    told = []
    if params.voltage is not None:
        other = [(each, mdoc) for each, mdoc in known if mdoc.voltage_kV and mdoc.voltage_kV != params.voltage]
        if other:
            said = f"{other[0][0].path} {other[0][1].voltage_kV:g} kV"
            told.append(
                f"the {other[0][1].kind} of {len(other):,} file(s) states another voltage, {said}; {params.voltage:g} "
                "is used"
            )
    spaced = [(each, mdoc) for each, mdoc in known if _differ(mdoc.pixel_size_A, params.angpix or each.pixel_size_A)]
    if spaced:
        each, mdoc = spaced[0]
        told.append(
            f"the {mdoc.kind} of {len(spaced):,} file(s) states another pixel size, {each.path} "
            f"{mdoc.pixel_size_A:.4g} A; {params.angpix or each.pixel_size_A:.4g} A is used"
        )
    alone = [(each, mdoc) for each, mdoc in known if mdoc.kind == ".xml" and each.of_xml and not params.angpix]
    if alone:
        each, mdoc = alone[0]
        told.append(
            f"{len(alone):,} file(s) state no pixel size, {each.path}; {each.pixel_size_A:.4g} A of EPU's .xml is "
            "taken, and frames in super-resolution have half of it: give --angpix then"
        )
    short = [(each, mdoc) for each, mdoc in known if mdoc.frames and each.frames > 1 and mdoc.frames != each.frames]
    if short:
        each, mdoc = short[0]
        told.append(
            f"{len(short):,} movie(s) have another number of frames than their .mdoc says, {each.path} {each.frames} "
            f"where it says {mdoc.frames}; are they whole?"
        )
    for what, option_of, names in (
        ("gain reference", "--gainref", sorted({mdoc.gain for _, mdoc in known if mdoc.gain})),
        ("defect file", "--defect-file", sorted({mdoc.defects for _, mdoc in known if mdoc.defects})),
    ):
        if names:
            told.append(f"the .mdoc files name a {what}: {listed(names)}; give it to polarice motion as {option_of}")
    return told


def _differ(stated_A: float | None, used_A: float) -> bool:
    return bool(stated_A and used_A and abs(stated_A / used_A - 1) > AGREE)


def _groups(usable: list[Found], params: Params) -> np.ndarray:
    """Optics group (n,) of every file, from 0."""
    if params.optics_groups == "epu":
        places = [epu_template(each.path) for each in usable]
        if None in places:
            path = usable[places.index(None)].path
            raise InputError(f"{path}: no name of EPU (FoilHole_.._Data_..); leave out --optics-groups epu")
        return np.unique(np.array(places, np.str_), return_inverse=True)[1]
    if params.optics_groups == "beam-shift":
        shifts = [each.mdoc.image_shift_um if each.mdoc else None for each in usable]
        if None in shifts:
            path = usable[shifts.index(None)].path
            raise InputError(f"{path}: no .mdoc with ImageShift; leave out --optics-groups beam-shift")
        return clusters(np.array(shifts), params.beam_shift_radius)
    return np.zeros(len(usable), int)


def _blocks(kind: str, usable: list[Found], groups: np.ndarray, pixel_A: float, params: Params) -> list[Block]:
    count = int(groups.max()) + 1
    base = params.optics_group_name
    optics: dict[str, Any] = {
        "rlnOpticsGroupName": [base] if count == 1 else [f"{base.rstrip('0123456789')}{n + 1}" for n in range(count)],
        "rlnOpticsGroup": np.arange(1, count + 1),
    }
    optics |= {"rlnMtfFileName": [params.mtf] * count} if params.mtf else {}
    sizes = ["rlnMicrographOriginalPixelSize"] + (["rlnMicrographPixelSize"] if kind == "micrographs" else [])
    optics |= {label: np.full(count, pixel_A) for label in sizes}
    optics |= {
        "rlnVoltage": np.full(count, params.voltage),
        "rlnSphericalAberration": np.full(count, params.cs),
        "rlnAmplitudeContrast": np.full(count, params.amplitude_contrast),
    }
    label = "rlnMicrographMovieName" if kind == "movies" else "rlnMicrographName"
    rows: dict[str, Any] = {label: [str(each.path) for each in usable]}
    doses = [each.mdoc.dose_e_A2 / each.frames if each.mdoc and each.mdoc.dose_e_A2 else 0.0 for each in usable]
    if kind == "movies" and all(doses) and not any(each.path.suffix.lower() == EER_ENDING for each in usable):
        rows["rlnMicrographDoseRate"] = doses
    rows["rlnOpticsGroup"] = groups + 1
    return [Block("optics", table=Table.of(optics)), Block(kind, table=Table.of(rows))]


def _import_particles(path: Path, params: Params) -> None:
    """One table of particles, RELION's or cryoSPARC's, to one of either."""
    from polarice.io import cryosparc

    if path.suffix == ".cs":
        rows = cryosparc.read_cs(path)
        for other in params.passthrough:
            before = len(rows)
            rows = cryosparc.join(rows, cryosparc.read_cs(other), str(other))
            if not len(rows):
                raise InputError(f"{path}: no uid stands in {other}; do they belong together?")
            if gone := before - len(rows):
                text = f"{gone:,} of {before:,} particles of {path} are not in {other} and are left out"
                print(f"warning: {text}", file=sys.stderr)
        optics, particles = cryosparc.tables_of_cs(rows, params.flip_y, str(path))
        particles = _with_names_that_hold(path, particles, params.image_dir)
        if count := int(cryosparc.dark(rows, str(path)).sum()):
            which = "these particles" if count == len(rows) else f"{count:,} of {len(rows):,} particles"
            remedy = _INVERT if count == len(rows) else "split the table first, then invert these"
            print(f"warning: {which} are dark (blob/sign -1); {remedy}", file=sys.stderr)
        if lost := cryosparc.not_converted(rows):
            print(f"warning: {path}: {listed(lost)} are not converted, and not corrected for", file=sys.stderr)
        if twice := len(rows) - len(np.unique(rows["uid"])):
            print(f"warning: {path}: {twice:,} rows have a uid that stands in another row, too", file=sys.stderr)
        if "rlnMicrographName" not in particles:
            missing_places = f"{path} has no location/* columns: no rlnMicrographName and no coordinates"
            print(f"warning: {missing_places}; its passthrough table has them (--passthrough)", file=sys.stderr)
    else:
        if params.passthrough:
            raise InputError("--passthrough is for .cs tables")
        optics, particles = _relion_tables(path, params)
    require_defoci(particles)
    if missing := [f"_{label}" for label in DEFOCUS_LABELS if label not in particles]:
        print(f"warning: {path} has no {', '.join(missing)}; classify with --no-ctf", file=sys.stderr)
    if params.to == "cs":
        shapes, missing_one = _micrograph_shapes(path, particles)
        if shapes is None and missing_one:
            untold = "fractions of it cannot be told, so there are no location/* columns"
            print(f"warning: {path}: micrograph {missing_one} is not there: {untold}", file=sys.stderr)
        if unknown := cryosparc.unknown(optics, particles):
            print(f"warning: a .cs table has no place for {listed(unknown)} of {path}: left out", file=sys.stderr)
        for label in cryosparc.not_held(particles):
            text = f"_{label} of {path} is 0 (none) in some rows, which a .cs table cannot hold: the column is left out"
            print(f"warning: {text}", file=sys.stderr)
        rows = cryosparc.cs_of_tables(optics, particles, shapes)
        begin("import", params, Writes(params.o, ("particles.cs",)), [path, *params.passthrough])
        cryosparc.write_cs(params.o / "particles.cs", rows)
    else:
        begin("import", params, Writes(params.o, ("particles.star",)), [path, *params.passthrough])
        write_star(params.o / "particles.star", [Block("optics", table=optics), Block("particles", table=particles)])
    print(f"{len(particles)} particles in {params.o / ('particles.' + params.to)}")


def _with_names_that_hold(path: Path, particles: Table, image_dir: Path | None) -> Table:
    """cryoSPARC's names as they hold from the working directory, where the stacks are found; else told as they are."""
    from polarice.io.particles import from_here
    from polarice.io.stacks import find_stacks, plain_name, relion_name

    parts = [text.partition("@") for text in particles.text("rlnImageName").tolist()]
    names, first, of = np.unique([plain_name(name) for _, _, name in parts], return_index=True, return_inverse=True)
    try:
        found = find_stacks(names.tolist(), first.tolist(), path, image_dir)
    except InputError as error:
        if image_dir is not None:
            raise
        print(f"warning: {error}; names stay as they are until then", file=sys.stderr)
        return particles
    here = [relion_name(from_here(stack)) for stack in found]
    images = [
        f"{section}@{here[number]}" for (section, _, _), number in zip(parts, of.reshape(-1).tolist(), strict=True)
    ]
    return particles.with_columns({"rlnImageName": images})


def _relion_tables(path: Path, params: Params) -> tuple[Table, Table]:
    """A table of RELION's particles in the layout of 3.1, its stacks checked."""
    from polarice.io.particles import names_from_here, read_particles

    if "rlnImageName" not in {label for block in read_star(path) if block.table for label in block.table.labels}:
        raise InputError(f"{path}: no table of particles (_rlnImageName); import movies and micrographs from files")
    table: ParticleTable = read_particles(path, params.image_dir, need_ctf=False, pixel_size_A=params.angpix)
    if table.remark:
        print(f"warning: {table.remark}", file=sys.stderr)
    every = np.arange(len(table.table))
    particles = table.table.with_columns(names_from_here(table, every))
    if params.flip_y:
        shapes, missing = _micrograph_shapes(path, particles)
        if shapes is None:
            what = f"micrograph {missing} is not there" if missing else "it has no micrographs and coordinates"
            raise InputError(f"{path}: {what}, so the height is not known; no --flip-y")
        particles = particles.with_columns({"rlnCoordinateY": shapes[:, 0] - particles.numbers("rlnCoordinateY")})
    return table.optics_table, particles


def _micrograph_shapes(path: Path, particles: Table) -> tuple[np.ndarray | None, str]:
    """(n, 2) ny, nx of each particle's micrograph; None, and the name of one, where that is not there."""
    if "rlnMicrographName" not in particles or "rlnCoordinateX" not in particles:
        return None, ""
    names, of = np.unique(particles.text("rlnMicrographName").astype(str), return_inverse=True)
    shapes = []
    for name in names.tolist():
        places = (root / name for root in (Path.cwd(), *path.absolute().parents))
        place = next(filter(Path.is_file, places), None)
        if place is None:
            return None, name
        with open_movie(place, Events(1)) as movie:
            shapes.append(movie.shape)
    return np.array(shapes)[of.reshape(-1)], ""

"""Class averages to choose from, and what is known of them; saved by the command that `polarice select` is."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from http import HTTPStatus
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from polarice.io.class_files import RunFiles, read_classes, run_files
from polarice.io.mrc import open_sections
from polarice.io.rows import read_rows
from polarice.io.star import read_star
from polarice.selection.classes import ClassSet
from polarice.types import InputError
from polarice.web import layout
from polarice.web.found import Job, next_folder
from polarice.web.guard import Fence, Refused
from polarice.web.server import Answer, Request

if TYPE_CHECKING:
    from polarice.selection.quality import Judgement
    from polarice.web.site import Site

KEPT_RUNS = 2  # whose averages stay in memory
SHOWN_PARTICLES, PER_ROW, PARTICLE_PX, GAP_PX = 50, 10, 72, 4
MOST_AVERAGE_PX = 192
CACHED = {"Cache-Control": "private, max-age=3600"}  # an address with ?v= names one iteration for good


@dataclass(frozen=True, eq=False)
class Run:
    """The classes of one iteration as they are shown."""

    version: str
    set: ClassSet
    first_images: tuple[tuple[str, ...], ...]  # of each class, as the table names them
    files: RunFiles
    lock: threading.Lock = field(default_factory=threading.Lock)
    judged: list[Judgement] = field(default_factory=list)  # one, once it is asked for

    def judgement(self) -> Judgement:
        from polarice.selection.quality import judge

        with self.lock:
            if not self.judged:
                self.judged.append(judge(self.set))
            return self.judged[0]


class Runs:
    """The last few that were looked at."""

    def __init__(self) -> None:
        self._lock, self._kept = threading.Lock(), OrderedDict[str, Run]()

    def of(self, folder: Path, fence: Fence) -> Run:
        """The last iteration in a folder. Raises InputError without averages, Refused for files elsewhere."""
        files = run_files(folder)
        if files.model is None:
            raise InputError(f"{folder.name}: no classes in it yet")
        version = f"{files.data}:{files.data.stat().st_mtime_ns}:{files.model.stat().st_mtime_ns}"
        with self._lock:
            if version not in self._kept:
                self._kept[version] = _read(files, version, fence)
            self._kept.move_to_end(version)
            while len(self._kept) > KEPT_RUNS:
                self._kept.popitem(last=False)
            return self._kept[version]


def _read(files: RunFiles, version: str, fence: Fence) -> Run:
    assert files.model is not None
    stack = files.model.with_name(files.model.name.removesuffix("_model.star") + "_classes.mrcs")
    for path in (files.data, files.model, files.optimiser, stack):
        if path is not None and not fence.holds(path):
            raise Refused(HTTPStatus.FORBIDDEN, f"leads out of the project: {path.name!r} (see --also)")
    names = read_star(files.model).table("model_classes").text("rlnReferenceImage").tolist()
    if not stack.exists() or not all(PurePath(name).name == stack.name for name in names):
        raise InputError(f"{files.model.name}: no stack of averages beside it ({stack.name}); volumes have no gallery")
    known = read_classes(files)
    assert known is not None
    rows = read_rows(files.data).table
    of = rows.integers("rlnClassNumber") - 1
    of = np.where((of >= 0) & (of < len(known)), of, -1)
    counts = np.bincount(of[of >= 0], minlength=len(known))
    found = ClassSet(counts, known.resolution_A, known.averages, known.pixel_size_A, known.diameter_A)
    order = np.argsort(of, kind="stable")
    start = np.searchsorted(of[order], np.arange(len(known)))
    images = rows.text("rlnImageName")
    first = tuple(
        tuple(images[order[begin : begin + min(int(count), SHOWN_PARTICLES)]].tolist())
        for begin, count in zip(start.tolist(), counts.tolist(), strict=True)
    )
    return Run(version, found, first, files)


def has_classes(folder: Path) -> bool:
    """Whether a folder holds an iteration with classes that are images."""
    try:
        model = run_files(folder).model
    except (InputError, OSError):
        return False
    return model is not None and model.with_name(model.name.removesuffix("_model.star") + "_classes.mrcs").exists()


def show(site: Site, request: Request, rest: str) -> Answer:
    """The gallery; its script asks for all else."""
    job = site.job(rest)
    run = site.runs.of(job.folder, site.fence)
    folder = next_folder("select", list(site.jobs.all()))
    save = "" if site.read_only else (
        f'<form id="save" method="post" action="{layout.address("new", "select")}" '
        f'data-check="{layout.address("check", "select")}">'
        f'<input type="hidden" name="table" value="{escape(job.name)}"><input type="hidden" name="classes">'
        '<input type="hidden" name="command"><input type="hidden" name="act" value="start">'
        f'<label>Save to <input type="text" name="o" value="{escape(folder)}" spellcheck="false"></label> '
        '<button class="go" id="start" disabled>Save the choice</button> <span class="fault" id="faults" role="alert">'
        f"</span>{layout.command('')}</form>"
    )  # fmt: skip
    body = (
        f"<h1>Classes of {escape(job.name)}</h1>"
        f'<p class="soft">{run.files.data.name.partition("_data")[0]}, {int(run.set.counts.sum()):,} particles in '
        f"{len(run.set)} classes. Click to choose, shift-click for many; arrow keys, space, "
        "<kbd>a</kbd> all, <kbd>i</kbd> invert, <kbd>u</kbd> undo, <kbd>p</kbd> particles.</p>"
        f'<div class="bar"><div class="tools" role="toolbar" aria-label="classes">{_TOOLS}</div>{save}</div>'
        '<details id="particles"><summary>Particles of the class in focus</summary><p class="soft" id="which"></p>'
        '<img id="strip" alt="" hidden></details>'
        f'<div id="gallery" role="listbox" aria-multiselectable="true" aria-label="class averages" '
        f'data-name="{escape(job.name)}"></div>'
    )
    crumbs = layout.link(job.name, "job", job.name)
    return site.page(f"Classes of {job.name}", body, ["gallery.js"], crumbs)


_TOOLS = (
    '<output id="chosen">none chosen</output>'
    '<label>Sort by <select id="sort"><option value="count">occupancy</option><option value="resolution">resolution'
    '</option><option value="score">score</option><option value="number">number</option></select></label>'
    '<button type="button" id="all">All</button><button type="button" id="none">None</button>'
    '<button type="button" id="invert">Invert</button><button type="button" id="undo" disabled>Undo</button>'
    '<label>Score from <input type="number" id="least" value="0.5" min="0" max="1" step="0.05"></label>'
    '<button type="button" id="byscore">Choose</button>'
    '<label>Contrast <input type="range" id="contrast" min="0.5" max="3" step="0.1" value="1"></label>'
    '<label>Size <input type="range" id="size" min="64" max="240" step="8" value="112"></label>'
)


def data(site: Site, request: Request, rest: str) -> Answer:
    """Number, particles, share and resolution of every class, as JSON."""
    run = site.runs.of(site.job(rest).folder, site.fence)
    resolution = run.set.resolution_A
    assert resolution is not None
    rows = [
        [k + 1, int(count), round(float(share), 6), round(float(coarse), 2) if np.isfinite(coarse) else None]
        for k, (count, share, coarse) in enumerate(zip(run.set.counts, run.set.shares, resolution, strict=True))
    ]
    return site.json({"version": _mark(run), "classes": rows})


def _mark(run: Run) -> str:
    return run.version.rpartition("/")[2]


def scores(site: Site, request: Request, rest: str) -> Answer:
    """Score and reason of every class, as `polarice select --auto` has them."""
    run = site.runs.of(site.job(rest).folder, site.fence)
    if run.set.averages is None or run.set.pixel_size_A <= 0:
        return site.json({"version": _mark(run), "scores": []})
    judged = run.judgement()
    rows = [[round(float(score), 3), reason] for score, reason in zip(judged.scores, judged.reasons, strict=True)]
    return site.json({"version": _mark(run), "scores": rows})


def average(site: Site, request: Request, rest: str) -> Answer:
    """One average as PNG."""
    from polarice.report.montage import circle_px, png_bytes, thumbnail

    run = site.runs.of(site.job(rest).folder, site.fence)
    number = request.number("n", 1, len(run.set), 0)
    assert run.set.averages is not None
    box = run.set.averages.shape[-1]
    radius = circle_px(box, run.set.pixel_size_A or 1.0, run.set.diameter_A or None)
    picture = png_bytes(thumbnail(run.set.averages[number - 1], radius, min(box, MOST_AVERAGE_PX)))
    return Answer(picture, "image/png", headers=CACHED)


def particles(site: Site, request: Request, rest: str) -> Answer:
    """The first images of a class side by side, as PNG. Raises InputError where they are not there, Refused where they
    lie outside of the project."""
    job = site.job(rest)
    run = site.runs.of(job.folder, site.fence)
    number = request.number("n", 1, len(run.set), 0)
    names = run.first_images[number - 1]
    if not names:
        raise InputError(f"class {number} has no particles")
    images = read_images(names, job, site.fence)
    return Answer(sheet(images), "image/png", headers=CACHED)


def read_images(names: Sequence[str], job: Job, fence: Fence) -> list[np.ndarray]:
    """Images named as section@stack, names seen from where the job began, the project, or the folders above the job."""
    above = [each for each in job.folder.parents if each.resolve().is_relative_to(fence.root)]
    roots = [Path(job.working_directory or fence.root), fence.root, job.folder, *above]
    found, opened = [], dict[str, Path]()
    for name in names:
        section, _, stack = name.rpartition("@")
        stack = stack.removesuffix(":mrcs")
        if stack not in opened:
            places = [path for root in roots if (path := root / stack).is_file()]
            if not places:
                raise InputError(f"image stack {stack[:200]} is not there")
            inside = [path for path in places if fence.holds(path)]
            if not inside:
                raise Refused(HTTPStatus.FORBIDDEN, f"leads out of the project: {stack[:200]!r} (see --also)")
            opened[stack] = inside[0].resolve()
        sections = open_sections(opened[stack])
        place = int(section) - 1 if section.isdecimal() and len(section) < 12 else -1
        if not 0 <= place < len(sections):
            raise InputError(f"image stack {stack[:200]} has no image {section[:20]}")
        found.append(np.asarray(sections[place], np.float32))
    return found


def sheet(images: Sequence[np.ndarray]) -> bytes:
    """Images side by side in rows, without waves finer than their pixels in the picture."""
    from PIL import Image

    from polarice.report.montage import grey

    step = PARTICLE_PX + GAP_PX
    rows = -(-len(images) // PER_ROW)
    page = Image.new("L", (PER_ROW * step - GAP_PX, rows * step - GAP_PX), 255)
    for place, image in enumerate(images):
        small = _cropped(np.nan_to_num(image), PARTICLE_PX)
        shown = Image.fromarray(grey(small, len(small) / 2)).resize((PARTICLE_PX, PARTICLE_PX))
        page.paste(shown, (place % PER_ROW * step, place // PER_ROW * step))
    stream = io.BytesIO()
    page.save(stream, "PNG")
    return stream.getvalue()


def _cropped(image: np.ndarray, side: int) -> np.ndarray:
    """An image (N, N) with only the waves that `side` pixels hold."""
    n = min(image.shape)
    if n <= side:
        return image
    centred = np.fft.fftshift(np.fft.fft2(image[:n, :n]))
    first = n // 2 - side // 2
    return np.fft.ifft2(np.fft.ifftshift(centred[first : first + side, first : first + side])).real

"""report.html: the template filled with the job's figures, charts and tables."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

import polarice
from polarice.report import charts
from polarice.report.content import LeftOut, Report
from polarice.report.history import Row, class_counts
from polarice.report.html import duration, stylesheet, table
from polarice.report.index import chapter_html
from polarice.report.montage import Entry, circle_px, entries, png_bytes, thumbnail
from polarice.selection.quality import median_of_particles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_CLASSES = 1200  # in the page, where each is a picture of its own; the montage has all
SHOWN_LEFT_OUT = 1000  # rows; the number of all of them is always told

CAPTIONS = {
    "occupancy": "<b>Particles per class</b>, the fullest class first. Every particle counts in the class where its "
    "posterior is largest. The dashed line is where all classes would stand if they were equally full.",
    "convergence": "<b>Convergence.</b> Above: log likelihood, mean over the particles of the iteration; their mean "
    "largest posterior probability over class, angle and shift (near 1: every particle knows its place); the share of "
    "particles whose class changed since they were last looked at, in %. Below: resolution in Å (where the "
    "signal-to-noise ratio of an average falls below 1) of the best and the median class, and the resolution up to "
    "which images were compared; median change of the in-plane angle in degrees and of the shift in pixels, with the "
    "steps of the search.",
    "classes": "<b>Classes in use and particles looked at</b>, by iteration. The effective number of classes is the "
    "exponential of the entropy of their weights: K for K equally full classes.",
    "poses": "<b>In-plane angles and shifts</b> of all particles that have a class, as they stand in the particle "
    "table: rlnAnglePsi in degrees, rlnOriginXAngst and rlnOriginYAngst in Å, and the length of the shift in Å. "
    "Angles of particles in free ice are evenly spread; shifts cluster about zero where picks were centred.",
    "spectra": "<b>Noise and signal</b> over spatial frequency in 1/Å, logarithmic. Left: variance of the noise per "
    "Fourier pixel, by optics group, for a transform scaled so that white noise of variance 1 per pixel stands at 1. "
    "Right: spectral signal-to-noise ratio of the class averages, one grey line for each class in use; the resolution "
    "of a class is where its line falls below the dashed one.",
    "times": "<b>Where the time went</b>, in seconds of wall clock: by iteration, and in all.",
}


def drawn(report: Report, rank: int = 0, size: int = 1) -> list[tuple[str, charts.Chart]]:
    """Names of the report's charts, and the charts; of several ranks, this one's."""
    iteration = report.iteration
    model, shown = iteration.model, entries(iteration)
    pose = iteration.assignment.pose
    assigned = pose.class_of >= 0
    names = list(report.optics_names) or [f"optics group {g + 1}" for g in range(len(model.noise_power))]
    box_A = model.averages.shape[-1] * model.pixel_size_A
    origin_A = -pose.shift_px[assigned] * model.pixel_size_A
    figures: dict[str, Callable[[], Figure]] = {  # those that take longest first, to be shared out
        "convergence": lambda: charts.convergence(report.history),
        "poses": lambda: charts.poses(-pose.psi_deg[assigned], origin_A),
        "times": lambda: charts.times(report.history),
        "spectra": lambda: charts.spectra(model.noise_power, names, model.ssnr, shown, box_A),
        "occupancy": lambda: charts.occupancy(shown),
        "classes": lambda: charts.classes_in_use(report.history),
    }
    return [(name, charts.Chart.of(figures[name](), name)) for name in list(figures)[rank::size]]


def html(report: Report, drawn: Mapping[str, charts.Chart]) -> str:
    """The whole page with its charts by name; nothing in it is fetched from elsewhere."""
    shown = entries(report.iteration)
    made = {name: _figure(name, chart.svg) for name, chart in drawn.items()}
    template = Template(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(report.title),
        subtitle=_subtitle(report),
        version=polarice.__version__,
        style=stylesheet(_cell_px(len(shown))),
        numbers="\n".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in _numbers(report)),
        gallery=_gallery(report, shown),
        gallery_note=_gallery_note(report, shown),
        occupancy=made["occupancy"],
        chapters="\n".join(chapter_html(i, each) for i, each in enumerate(report.chapters)),
        chapter_links="".join(f'<a href="#part-{i}">{escape(c.title)}</a>' for i, c in enumerate(report.chapters)),
        convergence=made["convergence"] + made["classes"],
        poses=made["poses"],
        spectra=made["spectra"],
        times=made["times"] + _times_table(report.history) + _usage(report.usage),
        left_out=_left_out(report.left_out),
        parameters=table(
            ("parameter", "value", "unit", ""),
            ((p.name, ("v", p.value), p.unit, ("h", p.help)) for p in report.parameters),
        ),
        again=_again(report),
        versions=table(("", ""), ((name, ("v", value)) for name, value in report.versions.items())),
    )


def _subtitle(report: Report) -> str:
    iteration = report.iteration
    state = "finished" if iteration.number >= iteration.total else "not finished"
    return escape(f"{report.job} · iteration {iteration.number} of {iteration.total} · {state}")


def _numbers(report: Report) -> list[tuple[str, str]]:
    """The figures one wants at a glance: (what, value)."""
    iteration = report.iteration
    model = iteration.model
    counts = class_counts(iteration)
    assigned, box = int(counts.sum()), model.averages.shape[-1]
    median = median_of_particles(model.resolution_A, counts)
    seconds = sum(sum(row["seconds"].values()) for row in report.history)
    found = [
        ("particles with a class", f"{assigned:,}"),
        ("left out", f"{len(report.left_out):,}"),
        (f"of {len(counts):,} classes in use", f"{int((counts > 0).sum()):,}"),
        ("median particle's class", f"{median:.1f} Å" if math.isfinite(median) else "–"),
        (f"box, {model.pixel_size_A:.4g} Å per pixel", f"{box} px"),
        ("mean max. probability", f"{iteration.max_probability:.2f}"),
        ("wall clock", duration(seconds)),
    ]
    return [(escape(name), escape(value)) for name, value in found]


def _cell_px(classes: int) -> int:
    """Least width of a picture in the gallery."""
    return 128 if classes <= 60 else 104 if classes <= 300 else 88


def _gallery(report: Report, shown: Sequence[Entry]) -> str:
    model = report.iteration.model
    box = model.averages.shape[-1]
    radius = circle_px(box, model.pixel_size_A, report.particle_diameter_A)
    side = min(max(box, 64), 2 * _cell_px(len(shown)) if len(shown) <= 60 else 112)
    items = []
    for place, entry in enumerate(shown[:SHOWN_CLASSES]):
        picture = base64.b64encode(png_bytes(thumbnail(model.averages[entry.index], radius, side))).decode()
        resolution = entry.resolution_A if math.isfinite(entry.resolution_A) else 1e9
        items.append(
            f'<li{"" if entry.count else " class=empty"} data-place="{place}" data-number="{entry.number}" '
            f'data-count="{entry.count}" data-resolution="{resolution:.4f}">'
            f'<img alt="class {entry.number}" width="{side}" height="{side}" src="data:image/png;base64,{picture}">'
            f"<p><b>{entry.number}</b><span>{entry.share_text}</span></p>"
            f"<p><span>{entry.count:,}</span><span>{escape(entry.resolution_text.replace(' A', ' Å'))}</span></p></li>"
        )
    return "\n".join(items)


def _gallery_note(report: Report, shown: Sequence[Entry]) -> str:
    model = report.iteration.model
    reseeded = ""
    if report.iteration.reseeded:
        numbers = ", ".join(str(c + 1) for c in report.iteration.reseeded)
        reseeded = f" Classes started anew in this iteration: {numbers}."
    width = model.averages.shape[-1] * model.pixel_size_A
    more = f" The fullest {SHOWN_CLASSES:,} of {len(shown):,} are shown." if len(shown) > SHOWN_CLASSES else ""
    return escape(
        f"Under each average: its number (rlnClassNumber), its share of the particles in %, their number, and its "
        f"resolution in Å. A picture is {width:.0f} Å wide; grey levels are stretched within the particle's circle, "
        f"each picture for itself. Empty classes are faint.{reseeded}{more} {report.notes.get('classes', '')}".rstrip()
    )


def _figure(name: str, drawing: str) -> str:
    return f'<figure id="figure-{name}">{drawing}<figcaption>{CAPTIONS[name]}</figcaption></figure>\n'


def _times_table(history: Sequence[Row]) -> str:
    """Seconds by step: in all, and their share."""
    totals = {step: sum(row["seconds"].get(step, 0.0) for row in history) for step in charts.steps_of(history)}
    whole = sum(totals.values())
    if not whole:
        return ""
    particles = sum(row["particles_used"] for row in history)
    rows = [(step, ("n", f"{value:.2f}"), ("n", f"{100 * value / whole:.1f}")) for step, value in totals.items()]
    rows.append(("in all", ("n", f"{whole:.2f}"), ("n", "100.0")))
    rate = f"{1000 * whole / particles:.2f} ms per particle and iteration" if particles else ""
    return table(("step", ("n", "seconds"), ("n", "%")), rows) + f'<p class="note">{rate}</p>'


def _usage(figures: Sequence[tuple[str, str]]) -> str:
    """Bytes, energy, cost."""
    return table(("", ""), ((what, ("v", figure)) for what, figure in figures)) if figures else ""


def _left_out(rows: Sequence[LeftOut]) -> str:
    if not rows:
        return '<p class="note">None: every particle of the table took part.</p>'
    note = (
        ("1 particle" if len(rows) == 1 else f"{len(rows):,} particles")
        + " took no part"
        + (f"; the first {SHOWN_LEFT_OUT:,} of them:" if len(rows) > SHOWN_LEFT_OUT else ":")
    )
    named = table(("particle", "reason"), ((("v", row.where), row.reason) for row in rows[:SHOWN_LEFT_OUT]))
    return f'<p class="note">{note}</p>{named}'


def _again(report: Report) -> str:
    parts = []
    if report.working_directory:
        parts.append(f'<p class="note">In the folder {escape(report.working_directory)}:</p>')
    parts.append(f'<p class="note">The same job from the start:</p><pre>{escape(report.command)}</pre>')
    if report.continue_command:
        parts.append(f'<p class="note">On from the last iteration:</p><pre>{escape(report.continue_command)}</pre>')
    return "\n".join(parts)

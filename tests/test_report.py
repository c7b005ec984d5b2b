"""The report, the montage and the history say what the iteration says, sorted as they claim."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from polarice import report as reports
from polarice.project.fault import spared
from polarice.project.inputs import is_same
from polarice.project.params import Parameters, argument, option
from polarice.project.provenance import inputs_of, read_job_json, versions, write_job_json
from polarice.report import LeftOut, Parameter, Report, charts, page
from polarice.report.chart_processes import ChartProcesses
from polarice.report.montage import MAX_SHEET_PX, Sheet, entries, grey, montage, thumbnail
from polarice.types import Assignment, ClassModel, InputError, Iteration, Pose2D

PIL = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

COUNTS = (5, 0, 12, 7, 12)  # particles of each class; two more have none
RESOLUTION_A = (12.5, np.inf, 8.25, 20.0, 9.0)


def an_iteration(number: int = 3, box: int = 24, counts: tuple[int, ...] = COUNTS) -> Iteration:
    rng = np.random.default_rng(0)
    classes, n = len(counts), sum(counts) + 2
    class_of = np.concatenate([np.repeat(np.arange(classes), counts), [-1, -1]]).astype(np.int32)
    pose = Pose2D(class_of, rng.uniform(-180, 180, n), rng.normal(0, 2, (n, 2)))
    weights = np.array(counts) / sum(counts)
    spectra = np.tile(100 * np.exp(-np.arange(box // 2 + 1) / 3), (classes, 1))
    averages = rng.standard_normal((classes, box, box)).astype(np.float32)
    resolution = np.array((RESOLUTION_A * classes)[:classes])
    model = ClassModel(averages, weights, np.full((2, box // 2 + 1), 0.9), spectra, spectra, resolution, 3.0, 1.5)
    found = Assignment(pose, rng.normal(size=n), np.full(n, 0.5, np.float32), np.ones(n, np.int32))
    seconds = {"reading": 1.0, "expectation": 2.0 * number, "maximization": 0.5}
    return Iteration(
        number, 25, model, found, 10.0, 6.0, 4.0, 1.0, n, -50.0 + number, 0.5, 0.25, 3.0, 0.5, (1,), seconds
    )


def a_report(**changes) -> Report:
    history = [reports.summary_of(an_iteration(number)) for number in (1, 2, 3)]
    made = Report(
        "Class2D/<job>&1",
        "class2d",
        history,
        an_iteration(),
        "polarice class2d p.star",
        "polarice class2d --continue x",
    )
    return replace(made, **changes)


class Page(HTMLParser):
    """The gallery's items, the tables' rows and everything fetched from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.items: list[dict[str, str]] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "li":
            self.items.append(values)
        if tag == "img":
            self.items[-1]["src"] = values["src"]
        if tag in ("img", "script", "link", "a", "image", "use"):
            self.links += [values[name] for name in ("src", "href", "xlink:href") if name in values]

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def test_entries_are_sorted_and_count_the_particles():
    shown = entries(an_iteration())
    assert [entry.number for entry in shown] == [3, 5, 4, 1, 2]
    assert [entry.count for entry in shown] == [12, 12, 7, 5, 0]
    assert [entry.share for entry in shown] == pytest.approx([12 / 36, 12 / 36, 7 / 36, 5 / 36, 0])
    assert [entry.resolution_text for entry in shown] == ["8.2 A", "9.0 A", "20.0 A", "12.5 A", "- A"]
    assert [entry.share_text for entry in shown][::2] == ["33.3 %", "19.4 %", "0.0 %"]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return reports.write_report(tmp_path_factory.mktemp("job"), a_report())


def test_page_holds_the_classes(written):
    page = Page(written.read_text(encoding="utf-8"))
    assert [int(item["data-number"]) for item in page.items] == [3, 5, 4, 1, 2]
    assert [int(item["data-count"]) for item in page.items] == [12, 12, 7, 5, 0]
    assert [float(item["data-resolution"]) for item in page.items] == [8.25, 9.0, 20.0, 12.5, 1e9]
    for item, entry in zip(page.items, entries(an_iteration()), strict=True):
        content = base64.b64decode(item["src"].removeprefix("data:image/png;base64,"))
        picture = np.asarray(PIL.open(io.BytesIO(content)).resize((24, 24), PIL.Resampling.BOX), float)
        expected = grey(an_iteration().model.averages[entry.index], 12)
        assert np.corrcoef(picture.ravel(), expected.ravel())[0, 1] > 0.9
    for text in (
        "33.3 %",
        "8.2 Å",
        "Class2D/<job>&1",
        "polarice class2d --continue x",
        "class2d · iteration 3 of 25 · not finished",
    ):
        assert text in page.texts


def test_page_needs_nothing_from_elsewhere(written):
    text = written.read_text(encoding="utf-8")
    assert all(link.startswith(("data:", "#")) for link in Page(text).links)
    assert not re.search(r"""(?:src|href)=["'](?:https?:|//)|url\((?!#)|@import""", text)


def test_charts_on_the_page_are_drawings_with_their_own_ids(written):
    text = written.read_text(encoding="utf-8")
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(drawings) == 6
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert charts.INK not in drawing and "currentColor" in drawing
        ids = re.findall(r' id="([^"]*)"', drawing)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r"url\(#([^)]*)\)", drawing)) <= set(ids)


def test_key_numbers_times_and_lists(tmp_path):
    report = a_report(
        left_out=[LeftOut("000004@p.mrcs (row 4)", "not a number"), LeftOut("000009@p.mrcs (row 9)", "constant")],
        parameters=[
            Parameter("--k", "5", "", "number of classes"),
            Parameter("--diameter", "66", "A", "of the particle"),
        ],
        versions={"torch": "9.9"},
        optics_names=("first", "second"),
    )
    texts = Page(reports.write_report(tmp_path, report).read_text(encoding="utf-8")).texts
    pairs = list(pairwise(texts))
    for value, name in (
        ("36", "particles with a class"),
        ("2", "left out"),
        ("4", "of 5 classes in use"),
        ("9.0 Å", "median particle's class"),
    ):
        assert (value, name) in pairs
    assert ("reading", "3.00") in pairs and ("expectation", "12.00") in pairs and ("in all", "16.50") in pairs
    assert ("expectation", "12.00") in pairs and ("12.00", "72.7") in pairs
    assert ("000009@p.mrcs (row 9)", "constant") in pairs
    assert ("--diameter", "66") in pairs and ("66", "A") in pairs and ("torch", "9.9") in pairs
    assert "first" in texts and "second" in texts  # the noise chart's legend


def test_pictures_beside_the_page(written):
    names = {path.name for path in written.parent.iterdir()}
    kinds = ("convergence", "classes", "occupancy", "poses", "spectra", "times")
    assert names == {"report.html", "run_it003_classes.png", *(f"report_{kind}.png" for kind in kinds)}
    for name in names - {"report.html"}:
        values = np.asarray(PIL.open(written.parent / name).convert("L"))
        assert values.max() == 255 and values.min() < 100


def test_histograms_hold_every_assigned_particle():
    pose = an_iteration().assignment.pose
    figure = charts.poses(-pose.psi_deg[pose.class_of >= 0], -3 * pose.shift_px[pose.class_of >= 0])
    heights = [sum(patch.get_height() for patch in figure.axes[place].patches) for place in (0, 2)]
    assert heights == [36, 36]


def test_charts_of_one_iteration_and_of_unknown_values():
    history = [reports.summary_of(replace(an_iteration(1), changed_psi_deg=np.nan, changed_class=np.nan))]
    assert history[0]["changed_psi_deg"] is None
    drawn = charts.convergence(history)
    assert drawn.axes[0].lines[0].get_ydata().tolist() == [-49.0]
    assert np.isnan(drawn.axes[2].lines[0].get_ydata()).all()
    for figure in (drawn, charts.classes_in_use(history), charts.times(history)):
        assert charts.svg(figure, "x").startswith("<svg")
    stacked = charts.times([reports.summary_of(an_iteration(n)) for n in (1, 2)]).axes[0].patches
    assert max(patch.get_y() + patch.get_height() for patch in stacked) == pytest.approx(5.5)


def test_spectra_with_nothing_to_show():
    """Empty classes, zero noise: no line, and no warning."""
    iteration = an_iteration()
    shown = [replace(entry, count=0) for entry in entries(iteration)]
    figure = charts.spectra(np.zeros((1, 13)), ["a"], np.zeros((5, 13)), shown, 72.0)
    assert charts.svg(figure, "x").startswith("<svg")


@pytest.mark.parametrize("classes", [1, 7, 50, 1000])
def test_montage_has_every_class_in_its_place(classes, monkeypatch):
    """Pictures row by row, the fullest first, and under each its number, share, count and resolution."""
    said: list[str] = []
    monkeypatch.setattr("PIL.ImageDraw.ImageDraw.text", lambda self, place, text, *_a, **_k: said.append(text))
    iteration = an_iteration(counts=tuple(range(1, classes + 1)), box=32)
    shown, sheet, picture = entries(iteration), Sheet.of(classes, 32), montage(iteration)
    assert picture.size == (sheet.width, sheet.height) and max(picture.size) <= MAX_SHEET_PX
    assert said == [text for e in shown for text in (f"{e.number}", e.share_text, f"{e.count:,}", e.resolution_text)]
    assert said[:1] == [f"{classes}"] and said[-2] == "1"
    for place in {0, classes // 2, classes - 1}:
        x, y = sheet.corner(place)
        expected = thumbnail(iteration.model.averages[shown[place].index], 16, sheet.side)
        assert np.array_equal(picture.crop((x, y, x + sheet.side, y + sheet.side)), expected)


def test_grey_levels_are_those_of_the_circle():
    average = np.zeros((33, 33), np.float32)
    average[16, 10:23] = np.linspace(-1, 1, 13)
    average[0, 0] = 1e6  # outside of the circle: clipped, and of no influence
    shown = grey(average, 8)
    assert shown[0, 0] == 255 and shown[16, 22] == 255 and shown[16, 10] == 0
    assert abs(int(shown[16, 16]) - int(shown[5, 16])) == 0
    assert (grey(np.full((8, 8), 3.0), 4) == 128).all()
    assert (grey(np.full((8, 8), np.nan), 4) == 128).all()


def test_history_says_what_the_iteration_says(tmp_path):
    for number in (1, 2, 3):
        reports.append_history(tmp_path, an_iteration(number))
    rows = reports.read_history(tmp_path)
    assert [row["number"] for row in rows] == [1, 2, 3]
    last = rows[-1]
    assert (last["log_likelihood"], last["changed_class"], last["resolution_limit_A"]) == (-47.0, 0.25, 10.0)
    assert (last["classes"], last["classes_in_use"], last["particles_assigned"]) == (5, 4, 36)
    assert (last["resolution_A"], last["median_resolution_A"]) == (8.25, 10.75)
    weights = np.array([5, 12, 7, 12]) / 36
    assert last["effective_classes"] == pytest.approx(np.exp(-(weights * np.log(weights)).sum()))
    assert last["seconds"] == {"reading": 1.0, "expectation": 6.0, "maximization": 0.5}
    assert last["reseeded"] == [1]


@pytest.mark.parametrize("torn", [b'{"number": 3, "tot', b"\x00\x00\x00\x00", b'{"number": 3, "total": 25}'])
def test_history_survives_a_torn_line(tmp_path, torn):
    """A line without its end counts as not written; the next one does not stick to it."""
    for number in (1, 2):
        reports.append_history(tmp_path, an_iteration(number))
    with open(tmp_path / "history.jsonl", "ab") as stream:
        stream.write(torn)
    assert [row["number"] for row in reports.read_history(tmp_path)] == [1, 2]
    reports.append_history(tmp_path, an_iteration(3))
    assert [row["number"] for row in reports.read_history(tmp_path)] == [1, 2, 3]
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3]


def test_history_rewinds(tmp_path):
    for number in (1, 2, 3, 4):
        reports.append_history(tmp_path, an_iteration(number))
    assert [row["number"] for row in reports.rewind_history(tmp_path, 3)] == [1, 2]
    assert [row["number"] for row in reports.read_history(tmp_path)] == [1, 2]
    reports.append_history(tmp_path, an_iteration(2))  # done again without a rewind: in the place of the old one
    assert [row["number"] for row in reports.read_history(tmp_path)] == [1, 2]
    assert reports.rewind_history(tmp_path / "nowhere", 1) == []


def test_parameters_with_values_units_and_help():
    @dataclass(frozen=True)
    class Params(Parameters):
        particles: Path = argument("table of particles")
        diameter: float | None = option(None, "of the particle", unit="A", derived="80 % of the box")
        ctf: bool = option(True, "correct for the CTF")

    rows = reports.parameters_of(Params(Path("p.star"), ctf=False))
    assert [(row.name, row.value, row.unit, row.help) for row in rows] == [
        ("particles", "p.star", "", "table of particles"),
        ("--diameter", "80 % of the box", "A", "of the particle"),
        ("--ctf", "no", "", "correct for the CTF"),
    ]


def test_job_json_round_trip(tmp_path):
    table = tmp_path / "p.star"
    table.write_text("data_\n")
    write_job_json(tmp_path, "class2d", {"k": 5, "diameter": None}, "polarice class2d p.star", inputs=[table], seed=3)
    job = read_job_json(tmp_path)
    assert (job["job"], job["params"], job["seed"]) == ("class2d", {"k": 5, "diameter": None}, 3)
    (record,) = inputs_of(job, tmp_path)
    assert {key: record[key] for key in ("path", "size", "mtime_ns", "beside")} == {
        "path": str(table), "size": 6, "mtime_ns": table.stat().st_mtime_ns, "beside": "p.star",
    }  # fmt: skip
    assert job["versions"]["python"] == versions()["python"]
    assert is_same(record, table)
    table.write_text("data_particles\n")
    assert not is_same(record, table)


@pytest.mark.parametrize(("content", "message"), [(None, "not found"), ("{", "not readable"), ("[]", "no parameters")])
def test_job_json_that_cannot_be_used(tmp_path, content, message):
    if content is not None:
        (tmp_path / "job.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_job_json(tmp_path)


def test_sorting_in_a_browser(written, tmp_path):
    """The buttons' script, run by a real browser: classes by resolution, then by number."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is not installed")
    for key, expected in (("resolution", [3, 5, 1, 4, 2]), ("number", [1, 2, 3, 4, 5]), ("count", [3, 5, 4, 1, 2])):
        clicked = tmp_path / f"{key}.html"
        clicks = "".join(f"document.querySelector('button[data-key={k}]').click();" for k in ("number", key))
        script = f"<script>{clicks}</script>"
        clicked.write_text(written.read_text(encoding="utf-8").replace("</body>", script + "</body>"), encoding="utf-8")
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        flags += f" --disable-component-update --disable-sync --user-data-dir={tmp_path / 'profile'} --dump-dom"
        done = subprocess.run([chromium, *flags.split(), clicked.as_uri()], capture_output=True, text=True, timeout=120)
        assert [int(item["data-number"]) for item in Page(done.stdout).items] == expected
        assert re.search(rf'data-key="{key}" aria-pressed="true"', done.stdout)


def test_processes_draw_what_one_draws_and_a_killed_one_is_made_up_for():
    report = a_report()
    alone = dict(page.drawn(report))
    with ChartProcesses(2) as chart_processes:
        shared = dict(chart_processes.drawn(report))
        chart_processes.load()
        chart_processes._processes[1].kill()
        after = dict(chart_processes.drawn(report))
    with ChartProcesses(2, SimpleNamespace(rank=1, size=2)) as chart_processes:
        part = dict(chart_processes.drawn(report))
    assert alone.keys() == shared.keys() == after.keys() and len(alone) == 6
    assert {name: chart.png for name, chart in alone.items()} == {name: chart.png for name, chart in shared.items()}
    assert {name: chart.svg for name, chart in alone.items()} == {name: chart.svg for name, chart in after.items()}
    assert list(part) == list(alone)[1::2]  # of two ranks the second one draws every other chart, by itself
    with ChartProcesses(1) as chart_processes:
        chart_processes.load()
        assert not chart_processes._processes


def test_a_fault_in_the_page_costs_the_page_and_not_the_job(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fails() -> Path:
        raise KeyError("<x>")

    path = spared(fails, tmp_path / "report.html")
    assert "KeyError: &#x27;&lt;x&gt;&#x27;" in path.read_text()
    said = capsys.readouterr().err
    assert f"{path}: a fault of polarice in the report: KeyError: '<x>'; all results are kept" in said
    (note,) = tmp_path.glob("polarice-fault-*.txt")
    assert "please send the file" in said and str(note) in said and "fails" in note.read_text()

    def full() -> Path:
        raise InputError("the disk is full")

    with pytest.raises(InputError, match="full"):
        spared(full, tmp_path / "report.html")


def test_a_chart_that_cannot_be_drawn_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("polarice.report.page.drawn", lambda *_: 1 / 0)
    path = reports.write_report(tmp_path, a_report())
    assert "fault of polarice in the report: ZeroDivisionError" in capsys.readouterr().err
    assert path.exists() and (tmp_path / f"run_it{a_report().iteration.number:03d}_classes.png").exists()

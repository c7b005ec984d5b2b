"""What the pages show is what the files say, and what a choice in Chromium saves is what `polarice select` would."""

from __future__ import annotations

import io
import json
import re
import time
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from polarice.io.mrc import open_stack, write_volume
from polarice.io.rows import read_rows
from polarice.io.star import Block, write_star
from polarice.io.table import Table
from polarice.project.state import read_state
from polarice.selection.classes import ClassSet
from polarice.selection.quality import judge
from web import browser
from web.served import Served, a_job, a_map, classes_in, serving

PIL = pytest.importorskip("PIL.Image")
K, PER_CLASS = 300, 2
DEFOCUS = (10000.0, 12000.0, 20000.0, 15000.0)
FIT = (3.0, 4.0, 5.0, 9.0)


def micrographs_in(folder: Path) -> None:
    """Four micrographs fitted, one left out."""
    names = [f"mic{number}.mrc" for number in range(4)]
    table = Table.of({"rlnMicrographName": names, "rlnDefocusU": DEFOCUS, "rlnCtfMaxResolution": FIT})
    write_star(folder / "micrographs.star", [Block("micrographs", table=table)])
    for number in range(6):
        PIL.new("L", (32, 24), 40 * number).save(folder / f"mic{number}_ctf.png")
        record = {
            "figures": {"defocus (Å)": DEFOCUS[number]} if number < 4 else {},
            "thumbnail": f"elsewhere/mic{number}_ctf.png",
            "reason": "no rings <found>" if number == 4 else "",
            "remarks": [],
        }
        (folder / f"mic{number}_polarice.json").write_text(json.dumps(record))
    (folder / "mic9_polarice.json").write_text("{half")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        first = a_job(root / "Import/job001", "import")
        (first / "micrographs.star").write_text("x")
        micrographs_in(a_job(root / "CtfFind/job002", "ctf", [first / "micrographs.star"]))
        classes_in(a_job(root / "job003", "class2d"), K, 32, PER_CLASS)
        maps = a_job(root / "Refine3D/job004", "refine3d")
        a_map(maps / "run_class001.mrc")
        a_map(maps / "run_half1_class001_unfil.mrc", 8)
        shell = np.arange(9)
        fsc = Table.of(
            {
                "rlnSpectralIndex": shell,
                "rlnAngstromResolution": np.where(shell > 0, 32 / np.maximum(shell, 1), 999.0),
                "rlnGoldStandardFsc": np.array([1, 1, 0.9, 0.8, 0.5, 0.2, 0.1, 0.05, 0.0]),
            }
        )
        write_star(maps / "run_fsc.star", [Block("fsc", table=fsc)])
    return root


@pytest.fixture(scope="module")
def served(project):
    with serving(project) as found:
        yield found


def pixels(answer) -> np.ndarray:
    assert answer.status == 200 and answer.headers["Content-Type"] == "image/png", answer.body
    return np.asarray(PIL.open(io.BytesIO(answer.body)).convert("L"), float)


def test_classes_are_those_of_the_files(served, project):
    told = served.get("/classes.json/job003").json["classes"]
    counts = [PER_CLASS * (c % 9 + 1) for c in range(K)]
    assert [row[0] for row in told] == list(range(1, K + 1)) and [row[1] for row in told] == counts
    assert told[8][2] == pytest.approx(counts[8] / sum(counts), abs=1e-6) and told[2][3] == 14.0
    averages = open_stack(project / "job003/run_it003_classes.mrcs").astype(np.float32)
    judged = judge(ClassSet(np.array(counts), 12.0 + np.arange(K), averages, 3.0, 0.0))
    scores = served.get("/scores.json/job003").json["scores"]
    np.testing.assert_allclose([score for score, _ in scores], judged.scores, atol=6e-4)
    assert [reason for _, reason in scores] == list(judged.reasons)


def test_an_average_is_a_picture_of_it(served, project):
    averages = open_stack(project / "job003/run_it003_classes.mrcs")
    for number in (1, 150, 300):
        shown = pixels(served.get(f"/average/job003?n={number}&v=x"))
        assert np.corrcoef(shown.ravel(), averages[number - 1].ravel())[0, 1] > 0.9
    assert not np.array_equal(pixels(served.get("/average/job003?n=1")), pixels(served.get("/average/job003?n=150")))


def test_particles_of_a_class_are_its_images(served, project):
    shown = pixels(served.get("/particles/job003?n=9"))  # 18 of them, ten in a row
    assert shown.shape == (2 * 76 - 4, 10 * 76 - 4)
    images = open_stack(project / "job003/particles.mrcs")
    first = PER_CLASS * sum(c % 9 + 1 for c in range(8))
    for place in (0, 11):
        x, y = place % 10 * 76, place // 10 * 76
        tile = PIL.fromarray(shown[y : y + 72, x : x + 72].astype(np.uint8)).resize((32, 32), PIL.Resampling.BOX)
        assert np.corrcoef(np.asarray(tile, float).ravel(), images[first + place].ravel())[0, 1] > 0.8


def test_slices_are_those_of_the_map_y_upwards(served, project):
    density = np.zeros((12, 12, 12), np.float32)
    density[2, 3, 4] = 1  # z, y, x
    density[:, :, 0] = 0.2
    write_volume(project / "Refine3D/job004/dot.mrc", density, 1.0)
    for axis, at, where in (("z", 2, (3, 4)), ("y", 3, (2, 4)), ("x", 4, (2, 3))):
        shown = pixels(served.get(f"/slice/Refine3D/job004/dot.mrc?axis={axis}&at={at}"))[::-1]
        inner = shown[:, 1:] if axis != "x" else shown
        found = np.argwhere(inner == 255) + (0, axis != "x")
        assert [tuple(each) for each in found.tolist()] == [where]
        other = pixels(served.get(f"/slice/Refine3D/job004/dot.mrc?axis={axis}&at={at + 1}"))[::-1]
        assert other[where] == 0
    (project / "Refine3D/job004/dot.mrc").unlink()


def test_the_map_page_tells_where_the_fsc_falls(served):
    text = unescape(served.get("/map/Refine3D/job004").text)
    assert "half maps: below 0.143 from 5.33 Å on" in text and "run_half1_class001_unfil.mrc" in text
    assert "16 x 16 x 16 voxels of 2 Å" in text
    points = re.search(r'<polyline class="c0" points="([^"]*)"', text)[1].split()
    y = [float(point.split(",")[1]) for point in points]
    assert len(points) == 9 and y == sorted(y)  # a curve that falls goes down the page
    assert served.get("/map/Refine3D/job004?file=run_half1_class001_unfil.mrc").status == 200
    assert served.get("/map/Refine3D/job004?file=../../x.mrc").status == 404
    assert served.get("/map/job003").status == 422


def test_micrographs_left_out_come_first_and_broken_records_are_no_fault(served):
    text = served.get("/micrographs/CtfFind/job002").text
    cards = re.findall(r"<li>.*?</li>", text)
    assert len(cards) == 6 and "no rings &lt;found&gt;" in cards[0] and "1e+04" in cards[2]
    assert "mic5" in cards[1] and "not in micrographs.star" in cards[1] and "6 treated, 2 left out" in text
    links = re.findall(r'href="/new/(\w+)\?micrographs=([^"]*)"', served.get("/job/CtfFind/job002").text)
    assert {"pick", "extract"} <= {kind for kind, _ in links} and {name for _, name in links} == {
        "CtfFind%2Fjob002%2Fmicrographs.star"
    }
    told = served.get("/micrographs.json/CtfFind/job002").json
    assert told["columns"] == {"rlnDefocusU": list(DEFOCUS), "rlnCtfMaxResolution": list(FIT)}
    assert told["pictures"][2] == "mic2_ctf.png" and told["titles"]["rlnCtfMaxResolution"] == "CTF fits to (Å)"
    assert pixels(served.get("/file/CtfFind/job002/mic2_ctf.png"))[0, 0] == 80


def test_a_thousand_classes_are_told_in_little_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classes_in(a_job(tmp_path / "job1", "class2d"), 1000, 32, 1)
    with serving(tmp_path) as served:
        begun = time.process_time()
        assert len(served.get("/classes/job1").body) < 20_000  # tiles are made in the browser, pictures when seen
        assert len(served.get("/classes.json/job1").json["classes"]) == 1000
        served.get("/average/job1?n=1000")
        assert time.process_time() - begun < 5


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browser.program() is None:
        pytest.skip("chromium is not installed")
    found = browser.Browser(tmp_path_factory.mktemp("profile"))
    found.look(1280)
    yield found
    found.close()


@pytest.fixture
def page(chromium, served):
    """The browser, let in."""
    chromium.errors.clear()
    chromium.look(1280)
    chromium.goto(served.server.address)
    assert chromium.run("location.href") == f"http://{served.host}/"  # the token is gone
    assert chromium.run("document.cookie") == ""  # no script sees it
    yield chromium
    assert not chromium.errors, chromium.errors


def open_page(page: browser.Browser, served: Served, path: str) -> None:
    page.goto(f"http://{served.host}{path}")


def tile(number: int) -> str:
    return f'.tile[data-number="{number}"]'


def chosen(page: browser.Browser) -> list[int]:
    return sorted(page.run("[...document.querySelectorAll('.tile[aria-selected=true]')].map(t => +t.dataset.number)"))


def wait_done(folder: Path) -> None:
    end = time.monotonic() + 60
    while not ((said := read_state(folder)) and said.state == "done"):
        assert time.monotonic() < end, "it has not ended"
        time.sleep(0.05)


def test_a_choice_of_300_classes_by_mouse(page, served, project):
    open_page(page, served, "/classes/job003")
    page.wait("document.querySelectorAll('.tile .why').length == 300")
    page.run("sort.value = 'number'; sort.dispatchEvent(new Event('change'))")
    begun = time.process_time()
    page.click(tile(3))
    page.click(tile(7), shift=True)
    assert chosen(page) == [3, 4, 5, 6, 7]
    page.click(tile(5))
    assert chosen(page) == [3, 4, 6, 7]
    page.click("#undo")
    assert chosen(page) == [3, 4, 5, 6, 7]
    page.click("#invert")
    assert len(chosen(page)) == 295 and 5 not in chosen(page)
    page.click("#undo")
    page.wait("!start.disabled")
    command = page.run("document.querySelector('#save [data-command]').textContent")
    assert re.fullmatch(r"polarice select job003 --o Select/job\d+ --classes 3-7", command)
    page.click("#start")
    page.wait("location.pathname.startsWith('/job/Select')")
    folder = project / page.run("location.pathname").removeprefix("/job/")
    wait_done(folder)
    assert time.process_time() - begun < 10  # of this process: server and test
    rows = read_rows(folder / "particles.star").table
    assert sorted(set(rows.integers("rlnClassNumber").tolist())) == [3, 4, 5, 6, 7]
    assert len(rows) == PER_CLASS * (3 + 4 + 5 + 6 + 7)
    page.wait("document.querySelector('[data-state]').textContent == 'done'")


def test_a_stack_that_is_gone_is_told_in_the_gallery(page, served, project):
    stack = project / "job003/particles.mrcs"
    stack.rename(project / "away.mrcs")
    try:
        open_page(page, served, "/classes/job003")
        page.wait("document.querySelectorAll('.tile').length == 300")
        page.click(tile(4))
        page.key("p")
        page.wait("which.textContent.includes('particles.mrcs is not there')")
    finally:
        (project / "away.mrcs").rename(stack)
        page.errors.clear()  # the picture that could not be loaded


def test_pages_that_are_only_read_have_no_buttons_that_change(project, chromium):
    with serving(project, read_only=True) as served:
        chromium.errors.clear()
        chromium.goto(served.server.address)
        for path in ("/", "/job/job003", "/classes/job003", "/micrographs/CtfFind/job002"):
            open_page(chromium, served, path)
            assert chromium.run("document.querySelectorAll('form[method=post]').length") == 0
            assert "read-only" in chromium.run("document.querySelector('header').textContent")
        open_page(chromium, served, "/classes/job003")
        chromium.wait("document.querySelectorAll('.tile').length == 300")
        chromium.wait("document.querySelectorAll('.tile')[0].textContent.includes('0.')")  # scores move what is below
        chromium.click(tile(4))
        assert chosen(chromium) == [4] and not chromium.errors
        open_page(chromium, served, "/")  # its port may be another server's next


def test_a_choice_by_keys_alone(page, served):
    open_page(page, served, "/classes/job003")
    page.wait("document.querySelectorAll('.tile').length == 300")
    page.run("sort.value = 'number'; sort.dispatchEvent(new Event('change'))")
    page.run("gallery.firstChild.focus()")
    for key in (" ", "ArrowRight", "ArrowRight", " "):
        page.key(key)
    assert chosen(page) == [1, 3]
    page.key("ArrowDown")
    columns = page.run("columns()")
    assert page.run("+document.activeElement.dataset.number") == 3 + columns
    page.key("a")
    assert len(chosen(page)) == 300
    page.key("i")
    assert chosen(page) == []
    page.key("u")
    page.key("u")
    assert chosen(page) == [1, 3]
    page.key("ArrowUp")
    page.key("ArrowRight", shift=True)
    assert chosen(page) == [1, 3, 4]
    page.key("p")
    page.wait("strip.complete && strip.naturalWidth == 756 && !strip.hidden")
    assert "class 4" in page.run("which.textContent")


def test_classes_are_sorted_and_chosen_by_score(page, served):
    scores = [score for score, _ in served.get("/scores.json/job003").json["scores"]]
    open_page(page, served, "/classes/job003")
    page.wait("document.querySelectorAll('.tile').length == 300 && scores.length == 300")
    page.run("sort.value = 'score'; sort.dispatchEvent(new Event('change'))")
    shown = page.run("[...gallery.children].map(t => +t.dataset.number)")
    assert shown == sorted(range(1, K + 1), key=lambda number: (-scores[number - 1], number))
    page.run("least.value = 0.9")
    page.click("#byscore")
    assert chosen(page) == [number for number in range(1, K + 1) if scores[number - 1] >= 0.9]
    page.run("contrast.value = 2; contrast.dispatchEvent(new Event('input'))")
    assert page.run("getComputedStyle(document.querySelector('.tile img')).filter") == "contrast(2)"
    loaded = page.run("[...document.querySelectorAll('.tile img')].filter(i => i.complete && i.naturalWidth).length")
    assert 0 < loaded < 300  # the others when they are scrolled to


def test_a_form_tells_faults_and_the_command_as_it_is_filled_in(page, served, project):
    open_page(page, served, "/new/select?table=job003")
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")

    def enter(field: str, text: str) -> None:
        page.run(f"var f = document.querySelector('#f-{field}'); f.value = {text!r};"
                 "f.dispatchEvent(new Event('input', {bubbles: true}))")  # fmt: skip

    enter("min_score", "3")
    page.wait("document.querySelector('#e-min_score').textContent.includes('must be 0 to 1')")
    assert page.run("start.hidden") and page.run("document.querySelector('#f-min_score').ariaInvalid") == "true"
    enter("min_score", "")
    enter("min_particles", "18")
    page.wait("!start.hidden && document.querySelector('#ready [data-command]').textContent.includes('18')")
    page.click("#start")
    page.wait("location.pathname.startsWith('/job/Select')")
    folder = project / page.run("location.pathname").removeprefix("/job/")
    wait_done(folder)
    rows = read_rows(folder / "particles.star").table
    assert len(rows) == 18 * sum(c % 9 == 8 for c in range(K))


def test_bounds_of_two_columns_make_the_command(page, served):
    open_page(page, served, "/micrographs/CtfFind/job002")
    page.wait("table && chosen.textContent.includes('4 of 4')")
    page.run("x.value = 'rlnCtfMaxResolution'; x.dispatchEvent(new Event('change'))")
    page.run("var s = document.getElementById('x-high'); s.value = 6; s.dispatchEvent(new Event('input'))")
    assert page.run("chosen.textContent") == "3 of 4 chosen"
    page.wait("!start.disabled")
    command = page.run("document.querySelector('#save [data-command]').textContent")
    assert re.search(r"--where 'rlnCtfMaxResolution<=6'", command), command


def test_a_slider_moves_its_slice(page, served):
    open_page(page, served, "/map/Refine3D/job004")
    page.run("var f = document.querySelector('.slices input'), i = document.querySelector('.slices img')")
    page.run("f.value = 3; f.dispatchEvent(new Event('input'))")
    page.wait("/axis=z&.*&at=3$/.test(i.src) && i.complete")
    assert page.run("document.querySelector('.slices img').naturalWidth") == 16
    assert page.run("document.querySelector('.slices output').textContent") == "3"


def test_the_first_page_follows_jobs_that_come_and_change(page, served, project, monkeypatch):
    monkeypatch.chdir(project)
    folder = a_job(project / "Class2D/job077", "class2d")
    said = {"job": "class2d", "state": "done", "host": "x", "pid": 1, "started": 1.0, "heartbeat": time.time()}
    running = {**said, "state": "running", "step": "iteration 7", "done": 5, "total": 10}
    (folder / "state.json").write_text(json.dumps(running))
    page.wait("document.querySelector('[data-name=\"Class2D/job077\"] [data-said]').textContent.includes('5 of 10')")
    assert page.run("document.querySelector('[data-name=\"Class2D/job077\"] progress').value") == 5
    (folder / "state.json").write_text(json.dumps(said))
    page.wait("document.querySelector('[data-name=\"Class2D/job077\"] [data-state]').textContent == 'done'")
    page.run("filter.value = 'CtfFind'; filter.dispatchEvent(new Event('input'))")
    shown = page.run("[...document.querySelectorAll('.row')].filter(r => r.offsetParent).map(r => r.dataset.name)")
    assert shown == ["Import/job001", "CtfFind/job002"]  # what was found, below what made it
    for path in ("job.json", "state.json"):
        (folder / path).unlink()
    folder.rmdir()


def test_the_page_stays_smaller_than_the_science():
    """Lines of this room, scripts and style among them, are below a tenth of all."""
    source = Path(__file__).parents[2] / "src/polarice"

    def lines(folder: Path, *endings: str) -> int:
        return sum(path.read_text().count("\n") for path in folder.rglob("*") if path.suffix in endings)

    assert lines(source / "web", ".py", ".js", ".css") < lines(source, ".py") / 10


PAGES = ("/", "/job/job003", "/classes/job003", "/map/Refine3D/job004", "/micrographs/CtfFind/job002", "/new",
         "/new/class2d", "/new/select", "/files/job003")  # fmt: skip
UNNAMED = """[...document.querySelectorAll('input:not([type=hidden]), select, button, img, canvas, svg, progress, a')]
  .filter(e => e.offsetParent || e.tagName == 'svg').filter(e => !(e.labels && e.labels.length) && !e.ariaLabel
    && !e.textContent.trim() && !e.hasAttribute('alt') && !e.querySelector('[alt]:not([alt=""])')
  ).map(e => e.outerHTML.slice(0, 200))"""
CONTRAST = """(() => {
  const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c) && c.startsWith('rgb(')) return c; } return 'rgb(255, 255, 255)'; };
  return [...document.querySelectorAll('main *, header *')]
    .filter(e => e.offsetParent && !e.disabled && !e.closest('.off')
    && [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())).map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 120)]; }).filter(([ratio]) => ratio < 4.5);
})()"""


@pytest.mark.parametrize("path", PAGES)
def test_pages_suit_a_phone_a_screen_reader_and_the_dark(page, served, path):
    """No page is wider than 390 px; all controls and pictures are named; text has a contrast of 4.5 in both schemes."""
    for width, dark in ((390, False), (390, True), (1280, False), (1280, True)):
        page.look(width, dark=dark)
        open_page(page, served, path)
        page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run(UNNAMED) == []
        assert page.run(CONTRAST) == []
        assert page.run("document.querySelectorAll('h1').length") == 1 and page.run("document.documentElement.lang")
    ids = page.run("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_nothing_is_clicked_through_a_frame(page, served):
    """A page of another site cannot put ours into a frame, and the report's frame runs no script but its own."""
    report = "<html><body><script>document.body.textContent = 'ran'</script>quiet</body></html>"
    folder = served.site.fence.root / "job003"
    (folder / "report.html").write_text(report)
    try:
        open_page(page, served, "/file/job003/report.html")
        assert page.run("document.body.textContent").endswith("quiet")
        assert page.run("fetch('/status.json').then(() => 'sent', () => 'blocked')") == "blocked"
    finally:
        (folder / "report.html").unlink()
        page.errors.clear()  # what was blocked is told there

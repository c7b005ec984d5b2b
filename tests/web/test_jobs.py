"""Jobs found by their files, forms made from their Params, and processes started and stopped."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from polarice.cli import parse
from polarice.io.rows import read_rows
from polarice.io.star import Block, read_star, write_star
from polarice.jobs.class2d import Params as Class2D
from polarice.project.params import options_of
from polarice.project.state import read_state
from polarice.web.found import Jobs, natural, next_folder, progress_of, tail
from polarice.web.process import _is_polarice, _was_told, why_not_ours
from web.served import Served, a_job, classes_in, serving

APOFERRITIN = Path(__file__).parents[2] / "src/polarice/data/apoferritin"
WAIT_S = 120.0


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state(folder: Path, **values) -> None:
    base = {"job": "class2d", "state": "running", "host": socket.gethostname(), "pid": os.getpid()}
    (folder / "state.json").write_text(json.dumps({**base, "started": time.time(), "heartbeat": time.time(), **values}))


def wait(true, what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def test_jobs_are_a_tree_by_what_made_what(project):
    first = a_job(project / "Import/job001", "import")
    (first / "micrographs.star").write_text("x")
    second = a_job(project / "CtfFind/job002", "ctf", [first / "micrographs.star"])
    (second / "micrographs.star").write_text("x")
    a_job(project / "AutoPick/job010", "pick", [second / "micrographs.star", first / "micrographs.star"])
    deep = a_job(project / "Deep2D/job003", "deep2d")
    a_job(deep / "align2d", "align2d")
    jobs = Jobs(project).all()
    assert {name: job.parent for name, job in jobs.items()} == {
        "Import/job001": "",
        "CtfFind/job002": "Import/job001",
        "AutoPick/job010": "CtfFind/job002",
        "Deep2D/job003": "",
        "Deep2D/job003/align2d": "Deep2D/job003",
    }
    assert jobs["AutoPick/job010"].others == ("Import/job001",)
    assert next_folder("class2d", list(jobs)) == "Class2D/job011"
    assert sorted(["job10", "job9", "b", "job1a"], key=natural) == ["b", "job1a", "job9", "job10"]


def test_jobs_whose_inputs_lead_in_a_circle_are_all_shown(project):
    for name in "abc":
        a_job(project / name, "class2d")
        (project / name / "x.star").write_text("x")
    for name, other in ("ab", "bc", "ca"):
        a_job(project / name, "class2d", [project / other / "x.star"])
    parents = [job.parent for job in Jobs(project).all().values()]
    assert parents.count("") == 1 and len(parents) == 3
    with serving(project) as served:
        assert served.get("/").text.count('class="row"') == 3


def test_states_are_those_of_the_files(project):
    for name in ("running", "lost", "failed", "old", "began", "half"):
        (project / name).mkdir()
    for name in ("running", "lost", "failed", "old"):
        a_job(project / name, "class2d")
    state(project / "running", step="iteration 3", done=1200, total=5000, estimate_s=120.0)
    state(project / "lost", pid=2**22 + 1)
    state(project / "failed", state="failed", error="the disk is full")
    (project / "began/run.err").write_text("$ polarice class2d x\npolarice class2d: error: x: not found\n")
    (project / "half/job.json").write_text('{"job": "class2d", "par')
    relion = project / "Class2D/job006"
    relion.mkdir(parents=True)
    (relion / "job.star").write_text("data_job\n\n_rlnJobTypeLabel relion.class2d\n_rlnJobIsContinue 0\n")
    (relion / "RELION_JOB_EXIT_SUCCESS").touch()
    jobs = Jobs(project).all()
    found = {name: (progress_of(job, False).state, progress_of(job, False).said) for name, job in jobs.items()}
    assert found["running"] == ("running", "iteration 3, 1,200 of 5,000, 2 min left")
    state(project / "running", step="iteration 4", done=250, total=1000, started=1000.0, heartbeat=1050.0)
    assert progress_of(jobs["running"], False).said == "iteration 4, 250 of 1,000, about 2 min left"  # 150 s
    assert found["lost"][0] == "lost" and found["failed"] == ("failed", "the disk is full")
    assert found["old"] == ("", "no state was kept")
    assert found["began"] == ("failed", "polarice class2d: error: x: not found")
    assert "not readable as JSON" in found["half"][1]
    assert found["Class2D/job006"] == ("done", "") and jobs["Class2D/job006"].kind == "relion.class2d"
    with serving(project) as served:
        page = served.get("/job/Class2D/job006").text
        assert "shown only" in page and "<form" not in page
        assert served.post("/stop/Class2D/job006").status == 403
        assert served.get("/status.json").json["jobs"]["running"]["done"] == 250
        assert served.get("/job/half").status == 200
        assert served.get("/job/none").status == 404


def test_a_job_that_was_started_here_is_known_from_its_first_line_on(project):
    """Before job.json is there, and at once when it is."""
    folder = project / "Class2D/job001"
    folder.mkdir(parents=True)
    (folder / "run.err").write_text("$ polarice class2d p.star --k 3\n")
    with serving(project) as served:
        page = served.get("/job/Class2D/job001").text
        assert '<span class="kind">class2d</span>' in page and "polarice class2d p.star --k 3" in page
        a_job(folder, "class2d", k=3)
        (folder / "run_it001_data.star").write_text("x")
        page = served.get("/job/Class2D/job001").text
        assert "begun" in page and ">--k<" in page
        assert "/new/align2d?particles=Class2D/job001/run_it001_data.star" in page.replace("%2F", "/")


def test_an_empty_folder_and_one_that_goes_away(project):
    with serving(project) as served:
        assert "No job below this folder" in served.get("/").text
        folder = a_job(project / "a", "class2d")
        assert served.get("/job/a").status == 200
        (folder / "job.json").unlink()
        folder.rmdir()
        assert served.get("/job/a").status == 404


def test_two_hundred_jobs_are_told_at_once(project):
    for number in range(200):
        a_job(project / f"Class2D/job{number:03d}", "class2d")
    with serving(project) as served:
        served.get("/")
        begun = time.process_time()
        for _ in range(5):
            assert len(served.get("/status.json").json["jobs"]) == 200
        assert (time.process_time() - begun) / 5 < 0.3


def form(served: Served, job: str, **fields: str):
    return served.post(f"/check/{job}", fields).json


def test_a_form_has_every_option_with_help_unit_and_bounds(project):
    with serving(project) as served:
        page = unescape(served.get("/new/class2d").text)
    for each in options_of(Class2D):
        if each.field != "continue_":
            assert f'name="{each.field}"' in page and each.help in page, each.field
            assert not each.bounds or each.bounds in page
    assert '<span class="unit">A</span>' in page and 'placeholder="100"' in page
    essential, _, rest = page.partition("<details")
    assert 'name="k"' in essential and 'name="seed"' in rest


def test_a_form_gives_the_command_that_a_user_would_type(project):
    classes_in(a_job(project / "job1", "class2d"))
    with serving(project) as served:
        table = "job1/run_it003_data.star"
        told = form(served, "class2d", particles=table, o="Class2D/job002", k="7", ctf="1", norm="1", psi_step="5")
    words = shlex.split(told["command"])
    assert told["faults"] == {} and words[:2] == ["polarice", "class2d"]
    params = parse("class2d", Class2D, words[2:])
    assert (params.particles, params.k, params.psi_step, params.ctf) == (Path(table), 7, 5.0, True)
    assert params.center_classes is False  # its box was not ticked


@pytest.mark.parametrize(
    ("fields", "field", "fault"),
    [
        ({"k": "0"}, "k", "--k 0: must be 1 to 100000"),
        ({"k": "many"}, "k", "--k many: must be a whole number"),
        ({"particle_diameter": "-3"}, "particle_diameter", "--particle-diameter -3: must be at least 1 A"),
        ({"outlier_images": "<b>"}, "outlier_images", "--outlier-images <b>: must be one of exclude, clip, keep"),
        ({"particles": ""}, "particles", "particles is missing"),
        ({"particles": "none.star"}, "particles", "particles none.star: not there"),
        ({"particles": "../secret.star"}, "particles", "leads out of the project"),
        ({"particles": "/etc/passwd"}, "particles", "leads out of the project"),
        ({"particles": "link.star"}, "particles", "leads out of the project"),
        ({"particles": "--continue=x"}, "particles", "begins with -"),
        ({"o": "/tmp/elsewhere"}, "o", "leads out of the project"),
        ({"o": "../elsewhere"}, "o", "leads out of the project"),
        ({"o": "-x"}, "o", "begins with -"),
        ({"ref": "x\0y"}, "ref", "no text"),
        ({"scratch": "/etc"}, "scratch", "leads out of the project"),
    ],
)
def test_faults_stand_beside_their_fields(project, fields, field, fault):
    (project.parent / "secret.star").write_text("x")
    (project / "link.star").symlink_to(project.parent / "secret.star")
    (project / "p.star").write_text("x")
    with serving(project) as served:
        told = form(served, "class2d", **{"particles": "p.star", "o": "new", **fields})
        assert fault in told["faults"][field] and told["command"] == ""
        page = served.post("/new/class2d", {"particles": "p.star", "o": "new", "act": "start", **fields}).text
        assert re.search(rf'id="e-{field}" role="alert">[^<]+<', page) and "<b>" not in page
    assert not (project / "new").exists()


@pytest.mark.parametrize(
    ("job", "fields", "field"),
    [
        ("extract", {"coord_suffix": "/../../x"}, "coord_suffix"),
        ("simulate", {"orientations": "/etc/passwd"}, "orientations"),
        ("import", {"mtf": "../mtf.star"}, "mtf"),
        ("class2d", {"copy_to": "/tmp"}, "copy_to"),
        ("postprocess", {"halves": "/etc/passwd"}, "halves"),
        ("star", {"tables": "'a.star' '../b.star'"}, "tables"),
        ("star", {"tables": "'a.star"}, "tables"),
    ],
)
def test_no_field_leads_out(project, job, fields, field):
    with serving(project) as served:
        assert field in form(served, job, **fields)["faults"]
        assert "orientations" not in form(served, "simulate", orientations="preferred")["faults"]


def test_all_faults_are_told_at_once(project):
    with serving(project) as served:
        told = form(served, "class2d", k="0", particle_diameter="wide", psi_step="-1", o="../x")["faults"]
    assert sorted(told) == ["k", "o", "particle_diameter", "particles", "psi_step"]


def test_patterns_are_held_inside_too(project):
    (project.parent / "raw").mkdir(exist_ok=True)
    (project.parent / "raw/a.mrc").write_text("x")
    (project / "Movies").symlink_to(project.parent / "raw")
    with serving(project) as served:
        for pattern in ("Movies/*.mrc", "../raw/*.mrc", "/etc/*", "*/../../raw/a.mrc"):
            assert "leads out" in form(served, "import", inputs=f"'{pattern}'", o="Import")["faults"]["inputs"], pattern
    with serving(project, also=(project.parent / "raw",)) as served:
        told = form(served, "import", inputs="'Movies/*.mrc'", o="Import", voltage="300")
        assert told["faults"] == {} and "'Movies/*.mrc'" in told["command"]


def test_a_choice_is_saved_by_the_command_that_was_shown(project):
    classes_in(a_job(project / "job1", "class2d"))
    with serving(project) as served:
        fields = {"table": "job1", "classes": "1,3-4", "o": "Select/job002", "act": "start", "command": ""}
        page = served.post("/new/select", fields)  # the command was not seen: nothing runs
        assert page.status == 200 and "Look at the command" in page.text and not (project / "Select").exists()
        command = form(served, "select", **fields)["command"]
        assert command == "polarice select job1 --o Select/job002 --classes 1,3-4"
        answer = served.post("/new/select", {**fields, "command": command})
        assert (answer.status, answer.headers["Location"]) == (303, "/job/Select/job002")
        folder = project / "Select/job002"
        wait(lambda: (said := read_state(folder)) and said.state == "done", "select has not ended")
        rows = read_rows(folder / "particles.star").table
        assert sorted(set(rows.integers("rlnClassNumber").tolist())) == [1, 3, 4] and len(rows) == 4 * (1 + 3 + 4)
        assert served.get("/status.json").json["jobs"]["Select/job002"]["state"] == "done"
        assert f"started: {command}" in served.log
        again = served.post("/new/select", {**fields, "command": command})
        assert again.status == 200 and "is not empty" in again.text


def test_a_job_that_cannot_begin_says_why_on_its_card(project):
    classes_in(a_job(project / "job1", "class2d"))
    with serving(project) as served:
        fields = {"table": "job1", "o": "Select/job002", "act": "start"}
        command = form(served, "select", **fields)["command"]
        assert served.post("/new/select", {**fields, "command": command}).status == 303
        wait(lambda: served.get("/status.json").json["jobs"]["Select/job002"]["state"] == "failed", "no fault")
        assert "no rule is given" in served.get("/").text
        log = served.get("/job.json/Select/job002").json["log"]
        assert log.startswith(f"$ {command}\n") and "no rule is given" in log


def test_a_module_in_the_project_is_not_ours(project):
    """A job started in a folder that holds json.py or numpy.py does not run them."""
    classes_in(a_job(project / "job1", "class2d"))
    for name in ("json", "numpy", "polarice"):
        (project / f"{name}.py").write_text(f"open({str(project / 'ran')!r}, 'w')\n")
    with serving(project) as served:
        fields = {"table": "job1", "classes": "2", "o": "Select/job002", "act": "start"}
        command = form(served, "select", **fields)["command"]
        served.post("/new/select", {**fields, "command": command})
        wait(lambda: (said := read_state(project / "Select/job002")) and said.state == "done", "select has not ended")
    assert not (project / "ran").exists()


def test_only_the_jobs_own_process_is_stopped(project):
    folder = a_job(project / "job1", "class2d")
    here, now = socket.gethostname(), time.time()
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)", "polarice", "class2d", "--o", str(folder)]
    serve = [sys.executable, "-P", "-m", "polarice", "serve", str(project), "--also"]
    other, ours = subprocess.Popen(sleeping), subprocess.Popen([*serve, str(folder)], stdout=subprocess.DEVNULL)
    try:
        with serving(project) as served:
            for pid, host, why in (
                (1, here, "names none"),
                (os.getpid(), here, "names none"),
                (other.pid, here, "not polarice"),
                (2**22 + 1, here, "no job runs|no such process"),
                (other.pid, "elsewhere", "runs on elsewhere"),
                (ours.pid, here, "not told this folder"),
            ):
                state(folder, pid=pid, host=host)
                answer = served.post("/stop/job1")
                assert answer.status == 422 and re.search(why, answer.text), answer.text
            state(folder, state="done", pid=ours.pid)
            assert served.post("/stop/job1").status == 422
        assert other.poll() is None and ours.poll() is None
        assert why_not_ours(ours.pid, now - 3600, folder) == "it is younger than the job"
    finally:
        for process in (other, ours):
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("class2d p.star --o job1", True),
        ("class2d p.star --o=job1", True),
        ("class2d --continue job1", True),
        ("class2d --continue job1/run_it003_optimiser.star", True),
        ("class2d p.star --o job2", False),
        ("class2d job1/p.star --o job2", False),
        ("run job.toml", True),
        ("run elsewhere/job.toml", False),
        ("select job2", False),
    ],
)
def test_whose_folder_a_command_line_is_about(project, command, told):
    (project / "job1").mkdir()
    (project / "elsewhere").mkdir()
    for name in ("job.toml", "elsewhere/job.toml"):
        (project / name).write_text("")
    words = [sys.executable, "-m", "polarice", *command.split()]
    assert _was_told(words, str(project), project / "job1") is told
    assert _is_polarice(words) and not _is_polarice([sys.executable, "polarice.py", "polarice"])


def test_a_job_outlives_its_server_is_stopped_and_goes_on(project):
    """From a form, in a server that is killed; another one stops it and goes on with it."""
    table = read_star(APOFERRITIN / "particles.star")
    write_star(project / "particles.star", [*table][:-1] + [Block("particles", table=table.table("particles").take(
        np.arange(0, 550, 5)))])  # fmt: skip
    (project / "particles.mrcs").symlink_to(APOFERRITIN / "particles.mrcs")
    words = [sys.executable, "-m", "polarice", "serve", str(project), "--also", str(APOFERRITIN)]
    # as from the background of a script, where Ctrl-C is ignored and children inherit that
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", ignoring, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    address = next(line.strip() for line in first.stdout if "token=" in line)
    fields = {"particles": "particles.star", "o": "Class2D/job001", "k": "3", "iter": "900", "threads": "1",
              "device": "cpu", "ctf": "1", "norm": "1", "act": "start"}  # fmt: skip
    _start_at(address, "class2d", fields)
    folder = project / "Class2D/job001"
    wait(lambda: (folder / "run_it002_polarice.npz").exists(), "no iteration")
    first.kill()
    first.wait()
    first.stdout.close()
    assert first.stderr is not None
    first.stderr.close()
    said = read_state(folder)
    assert said is not None and said.state == "running" and not said.is_lost
    with serving(project, also=(APOFERRITIN,)) as served:
        page = served.get("/job/Class2D/job001").text
        assert ">Stop<" in page and served.get("/classes.json/Class2D/job001").json["classes"][2][0] == 3
        assert served.post("/stop/Class2D/job001").status == 303
        wait(lambda: served.get("/job.json/Class2D/job001").json["state"] == "stopped", "it was not stopped")
        done = len(list(folder.glob("run_it*_polarice.npz")))
        command = "polarice class2d --continue Class2D/job001"
        assert command in served.get("/job/Class2D/job001").text
        assert served.post("/again/Class2D/job001", {"command": f"{command} --iter 3"}).status == 409
        assert served.post("/again/Class2D/job001", {"command": command}).status == 303
        wait(lambda: len(list(folder.glob("run_it*_polarice.npz"))) > done, "it did not go on")
        assert served.post("/again/Class2D/job001", {"command": command}).status == 422  # it is at work
        assert served.post("/stop/Class2D/job001").status == 303
        wait(lambda: served.get("/job.json/Class2D/job001").json["state"] == "stopped", "it was not stopped")
        told = form(served, "class2d", continue_="Class2D/job001", iter="950", k="9", o="x")  # k and o may not change
        assert told == {"command": "polarice class2d --iter 950 --continue Class2D/job001", "faults": {}}
        more = served.get("/new/class2d?continue_=Class2D/job001").text
        assert 'name="iter"' in more and 'name="k"' not in more and 'name="continue_" value="Class2D/job001"' in more
        clone = unescape(served.get("/new/class2d?from=Class2D/job001").text)
        assert 'value="900"' in clone and 'value="Class2D/job002"' in clone and 'value="particles.star"' in clone


@pytest.fixture(autouse=True)
def nothing_left(tmp_path):
    """A job that a failed test has left behind is ended."""
    yield
    for path in tmp_path.rglob("state.json"):
        said = read_state(path.parent)
        if said is not None and not why_not_ours(said.pid, said.started, path.parent):
            os.kill(said.pid, signal.SIGKILL)


def _start_at(address: str, job: str, fields: dict[str, str]) -> None:
    """As a browser would: the address, its cookie, the command, the start."""
    import http.client
    from urllib.parse import urlencode, urlsplit

    split = urlsplit(address)
    server = http.client.HTTPConnection(split.netloc, timeout=30)

    def ask(method: str, path: str, body: str | None = None, **headers: str):
        server.request(method, path, body, headers)
        answer = server.getresponse()
        return answer, answer.read()

    cookie = str(ask("GET", f"/?{split.query}")[0].getheader("Set-Cookie")).partition(";")[0]
    kind = "application/x-www-form-urlencoded"
    headers = {"Cookie": cookie, "Origin": f"http://{split.netloc}", "Content-Type": kind}
    command = json.loads(ask("POST", f"/check/{job}", urlencode(fields), **headers)[1])["command"]
    assert command
    answer, body = ask("POST", f"/new/{job}", urlencode({**fields, "command": command}), **headers)
    assert answer.status == 303, body
    server.close()


def test_the_end_of_a_log_is_what_a_terminal_shows(tmp_path):
    (tmp_path / "log").write_bytes(b"first\n10 %\r50 %\r100 %\nlast\xff\n")
    assert tail(tmp_path / "log") == "first\n100 %\nlast\ufffd\n"
    assert tail(tmp_path / "log", 6) == "last\ufffd\n" and tail(tmp_path / "none") == ""

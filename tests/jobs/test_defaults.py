"""What is known without being told: nodes of a map, the particle's diameter, the optics, the table in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.micrograph_tables import table_text
from jobs.runs import polarice, stub_report
from jobs.sets import PIXEL_A, ParticleSet
from polarice.io.mrc import write_image
from polarice.runs.defaults import diameter_of

SET = ParticleSet(n=90, box_px=24, ctf=False)


def run(line: str):
    ended = polarice(line)
    assert ended.code == 0, ended.err
    return ended


def params_of(folder: str) -> dict:
    return json.loads(Path(folder, "job.json").read_text())["params"]


def job(folder: str, name: str, diameter: float | None, inputs: list[str]) -> None:
    Path(folder).mkdir()
    records = [{"path": path, "size": 1} for path in inputs]
    content = {"job": name, "params": {"particle_diameter": diameter}, "inputs": records}
    Path(folder, "job.json").write_text(json.dumps(content))


def test_the_diameter_told_to_a_job_before_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stub_report(monkeypatch)
    job("pick", "pick", 50.0, ["ctf/micrographs.star"])
    job("extract", "extract", None, ["pick/micrographs.star"])
    SET.write(Path("extract"))
    assert diameter_of(Path("extract/particles.star")) == (55.0, "pick", Path("pick"))
    ended = run("class2d extract/particles.star --k 2 --iter 1 --no-ctf --threads 1 --o one")
    assert "--particle-diameter 55 A: 1.1 times what pick was told in pick" in ended.err
    assert params_of("one")["particle_diameter"] == 55.0
    ended = run("class2d extract/particles.star --k 2 --iter 1 --no-ctf --threads 1 --o two --particle-diameter 60")
    assert "pick was told" not in ended.err
    ended = run("align2d two/run_it001_data.star --k 2 --iter 1 --no-ctf --threads 1 --o three")
    assert "--particle-diameter 60 A: as class2d was told in two" in ended.err
    run("class2d --continue one --iter 2")
    assert params_of("one")["particle_diameter"] == 55.0


def test_a_box_is_proposed_from_the_diameter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job("pick", "pick", 150.0, ["ctf/micrographs.star"])
    Path("pick/micrographs.star").write_text(table_text(["a.mrc"], 1.5))
    ended = polarice("extract pick/micrographs.star --o e")
    assert ended.code == 2
    assert "for the diameter that pick was told in pick: --box 150 --scale 66 (3.5 A per pixel or finer)" in ended.err


def test_where_nobody_was_told_nothing_is_made_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SET.write(tmp_path)
    assert diameter_of(Path("particles.star")) is None
    job("a", "extract", None, ["b/particles.star"])
    job("b", "import", None, ["a/particles.star"])  # a circle ends, too
    assert diameter_of(Path("a/particles.star")) is None
    Path("a/job.json").write_text("{")
    assert diameter_of(Path("a/particles.star")) is None


def test_nodes_of_a_map_follow_from_the_particles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stub_report(monkeypatch)
    SET.write(tmp_path)
    SET.write_table(tmp_path, **SET.aligned())
    ended = run("sml particles.star --iter 2 --no-ctf --threads 1 --o m --particle-diameter 50 --write-every 2")
    assert "--k 4: from the number of particles" in ended.err and params_of("m")["k"] == "4"


def test_import_tells_the_optics_and_where_they_are_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("Mic").mkdir()
    write_image("Mic/a.mrc", np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32), 1.5)
    ended = run("import Mic/a.mrc --o i --Cs 0.001")
    told = "optics: 300 kV (default), Cs 0.001 mm (given), amplitude contrast 0.1 (default), 1.5 A/px (header)"
    assert told in ended.out
    assert "200 kV (given)" in run("import Mic/a.mrc --o j --voltage 200 --angpix 1.5").out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ctf Mic", "Mic is a folder; make a table of what is in it: polarice import 'Mic/*.mrc' --o Import"),
        ("ctf Mic/a.mrc", "Mic/a.mrc is an image, and not a table; one is made by: polarice import 'Mic/*.mrc'"),
        ("ctf i", "i is a folder; give its table: i/micrographs.star"),
        ("class2d c", "c is a folder; give its table: c/run_it010_data.star"),
    ],
)
def test_what_is_no_table_is_told_how_to_become_one(tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    Path("Mic").mkdir()
    write_image("Mic/a.mrc", np.zeros((32, 32), np.float32), PIXEL_A)
    Path("i").mkdir()
    Path("i/micrographs.star").write_text("")
    Path("c").mkdir()
    for number in (2, 10):
        Path(f"c/run_it{number:03d}_data.star").write_text("")
    ended = polarice(f"{line} --o out --threads 1")
    assert ended.code == 2 and message in ended.err, ended.err

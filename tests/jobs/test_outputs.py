"""No job writes over an input, another job's results, or a file that is not in its own record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.runs import polarice
from polarice.io.mrc import write_stack
from polarice.project.outputs import KEY, Outputs, files_of
from polarice.types import InputError

HEAD = "data_optics\nloop_\n_rlnOpticsGroupName\n_rlnOpticsGroup\n_rlnMicrographPixelSize\n_rlnVoltage\n"
HEAD += (
    "_rlnSphericalAberration\n_rlnAmplitudeContrast\nopticsGroup1 1 1.5 300 2.7 0.1\n\ndata_{kind}\nloop_\n{labels}\n"
)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(name: str) -> bytes:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    write_stack(name, np.random.default_rng(0).normal(size=(1, 128, 128)).astype(np.float32), 1.5)
    return Path(name).read_bytes()


def table(*names: str, kind: str = "micrographs") -> None:
    label = "_rlnMicrographMovieName" if kind == "movies" else "_rlnMicrographName"
    rows = "".join(f"{name} 1\n" for name in names)
    Path("t").mkdir(exist_ok=True)
    Path("t/in.star").write_text(HEAD.format(kind=kind, labels=f"{label}\n_rlnOpticsGroup") + rows)


def made(folder: Path, job: str, record: dict) -> None:
    (folder / "job.json").write_text(json.dumps({"job": job, "params": {}, KEY: record}))


def test_a_record_tells_own_files_from_a_stranger_s(here):
    Path("out").mkdir()
    outputs = Outputs("ctf", Path("out"), ("micrographs.star",), ("out/Mic/a",), (".ctf", "_ctf.png"))
    record = outputs.require_free()
    assert record == {"files": ["micrographs.star"], "stems": ["Mic/a"], "endings": [".ctf", "_ctf.png"]}
    made(Path("out"), "ctf", record)
    Path("out/Mic").mkdir()
    for name in ("out/micrographs.star", "out/Mic/a.ctf"):
        Path(name).touch()
    other = Outputs("ctf", Path("out"), ("more.star",), ("out/Mic/b",), (".ctf",))
    merged = other.require_free()
    assert merged["stems"] == ["Mic/a", "Mic/b"] and merged["files"] == ["micrographs.star", "more.star"]
    assert outputs.require_free() == record
    for name in ("out/more.star", "out/Mic/b.ctf"):
        Path(name).touch()
    with pytest.raises(InputError, match=r"out/Mic/b.ctf \(and 1 more\): stands where ctf would write"):
        other.require_free()


def test_folders_without_a_record_are_told_by_what_lies_beside(here):
    """Made by a version that kept none: what has a micrograph's own record is the job's."""
    Path("out").mkdir()
    (here / "out/job.json").write_text('{"job": "ctf", "params": {}}')
    for name in ("out/a.ctf", "out/a_polarice.json"):
        Path(name).touch()
    assert Outputs("ctf", Path("out"), (), ("out/a",), (".ctf",)).require_free()["stems"] == ["a"]
    Path("out/b.ctf").touch()
    with pytest.raises(InputError, match=r"out/b.ctf: stands where"):
        Outputs("ctf", Path("out"), (), ("out/a", "out/b"), (".ctf",)).require_free()


@pytest.mark.parametrize("content", ['{"job": "motion", "params": {}}', "[1]", "no JSON", "[" * 60_000])
def test_another_job_s_folder_is_refused(here, content):
    Path("job.json").write_text(content)
    with pytest.raises(InputError, match=r"holds the results of a job \((motion|of some kind)\); choose another"):
        Outputs("ctf", here, ("micrographs.star",)).require_free()


def test_half_written_files_of_one_s_own_are_swept_up_and_no_others(here):
    Path("out/Mic").mkdir(parents=True)
    for name in ("Mic/.a_ctf.png.tmp-9", ".micrographs.star.tmp-12", "Mic/.notes.tmp-9", "Mic/.a_ctf.png.tmp-x"):
        (here / "out" / name).touch()
    Outputs("ctf", Path("out"), ("micrographs.star",), ("out/Mic/a",), ("_ctf.png",)).sweep()
    assert sorted(files_of("out")) == ["out/Mic/.a_ctf.png.tmp-x", "out/Mic/.notes.tmp-9"]


def test_no_job_over_micrographs_writes_over_what_it_reads(here):
    """--o . and a folder above absolute names lead back to the movie; so do links, to any file that is read."""
    own = picture("raw/a.mrc")
    table("raw/a.mrc", kind="movies")
    ended = polarice("motion t/in.star --o . --no-dose-weighting")
    assert ended.code == 2 and "raw/a.mrc would write over; choose another folder with --o" in ended.err
    table(f"{here}/raw/a.mrc", kind="movies")
    ended = polarice(f"motion t/in.star --o {here} --no-dose-weighting")
    assert ended.code == 2 and "an input of this job" in ended.err
    Path("out").mkdir()
    Path("out/raw").symlink_to("../raw")
    table("raw/a.mrc", kind="movies")
    ended = polarice("motion t/in.star --o out --no-dose-weighting")
    assert ended.code == 2 and "an input of this job, which out/raw/a.mrc would write over" in ended.err
    assert Path("raw/a.mrc").read_bytes() == own and not Path("job.json").exists()


def test_the_gain_reference_and_the_picks_are_inputs_too(here):
    gain = picture("refs/a_PS.mrc")
    picture("b/a.mrc")
    table("b/a.mrc", kind="movies")
    Path("job").mkdir()
    Path("job/b").symlink_to(here / "refs")
    ended = polarice("motion t/in.star --o job --no-dose-weighting --gainref refs/a_PS.mrc")
    assert ended.code == 2 and "refs/a_PS.mrc: an input of this job" in ended.err
    assert Path("refs/a_PS.mrc").read_bytes() == gain
    table("b/a.mrc")
    Path("b/a_autopick.star").write_text("data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n64 64\n")
    ended = polarice("pick t/in.star --o . --picks b")
    assert ended.code == 2 and "b/a_autopick.star: an input of this job" in ended.err
    ended = polarice("extract t/in.star --o . --box 32 --coords b/a_autopick.star")
    assert ended.code == 0  # nothing stands in its way
    (here / "b/a.mrcs").write_text("mine")
    Path("job.json").unlink()
    Path("particles.star").unlink()
    ended = polarice("extract t/in.star --o . --box 32 --coords b/a_autopick.star")
    assert ended.code == 2 and "stands where extract would write" in ended.err
    assert Path("b/a.mrcs").read_text() == "mine"


@pytest.mark.parametrize("job", ["class2d", "align2d", "sml", "deep2d"])
def test_no_classification_replaces_a_page_that_it_did_not_make(here, job):
    Path("out").mkdir()
    Path("out/report.html").write_text("mine")
    ended = polarice(f"{job} none.star --o out")
    assert ended.code == 2 and "out/report.html: stands where" in ended.err
    assert Path("out/report.html").read_text() == "mine"


def test_extract_does_not_put_other_images_where_tables_name_them(here):
    picture("Mic/a.mrc")
    table("Mic/a.mrc")
    Path("xy").mkdir()
    Path("xy/a.star").write_text("data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n64 64\n")
    assert polarice("extract t/in.star --o out --box 64 --coords xy").code == 0
    before = Path("out/Mic/a.mrcs").read_bytes()
    ended = polarice("extract t/in.star --o out --box 64 --scale 32 --coords xy")
    assert ended.code == 2 and "--scale (now 32, then None); tables that name them" in ended.err
    assert Path("out/Mic/a.mrcs").read_bytes() == before
    Path("xy/a.star").write_text("data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n60 60\n")
    ended = polarice("extract t/in.star --o out --box 64 --coords xy")
    assert ended.code == 0 and "1 micrographs made anew" in ended.err and "no longer fit" in ended.err


def test_a_workflow_sets_images_of_other_options_aside_and_makes_what_follows_anew(here, monkeypatch):
    """The table keeps its text where only the background changes: what reads it is done again all the same."""
    picture("Mic/a.mrc")
    table("Mic/a.mrc")
    Path("xy").mkdir()
    Path("xy/a.star").write_text("data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n64 64\n")
    text = (
        '[[step]]\njob = "extract"\nname = "e"\nmicrographs = "t/in.star"\ncoords = "xy"\nbox = 64\n{more}'
        '[[step]]\njob = "import"\nname = "i"\ninputs = "{{e}}/particles.star"\n'
    )
    Path("w.toml").write_text(text.format(more="").replace("{{", "{").replace("}}", "}"))
    assert polarice("run w.toml").code == 0
    images, names = Path("e/Mic/a.mrcs").read_bytes(), Path("e/particles.star").read_bytes()
    Path("w.toml").write_text(text.format(more="invert_contrast = false\n").replace("{{", "{").replace("}}", "}"))
    ended = polarice("run w.toml")
    assert ended.code == 0, ended.err
    assert Path("e.1/Mic/a.mrcs").read_bytes() == images != Path("e/Mic/a.mrcs").read_bytes()
    assert Path("e/particles.star").read_bytes() == names
    assert ended.out.count("done before") == 0 and "[2/2] i: polarice import" in ended.out
    ended = polarice("run w.toml")
    assert ended.out.count("done before") == 2


def test_a_benchmark_keeps_out_of_folders_that_are_not_its_own(here):
    from polarice.bench.folder import make_folder

    make_folder(Path("bench"), empty=False)
    Path("bench/results.json").touch()
    make_folder(Path("bench"), empty=False)
    Path("mine").mkdir()
    Path("mine/notes").touch()
    with pytest.raises(InputError, match="mine: holds files that no benchmark made"):
        make_folder(Path("mine"), empty=False)

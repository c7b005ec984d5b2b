"""A chain of jobs from one file: what is run, in which order, with what, and what is not run again."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from jobs.runs import Ended, polarice, stub_report
from jobs.sets import PIXEL_A, ParticleSet
from polarice.io.mrc import write_stack
from polarice.io.star import read_star
from polarice.jobs import workflow
from polarice.project import patterns, registry
from polarice.project.params import Parameters, argument, option, output
from polarice.simulation.score import purity
from polarice.types import InputError


@dataclass(frozen=True)
class CopyParams(Parameters):
    tables: tuple[Path, ...] = argument("files to join")
    o: Path = output("job", "folder")
    word: str = option("", "added at the end", flags=("--Last-word",))
    threads: int | None = option(None, "threads", low=1, flags=("-j",), resource=True)


@dataclass(frozen=True)
class SeeParams(Parameters):
    table: Path = argument("a table")
    o: Path = output("job", "folder")


@dataclass(frozen=True)
class UpdateParams(SeeParams):
    ref: Path | None = option(None, "classes")
    iter: int | None = option(None, "iterations")
    continue_: Path | None = option(None, "run", flags=("--continue",))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A job "join" that joins files into o/joined.star; the list of folders it ran for."""
    calls: list[str] = []

    def run(params: CopyParams) -> None:
        calls.append(str(params.o))
        if gone := [each for each in params.tables if not each.exists()]:
            raise InputError(f"{gone[0]}: no such file")
        if params.word == "fail":
            raise InputError("it must fail")
        params.o.mkdir(exist_ok=True)
        (params.o / "joined.star").write_text("".join(each.read_text() for each in params.tables) + params.word)

    module = ModuleType("join_job")
    module.SUMMARY, module.Params, module.run = "join files", CopyParams, run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "join_job", module)
    monkeypatch.setitem(registry.JOBS, "join", "join_job")
    monkeypatch.chdir(tmp_path)
    for name, text in {"a.star": "a", "b.star": "b"}.items():
        settled(Path(name), text)
    return calls


def settled(path: Path, text: str) -> None:
    """Written long ago."""
    path.write_text(text)
    os.utime(path, (time.time() - 100,) * 2)


CHAIN = """
threads = 1
[[step]]
job = "join"
name = "first"
tables = ["?.star"]
[[step]]
job = "join"
name = "second"
tables = "{first}/joined.star"
word = "!"
"""


def go(text: str = CHAIN, more: str = "") -> Ended:
    Path("flow.toml").write_text(text)
    return polarice(f"run flow.toml {more}")


def test_a_chain_runs_once_and_again_only_from_what_changed(ran):
    assert go().code == 0
    assert ran == ["first", "second"] and Path("second/joined.star").read_text() == "ab!"
    said = go()
    assert ran == ["first", "second"] and said.out.count("nothing has changed") == 2
    go(CHAIN.replace('"!"', '"?"'))
    assert ran[2:] == ["second"] and Path("second/joined.star").read_text() == "ab?"
    settled(Path("c.star"), "c")
    go(CHAIN.replace('"!"', '"?"'))
    assert ran[3:] == ["first", "second"] and Path("second/joined.star").read_text() == "abc?"


def test_options_are_spelled_as_on_the_command_line(ran):
    go(CHAIN.replace("word =", '"--Last-word" =').replace("threads", "j"))
    assert Path("second/joined.star").read_text() == "ab!"


def test_the_same_table_written_again_is_no_change_and_where_is_none(ran):
    go()
    settled(Path("a.star"), "a")
    Path("first/joined.star").write_text("ab")
    go(CHAIN.replace("threads = 1", "threads = 2"))
    assert ran == ["first", "second"]


def test_a_folder_that_is_gone_is_made_again(ran):
    go()
    Path("second/joined.star").unlink()
    Path("second").rmdir()
    go()
    assert ran == ["first", "second", "second"]


def test_a_state_that_is_damaged_and_a_link_to_nowhere_are_borne(ran):
    go()
    Path(".flow_done.json").write_text('{"first": 5}')
    Path("d.star").symlink_to("nowhere")
    ended = go()
    assert ended.code == 2 and "step first: d.star: no such file" in ended.err
    Path("d.star").unlink()
    assert go().code == 0 and Path("second/joined.star").read_text() == "ab!"


def test_files_that_may_still_be_written_wait(ran):
    Path("c.star").write_text("half")
    go()
    assert Path("first/joined.star").read_text() == "ab"


def test_files_left_out_for_now_and_times_in_the_future_are_told(ran):
    Path("c.star").write_text("half")
    settled(Path("d.star"), "d")
    os.utime("d.star", (time.time() + 3600,) * 2)
    ended = go()
    assert Path("first/joined.star").read_text() == "abd"
    assert "[1/2] first: c.star: changed within 10 s, so left out for now" in ended.err
    assert "first: d.star: changed in the future" in ended.err


def test_a_step_takes_the_last_table_of_the_one_before_however_young(ran, monkeypatch):
    """Not the last that is older than ten seconds; and iteration 1000 comes after 999."""
    join = registry.load("join").run

    def run(params: CopyParams) -> None:
        join(params)
        for number in (24, 999, 1000):
            settled(Path(params.o, f"run_it{number:03d}_data.star"), f"<{number}>")
        Path(params.o, "run_it1000_data.star").touch()

    monkeypatch.setattr(registry.load("join"), "run", run)
    monkeypatch.setitem(patterns.TABLES, "join", "run_it*_data.star")
    seen: list[Path] = []
    module = ModuleType("see_job")
    module.SUMMARY, module.Params = "see a table", SeeParams  # type: ignore[attr-defined]
    module.run = lambda params: seen.append(params.table)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "see_job", module)
    monkeypatch.setitem(registry.JOBS, "see", "see_job")
    text = '[[step]]\njob = "join"\ntables = "a.star"\n'
    for name, table in (("s1", "{join.data}"), ("s2", "{join}/run_it*_data.star")):
        text += f'[[step]]\njob = "see"\nname = "{name}"\ntable = "{table}"\n'
    ended = go(text)
    assert ended.code == 0 and "left out" not in ended.err
    assert seen == [Path("join/run_it1000_data.star")] * 2


def test_what_follows_a_failed_step_waits_and_what_is_done_stays(ran):
    failing = CHAIN + '[[step]]\njob = "join"\nname = "third"\ntables = "{second}/joined.star"\nword = "fail"\n'
    ended = go(failing)
    assert ended.code == 2 and "step third: it must fail" in ended.err
    go(failing.replace('"fail"', '"."'))
    assert ran == ["first", "second", "third", "third"]
    assert Path("third/joined.star").read_text() == "ab!."


def test_a_dry_run_says_what_is_due_and_does_nothing(ran):
    said = go(more="--dry-run")
    assert ran == [] and "first: to do" in said.out and "second: to do" in said.out
    go()
    assert "first: done" in go(more="--dry-run").out
    later = CHAIN.replace('"{first}/joined.star"', '"{first}/*.txt"')
    assert "second: to do, once its files are there" in go(later, "--dry-run").out


def test_it_runs_from_the_folder_of_its_file(ran, monkeypatch, tmp_path):
    (tmp_path / "away").mkdir()
    Path("flow.toml").write_text(CHAIN)
    monkeypatch.chdir("away")
    assert polarice("run ../flow.toml").code == 0
    assert (tmp_path / "second/joined.star").exists() and Path.cwd() == tmp_path / "away"


def test_a_number_where_a_job_takes_text_is_that_text(ran):
    """As k = 1000 of a map, which may be a grid."""
    assert go('[[step]]\njob = "join"\ntables = "a.star"\nLast-word = 1000').code == 0
    assert Path("join/joined.star").read_text() == "a1000"
    ended = go('[[step]]\njob = "join"\ntables = "a.star"\nLast-word = true')
    assert ended.code == 2 and "must be text" in ended.err


def test_watching_takes_what_arrives(ran, monkeypatch):
    passes = iter([lambda: settled(Path("c.star"), "c"), lambda: None])

    def sleep(seconds: float) -> None:
        change = next(passes, None)
        if change is None:
            raise KeyboardInterrupt
        change()

    monkeypatch.setattr(workflow.time, "sleep", sleep)
    ended = go(more="--watch 1")
    assert ended.code == 130
    assert ran == ["first", "second"] * 2 and Path("second/joined.star").read_text() == "abc!"
    assert ended.out.count("waiting for new files") == 1


def test_watching_takes_what_arrives_while_a_job_runs(ran, monkeypatch):
    """Not in that pass, whose files are settled by then, but in the next."""
    join = registry.load("join").run

    def run(params: CopyParams) -> None:
        if len(ran) == 0:
            settled(Path("late.star"), "late")
        join(params)

    def sleep(seconds: float) -> None:
        seen.append(Path("second/joined.star").read_text())
        if len(seen) == 2:
            raise KeyboardInterrupt

    seen: list[str] = []
    monkeypatch.setattr(registry.load("join"), "run", run)
    monkeypatch.setattr(workflow.time, "sleep", sleep)
    assert go(CHAIN.replace("?.star", "*.star"), "--watch 1").code == 130
    assert seen == ["ab!", "ablate!"] and ran == ["first", "second"] * 2


MOVIES = """
[[step]]
job = "import"
inputs = "*.tif"
angpix = 2.0
[[step]]
job = "motion"
micrographs = "{import}/movies.star"
dose_weighting = false
patch_x = 1
patch_y = 1
threads = 1
"""


def test_watching_looks_again_at_a_movie_that_was_cut_off(tmp_path, monkeypatch):
    """At rest it is left out, by import or, where only pixels are spoilt, by motion; whole, it is taken."""
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.chdir(tmp_path)
    frames = np.random.default_rng(1).poisson(3, (4, 128, 128)).astype(np.uint8)
    tifffile.imwrite("a.tif", frames, photometric="minisblack", compression="lzw")
    whole = Path("a.tif").read_bytes()
    with tifffile.TiffFile("a.tif") as file:
        start, length = file.pages[2].dataoffsets[0], file.pages[2].databytecounts[0]
    spoilt = whole[:start] + b"\xff" * length + whole[start + length :]

    def put(name: str, content: bytes) -> None:
        Path(name).write_bytes(content)
        os.utime(name, (time.time() - 100 - len(seen),) * 2)

    def done() -> tuple[str, ...]:
        return tuple(sorted(path.stem for path in Path("motion").glob("?.mrc")))

    seen: list[tuple[str, ...]] = []
    for name, content in {"a": whole, "b": whole[: len(whole) // 2], "c": spoilt}.items():
        put(f"{name}.tif", content)

    def sleep(seconds: float) -> None:
        seen.append(done())
        if len(seen) == 3:
            raise KeyboardInterrupt
        put("c.tif" if len(seen) == 1 else "b.tif", whole)

    monkeypatch.setattr(workflow.time, "sleep", sleep)
    assert go(MOVIES, "--watch 1").code == 130
    assert seen == [("a",), ("a", "c"), ("a", "b", "c")]


def test_a_page_tells_of_all_steps(ran):
    assert "report: flow_report.html" in go().out
    page = Path("flow_report.html").read_text()
    assert "first → second" in page and "join a.star b.star --o first" in page


def test_watching_begins_before_anything_is_there(ran, monkeypatch):
    def sleep(seconds: float) -> None:
        if Path("first").exists():
            raise KeyboardInterrupt
        settled(Path("late.dat"), "x")

    monkeypatch.setattr(workflow.time, "sleep", sleep)
    ended = go(CHAIN.replace("?.star", "*.dat"), "--watch 1")
    assert "waiting: step first: *.dat: no file is called so" in ended.out
    assert Path("second/joined.star").read_text() == "x!"


def test_watching_waits_for_half_written_files(ran, monkeypatch):
    """A file that has just changed is no input yet: not when it is the only one, and not beside others."""
    for path in Path().glob("?.star"):
        path.unlink()
    Path("a.star").write_text("hal")
    seen = []

    def sleep(seconds: float) -> None:
        seen.append(Path("second/joined.star").read_text() if ran else "")
        match len(seen):
            case 1:
                settled(Path("a.star"), "half and half")
            case 2:
                Path("b.star").write_text("hal")
            case 3:
                settled(Path("b.star"), ", done")
            case 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(workflow.time, "sleep", sleep)
    ended = go(more="--watch 1")
    assert seen == ["", "half and half!", "half and half!", "half and half, done!"]
    assert "waiting: step first: ?.star: what is there may still be written" in ended.out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = [", "flow.toml: not TOML"),
        ("threads = 1", "no [[step]] in it"),
        ('[[step]]\nname = "x"', "step 1 (x): job = ... is missing"),
        ('[[step]]\njob = "clas2d"', "no such job: clas2d; there are align2d"),
        ('[[step]]\njob = "run"', "no such job: run"),
        ('[[step]]\njob = "join"', "tables is missing: files to join"),
        ('[[step]]\njob = "join"\ntables = "a.star"\nwrod = "x"', "wrod: join has no such option here"),
        ('[[step]]\njob = "join"\ntables = "a.star"\no = "x"', "o: join has no such option here"),
        ('[[step]]\njob = "join"\ntables = "a.star"\nthreads = 0', "--threads 0: must be at least 1"),
        ('[[step]]\njob = "join"\ntables = "a.star"\nthreads = "many"', "--threads 'many': must be a whole number"),
        ('[[step]]\njob = "join"\ntables = "a.star"\nthreads = 1.5', "--threads 1.5: must be a whole number"),
        ('[[step]]\njob = "join"\ntables = "a.star"\nthreads = true', "--threads True: must be a whole number"),
        ('[[step]]\njob = "class2d"\nparticles = "a.star"\nctf = "no"', "--ctf 'no': must be true or false"),
        ('[[step]]\njob = "class2d"\nparticles = ["a.star"]', "must be a file"),
        ('[[step]]\njob = "join"\ntables = "a\\u0000b"', "must be a file"),
        ('[[step]]\njob = ["join"]', "no such job: ['join']"),
        ('[[step]]\njob = "status"', "no such job: status"),
        ("step = [1, 2]", "step 1 (?): not a table"),
        (CHAIN.replace("{first}", "{first.x}"), "not the name of a step before"),
        ('[[step]]\njob = "join"\ntables = "{later}/x"', "{later}/x: {later} is not the name of a step before"),
        ('[[step]]\njob = "join"\ntables = "{join:>3000000000}"', "is not the name of a step before"),
        (CHAIN.replace("{first}", "{first.data}"), "not the name of a step before"),
        ("a = " + "[" * 60_000, "nested too deeply"),
        ('[[step]]\njob = "join"\nname = "../x"\ntables = "a.star"', "letters, digits"),
        ('[[step]]\njob = "join"\ntables = "a.star"\nupdate = 3', "of a job that can begin with classes"),
        ('[[step]]\njob = "class2d"\nparticles = "a.star"\nupdate = "x"', "update = ...: a number"),
        (CHAIN.replace('"second"', '"first"'), "step 2 (first): a step before is called so"),
        (CHAIN.replace("threads", "thraeds"), "no step has an option thraeds"),
        (CHAIN.replace('"?.star"', '"none*.star"'), "step first: none*.star: no file is called so"),
    ],
)
def test_what_is_wrong_is_told_before_the_work_starts(ran, text, said):
    ended = go(text)
    assert ended.code == 2 and said in ended.err and ran == []


def numbers(folder: str, last: str) -> np.ndarray:
    return read_star(f"{folder}/{last}_data.star").table("particles").integers("rlnClassNumber")


CLASSES = """
[[step]]
job = "simulate"
inputs = ["{model}"]
particles = 60
box = 32
snr = 1.0
[[step]]
job = "class2d"
name = "classes"
particles = "{{simulate}}/particles.star"
k = 3
iter = 3
threads = 1
"""


def test_classes_go_on_where_they_were_stopped_and_old_ones_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stub_report(monkeypatch)
    text = CLASSES.replace("{model}", str(Path(workflow.__file__).parents[1] / "data/ribosome70S.mrc"))
    text = text.replace("{{", "{").replace("}}", "}")
    assert go(text).code == 0
    whole = Path("classes/run_it003_data.star").read_bytes()
    for path in Path("classes").glob("run_it003_*"):
        path.unlink()
    state = workflow.State(Path(".flow_done.json"))
    step = workflow.read_steps(Path("flow.toml"))[1]
    state.note(step, state.read()["classes"]["mark"], ended=False)  # as a kill leaves it
    assert "--continue classes" in go(text).out
    assert Path("classes/run_it003_data.star").read_bytes() == whole
    assert go(text.replace("k = 3", "k = 2")).code == 0
    assert Path("classes.1/run_it003_data.star").read_bytes() == whole
    assert set(np.unique(numbers("classes", "run_it003"))) <= {1, 2}


def test_more_particles_update_the_classes_that_there_are(tmp_path, monkeypatch):
    """Class c stays class c: particles that were there keep their classes, mostly, which a new run would shuffle."""
    monkeypatch.chdir(tmp_path)
    stub_report(monkeypatch)
    whole = ParticleSet(n=400)
    images = whole.images()
    (tmp_path / "set").mkdir()

    def written(n: int) -> None:
        part = ParticleSet(n=n)
        names = [f"{i + 1:06d}@set/stack.mrcs" for i in range(n)]
        write_stack(tmp_path / "set/stack.mrcs", images, PIXEL_A)
        columns = {name: values[:n] for name, values in whole.table().items()}
        part.write_table(tmp_path / "set", **{**columns, "rlnImageName": names})

    text = '[[step]]\njob = "class2d"\nparticles = "set/particles.star"\nk = 4\niter = 10\nthreads = 1\nupdate = 4\n'
    written(300)
    assert go(text).code == 0
    before = numbers("class2d", "run_it010")
    written(400)
    ended = go(text)
    assert ended.code == 0 and "begins with the classes that it had, now in class2d.1" in ended.out
    after = numbers("class2d", "run_it004")
    assert len(after) == 400 and (after[:300] == before).mean() > 0.8
    assert purity(after - 1, whole.label) > purity(before - 1, whole.label[:300]) - 0.05


@pytest.mark.parametrize("renamed", [False, True])
def test_an_update_that_is_killed_before_its_job_begins_is_an_update_still(ran, monkeypatch, renamed):
    """Between the note of what is to happen and the job's own record: before the folder is moved, or after."""
    begun: list[tuple[Path | None, int | None, Path | None]] = []

    def run(params: UpdateParams) -> None:
        begun.append((params.ref, params.iter, params.continue_))
        params.o.mkdir(exist_ok=True)
        (params.o / "job.json").write_text("{}")

    module = ModuleType("update_job")
    module.SUMMARY, module.Params, module.run = "classify", UpdateParams, run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "update_job", module)
    monkeypatch.setitem(registry.JOBS, "classify", "update_job")
    text = '[[step]]\njob = "classify"\nname = "c"\ntable = "a.star"\nupdate = 2\n'
    assert go(text).code == 0
    settled(Path("a.star"), "more")
    killed = RuntimeError("killed")

    def kill(*_: object) -> None:
        raise killed

    with monkeypatch.context() as patched:
        patched.setattr(module, "run", kill) if renamed else patched.setattr(Path, "rename", kill)
        with pytest.raises(RuntimeError):
            go(text)
    assert Path("c.1").exists() == renamed
    assert go(text).code == 0
    assert begun == [(None, None, None), (Path("c.1"), 2, None)]
    assert go(text).code == 0 and len(begun) == 2

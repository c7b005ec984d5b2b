"""A run that is stopped, however and whenever, goes on to the same bits."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.runs import STOPPED_BY_CRASH, assert_same_files, child, crash, polarice, stub_report, wait_for
from jobs.sets import ParticleSet
from polarice.io.star import read_star
from polarice.report import Report, read_history
from polarice.runs.checkpoint import checkpoints

ITERATIONS = 3
RUN = f"class2d particles.star --k 4 --iter {ITERATIONS} --particle-diameter 50 --threads 1"
GO_ON = "class2d --continue out"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with particles and, in `out`, a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("restart")
    ParticleSet(n=120, box_px=24).write(folder)
    assert crash(f"{RUN} --o out", folder) == 0
    return folder


@pytest.fixture
def place(whole, tmp_path, monkeypatch) -> Path:
    """The same particles in a working directory of one's own."""
    for name in ("particles.star", "stack.mrcs"):
        shutil.copy2(whole / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    stub_report(monkeypatch)
    return tmp_path


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def assert_same_end(whole: Path, place: Path, number: int = ITERATIONS) -> None:
    assert_same_files(place / "out", whole / "out", number)
    assert temporaries(place / "out") == []
    figures = [
        [{name: value for name, value in row.items() if name != "seconds"} for row in read_history(folder)]
        for folder in (place / "out", whole / "out")
    ]
    assert figures[0] == figures[1] and len(figures[0]) == number


def test_the_same_seed_gives_the_same_bits(whole, place):
    assert crash(f"{RUN} --o out", place) == 0
    for number in range(1, ITERATIONS + 1):
        assert_same_files(place / "out", whole / "out", number)


def test_another_seed_gives_another_answer(whole, place):
    assert polarice(f"{RUN} --o out --seed 2").code == 0
    last = f"run_it{ITERATIONS:03d}_classes.mrcs"
    assert (place / "out" / last).read_bytes() != (whole / "out" / last).read_bytes()


@pytest.mark.parametrize("seconds", [0.02, 0.2, 0.5])
def test_kill_at_any_moment(whole, place, seconds):
    process = child(f"{RUN} --o out", place)
    wait_for(lambda: (place / "out/job.json").exists())
    time.sleep(seconds)
    process.kill()  # which is no error where it has ended already
    process.join()
    if process.exitcode == -signal.SIGKILL:
        assert crash(GO_ON, place) == 0
    assert_same_end(whole, place)


def test_kill_again_and_again(whole, place):
    """Of a run that is killed in every second iteration, nothing is lost and nothing done wrong."""
    line, kills = f"{RUN} --o out", 0
    while (code := crash(line, place, ("os.replace", 12))) == STOPPED_BY_CRASH:
        line, kills = GO_ON, kills + 1
    assert code == 0 and kills >= 2
    assert_same_end(whole, place)


# job.json is the first file renamed, then five of RELION, the history and the checkpoint of each iteration (the
# history only once: lines are appended to it)
@pytest.mark.parametrize("at", [1, 2, 4, 6, 7, 8, 9, 13, 14, 20])
def test_a_kill_while_any_file_is_written(whole, place, at):
    assert crash(f"{RUN} --o out", place, ("os.replace", at)) == STOPPED_BY_CRASH
    if at == 1:  # not even job.json was there
        assert temporaries(place / "out") and not (place / "out/job.json").exists()
        assert crash(f"{RUN} --o out", place) == 0
    else:
        assert crash(GO_ON, place) == 0
    assert_same_end(whole, place)


def test_a_kill_between_checkpoint_and_report_leaves_but_the_report_to_do(whole, place, monkeypatch):
    """The page shows what it would have shown, and no iteration is done again, nor touched."""
    pages: list[Report] = []
    monkeypatch.setattr("polarice.report.write_report", lambda _, report, *__: pages.append(report) or "page")
    assert polarice(f"{RUN} --o out").code == 0
    before = {path.name: path.stat().st_mtime_ns for path in (place / "out").glob("run_it*")}
    again = polarice(GO_ON)
    assert again.code == 0 and f"going on after iteration {ITERATIONS} of {ITERATIONS}" in again.err
    assert {path.name: path.stat().st_mtime_ns for path in (place / "out").glob("run_it*")} == before
    one, two = (_arrays(page.iteration) for page in pages)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)


def _arrays(one: Any, root: str = "") -> dict[str, Any]:
    """All that a frozen dataclass and those in it hold, but for times."""
    found: dict[str, Any] = {}
    for each in fields(one):
        value = getattr(one, each.name)
        if is_dataclass(value):
            found |= _arrays(value, f"{root}{each.name}.")
        elif each.name != "seconds":
            found[f"{root}{each.name}"] = value
    return found


def test_going_on_from_a_named_iteration(whole, place):
    shutil.copytree(whole / "out", place / "out")
    for name in ("model", "optimiser", "classes"):  # nothing of theirs is read
        (place / f"out/run_it002_{name}.{'mrcs' if name == 'classes' else 'star'}").touch()
    ended = polarice("class2d --continue out/run_it002_optimiser.star")
    assert ended.code == 0 and "going on after iteration 2 of 3" in ended.err
    assert_same_files(place / "out", whole / "out", ITERATIONS)


def test_a_checkpoint_that_is_gone_is_said_and_nothing_is_lost(whole, place):
    shutil.copytree(whole / "out", place / "out")
    for number in (1, 2):
        (place / f"out/run_it{number:03d}_polarice.npz").unlink()
    before = sorted(path.name for path in (place / "out").iterdir())
    ended = polarice("class2d --continue out/run_it002_optimiser.star")
    assert ended.code == 2 and "no checkpoint of iteration 2 or before it is in out" in ended.err
    assert sorted(path.name for path in (place / "out").iterdir()) == before


def test_two_processes_in_one_folder(whole, place):
    """The second, be it the same command or one that goes on, is told so, and leaves everything as it is."""
    first = child(f"{RUN} --o out", place)
    wait_for(lambda: (place / "out/run_it001_polarice.npz").exists())
    os.kill(first.pid, signal.SIGSTOP)
    before = {path.name: path.read_bytes() for path in (place / "out").iterdir()}
    try:
        ended = [polarice(GO_ON), polarice(f"{RUN} --o out --seed 2")]
        assert before == {path.name: path.read_bytes() for path in (place / "out").iterdir()}
    finally:
        os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert [end.code for end in ended] == [2, 2] and first.exitcode == 0
    assert ended[0].err == (
        "polarice class2d: error: out: another process is at work there; wait for its end, or choose another folder "
        "with --o\n"
    )
    assert_same_end(whole, place)


def test_a_run_that_another_has_overtaken_overwrites_nothing(place, monkeypatch):
    """Both found the folder empty; one has ended before the other claims it."""
    from polarice.runs import classification

    real = classification.open_particles

    def overtaken(*args: Any) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(classification, "open_particles", real)
            assert polarice(f"{RUN} --o out --iter 1").code == 0
        return real(*args)

    monkeypatch.setattr(classification, "open_particles", overtaken)
    ended = polarice(f"{RUN} --o out --seed 2")
    assert ended.code == 2 and "out: holds a run already" in ended.err
    assert json.loads(Path("out/job.json").read_text())["seed"] == 1


def test_a_damaged_checkpoint_is_named(whole, place):
    shutil.copytree(whole / "out", place / "out")
    path = place / "out/run_it003_polarice.npz"
    os.truncate(path, path.stat().st_size // 2)
    ended = polarice("class2d --continue out --iter 5")
    assert ended.code == 2 and ended.err.count("\n") == 1 and "out/run_it003_polarice.npz" in ended.err
    assert "remove it to go on from iteration 2" in ended.err
    path.unlink()
    assert polarice(f"{GO_ON}/run_it002_optimiser.star --iter {ITERATIONS}").code == 0
    assert_same_files(place / "out", whole / "out", ITERATIONS)


def test_a_damaged_checkpoint_that_is_named_takes_no_later_one_with_it(whole, place):
    shutil.copytree(whole / "out", place / "out")
    path = place / "out/run_it001_polarice.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    before = sorted(path.name for path in (place / "out").iterdir())
    ended = polarice(f"{GO_ON}/run_it001_optimiser.star")
    assert ended.code == 2 and "out/run_it001_polarice.npz: this checkpoint cannot be read" in ended.err
    assert sorted(path.name for path in (place / "out").iterdir()) == before
    assert len(read_history("out")) == ITERATIONS


@pytest.mark.parametrize("at", [1, 2, 6, 7, 8, 12, 14])
def test_a_kill_while_later_iterations_are_removed(whole, place, monkeypatch, at):
    """What still counts as done has all its files, and the run goes on to the same bits."""
    shutil.copytree(whole / "out", place / "out")
    left, unlink = at, Path.unlink

    def cut_off(path: Path, missing_ok: bool = False) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", cut_off)
        assert polarice(f"{GO_ON}/run_it001_optimiser.star").code == (130 if left == 0 else 0)
    for number in checkpoints(place / "out"):
        assert_same_files(place / "out", whole / "out", number)
    if left == 0:
        polarice(GO_ON)  # which has nothing to do where nothing was removed
    assert_same_files(place / "out", whole / "out", ITERATIONS)


def test_a_folder_that_has_become_read_only(whole, place, monkeypatch):
    shutil.copytree(whole / "out", place / "out")

    def refused(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refused)
        ended = polarice(f"{GO_ON}/run_it001_optimiser.star")
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert "no permission to write out/run_it003_polarice.npz; choose another folder or change its" in ended.err


def test_a_finished_run_says_so_and_takes_more_iterations(whole, place):
    assert crash(f"{RUN} --o out", place) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (place / "out").iterdir()}
    ended = polarice(GO_ON)
    assert ended.code == 2 and ended.err == (
        "polarice class2d: error: out: all 3 iterations are done; ask for more: "
        "polarice class2d --continue out --iter 13\n"
    )
    assert before == {path.name: path.stat().st_mtime_ns for path in (place / "out").iterdir()}
    assert crash(f"{GO_ON} --iter 5", place, ("os.replace", 10)) == STOPPED_BY_CRASH
    assert polarice(GO_ON).code == 0  # five are asked for from now on
    assert [row["number"] for row in read_history("out")] == [1, 2, 3, 4, 5]
    assert json.loads(Path("out/job.json").read_text())["params"]["iter"] == 5
    assert_same_files(place / "out", whole / "out", ITERATIONS)


def test_more_iterations_than_the_default_and_as_many_as_it(whole, place):
    """What stands on the command line counts, be it the default or not."""
    shutil.copytree(whole / "out", place / "out")
    assert crash(f"{GO_ON} --iter 30", place, ("os.replace", 3)) == STOPPED_BY_CRASH
    assert json.loads(Path("out/job.json").read_text())["params"]["iter"] == 30


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--k 7", "--k 7: a run that goes on keeps what it began with (4)"),
        ("--precision tf32", "--precision tf32: a run that goes on keeps what it began with (auto)"),
        ("--seed 3", "--seed 3: a run that goes on keeps what it began with (1)"),
        ("--no-ctf", "error: --no-ctf: a run that goes on keeps what it began with (--ctf)"),
        ("--o elsewhere", "--o elsewhere: a run that goes on keeps what it began with (out)"),
        ("other.star", "particles other.star: a run that goes on keeps what it began with (particles.star)"),
    ],
)
def test_what_cannot_change_is_refused(whole, place, words, message):
    shutil.copytree(whole / "out", place / "out")
    ended = polarice(f"{GO_ON} {words} --iter 5")
    assert ended.code == 2 and message in ended.err
    assert read_history("out") == read_history(whole / "out")


def test_what_may_be_said_again(whole, place):
    shutil.copytree(whole / "out", place / "out")
    assert polarice(f"{GO_ON}/run_it002_optimiser.star particles.star --o ./out --k 4 --threads 1").code == 0
    assert_same_files(place / "out", whole / "out", ITERATIONS)


@pytest.mark.parametrize(
    ("prepare", "words", "message"),
    [
        (lambda: None, "class2d --continue nowhere", "--continue nowhere: no such file or folder"),
        (lambda: Path("empty").mkdir(), "class2d --continue empty", "job.json: not found; empty is not the folder"),
        (lambda: None, "align2d --continue out", "out: this is a run of class2d; go on with polarice class2d"),
        (lambda: Path("out/job.json").write_text("{"), GO_ON, "job.json: not readable as JSON"),
        (lambda: Path("out/job.json").write_text("[]"), GO_ON, "job.json: holds no parameters"),
        (
            lambda: Path("out/job.json").write_text('{"job": "class2d", "params": {"k": "x", "particles": "a"}}'),
            GO_ON,
            "out/job.json: parameters that make no sense",
        ),
        (lambda: _spoil("stack.mrcs"), GO_ON, "stack.mrcs: changed since the run in out began; start anew with --o"),
        (lambda: _spoil("particles.star"), GO_ON, "particles.star: changed since the run in out began; start anew"),
        (lambda: Path("stack.mrcs").unlink(), GO_ON, "image stack stack.mrcs not found; looked in"),
        (lambda: Path("particles.star").unlink(), GO_ON, "particles.star: not found; the run in out was started in"),
    ],
)
def test_what_cannot_go_on_says_why(whole, place, prepare, words, message):
    assert crash(f"{RUN} --o out", place) == 0
    prepare()
    ended = polarice(f"{words} --iter 4")
    assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1
    assert [row["number"] for row in read_history("out")] == [1, 2, 3]


def _spoil(name):
    """The same size, and another last byte."""
    content = bytearray(Path(name).read_bytes())
    content[-2] ^= 1
    Path(name).write_bytes(content)


def _touched(project):
    for path in project.rglob("*"):
        os.utime(path)
    return project


def _copied(project):
    shutil.copytree(project, project.with_name("copied"), copy_function=shutil.copyfile)
    shutil.rmtree(project)
    return project.with_name("copied")


@pytest.mark.parametrize("change", [_touched, _copied, lambda project: project.rename(project.with_name("moved"))])
@pytest.mark.parametrize("words", ["--o out", "--o out --image-dir ../project/images"])
def test_the_same_content_is_the_same_file(whole, tmp_path, monkeypatch, change, words):
    """Whatever its time is, and wherever the project lies; a new place of the images may be told."""
    project = tmp_path / "project"
    shutil.copytree(whole, project, ignore=shutil.ignore_patterns("out"))
    if "--image-dir" in words:
        (project / "images").mkdir()
        (project / "stack.mrcs").rename(project / "images/stack.mrcs")
    assert crash(f"{RUN} {words}", project) == 0
    project = change(project)
    monkeypatch.chdir(project)
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")  # the run is found from here, and its table from the run
    more = f"--image-dir {project}/images" if "--image-dir" in words else ""
    ended = polarice(f"class2d --continue ../out --iter {ITERATIONS + 1} {more}")
    assert ended.code == 0, ended.err
    assert checkpoints(Path("../out"))[-1] == ITERATIONS + 1


def test_control_c_says_how_to_go_on(whole, place):
    words = [sys.executable, "-m", "polarice", *RUN.split(), "--o", "out"]
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are born deaf to it
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=heeded)
    wait_for(lambda: (place / "out/run_it001_polarice.npz").exists())
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert said.splitlines()[-1] == "polarice class2d: stopped; to go on: polarice class2d --continue out"
    assert temporaries(place / "out") == []
    assert crash(GO_ON, place) == 0
    assert_same_end(whole, place)


def test_control_c_while_looking_at_the_images(whole, place):
    process = child(f"{RUN} --o out", place, ("polarice.align.image_statistics._faults", 10**9))
    wait_for(lambda: (place / "out/job.json").exists())
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert "to go on: polarice class2d --continue out" in (place / "stderr").read_text()
    assert crash(GO_ON, place) == 0
    assert_same_end(whole, place)


def test_align2d_goes_on_too(place):
    line = "align2d particles.star --k 3 --iter 3 --particle-diameter 50 --threads 1 --o out"
    shutil.copytree(place, place / "other")
    assert crash(line, place / "other") == 0
    assert crash(line, place, ("os.replace", 11)) == STOPPED_BY_CRASH
    assert crash("align2d --continue out", place) == 0
    assert_same_files(place / "out", place / "other/out", 3)
    classes = read_star("out/run_it003_data.star").table("particles").integers("rlnClassNumber")
    assert np.bincount(classes, minlength=4)[1:].min() > 0

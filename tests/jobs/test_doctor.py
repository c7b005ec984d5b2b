"""doctor and example: what is wrong with a machine is found and a remedy given; the example runs as it is."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from polarice.cli import first_words, main
from polarice.jobs import doctor, example
from polarice.jobs.workflow import read_steps
from polarice.runs import installation, machine
from polarice.runs.machine import GIB, Finding


def doctored(words, capsys) -> tuple[int, str]:
    """Exit code and what was printed."""
    try:
        code = main(["doctor", *words])
    except SystemExit as left:
        code = left.code
    return code, capsys.readouterr().out


def test_a_machine_that_is_ready_gives_code_0_and_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "LEAST_SPACE", 1 << 20)
    monkeypatch.setattr(machine, "LEAST_MEMORY", 1 << 20)
    monkeypatch.setattr(machine, "LEAST_SHARED", 1 << 10)
    code, out = doctored(["--json", "--no-ranks", "--threads", "1", "--folder", str(tmp_path)], capsys)
    said = json.loads(out)
    problems = [each for each in said["findings"] if each["verdict"] == "problem"]
    assert (code, said["ok"], problems) == (0, True, [])
    by_subject = {each["subject"]: each for each in said["findings"]}
    assert by_subject["cores"]["text"].endswith("--threads is 1")
    assert f"Python {sys.version.split()[0]}" in by_subject["versions"]["text"]
    assert "file locks" in by_subject and "two ranks" not in by_subject
    assert list(tmp_path.iterdir()) == []


def test_a_problem_gives_code_1_and_its_remedy(tmp_path, capsys):
    missing = tmp_path / "missing"
    code, out = doctored(["--no-ranks", "--threads", "1024", "--folder", str(missing)], capsys)
    assert code == 1
    cores = len(os.sched_getaffinity(0))
    lines = out.splitlines()
    told = next(at for at, line in enumerate(lines) if line.startswith("problem cores"))
    assert f"-> give --threads {cores}" in "".join(lines[told : told + 3])
    assert "problem working folder" in " ".join(out.split()) and "No such file or directory" in out
    assert "need mending" in lines[-1] and max(map(len, lines)) <= machine_columns()


def machine_columns() -> int:
    return doctor._terminal()[0]


def test_a_control_group_is_held_against_threads_and_memory(tmp_path):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text(str(4 * GIB))
    assert machine.cgroup_cores(tmp_path) == 1.5 and machine.cgroup_memory(tmp_path) == 4 * GIB
    found = machine.look_at_cores(2 if machine.usable_cores() > 1 else None, {}, 0.5)
    assert found.verdict in ("problem", "note") and found.remedy == "give --threads 1"
    assert machine.look_at_cores(1, {}, 1.5).verdict == "OK"
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cgroup_cores(tmp_path) is None and machine.cgroup_memory(tmp_path) is None
    old = tmp_path / "old"
    (old / "cpu").mkdir(parents=True)
    (old / "cpu/cpu.cfs_quota_us").write_text("300000")
    (old / "cpu/cpu.cfs_period_us").write_text("100000")
    assert machine.cgroup_cores(old) == 3.0


def test_memory_that_a_control_group_holds_is_told_in_memory_to_give(monkeypatch):
    monkeypatch.setattr(machine, "_meminfo", lambda: {"MemTotal": 64 * GIB, "MemAvailable": 60 * GIB})
    assert machine.look_at_memory(16 * GIB) == Finding(
        "memory", "note", "64.0 GiB, of which 60.0 are free; the control group may take 16.0",
        "give --memory 15.0: jobs reckon with all of the machine's",
    )  # fmt: skip
    assert machine.look_at_memory(1 * GIB).verdict == "problem"
    assert machine.look_at_memory(64 * GIB).verdict == "OK"


@pytest.mark.parametrize(
    ("environment", "verdict", "remedy"),
    [
        ({}, "OK", ""),
        ({"OMP_NUM_THREADS": "4"}, "OK", ""),
        ({"OMP_NUM_THREADS": "1"}, "note", "give --threads 1 where that is meant"),
        ({"OMP_THREAD_LIMIT": "2"}, "problem", "unset OMP_THREAD_LIMIT, or give --threads 2"),
        ({"OMP_PROC_BIND": "close"}, "note", "unset OMP_PROC_BIND"),
        ({"OMP_PROC_BIND": "false"}, "OK", ""),
    ],
)
def test_variables_of_openmp_are_held_against_threads(environment, verdict, remedy):
    (found,) = machine.look_at_thread_limits(4, environment)
    assert (found.verdict, found.remedy) == (verdict, remedy)


def test_slurm_that_grants_less_is_told():
    found = machine.look_at_cores(None, {"SLURM_CPUS_PER_TASK": "0"}, 1e9)
    assert (found.verdict, found.remedy) == ("note", "give --threads 0")


def test_a_small_dev_shm_is_a_problem(tmp_path, monkeypatch):
    assert machine.look_at_shared_memory(tmp_path / "none").verdict == "problem"
    monkeypatch.setattr(machine, "LEAST_SHARED", 1 << 62)
    found = machine.look_at_shared_memory(tmp_path)
    assert found.verdict == "problem" and "--shm-size" in found.remedy


def test_what_killed_ranks_left_is_told_and_what_is_in_use_is_not(tmp_path):
    import mmap

    (tmp_path / "mpich_shm_1_0").write_bytes(bytes(8192))
    (tmp_path / "mpich_shm_2_0").write_bytes(bytes(8192))
    with open(tmp_path / "mpich_shm_2_0", "r+b") as stream, mmap.mmap(stream.fileno(), 0):
        assert machine.left_by_ranks(tmp_path) == [tmp_path / "mpich_shm_1_0"]
    found = machine.look_at_shared_memory(tmp_path)
    assert found.verdict == "note" and "; 2 segments of killed MPI ranks" in found.text


def test_a_folder_without_locks_is_told(tmp_path, monkeypatch):
    import errno
    import fcntl

    def refused(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    found = {each.subject: each for each in machine.look_at_folder(tmp_path)}
    assert found["file locks"].verdict == "note" and "a note in the folder" in found["file locks"].text
    monkeypatch.setattr(fcntl, "flock", lambda handle, how: None)  # a file system that says yes to everybody
    found = {each.subject: each for each in machine.look_at_folder(tmp_path)}
    assert found["file locks"].verdict == "problem"
    monkeypatch.setattr(machine, "_mount_of", lambda folder: ("lustre", "rw,localflock"))
    found = {each.subject: each for each in machine.look_at_folder(tmp_path)}
    assert found["file locks"].verdict == "problem" and "-o flock" in found["file locks"].remedy


def test_a_server_whose_clock_is_off_is_a_problem(tmp_path, monkeypatch):
    real = machine.time.time
    monkeypatch.setattr(machine.time, "time", lambda: real() - 100)
    found = {each.subject: each for each in machine.look_at_folder(tmp_path)}
    assert found["clock"].verdict == "problem" and "+100 s" in found["clock"].text


def test_packages_that_are_missing_or_old_are_named(monkeypatch):
    wanted = ["numpy>=999", "no-such-package>=1", "mpi4py>=999; extra == 'mpi'", "scipy"]
    monkeypatch.setattr(installation.importlib.metadata, "requires", lambda name: wanted)
    found = installation.look_at_packages()
    assert found.verdict == "problem" and "no-such-package>=1 is missing" in found.text
    assert "is not >=999" in found.text and "mpi4py" not in found.text


def test_a_card_that_this_pytorch_cannot_use_is_a_problem(tmp_path, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    (tmp_path / "0000:01:00.0").mkdir()
    monkeypatch.setattr(installation, "CARDS", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", None)
    found = {each.subject: each for each in installation.look_at_torch()}
    assert found["GPU"].verdict == "problem" and "install PyTorch for CUDA" in found["GPU"].remedy
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = {each.subject: each for each in installation.look_at_torch()}
    assert found["GPU"].verdict == "note" and found["GPU"].remedy.startswith("unset CUDA_VISIBLE_DEVICES")


def test_two_ranks_meet_or_the_reason_is_said(tmp_path):
    mpirun = Path(sys.executable).with_name("mpirun")
    if not mpirun.exists():
        pytest.skip("no mpirun of the environment's own")
    assert installation.greet(str(mpirun)).verdict == "OK"
    broken = tmp_path / "mpirun"
    broken.write_text("#!/bin/sh\necho cannot resolve host >&2; exit 3\n")
    broken.chmod(0o755)
    found = installation.greet(str(broken))
    assert found.verdict == "problem" and found.text == "ended with code 3: cannot resolve host"
    broken.write_text("#!/bin/sh\necho ranks: 0\necho ranks: 0\n")  # each rank alone: another MPI's launcher
    assert installation.greet(str(broken)).verdict == "problem"


def test_alone_polarice_names_the_commands_to_begin_with(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out == first_words() and max(map(len, out.splitlines())) <= 90
    for command in ("doctor", "example first", "run first/workflow.toml"):
        assert f"  polarice {command} " in out


def test_the_example_is_whole_runs_and_never_replaces_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["example", "first"]) == 0
    assert capsys.readouterr().out.endswith("next: polarice run first/workflow.toml\n")
    assert {path.name for path in Path("first").iterdir()} == {*example.FILES, "workflow.toml"}
    assert [step.name for step in read_steps(Path("first/workflow.toml"))] == ["apoferritin", "simulate", "ribosome"]
    assert main(["example", "first"]) == 0 and "all were there" in capsys.readouterr().out
    Path("first/particles.star").write_text("mine")
    Path("first/README.md").unlink()
    assert main(["example", "first"]) == 2
    assert "first/particles.star: another file stands there" in capsys.readouterr().err
    assert Path("first/particles.star").read_text() == "mine" and not Path("first/README.md").exists()
    assert main(["example", "first/particles.star"]) == 2


def test_the_workflow_of_the_example_runs(tmp_path, monkeypatch):
    """As it is, but with fewer iterations, particles and classes."""
    from polarice.io.particles import read_particles

    monkeypatch.chdir(tmp_path)
    assert main(["example"]) == 0
    path = tmp_path / "polarice_example/workflow.toml"
    text = path.read_text().replace("iter = 15", "iter = 2").replace("600", "60").replace("k = 12", "k = 3")
    path.write_text("threads = 1\n" + text)
    assert main(["run", str(path)]) == 0
    assert len(read_particles(path.parent / "apoferritin/run_it002_data.star", path.parent).particles) == 550
    assert len(read_particles(path.parent / "ribosome/run_it002_data.star", path.parent).particles) == 60


def test_a_job_reckons_with_the_memory_of_its_control_group(monkeypatch):
    import torch

    from polarice.runs import resources

    cpu = torch.device("cpu")
    monkeypatch.setattr(machine, "cgroup_memory", lambda: 2 * GIB)
    assert resources._all_bytes(cpu) == 2 * GIB
    monkeypatch.setattr(machine, "cgroup_memory", lambda: 1 << 59)
    assert 2 * GIB < resources._all_bytes(cpu) < 1 << 59

"""Batch jobs under a real Slurm that the tests start on this machine and end."""

from __future__ import annotations

import subprocess
import time

import pytest

from jobs.runs import polarice, wait_for
from jobs.sets import ParticleSet
from polarice.jobs.batch import slurm as scheduler
from polarice.report.history import read_history
from slurm import slurm, why_not

pytestmark = pytest.mark.slow
JOB = "class2d particles.star --k 3 --threads 1 --seed 1"


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    """Slurm with two nodes of two cores."""
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    with slurm(folder, nodes=2) as environment, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", environment["SLURM_CONF"])
        yield


@pytest.fixture
def place(queue, tmp_path, monkeypatch):
    ParticleSet(n=300, box_px=32).write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def submitted(words: str, job: str) -> str:
    """The number of a job that `polarice cluster slurm` has submitted."""
    ended = polarice(f"cluster slurm --submit --hours 0.5 {words} -- {job}")
    assert ended.code == 0, ended.err
    return ended.out.rpartition("slurm ")[2].partition(";")[0]


def status(id: str) -> str:
    """The line of a job in `polarice status`."""
    ended = polarice("status")
    assert ended.code == 0
    return next(line for line in ended.out.splitlines() if line.startswith(f"slurm {id} "))


def shown(id: str, text: str) -> bool:
    return text in status(id)


def asked(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=30)


def test_two_ranks_on_two_nodes_are_queued_run_and_done(place):
    """What srun --mpi=pmi2 starts gives the classes that one process gives."""
    hog = subprocess.run(
        ["sbatch", "--parsable", "--nodes=2", "--exclusive", "--output=hog.log", "--wrap", "sleep 600"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    id = submitted("--nodes 2 --ranks 1 --cores 1", f"{JOB} --iter 6 --o out")
    assert shown(id, "PENDING")
    asked("scancel", hog)
    wait_for(lambda: shown(id, "RUNNING on node[1-2]"), 60)
    wait_for(lambda: shown(id, "done"), 120)
    assert shown(id, "iteration 6 of 6, done")
    assert scheduler.state(hog) == "cancelled"
    log = (place / f"class2d-out-{id}.log").read_text()
    assert "300 particles in 3 classes" in log and log.count("iteration 6/6") == 1  # rank 0 alone talks

    assert polarice(f"{JOB} --iter 6 --o alone").code == 0
    ours, alone = (read_history(place / folder)[-1] for folder in ("out", "alone"))
    assert ours["resolution_A"] == pytest.approx(alone["resolution_A"], rel=1e-3)


def test_a_job_that_is_cancelled_goes_on_when_it_is_submitted_again(place):
    words, job = "--nodes 1 --ranks 2 --cores 2", f"{JOB} --iter 300 --o out"
    id = submitted(words, job)
    wait_for(lambda: len(read_history(place / "out")) >= 5, 60)
    asked("scancel", id)
    wait_for(lambda: shown(id, "cancelled"), 60)
    done = len(read_history(place / "out"))
    again = submitted(words, job)
    wait_for(lambda: len(read_history(place / "out")) >= done + 5, 60)
    assert [each["number"] for each in read_history(place / "out")][: done + 5] == list(range(1, done + 6))
    asked("scontrol", "requeue", again)  # as after a node is lost
    wait_for(lambda: shown(again, "PENDING"), 60)
    done = len(read_history(place / "out"))
    time.sleep(4)  # until its processes are gone; Slurm itself waits for two minutes
    asked("scontrol", "update", f"JobId={again}", "StartTime=now")
    wait_for(lambda: len(read_history(place / "out")) >= done + 5, 40)
    wait_for(lambda: shown(again, "RUNNING on node1"), 10)
    asked("scancel", again)
    wait_for(lambda: shown(again, "cancelled"), 60)
    numbers = [each["number"] for each in read_history(place / "out")]
    assert numbers == list(range(1, len(numbers) + 1))  # nothing was lost, nothing done twice


def test_a_job_that_fails_and_one_that_runs_out_of_time_are_told(place):
    bad = submitted("--ranks 2 --cores 2", f"{JOB} --iter 5 --particle-diameter 1e7 --o bad")
    slow = submitted("--ranks 2 --cores 2 --hours 0.01", f"{JOB} --iter 999 --o slow")
    wait_for(lambda: shown(bad, "failed"), 60)
    wait_for(lambda: shown(slow, "timed out"), 150)
    assert 0 < len(read_history(place / "slow")) < 999

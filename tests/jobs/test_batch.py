"""Batch scripts, and what is known of submitted jobs; schedulers are stood in for by scripts of their names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.movie_sets import write_table
from jobs.runs import Ended, polarice, wait_for
from jobs.sets import ParticleSet
from polarice.jobs.batch import clock, estimated_hours, local, remembered

JOB = "class2d particles.star --k 2 --iter 2 --threads 1 --o out"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    ParticleSet(n=60, box_px=24).write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def stand_in(place: Path, name: str, script: str) -> None:
    path = place / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def lines(script: str, mark: str) -> list[str]:
    return [line.removeprefix(mark) for line in Path(script).read_text().splitlines() if line.startswith(mark)]


def test_a_script_for_slurm(place):
    words = "--nodes 3 --ranks 4 --cores 32 --gpus 4 --queue big --account em --name run1 --hours 1.5"
    ended = polarice(f"cluster slurm {words} -- {JOB}")
    assert ended.code == 0 and ended.out.startswith("run1.sh: 12 ranks on 3 nodes, 1.5 h\nnot submitted")
    assert lines("run1.sh", "#SBATCH ") == [
        "--job-name=run1", "--nodes=3", "--ntasks-per-node=4", "--cpus-per-task=8", "--time=01:30:00",
        "--output=run1-%j.log", "--requeue", "--gpus-per-node=4", "--partition=big", "--account=em",
    ]  # fmt: skip
    start = f"srun --mpi=pmi2 --kill-on-bad-exit=1 {sys.executable} -m polarice"
    assert lines("run1.sh", "exec ") == [f"{start} {JOB}"]
    assert lines("run1.sh", "  exec ") == [f"{start} class2d --continue out"]
    subprocess.run(["bash", "-n", "run1.sh"], check=True)


def test_a_script_for_pbs(place):
    assert polarice(f"cluster pbs --nodes 2 --cores 16 --queue long -- {JOB}").code == 0
    assert "-l select=2:ncpus=16:mpiprocs=2:ompthreads=8" in lines("class2d-out.sh", "#PBS ")
    assert "-l walltime=00:15:00" in lines("class2d-out.sh", "#PBS ")
    assert lines("class2d-out.sh", "exec ")[0].startswith("mpirun -n 4 -ppn 2 ")
    subprocess.run(["bash", "-n", "class2d-out.sh"], check=True)


def test_submitted_and_asked_after(place):
    stand_in(place, "sbatch", 'echo "4711;cluster"')
    stand_in(place, "squeue", 'echo "RUNNING on node[3-4]"; test "$3" = --jobs=4711')
    assert polarice("status").out.startswith("no job below this folder, and none submitted")
    assert polarice(f"cluster slurm --submit -- {JOB}").code == 0
    assert [(each.system, each.id, each.folder) for each in remembered()] == [("slurm", "4711", str(place))]
    stand_in(place, "qsub", "echo 12.server")
    stand_in(place, "qstat", "printf 'Job Id: 12.server\\n    job_state = R\\n    exec_host = n1/0*8+n2/0*8\\n'")
    assert polarice(f"cluster pbs --submit -- {JOB}").code == 0
    told = polarice("status").out.splitlines()
    assert "slurm 4711" in told[1] and "RUNNING on node[3-4]" in told[1]
    assert "pbs 12.server" in told[2] and "RUNNING on n1, n2" in told[2] and "class2d out" in told[2]
    with open(place / "state/polarice/submitted.jsonl", "a") as memory:
        memory.write(
            'damaged\n[]\n{"system": "slurm", "id": 3, "command": null, "folder": "", "out": "", "when": ""}\n'
        )
    assert len(polarice("status").out.splitlines()) == 3  # what can be read is told
    (place / "bin/squeue").unlink()
    assert "not known here" in polarice("status").out


def test_here_and_again(place):
    """Run to its end in the background; the same script then has nothing to do but says how more is done."""
    assert polarice(f"cluster local --ranks 1 --submit -- {JOB}").code == 0
    wait_for(lambda: "RUNNING" in polarice("status").out or (place / "out/report.html").exists(), 10)
    wait_for(lambda: "ended" in polarice("status").out, 60)
    assert "iteration 2 of 2, done" in polarice("status").out
    again = subprocess.run(["./class2d-out.sh"], capture_output=True, text=True)
    assert again.returncode == 2 and "all 2 iterations are done" in again.stderr


def test_each_job_has_a_script_of_its_own(place):
    for job in (JOB, JOB.replace("--o out", "--o Class2D/job002"), JOB.replace(" --o out", "")):
        assert polarice(f"cluster local -- {job}").code == 0
    assert {path.name for path in place.glob("*.sh")} == {"class2d-out.sh", "class2d-job002.sh", "class2d.sh"}


def test_a_script_is_written_again_for_its_own_folder_alone(place):
    for words in ("--ranks 1", "--ranks 2"):
        assert polarice(f"cluster local {words} --name run -- {JOB}").code == 0
    assert polarice(f"cluster local --name run -- {JOB} --seed 7").code == 0
    assert lines("run.sh", "exec ")[0].endswith("--seed 7")
    other = polarice(f"cluster local --name run -- {JOB.replace('--o out', '--o another')}")
    assert other.code == 2 and "is the script of another job" in other.err
    assert lines("run.sh", "exec ")[0].endswith("--seed 7")


def test_another_process_of_the_same_number_is_not_the_job():
    number, host = os.getpid(), os.uname().nodename
    began = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    assert local.state(f"{number}.{began}@{host}") == f"RUNNING on {host}"
    assert local.state(f"{number}.{int(began) - 1}@{host}") == "ended"
    assert local.state(f"{number}@{host}") == "ended"  # as earlier versions kept them: nobody knows
    assert local.state(f"{number}.{began}@elsewhere") == "started on elsewhere"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"cluster slurm --submit -- {JOB}", "sbatch is not on PATH; submit the script where it is"),
        ("cluster slurm -- clas2d x", "no such command: clas2d; name it after --"),
        ("cluster slurm", "the following arguments are required"),
        ("cluster slurm -- class2d nowhere.star", "nowhere.star"),
        ("cluster local -- class2d --o out", "class2d: error: the following arguments are required: particles"),
        ("cluster slurm -- class2d particles.star --iter x", "class2d: error: --iter x: must be a whole number"),
        ("cluster slurm -- class2d particles.star --k 0", "--k 0: must be 1 to"),
        ("cluster slurm -- sml particles.star --k 3xx", "--k 3xx: give a number, or of a map a grid such as 32x32"),
        ("cluster slurm --name a;b -- class2d particles.star", "--name 'a;b': letters, digits"),
    ],
)
def test_what_is_wrong_is_said(place, monkeypatch, line, message):
    monkeypatch.setenv("PATH", str(place / "bin"))
    ended: Ended = polarice(line)
    assert ended.code == 2 and message in ended.err
    assert "--submit" in line or not list(place.glob("*.sh"))


def test_time_to_ask_for(place):
    assert estimated_hours(JOB.split(), 64) == 0.25  # never less
    slow = estimated_hours(["class2d", "particles.star", "--k", "2", "--iter", "900"], 1)
    slower = estimated_hours(["class2d", "particles.star", "--k=100000", "--iter", "900"], 1)
    assert slower > slow and slower % 0.25 == 0
    assert clock(25.51) == "25:30:36"


def test_the_time_of_maps_and_of_micrographs_is_estimated(place):
    words = ["particles.star", "--iter", "900"]
    line, sheet = (estimated_hours(["sml", *words, "--k", k], 1) for k in ("2000000", "1000x2000"))
    assert line == sheet > 0.25
    assert estimated_hours(["deep2d", *words, "--k", "2000000", "--align-k", "100000", "--align-iter", "900"], 1) > line
    assert estimated_hours(["motion", "movies.star"], 1) == 24  # the table is still to be made
    write_table(place / "movies.star", [f"m{number}.tif" for number in range(40)])
    assert estimated_hours(["motion", "movies.star"], 2) == 1.0  # 40 times 45 s, 4 times that to be safe

"""Several ranks give what one gives; one that fails ends all, says so, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jobs.runs import ended, launched, polarice, wait_for
from jobs.sets import ParticleSet
from polarice.bench import kills
from polarice.bench.kills import SAME_AVERAGES, Campaign, ranks_in
from polarice.cli import main
from polarice.io.mrc import open_stack
from polarice.runs.checkpoint import checkpoints

MPIRUN = Path(sys.prefix) / "bin/mpirun"
ITERATIONS = 3
RUN = f"class2d particles.star --k 4 --iter {ITERATIONS} --particle-diameter 50 --threads 1 --o out"
KILLS = int(os.environ.get("POLARICE_KILLS", "12"))
TESTS = str(Path(__file__).parents[1])
GO_ON = "class2d --continue out"

pytest.importorskip("mpi4py")
pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun (the package mpich) is installed here")


def start(line: str, folder: Path, ranks: int, first: str = "", log: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """`polarice LINE` on so many ranks (0: without mpirun), its report a stub; each runs the statements `first`.

    log: an open file that takes all that is said."""
    script = f"{first}\nimport sys, jobs.runs; sys.exit(jobs.runs.with_stub(sys.argv[1:]))"
    words = [*([str(MPIRUN), "-n", str(ranks)] if ranks else []), sys.executable, "-c", script, *line.split()]
    return subprocess.Popen(
        words, cwd=folder, stdout=log, stderr=log, text=True, env={**os.environ, "PYTHONPATH": TESTS}
    )


def state(folder: Path, number: int) -> dict[str, np.ndarray]:
    with np.load(folder / f"run_it{number:03d}_polarice.npz") as stored:
        return dict(stored)


def assert_same_answer(a: Path, b: Path, out: str = "out", model: str = "field") -> None:
    """The same classes to rounding, every particle in the same one."""
    done = checkpoints(a / out)
    assert done
    for number in done:
        one, other = state(a / out, number), state(b / out, number)
        np.testing.assert_array_equal(one["pose.class_of"], other["pose.class_of"])
        np.testing.assert_allclose(one["pose.psi_deg"], other["pose.psi_deg"], atol=1e-3)
        np.testing.assert_allclose(one["pose.shift_px"], other["pose.shift_px"], atol=1e-3)
        scale = np.abs(other[f"model.{model}"]).max()
        assert np.abs(one[f"model.{model}"] - other[f"model.{model}"]).max() < 1e-4 * scale
        np.testing.assert_allclose(one["model.noise_power"], other["model.noise_power"], rtol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A folder with particles and a run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    ParticleSet(n=120, box_px=24).write(folder)
    code, _, said = ended(start(RUN, folder, 0))
    assert code == 0, said
    return folder


@pytest.fixture
def place(tmp_path) -> Path:
    ParticleSet(n=120, box_px=24).write(tmp_path)
    return tmp_path.resolve()


def test_three_ranks_give_what_one_gives(alone, place):
    code, out, err = ended(start(RUN, place, 3))
    assert code == 0, err
    assert_same_answer(place, alone)
    assert out.count("report:") == 1
    lines = err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"iteration {n}/{ITERATIONS}" for n in checkpoints(place / "out")
    ]
    assert {path.name for path in (place / "out").iterdir()} == {path.name for path in (alone / "out").iterdir()}


def test_a_rank_that_is_killed_ends_all_and_another_number_goes_on(alone, place):
    with launched(start(RUN, place, 4)) as process:
        wait_for(lambda: 1 in checkpoints(place / "out"), 60)
        victim = ranks_in(place)[2]
        os.kill(victim, signal.SIGKILL)
        since = time.monotonic()
        code, _, err = ended(process)
    assert time.monotonic() - since < 10
    assert code != 0
    assert f"polarice class2d: error: rank 2 on {os.uname().nodename}: process {victim} was killed" in err
    assert ranks_in(place) == {}
    code, _, err = ended(start(GO_ON, place, 2))
    assert code == 0, err
    assert_same_answer(place, alone)


def test_a_log_file_names_the_rank_after_the_launchers_last_words(place):
    """The launcher ends when its helpers do, and these when nobody holds their pipes; what it says last is in the file
    first, and must not be written over ours."""
    with open(place / "log", "w") as log, launched(start(RUN, place, 2, log=log.fileno())) as process:
        wait_for(lambda: 1 in checkpoints(place / "out"), 60)
        victim = ranks_in(place)[1]
        os.kill(victim, signal.SIGKILL)
        since = time.monotonic()
        assert process.wait(10) != 0
    assert time.monotonic() - since < 4  # less than what the hub waits for a launcher that does not end
    wait_for(lambda: f"rank 1 on {os.uname().nodename}: process {victim} was killed" in (place / "log").read_text(), 5)


MAP = "sml particles.star --k 3x3 --iter 4 --write-every 2 --particle-diameter 50 --threads 1 --o out"
FREE = f"{MAP} --refine-poses --average hard --price 1"
FEW = MAP.replace("3x3", "4x5") + " --rank 3"
BOTH = "deep2d particles.star --k 6 --iter 4 --align-k 4 --align-iter 2 --particle-diameter 50 --threads 1 --o out"


def written(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(exist_ok=True)
        given = ParticleSet(n=120, box_px=24)
        given.write(folder)
        given.write_table(folder, **given.aligned())


def test_a_map_of_three_ranks_is_that_of_one(tmp_path):
    """Poses free, averages of particles, four classes in register first: all that ranks make together."""
    one, three = tmp_path / "one", tmp_path / "three"
    written(one, three)
    for folder, ranks in ((one, 0), (three, 3)):
        code, out, err = ended(start(FREE, folder, ranks))
        assert code == 0, err
        assert out.count("report:") == 1 and err.count("4 classes brought into register") == 1
    assert_same_answer(three, one, model="coefficients")
    first, last = ParticleSet(n=120, box_px=24).pose(np.random.default_rng(0))[0], state(three / "out", 4)
    assert 0.1 < np.median(np.abs((last["pose.psi_deg"] - first + 180) % 360 - 180))  # they did move
    a, b = (open_stack(folder / "out/run_it004_classes.mrcs") for folder in (one, three))
    assert np.abs(a - b).max() < 1e-4 * np.abs(a).max()
    assert {path.name for path in (one / "out").iterdir()} == {path.name for path in (three / "out").iterdir()}
    assert json.loads((three / "out/usage.json").read_text())["ranks"] == 3


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_map_of_few_ways_on_several_ranks_is_that_of_one(ranks, tmp_path):
    one, several = tmp_path / "one", tmp_path / "several"
    written(one, several)
    for folder, number in ((one, 0), (several, ranks)):
        code, _, err = ended(start(FEW, folder, number))
        assert code == 0, err
        assert "the map varies in 3 ways" in err
    assert state(several / "out", 4)["model.coefficients"].shape[0] == 4
    assert_same_answer(several, one, model="coefficients")


def test_deep2d_goes_on_where_a_killed_rank_left_its_map(tmp_path):
    one, other = tmp_path / "one", (tmp_path / "other").resolve()
    written(one, other)
    code, _, err = ended(start(BOTH, one, 0))
    assert code == 0, err
    with launched(start(BOTH, other, 3)) as process:
        wait_for(lambda: (other / "out/sml/job.json").exists() or process.poll() is not None, 60)
        victim = ranks_in(other)[1]
        os.kill(victim, signal.SIGKILL)
        code, _, err = ended(process)
    assert code != 0 and f"polarice deep2d: error: rank 1 on {os.uname().nodename}: process {victim} was killed" in err
    assert ranks_in(other) == {}
    aligned = max(path.stat().st_mtime_ns for path in (other / "out/align2d").iterdir())
    code, out, err = ended(start("deep2d --continue out", other, 2))
    assert code == 0 and out.count("report of both:") == 1, err
    assert max(path.stat().st_mtime_ns for path in (other / "out/align2d").iterdir()) == aligned  # that was done
    assert_same_answer(other, one, "out/align2d")
    assert_same_answer(other, one, "out/sml", "coefficients")


# the second time that the last rank reads, the file has become shorter
SHORTER = """
import os
from polarice.io import stacks
whole, calls = os.preadv, []
def cut(*given):
    calls.append(1)
    return 0 if os.environ["PMI_RANK"] == "2" and len(calls) == 2 else whole(*given)
os.preadv = cut
"""


def test_a_file_that_one_rank_cannot_read_ends_all(place):
    since = time.monotonic()
    code, _, err = ended(start(RUN, place, 3, SHORTER))
    assert code != 0 and time.monotonic() - since < 60
    assert f"polarice class2d: error: rank 2 on {os.uname().nodename}: " in err
    assert "stack.mrcs is cut off: its header says 120 sections of 24 x 24 pixels" in err and "Traceback" not in err
    assert "to go on: polarice class2d --continue out" not in err  # nothing had been done
    assert ranks_in(place) == {}


def test_what_is_wrong_is_said_once(place):
    code, _, err = ended(start(RUN.replace("--k 4", "--k 400"), place, 2))
    assert code != 0 and err.count("400 classes asked of 120 particles") == 1


def test_ranks_that_mpi_does_not_find_are_no_job_of_one(place):
    """As of srun without --mpi: every task would be alone, and do the whole job."""
    tasks = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    words = [sys.executable, "-m", "polarice", *RUN.split()]
    done = subprocess.run(words, cwd=place, env=os.environ | tasks, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not (place / "out").exists()
    assert "2 ranks were started, and MPI knows of 1" in done.stderr and "srun --mpi=pmi2" in done.stderr


def test_a_command_for_one_process_refuses_several(monkeypatch, capsys):
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    assert main(["simulate", "map.mrc"]) == 2
    assert "works in one process, and 2 were started; start it without mpirun or srun" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dozen_kills_lose_nothing(alone, place):
    """Any rank of two to four, at any moment; runs that escape end as if nothing had been, and another one begins."""
    campaign = Campaign(place, RUN.split(), lambda words, ranks: start(" ".join(words), place, ranks), 4, 6.0, 1)
    found = campaign.kills(KILLS, lambda out: assert_same_answer(out.parent, alone))
    assert len(found) == KILLS
    for each in found:
        assert each.kept, "an iteration that was done has been lost"
        assert (each.named or not each.together) and each.left == 0 and each.ended_s < 10


def test_the_command_leaves_figures_and_a_verdict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kills, "_starter", lambda _, folder: lambda words, ranks: start(" ".join(words), folder, ranks))
    line = "bench kills --o out --kills 1 --ranks 2 --particles 60 --box 24 --k 2 --iter 2 --seed 3"
    assert polarice(line).code == 0
    told = json.loads((tmp_path / "out/kills.json").read_text())
    assert len(told["kills"]) == 1 and told["kills"][0]["kept"] and told["kills"][0]["left"] == 0
    assert len(told["ends"]) >= 2 and all(each["particles_in_other_classes"] == 0 for each in told["ends"])
    assert max(each["averages"] for each in told["ends"]) < SAME_AVERAGES
    assert "Nothing was lost." in (tmp_path / "out/kills.md").read_text()

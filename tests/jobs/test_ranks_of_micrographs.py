"""Micrographs over several ranks: the same results, and nothing done twice; a rank that is killed ends all."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jobs.movie_sets import simulation, write_table
from jobs.runs import ended, launched, wait_for
from polarice.cluster import Comm
from polarice.runs.micrographs import Item, Outcome, TaskPool, on_ranks, treat
from polarice.runs.resources import take_card

MPIRUN = Path(sys.prefix) / "bin/mpirun"
ITEMS = 12

pytest.importorskip("mpi4py")
pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun (the package mpich) is installed here")


@dataclass(frozen=True)
class Square:
    """The square of a row, slowly; who made it is kept in a file."""

    seconds: float

    def __call__(self, item: Item) -> Outcome:
        time.sleep(self.seconds)
        Path(item.stem + ".by").write_text(f"{os.environ['PMI_RANK']} {os.getpid()}")
        return Outcome({"rlnSquare": item.row**2})


@dataclass(frozen=True)
class Given:
    """Parameters."""

    o: Path


def body(given: Given, comm: Comm) -> None:
    """What rank 0 does."""
    workers, seconds = os.environ["WORKERS"], os.environ["SECONDS_EACH"]
    items = [Item(f"m{row}", row, __file__, str(given.o / f"m{row}")) for row in range(ITEMS)]
    outcomes = treat(items, Square(float(seconds)), TaskPool({"a": 1}, workers=int(workers), comm=comm))
    print(*(outcome.columns.get("rlnSquare", outcome.reason) for outcome in outcomes))


def start(folder: Path, ranks: int, workers: int, seconds: float = 0.0) -> subprocess.Popen[str]:
    words = [str(MPIRUN), "-n", str(ranks), sys.executable, __file__]
    path = str(Path(__file__).parents[1])
    more = {"PYTHONPATH": path, "WORKERS": str(workers), "SECONDS_EACH": str(seconds), "FOLDER": str(folder)}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=folder, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **more})


def made(folder: Path) -> dict[int, tuple[int, int]]:
    """Rank and process that made each item."""
    found = {}
    for path in (folder / "job").glob("m*.by"):
        if len(words := path.read_text().split()) < 2:
            continue  # being written
        rank, process = words
        found[int(path.stem[1:])] = (int(rank), int(process))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_ranks_take_their_turns_and_one_table_holds_all(tmp_path, workers):
    code, out, err = ended(start(tmp_path, 3, workers))
    assert code == 0, err
    assert out.split() == [str(row**2) for row in range(ITEMS)]  # said once, by rank 0
    first = made(tmp_path)
    assert {row: rank for row, (rank, _) in first.items()} == {row: row % 3 for row in range(ITEMS)}
    (tmp_path / "job/m5_polarice.json").unlink()
    _, out, err = ended(start(tmp_path, 2, 1))
    assert out.split() == [str(row**2) for row in range(ITEMS)], err
    assert [row for row, by in made(tmp_path).items() if by != first[row]] == [5]


def test_a_killed_rank_ends_all_with_its_processes_and_what_is_missing_is_done_then(tmp_path):
    with launched(start(tmp_path, 3, 2, 0.4)) as process:
        wait_for(lambda: {rank for rank, _ in made(tmp_path).values()} == {0, 1, 2} or process.poll() is not None, 60)
        first = made(tmp_path)
        workers = {each for _, each in first.values()}
        worker = next(each for rank, each in first.values() if rank == 1)
        victim = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])  # its rank
        os.kill(victim, signal.SIGKILL)
        since = time.monotonic()
        code, _, err = ended(process)
    assert code != 0 and time.monotonic() - since < 10
    assert f"polarice square: error: rank 1 on {os.uname().nodename}: process {victim} was killed" in err
    wait_for(lambda: not any(map(alive, workers)), 10)
    kept = {row for row in made(tmp_path) if (tmp_path / f"job/m{row}_polarice.json").exists()}
    assert kept and len(kept) < ITEMS
    first = made(tmp_path)
    _, out, err = ended(start(tmp_path, 2, 1))
    assert out.split() == [str(row**2) for row in range(ITEMS)], err
    assert {row for row, by in made(tmp_path).items() if by == first.get(row)} == kept


def test_movies_of_two_ranks_are_those_of_one(tmp_path):
    """Real TIFF files; micrographs, motion and tables byte for byte, and what it took in the report."""
    tifffile = pytest.importorskip("tifffile")
    for number in range(3):
        frames = np.stack(list(simulation(seed=number).counts()))
        tifffile.imwrite(tmp_path / f"m{number}.tif", frames, compression="lzw", photometric="minisblack")
    write_table(tmp_path / "movies.star", [f"m{number}.tif" for number in range(3)])
    options = [
        "movies.star",
        "--o",
        "job",
        "--dose-per-frame",
        "0.5",
        "--patch-x",
        "3",
        "--patch-y",
        "3",
        "--threads",
        "1",
        "--price",
        "2",
    ]
    found = []
    for ranks in (1, 2):
        launch = [str(MPIRUN), "-n", str(ranks)] if ranks > 1 else []
        words = [*launch, sys.executable, "-m", "polarice", "motion", *options]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("3 of 3 movies done") == 1
        told = json.loads((tmp_path / "job/usage.json").read_text())
        assert (told["ranks"], told["count"], told["what"]) == (ranks, 3, "movies")
        assert told["joules"] > 0 and told["per_joule"] == pytest.approx(3 / told["joules"])
        assert told["cost_of_each"] == pytest.approx(2 * told["wall_s"] / 3600 / 3)
        page = (tmp_path / "job/report.html").read_text()
        assert "movies per joule" in page and "cost of a thousand movies" in page
        files = [*(tmp_path / "job").glob("m?.mrc"), *(tmp_path / "job").glob("*.star")]
        found.append({path.name: path.read_bytes() for path in files})
        shutil.rmtree(tmp_path / "job")
    assert len(found[0]) == 3 + 3 + 1 and found[0] == found[1]


@pytest.mark.parametrize(("cards", "seen"), [("4,7", "7"), ("3", "3"), (None, None)])
def test_ranks_on_a_node_take_its_cards_in_turn(monkeypatch, tmp_path, cards, seen):
    @dataclass(frozen=True)
    class Rank:
        rank: int = 3
        size: int = 4
        node_ranks: tuple[int, ...] = (2, 3)

    monkeypatch.setattr("polarice.runs.resources.CARDS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if cards is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cards)
    take_card(Rank())  # type: ignore[arg-type]
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == seen


def main() -> None:
    """A rank."""
    if int(os.environ["PMI_RANK"]) > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    on_ranks("square", Given(Path(os.environ["FOLDER"]) / "job"), body)  # type: ignore[type-var]


if __name__ == "__main__":  # processes of a rank know modules alone
    importlib.import_module("jobs.test_ranks_of_micrographs").main()

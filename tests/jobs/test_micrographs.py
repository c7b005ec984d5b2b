"""The driver of jobs that treat one micrograph after another: order, restart, failures, killed processes, ranks."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jobs.micrograph_tables import HEAD
from polarice.io.micrographs import read_micrographs, write_micrographs
from polarice.project.registry import load
from polarice.report.micrographs import MicrographReport, thumbnail_png, write_micrograph_report
from polarice.runs.micrographs import Item, Outcome, TaskPool, cells_of, items_of, stem_of, tell, treat
from polarice.types import InputError


@dataclass(frozen=True)
class Length:
    """Counts the bytes of a file and notes that it was called."""

    log: str

    def __call__(self, item: Item) -> Outcome:
        with open(self.log, "a") as stream:
            stream.write(f"{item.row} {os.getpid()}\n")
        content = Path(item.file).read_bytes()
        if content == b"bad":
            raise InputError(f"{item.file}: bad")
        if content == b"odd":
            raise ZeroDivisionError("odd")
        if content == b"kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if content == b"hang":
            time.sleep(60)
        if content == b"deaf":  # hears no signal
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            time.sleep(60)
        if content == b"cut":
            struct.unpack("<i", content)
        return Outcome({"rlnLengthMade": len(content)}, {"bytes": len(content)}, ("short",) if len(content) < 5 else ())


def made(folder: Path, contents: dict[str, bytes]):
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    rows = "".join(f"{name} 1 x{row}\n" for row, name in enumerate(contents))
    (folder / "micrographs.star").write_text(HEAD.format(pixel_A=1.5) + "_rlnLabMade #3\n" + rows + "\n")
    return read_micrographs(folder / "micrographs.star")


def called(log: Path) -> list[int]:
    rows = sorted(int(line.split()[0]) for line in log.read_text().splitlines()) if log.exists() else []
    log.unlink(missing_ok=True)
    return rows


@pytest.mark.parametrize("workers", [1, 2])
def test_outcomes_come_in_order_and_only_what_is_missing_is_done_again(tmp_path, workers):
    table = made(tmp_path, {f"m{i}.mrc": b"x" * (i + 1) for i in range(5)} | {"e.mrc": b"bad", "f.mrc": b"odd"})
    log, farm = tmp_path / "log", TaskPool({"b": 1}, workers=workers)
    items = items_of(table, tmp_path / "job")
    first = treat(items, Length(str(log)), farm)
    assert [each.columns.get("rlnLengthMade") for each in first] == [1, 2, 3, 4, 5, None, None]
    assert first[5].reason == f"{tmp_path}/e.mrc: bad"
    assert "ZeroDivisionError: odd (test_micrographs.py" in first[6].reason
    assert called(log) == [0, 1, 2, 3, 4, 5, 6]
    assert treat(items, Length(str(log)), farm)[:5] == first[:5]
    assert called(log) == [5, 6]  # what failed is tried again
    (tmp_path / "m3.mrc").write_bytes(b"changed")
    assert treat(items, Length(str(log)), farm)[3].columns == {"rlnLengthMade": 7}
    assert called(log) == [3, 5, 6]
    treat(items, Length(str(log)), TaskPool({"b": 2}, workers=workers))
    assert called(log) == [0, 1, 2, 3, 4, 5, 6]


def test_a_killed_process_loses_only_its_own_micrograph(tmp_path):
    table = made(tmp_path, {"a.mrc": b"1", "b.mrc": b"kill", "c.mrc": b"333", "d.mrc": b"4444"})
    outcomes = treat(items_of(table, tmp_path / "job"), Length(str(tmp_path / "log")), TaskPool({}, workers=2))
    assert [each.columns.get("rlnLengthMade") for each in outcomes] == [1, None, 3, 4], outcomes
    assert "was killed" in outcomes[1].reason


@pytest.mark.parametrize(("workers", "content"), [(1, b"hang"), (2, b"hang"), (2, b"deaf")])
def test_a_hang_loses_only_its_own_micrograph(tmp_path, monkeypatch, workers, content):
    monkeypatch.setattr("polarice.runs.micrographs.GRACE_S", 1.0)
    table = made(tmp_path, {"a.mrc": content, "b.mrc": b"22", "c.mrc": b"333"})
    farm = TaskPool({}, workers=workers, time_limit_s=0.5 if workers == 1 else 4.0)
    outcomes = treat(items_of(table, tmp_path / "job"), Length(str(tmp_path / "log")), farm)
    assert [each.columns.get("rlnLengthMade") for each in outcomes] == [None, 2, 3]
    assert f"{tmp_path}/a.mrc: not done within {farm.time_limit_s:g} s; --time-limit allows more" in outcomes[0].reason


def test_a_fault_of_the_program_is_told_from_a_damaged_file(tmp_path):
    table = made(tmp_path, {"a.mrc": b"odd", "b.mrc": b"cut", "c.mrc": b"333"})
    outcomes = treat(items_of(table, tmp_path / "job"), Length(str(tmp_path / "log")), TaskPool({}))
    assert "a.mrc: a fault of polarice, not of the file: ZeroDivisionError: odd" in outcomes[0].reason
    assert "b.mrc: damaged, or of a kind that cannot be read (error: unpack requires" in outcomes[1].reason
    assert outcomes[2].columns == {"rlnLengthMade": 3}


KILLED = """
import sys
from pathlib import Path
from jobs.test_micrographs import Length
from polarice.io.micrographs import read_micrographs
from polarice.runs.micrographs import TaskPool, items_of, treat
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    items = items_of(read_micrographs(folder / "micrographs.star"), folder / "job")
    (folder / "job").mkdir(exist_ok=True)
    treat(items, Length(str(folder / "log")), TaskPool({}, folder=folder / "job"))
"""


def test_what_killed_a_run_is_named_by_the_next(tmp_path):
    """One process for all: the first run ends with it, the second treats it apart."""
    table = made(tmp_path, {"a.mrc": b"1", "b.mrc": b"kill", "c.mrc": b"333"})
    (tmp_path / "killed.py").write_text(KILLED)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, str(tmp_path / "killed.py"), str(tmp_path)]
    ended = [subprocess.run(line, check=False, env=env) for _ in range(2)]
    assert [each.returncode for each in ended] == [-signal.SIGKILL, 0]
    told = [json.loads(Path(f"{item.stem}_polarice.json").read_text()) for item in items_of(table, tmp_path / "job")]
    assert [each["reason"] for each in told][::2] == ["", ""] and "b.mrc: its process was killed" in told[1]["reason"]
    assert not list((tmp_path / "job").glob(".at_work*"))


def test_damaged_records_are_made_anew(tmp_path):
    table, log = made(tmp_path, {"a.mrc": b"1", "b.mrc": b"22"}), tmp_path / "log"
    items = items_of(table, tmp_path / "job")
    first, record = treat(items, Length(str(log)), TaskPool({})), Path(f"{items[0].stem}_polarice.json")
    whole = record.read_text()
    for old, new in (('"rlnLengthMade": 1', '"rlnLengthMade": 7'), ('"bytes": 1', '"bytes": "1"'), ("{", "[" * 60_000)):
        assert old in whole
        called(log)
        record.write_text(whole.replace(old, new, 1))
        again = treat(items, Length(str(log)), TaskPool({}))
        assert [each.columns for each in again] == [each.columns for each in first] and called(log) == [0]


def test_names_become_places_below_the_folder_as_relion_lays_them_out():
    assert stem_of("Movies/a.tiff", Path("M/job002")) == "M/job002/Movies/a"
    assert stem_of("Import/job001/Movies/x/a.b.tiff", Path("M")) == "M/Movies/x/a.b"
    assert stem_of("/data/2024/raw/a.mrc.gz", Path("M")) == "M/raw/a"
    assert stem_of("../raw/a.eer", Path("M")) == "M/raw/a"
    assert stem_of("../a.eer", Path("M")) == "M/a"


def test_two_rows_that_would_write_the_same_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"rows 1 and 2 \(a.mrc, a.tif\)"):
        items_of(made(tmp_path, {"a.mrc": b"1", "a.tif": b"2"}), tmp_path)


def test_table_and_report_hold_what_was_done(tmp_path, capsys):
    table = made(tmp_path, {"a.mrc": b"1", "b.mrc": b"bad", "c.mrc": b"333333"})
    items = items_of(table, tmp_path / "job")
    outcomes = treat(items, Length(str(tmp_path / "log")), TaskPool({}))
    cells = cells_of(outcomes)
    write_micrographs(tmp_path / "out.star", table.take(np.array(cells.rows)), cells.columns)
    again = read_micrographs(tmp_path / "out.star")
    assert again.table.text("rlnLabMade").tolist() == ["x0", "x2"]  # what we do not know goes through
    assert again.table.integers("rlnLengthMade").tolist() == [1, 6] and again.optics[0].pixel_size_A == 1.5
    params = load("simulate").Params((Path("x.mrc"),))
    text = write_micrograph_report(
        tmp_path, MicrographReport("simulate", params.o, params, items, outcomes)
    ).read_text()
    assert f"{tmp_path}/b.mrc: bad" in text and "2 of 3 micrographs" in text and "short" in text
    tell(outcomes, tmp_path)
    told = capsys.readouterr()
    assert "2 of 3 micrographs done, 1 left out" in told.out and "b.mrc: bad" in told.err


def test_nothing_usable_is_an_error():
    with pytest.raises(InputError, match="nothing could be used; the first: why"):
        cells_of([Outcome(reason="why")])


def test_thumbnails_are_blocks_averaged():
    from io import BytesIO

    from PIL import Image

    image = np.repeat(np.repeat(np.arange(12.0).reshape(3, 4), 10, 0), 10, 1)
    small = np.array(Image.open(BytesIO(thumbnail_png(image, 4))))
    assert small.shape == (3, 4) and (np.diff(small.ravel().astype(int)) > 0).all()

"""What no check foresaw, closed streams, names as data: two lines and a file to send, never a traceback."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from polarice import __main__, cli
from polarice.io.atomic import replacing
from polarice.io.star import read_star
from polarice.project.fault import SHOWN, one_line
from polarice.report import charts
from polarice.types import InputError


@pytest.fixture
def failing(monkeypatch, tmp_path):
    """The command line with a job that raises what the test puts into the list."""
    raised: list[BaseException] = []

    def main(argv=None):
        raise raised[0]

    monkeypatch.setattr(cli, "main", main)
    monkeypatch.setattr(sys, "argv", ["polarice", "class2d", "a b.star"])
    monkeypatch.setattr(__main__, "_open_standard_streams", lambda: None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return raised


def test_a_fault_of_ours_is_two_lines_and_a_file_to_send(failing, capsys, tmp_path):
    failing.append(TypeError("one\ntwo" + "x" * 5000))
    assert __main__.run() == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("polarice class2d: a fault of polarice: TypeError: one twox") and len(first) < SHOWN + 60
    (file,) = tmp_path.iterdir()
    assert second.endswith(f"please send the file {file}")
    content = file.read_text()
    assert "polarice class2d 'a b.star'" in content and "Traceback" in content and "raise raised[0]" in content


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "polarice class2d: error: out of memory; give a smaller --memory, or fewer --threads\n"),
        (
            OSError(errno.ESTALE, "Stale file handle", "/data/a.mrcs"),
            "error: /data/a.mrcs: Stale file handle;",
        ),
    ],
)
def test_what_the_system_refuses_is_no_fault_of_ours(failing, capsys, tmp_path, error, said):
    failing.append(error)
    assert __main__.run() == 1
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_messages_of_libraries_become_one_short_line():
    assert one_line("a\n  b\tc") == "a b c"
    assert len(one_line("x" * 10_000)) == SHOWN


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_fault_and_no_file_takes_their_place(tmp_path, closed):
    program = (
        "import sys; from polarice import __main__; __main__._open_standard_streams()\n"
        "file = open('out', 'w'); assert file.fileno() > 2\n"
        "print('to stdout'); print('to stderr', file=sys.stderr); sys.stdout.flush()\n"
    )
    (tmp_path / "p.py").write_text(program)
    line = f"{sys.executable} p.py {closed}"
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    ended = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out").read_text() == ""


def test_names_that_are_not_utf8_keep_their_bytes_in_files(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    with replacing(tmp_path / "a.html", "w") as stream:
        stream.write(name)
    assert (tmp_path / "a.html").read_bytes() == b"caf\xe9"


def test_a_name_in_a_chart_is_no_formula():
    figure, (axis,) = charts.panels(1, 1, height=2)
    axis.set_title("$\\frac{$")
    assert re.search(r"\$\\frac\{\$", charts.svg(figure, "a"))


def test_a_cell_longer_than_any_name_is_named_before_memory_is_taken(tmp_path):
    rows = [f"{i + 1}@stack.mrcs 1.0" for i in range(20_000)]
    rows[7] = "8@" + "z" * 400_000 + " 1.0"
    path = tmp_path / "a.star"
    path.write_text("data_particles\nloop_\n_rlnImageName\n_rlnX\n" + "\n".join(rows) + "\n")
    table = read_star(path).table("particles")
    with pytest.raises(InputError, match=r"row 8: _rlnImageName has a cell of 400,002 characters"):
        table.text("rlnImageName")
    assert table.numbers("rlnX").sum() == 20_000


def test_a_table_of_many_columns_is_named_by_some(tmp_path):
    labels = "".join(f"_rlnC{i}\n" for i in range(3000))
    (tmp_path / "a.star").write_text(f"data_x\nloop_\n{labels}" + " ".join(["1"] * 3000) + "\n")
    with pytest.raises(InputError, match="and 2,960 more") as told:
        read_star(tmp_path / "a.star").table("x").text("rlnY")
    assert len(str(told.value)) < 1000


def test_a_reader_that_goes_away_does_not_end_the_command(tmp_path):
    """`| head -1` closes the pipe after one line; the program goes on to its end."""
    program = (
        "import sys; from polarice import __main__; __main__._open_standard_streams()\n"
        "for i in range(100_000): print('line', i)\n"
        "sys.stdout.flush(); open('done', 'w').close()\n"
    )
    (tmp_path / "p.py").write_text(program)
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    line = f"set -o pipefail; {sys.executable} p.py | head -1"
    ended = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and ended.stdout == "line 0\n" and ended.stderr == ""
    assert (tmp_path / "done").exists()

"""The command line: made from Params, quick, and clear about what is wrong."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import types
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from polarice import cli
from polarice.project.params import (
    Parameters,
    argument,
    as_dict,
    check,
    command_line,
    from_dict,
    option,
    options_of,
    output,
    resources_of,
)
from polarice.project.registry import JOBS, load
from polarice.types import InputError

MAY_BE_NONE = {"price", "white_dust", "black_dust"}  # nothing is done then
WHERE = {"o", "device", "threads", "workers", "memory", "scratch", "copy_to", "price", "profile", "time_limit"}


@dataclass(frozen=True)
class Params(Parameters):
    particles: Path = argument("table of particles", flags=("--i",))
    o: Path = output("Class2D")
    k: int = option(100, "number of classes", low=1, high=1000, flags=("-k", "--K"), level="essential")
    particle_diameter: float | None = option(
        None, "diameter at 50 % of the density", unit="A", low=0, derived="80 % of the box", section="images"
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute", resource=True)
    ctf: bool = option(True, "correct for the CTF")
    continue_: Path | None = option(None, "go on from here")
    defocus: tuple[float, float] = option((1.0, 2.5), "range of defocus", unit="um", low=0.1)
    kinds: tuple[str, ...] = option(("a",), "kinds", choices=("a", "b"), needs=("ctf", False))

    def faults(self):
        if self.defocus[0] > self.defocus[1]:
            yield "--defocus: the first is the smaller one"


@pytest.fixture
def ran(monkeypatch):
    """A job named toy in the place of the real ones; the list holds the Params that it was run with."""
    seen: list[Params] = []
    module = types.ModuleType("toy_job")
    module.SUMMARY, module.Params, module.run = "a job for the tests", Params, seen.append
    monkeypatch.setitem(sys.modules, "toy_job", module)
    monkeypatch.setitem(JOBS, "toy", "toy_job")
    return seen


def leave(words) -> int:
    """The exit code, however it is left."""
    try:
        return cli.main(words)
    except SystemExit as left:
        return left.code


def test_defaults_stand_where_nothing_is_said(ran):
    assert cli.main(["toy", "p.star"]) == 0
    assert ran == [Params(Path("p.star"))]


def test_every_kind_of_value_arrives_typed(ran):
    words = "toy p.star --o out --k 7 --particle-diameter 180 --device cpu --no-ctf --continue a_b.star"
    assert cli.main([*words.split(), "--defocus", "1", "3", "--kinds", "a", "b"]) == 0
    expected = Params(Path("p.star"), Path("out"), 7, 180.0, "cpu", False, Path("a_b.star"), (1.0, 3.0), ("a", "b"))
    assert ran == [expected]
    assert isinstance(ran[0].particle_diameter, float) and isinstance(ran[0].continue_, Path)


@pytest.mark.parametrize(
    "words",
    [
        "--i p.star -k 5 --particle_diameter=9",
        "p.star --K=5 --particle_diameter 9",
        "--k 5 --particle-diameter 9 p.star",
    ],
)
def test_relions_spellings_are_taken(ran, words):
    assert cli.main(["toy", *words.split()]) == 0
    assert ran == [Params(Path("p.star"), k=5, particle_diameter=9.0)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("toy p.star --k 0", "--k 0: must be 1 to 1000"),
        ("toy p.star --k 1" + 400 * "0", "--k a number beyond all measure: must be 1 to 1000"),
        ("toy p.star --particle-diameter -3", "--particle-diameter -3: must be at least 0 A"),
        ("toy p.star --particle-diameter nan", "--particle-diameter nan: must be at least 0 A"),
        ("toy p.star --defocus 1 0", "--defocus 0: must be at least 0.1 um"),
        ("toy p.star --k many", "--k many: must be a whole number"),
        ("toy p.star --device gpu", "--device gpu: must be one of auto, cpu, cuda"),
        ("toy p.star --defocus 3 1", "--defocus: the first is the smaller one"),
        ("toy p.star --partikle-diameter 3", "no such option: --partikle-diameter (did you mean --particle-diameter?)"),
        ("toy p.star q.star", "unexpected argument: q.star"),
        ("toy", "required: particles"),
        ("tooy", "no such command: tooy (did you mean toy?)"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(ran, capsys, words, message):
    assert leave(words.split()) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and said.startswith("polarice")
    assert ran == []


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (
            InputError("a.star, row 3: no such file b.mrcs"),
            2,
            "polarice toy: error: a.star, row 3: no such file b.mrcs\n",
        ),
        (KeyboardInterrupt(), 130, "polarice toy: interrupted\n"),
        (KeyboardInterrupt("go on with --continue x"), 130, "polarice toy: go on with --continue x\n"),
    ],
)
def test_a_job_that_stops_leaves_its_message_and_code(ran, monkeypatch, capsys, raised, code, message):
    def stop(params):
        raise raised

    monkeypatch.setattr(load("toy"), "run", stop)
    assert cli.main(["toy", "p.star"]) == code
    assert capsys.readouterr().err == message


def test_a_defect_keeps_its_traceback(ran, monkeypatch):
    monkeypatch.setattr(load("toy"), "run", lambda params: {}["defect"])
    with pytest.raises(KeyError):
        cli.main(["toy", "p.star"])


def test_help_tells_unit_default_and_bounds(ran, capsys):
    assert leave(["toy", "--help"]) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "--particle-diameter A diameter at 50 % of the density (default: 80 % of the box; at least 0 A)" in said
    assert "number of classes (default: 100; 1 to 1000)" in said
    assert "range of defocus (default: 1 2.5 um; at least 0.1 um)" in said
    headings = [
        said.index(each)
        for each in ("essential: PARTICLES", "images: --part", "more options: --ctf", "how fast: --dev")
    ]
    assert headings == sorted(headings)


def test_all_that_is_wrong_is_told_at_once(ran, capsys):
    assert leave(["toy", "--k", "many", "--partikle-diameter=3", "--defocus", "1", "x", "--what"]) == 2
    said = capsys.readouterr().err
    told = [
        "required: particles",
        "--k many: must be",
        "no such option: --partikle",
        "--defocus x: must",
        "option: --what",
    ]
    assert all(each in said for each in told) and said.count("\n") == 1
    assert leave(["toy", "p.star", "--k", "0", "--particle-diameter", "-1"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "polarice toy: error: ", "  --k 0: must be 1 to 1000", "  --particle-diameter -1: must be at least 0 A"
    ]  # fmt: skip


def test_an_option_without_effect_is_told(ran, capsys):
    assert cli.main(["toy", "p.star", "--kinds", "b"]) == 0
    assert capsys.readouterr().err == "polarice toy: note: --kinds has no effect without --ctf False\n"
    assert cli.main(["toy", "p.star", "--kinds", "b", "--no-ctf"]) == 0
    assert capsys.readouterr().err == ""


def test_command_line_and_dictionary_give_the_same_parameters_again(ran):
    params = Params(Path("my particles.star"), k=5, ctf=False, continue_=Path("x"), defocus=(0.5, 1.0))
    line = command_line("toy", params)
    assert line == "polarice toy 'my particles.star' --k 5 --no-ctf --continue x --defocus 0.5 1.0"
    assert from_dict(Params, as_dict(params)) == params
    with pytest.raises(InputError, match="unknown parameters: q"):
        from_dict(Params, {**as_dict(params), "q": 1})


def test_every_job_states_itself():
    for name in cli.COMMANDS:
        job = cli.load(name)
        assert "\n" not in job.SUMMARY and callable(job.run)
        for each in options_of(job.Params):
            assert each.help, f"{name} {each.flag} has no help"
            if not each.positional:
                default = each.default if isinstance(each.default, tuple) else (each.default,)
                assert all(isinstance(item, each.kind) or item is None for item in default), f"{name} {each.flag}"
        positional = {e.field: e.choices[0] if e.choices else Path("x") for e in options_of(job.Params) if e.positional}
        faults = list(job.Params(**positional).faults())  # defaults lie within their own bounds
        with pytest.raises(InputError, match=re.escape(faults[0])) if faults else nullcontext():
            check(job.Params(**positional))
            assert not faults


def test_every_default_that_is_found_elsewhere_says_where():
    for name in cli.COMMANDS:
        for each in options_of(cli.load(name).Params):
            if each.default is None and each.kind in (int, float) and each.field not in MAY_BE_NONE:
                assert each.derived, f"{name} {each.flag}"


def test_what_says_where_and_how_fast_is_known_of_every_job():
    """One list, for restarts and workflows alike: options of these names say nothing about results."""
    for name in JOBS:
        owner = load(name).Params
        known = {each.field for each in options_of(owner)}
        assert known & WHERE == resources_of(owner), name


def test_every_example_is_a_command(capsys):
    for name in JOBS:
        words = shlex.split(load(name).EXAMPLE)
        assert words[: 1 + len(name.split())] == ["polarice", *name.split()]
        check(cli.parse(name, load(name).Params, words[2:]))


def python(*words, **more):
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, **more)


def test_help_prints_before_anything_heavy_is_loaded():
    script = (
        "import sys, polarice.cli; polarice.cli.main(['--help']);"
        "print(sorted({'torch', 'scipy', 'matplotlib', 'gemmi', 'finufft', 'PIL'} & set(sys.modules)))"
    )
    said = python("-c", script, check=True).stdout
    assert said.endswith("[]\n")
    assert all(f"  {name} " in said for name in (*JOBS, *cli.GROUPS))


def test_version_and_module_entry():
    assert python("-m", "polarice", "--version").stdout == f"polarice {cli.__version__}\n"


def test_a_reader_that_goes_away_is_no_error():
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; sys.stdin.read(); from polarice.cli import main; sys.exit(main(['--help']))",
        ],
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_lines_are_written_at_once(unbuffered):
    """A process that is killed behind a line has written it, on either stream and in their order."""
    script = (
        "import os, sys; from polarice.__main__ import _open_standard_streams; _open_standard_streams(); "
        "print('first', file=sys.stderr); print('second'); os._exit(0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert ended.stdout == "first\nsecond\n"

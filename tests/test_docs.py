"""The documentation cannot rot: options are all there, and the README's commands can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from polarice.cli import markdown, parse
from polarice.jobs import JOBS, load
from polarice.jobs.params import check, options_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def test_commands_page_is_what_the_jobs_say():
    written = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert written == markdown(), "docs/commands.md is behind the jobs: make docs"


@pytest.mark.parametrize("name", JOBS)
def test_every_option_is_documented(name):
    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    section = page.partition(f"## polarice {name}\n")[2].partition("\n## ")[0]
    for each in options_of(load(name).Params):
        spelled = each.flag.upper() if each.positional else each.flag
        assert f"| `{spelled}`" in section, f"{spelled} of {name} is not documented"


def commands(page: Path) -> list[list[str]]:
    """The words of every `polarice ...` and `make ...` line of a page's code blocks."""
    lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    code = [line.strip().removeprefix("$ ") for line in lines if line.startswith("    ")]
    words = [shlex.split(line, comments=True) for line in code if re.match(r"(\.venv/bin/)?(polarice|make) ", line)]
    return [[Path(each[0]).name, *each[1:]] for each in words]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "commands.md"], ids=lambda page: page.name)
def test_commands_that_the_pages_name_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for program, *words in commands(page):
        if program == "make":
            assert set(words) <= targets, f"make {words}"
        elif words[0] in JOBS and "--help" not in words:
            check(parse(words[0], load(words[0]).Params, words[1:]))
        else:
            assert words[0] in (*JOBS, "--help", "--version", "COMMAND"), f"polarice {words}"


def test_readme_shows_the_two_commands_and_every_job():
    shown = [" ".join(words) for words in commands(ROOT / "README.md")]
    assert "make demo" in shown and "make test" in shown
    for name in JOBS:
        assert any(each.startswith(f"polarice {name}") for each in shown) or name == "demo"

"""Completion: what a shell that has read the script offers, of commands, options, choices and files."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from polarice import completion
from polarice.cli import COMMANDS, GROUPS, load, main
from polarice.project.params import options_of
from polarice.project.registry import JOBS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with files to complete, and the three scripts."""
    folder = tmp_path_factory.mktemp("completion")
    for name in ("bash", "zsh", "fish"):
        (folder / f"script.{name}").write_text(getattr(completion, name)())
    for name in ("particles.star", "parts.txt", "particles.cs"):
        (folder / name).write_text("")
    (folder / "Class2D").mkdir()
    return folder


def offered(folder, line: str) -> set[str]:
    """What bash offers behind a line; its last word is the one that is begun."""
    if not shutil.which("bash"):
        pytest.skip("bash is not installed")
    script = (
        "source ./script.bash; read -ra COMP_WORDS <<<\"$1\"; [[ $1 == *' ' ]] && COMP_WORDS+=('');"
        'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _polarice; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "--norc", "-c", script, "-", line], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def test_bash_reads_the_script_and_binds_it(folder):
    script = "source ./script.bash; complete -p polarice"
    done = subprocess.run(["bash", "--norc", "-c", script], cwd=folder, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("complete -F _polarice polarice\n", "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("polarice cla", {"class2d", "class3d"}),
        ("polarice bench s", {"scaling", "sml"}),
        ("polarice cluster ", {"slurm", "pbs", "local"}),
        ("polarice class2d --dev", {"--device"}),
        ("polarice class2d --device ", {"auto", "cpu", "cuda"}),
        ("polarice class2d --device c", {"cpu", "cuda"}),
        ("polarice class2d --device = c", {"cpu", "cuda"}),  # bash parts --device=c so
        ("polarice class2d p", {"particles.star", "particles.cs"}),
        ("polarice class2d --k 5 p", {"particles.star", "particles.cs"}),
        ("polarice class2d --k ", set()),
        ("polarice class2d --no-ctf-p", {"--no-ctf-phase-flipped"}),
        ("polarice class2d particles.star --continue C", {"Class2D"}),
        ("polarice star j", {"join"}),
        ("polarice star join particles.star p", {"particles.star", "parts.txt", "particles.cs"}),
        ("polarice cluster slurm --nodes 2 -- class2d --devi", {"--device"}),
        ("polarice cluster slurm --nodes 2 -- class2d --device cp", {"cpu"}),
        ("polarice completion f", {"fish"}),
    ],
)
def test_bash_offers(folder, line, expected):
    assert offered(folder, line) == expected


def test_bash_offers_every_command_and_every_option(folder):
    assert offered(folder, "polarice ") == {*JOBS, *GROUPS, "completion", "--help", "--version"}
    for name in ("class2d", "bench kills", "cluster slurm"):
        flags = {flag for each in options_of(load(name).Params) for flag in completion.flags_of(each)}
        assert offered(folder, f"polarice {name} -") == {*flags, "--help"}


def test_every_script_names_every_command_and_option():
    scripts = [completion.bash(), completion.zsh(), completion.fish()]
    for name in COMMANDS:
        for flag in (flag for each in options_of(load(name).Params) for flag in completion.flags_of(each)):
            bare = flag.lstrip("-")
            for script, spelled in zip(scripts, (flag, f"{flag}[", f" {bare} "), strict=True):
                assert spelled in script, f"{name} {flag}"


def test_fish_offers(folder):
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    for line, expected in (
        ("polarice cla", {"class2d", "class3d"}),
        ("polarice bench s", {"scaling", "sml"}),
        ("polarice class2d --device c", {"cpu", "cuda"}),
        ("polarice class2d --devi", {"--device"}),
        ("polarice completion z", {"zsh"}),
    ):
        script = f"source script.fish; complete -C '{line}'"
        done = subprocess.run(["fish", "--no-config", "-c", script], cwd=folder, capture_output=True, text=True)
        assert done.stderr == "" and {row.split("\t")[0] for row in done.stdout.splitlines()} == expected, line


ZSH = """
zmodload zsh/zpty; zpty z zsh -f -i; zpty -w z "PS1=; autoload -U compinit && compinit -u -D"
zpty -w z "LISTMAX=0; unsetopt beep; cd $PWD; source ./script.zsh; print REA''DY"
zpty -r -m z text '*READY*'; zpty -n -w z "$1"$'\\t'; sleep 1
while zpty -r -t z text; do print -r -- "$text"; done; zpty -d z
"""


def test_zsh_offers(folder):
    if not shutil.which("zsh"):
        pytest.skip("zsh is not installed")
    for line, expected in (("polarice class2d --device cu", "cuda"), ("polarice completion f", "fish")):
        words = ["zsh", "-f", "-c", ZSH, "-", line]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)
        assert expected in done.stdout, done.stdout + done.stderr


def test_the_command_prints_the_script(capsys):
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == completion.bash()

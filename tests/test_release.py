"""What a release is made of: versions, licences, pins, containers, the module file, and messages that docs explain."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from polarice import __version__

ROOT = Path(__file__).parents[1]
DOCKERFILE, DEFINITION = ROOT / "Dockerfile", ROOT / "polarice.def"


@pytest.fixture(scope="module")
def scripts():
    """The release's scripts as modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        import release_check
        import write_licences

        yield release_check, write_licences
    for name in ("release_check", "write_licences"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["check_versions", "check_readme", "check_licences", "check_pins"])
def test_nothing_stands_against_a_release(scripts, name):
    assert getattr(scripts[0], name)()


def test_a_version_that_differs_is_told(scripts, monkeypatch):
    monkeypatch.setattr(scripts[0], "__version__", "9.9.9")
    with pytest.raises(scripts[0].Fault, match=r"CITATION.cff says .*, the package 9.9.9"):
        scripts[0].check_versions()


def test_a_link_that_leads_nowhere_is_told(scripts, monkeypatch, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# A heading, here\n[good](#a-heading-here) [bad](docs/none.md)\n")
    monkeypatch.setattr(scripts[0], "ROOT", tmp_path)
    with pytest.raises(scripts[0].Fault, match=r"README.md: docs/none.md leads nowhere"):
        scripts[0].check_readme()


def test_a_file_without_a_licence_and_copyleft_are_told(scripts, monkeypatch):
    licences = scripts[1]
    with monkeypatch.context() as patch:
        patch.delitem(licences.BUNDLED, "data/ribosome70S.mrc")
        with pytest.raises(LookupError, match=r"ribosome70S.mrc: no licence is stated"):
            licences.page()
    monkeypatch.setattr(licences, "licence_of", lambda name: "GPL-3.0-or-later" if name == "tqdm" else "MIT")
    with pytest.raises(LookupError, match="tqdm: GPL"):
        licences.page()


def test_the_wheel_holds_no_benchmark_that_the_command_does_not_need():
    """Every module of bench is a command, or is imported by one, by whatever way."""
    from polarice.cli import BENCHES

    folder = ROOT / "src/polarice/bench"
    waiting, reached = {name.rpartition(".")[2] for name in BENCHES.values()}, set[str]()
    while waiting:
        name = waiting.pop()
        reached.add(name)
        text = (folder / f"{name}.py").read_text()
        found = set(re.findall(r"polarice\.bench\.(\w+)", text))
        found |= {
            each.strip() for line in re.findall(r"from polarice\.bench import (.+)", text) for each in line.split(",")
        }
        waiting |= {each for each in found if (folder / f"{each}.py").exists()} - reached
    assert reached == {path.stem for path in folder.glob("*.py")} - {"__init__"}


def docker_lines(word: str) -> list[list[str]]:
    """The words behind each instruction of the Dockerfile."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return [line.split()[1:] for line in text.splitlines() if line.startswith(f"{word} ")]


def test_what_containers_copy_is_there_and_not_ignored():
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [source for words in docker_lines("COPY") if not words[0].startswith("--") for source in words[:-1]]
    section = DEFINITION.read_text().partition("%files\n")[2].partition("\n\n")[0]
    listed = [line.split()[0] for line in section.splitlines()]
    assert sorted(copied) == sorted(listed) == sorted(allowed)
    assert all((ROOT / name).exists() for name in copied)
    metadata = (ROOT / "pyproject.toml").read_text()
    for needed in re.findall(r'(?:readme = |license-files = \[)"(.+?)"', metadata):
        assert needed in copied  # else pip cannot build it inside


def test_containers_agree_with_each_other_and_with_what_is_required():
    bases = {words[0] for words in docker_lines("FROM")}
    assert bases == {re.search(r"^From: (.+)$", DEFINITION.read_text(), re.MULTILINE)[1]}
    (base,) = bases
    lowest = re.search(r'requires-python = ">=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    version = re.fullmatch(r"python:(\d+)\.(\d+)\.\d+-slim-bookworm", base)
    assert (int(version[1]), int(version[2])) >= (int(lowest[1]), int(lowest[2]))
    assert docker_lines("ENTRYPOINT") == [['["polarice"]']] and docker_lines("ARG") == [["TORCH=cpu"]] * 2
    assert "exec polarice" in DEFINITION.read_text() and "%arguments\n    TORCH=cpu" in DEFINITION.read_text()


def shell_of(section: str) -> str:
    """The script of a section of the Apptainer definition."""
    text = DEFINITION.read_text().partition(f"%{section}\n")[2]
    return re.split(r"^%", text, maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("section", ["post", "environment", "runscript", "test"])
def test_scripts_of_the_apptainer_definition_are_sound(section):
    script = "#!/bin/sh\n" + shell_of(section).replace("{{ TORCH }}", "$TORCH")
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "-s", "sh", "-e", "SC2154", "-"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_hadolint_has_nothing_against_the_dockerfile():
    if not shutil.which("hadolint"):
        pytest.skip("hadolint is not installed")
    done = subprocess.run(["hadolint", str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_shell_scripts_are_sound():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    found = [str(path) for folder in ("scripts", ".ci") for path in (ROOT / folder).glob("*.sh")]
    done = subprocess.run(["shellcheck", *found], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_module_file_loads(tmp_path):
    """By Lmod itself: the programs come first on PATH, and a root without them is told."""
    lmod = Path("/usr/share/lmod/lmod/libexec/lmod")
    if not lmod.exists():
        pytest.skip("Lmod is not installed (Debian: lmod)")
    (tmp_path / "bin").mkdir()
    environment = {
        "MODULEPATH": str(ROOT / "packaging/modulefiles"), "POLARICE_ROOT": str(tmp_path), "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
    }  # fmt: skip
    words = [str(lmod), "bash", "load", f"polarice/{__version__}"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert "no polarice in" in done.stderr
    (tmp_path / "bin/polarice").write_text("")
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert re.search(rf'PATH="?{tmp_path}/bin:/usr/bin', done.stdout), done.stdout + done.stderr


def constants() -> str:
    """All text in the source, one piece after the other; what is filled in is …"""
    pieces = []
    for path in (ROOT / "src/polarice").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                values = [each.value if isinstance(each, ast.Constant) else "…" for each in node.values]
                pieces.append("".join(map(str, values)))
    return "\n".join(pieces)


def test_messages_that_troubleshooting_explains_are_the_program_s():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\*\*`([^`]+)`\*\*", page, re.MULTILINE)
    assert len(messages) >= 20
    said = constants()
    for message in messages:
        if message.startswith("MPIDI"):  # MPICH's own
            continue
        pattern = r"[^\n]*".join(re.escape(piece) for piece in message.split("…"))
        assert re.search(pattern, said), f"no message reads {message}"


@pytest.mark.slow
def test_the_release_check_finds_nothing():
    """Wheel and source archive, a new environment without the checkout, and the demo in it."""
    words = [sys.executable, str(ROOT / "scripts/release_check.py")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("versions", "links", "licences", "pins", "wheel", "installed"):
        assert f"OK       {name}" in done.stdout


@pytest.mark.slow
def test_the_steps_of_the_dockerfile_make_an_environment_that_works(tmp_path):
    """COPY and RUN of its build stage, typed here: pip's own index in PyTorch's place, a folder in that of /opt.

    What this leaves out is the base image: the Python is this machine's.
    """
    target, source = tmp_path / "polarice", tmp_path / "source"
    source.mkdir()
    stage = DOCKERFILE.read_text().partition("AS build\n")[2].partition("\nFROM ")[0].replace("\\\n", " ")
    for line in stage.splitlines():
        word, _, rest = line.partition(" ")
        if word == "COPY":
            *names, _ = rest.split()
            for name in names:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, source / name)
        elif word == "RUN":
            script = re.sub(r"--(extra-)?index-url \S+", "", rest).replace("/opt/polarice", str(target))
            script = script.replace("python -m venv", f"{sys.executable} -m venv")
            words = ["bash", "-euo", "pipefail", "-c", script]
            environment = {**os.environ, "TORCH": "cpu"}
            done = subprocess.run(words, cwd=source, env=environment, capture_output=True, text=True, timeout=900)
            assert done.returncode == 0, done.stderr[-3000:]
    bare = {"PATH": f"{target}/bin:/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for line in (
        "polarice --version",
        "polarice doctor --json",
        "polarice demo --o demo --particles 60 --k 2 --iter 2 --threads 1",
        "polarice example first",
        "mpirun -n 2 polarice class2d first/particles.star --o classes --k 3 --iter 2 --threads 1",
    ):
        done = subprocess.run(line.split(), cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{line}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
    assert "550 particles in 3 classes" in done.stdout

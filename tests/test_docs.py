"""The documentation cannot rot: options are all there, and the README's commands can be typed."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from polarice.cli import COMMANDS, command_of, load, main, markdown, parse
from polarice.io.cryosparc import cs_of_tables, read_cs, write_cs
from polarice.io.micrographs import read_micrographs
from polarice.io.mrc import write_image
from polarice.io.particles import read_particles, write_particles
from polarice.jobs.workflow import read_steps
from polarice.project.params import check, options_of
from polarice.project.registry import JOBS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("**/*.md"))]
GUIDE = [
    ROOT / f"docs/{name}.md" for name in ("classes", "micrographs", "select", "map", "serve", "workflow", "cluster")
]


def test_commands_page_is_what_the_jobs_say():
    written = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert written == markdown(), "docs/commands.md is behind the jobs: make docs"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name):
    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    section = page.partition(f"## polarice {name}\n")[2].partition("\n## ")[0]
    for each in options_of(load(name).Params):
        spelled = each.flag.upper() if each.positional else each.flag
        assert f"| `{spelled}`" in section, f"{spelled} of {name} is not documented"


def commands(page: Path, programs: str = "polarice|make") -> list[list[str]]:
    """The words of every line of a page's code blocks that begins with one of `programs`."""
    lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    code = [line.strip().removeprefix("$ ") for line in lines if line.startswith("    ")]
    code = [re.sub(r" > \S+$", "", line) for line in code]  # what is printed goes to a file
    words = [shlex.split(line, comments=True) for line in code if re.match(rf"(\.venv/bin/)?({programs})(?!\.)", line)]
    return [[Path(each[0]).name, *each[1:]] for each in words]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "commands.md"], ids=lambda page: page.name)
def test_commands_that_the_pages_name_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for program, *words in commands(page):
        if program == "make":
            assert set(words) <= targets, f"make {words}"
        elif (name := command_of(words)) and "--help" not in words:
            check(parse(name, load(name).Params, words[len(name.split()) :]))
        else:
            assert name or words[0] in ("--help", "--version", "COMMAND"), f"polarice {words}"


def test_readme_shows_the_two_commands_and_no_other_than_the_guide():
    shown = [" ".join(words) for words in commands(README)]
    assert "make demo" in shown
    guide = [" ".join(words) for page in GUIDE for words in commands(page)]
    for each in shown:
        assert each in guide or each.startswith("make ") or each.endswith("--help"), each
    for name in JOBS:
        assert any(each.startswith(f"polarice {name}") for each in guide) or name == "demo", name


def test_the_readme_is_short():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 150 and max(map(len, lines)) <= 120


def workflow_of(number: int) -> str:
    """One of the workflow files of docs/workflow.md."""
    return re.findall(r"```toml\n(.*?)```", (ROOT / "docs/workflow.md").read_text(encoding="utf-8"), re.DOTALL)[number]


@pytest.mark.parametrize(
    ("number", "names"),
    [(0, ["align2d", "classes"]), (1, ["import", "ctf", "pick", "extract", "class2d"])],
)
def test_the_workflows_of_the_pages_are_understood(number, names, tmp_path):
    (tmp_path / "workflow.toml").write_text(workflow_of(number))
    assert [step.name for step in read_steps(tmp_path / "workflow.toml")] == names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
    assert all(picture.stat().st_size < 300_000 for picture in (ROOT / "docs/images").iterdir())


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """A folder in which the guide's polarice commands but bench were typed in turn, each with less to do."""
    pytest.importorskip("tifffile")
    folder, iterations = tmp_path_factory.mktemp("readme"), itertools.count(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        apoferritin = read_particles(ROOT / "src/polarice/data/apoferritin/particles.star").take(np.arange(0, 550, 7))
        write_particles("particles.star", apoferritin)
        shutil.copy(ROOT / "src/polarice/data/apoferritin/particles.mrcs", folder)
        shutil.copy(ROOT / "src/polarice/data/ribosome70S.mrc", "map.mrc")
        _session(folder)
        ran = False
        for _, name, *words in (each for page in GUIDE for each in commands(page, "polarice")):
            if name in ("bench", "cluster", "status", "doctor", "completion", "serve") or name in OF_MAPS:
                # minutes of work, a scheduler's, or more particles than are here: their own tests have them
                continue
            if name == "extract" and "--particles" in words:  # the micrographs of these are not here
                continue
            if name == "select":
                words[3:] = LOOSER[words[0].partition("/")[0]].split()
            elif name == "run":
                if ran:
                    continue
                ran, small = True, "threads = 1\niter = 2"
                Path(words[0]).write_text(re.sub("threads = .*", small, workflow_of(0)).replace("k = 100", "k = 3"))
            elif name == "simulate":
                words += ["--particles", "50"]
            elif name == "example":
                pass
            elif "--continue" in words:
                words += ["--iter", str(next(iterations))]
            elif name == "import" and words[0].startswith("Movies"):
                words += ["--angpix", "2"]
            elif name in SMALLER:
                words += SMALLER[name].split()
            elif "--help" not in words and name not in ("import", "motion", "select", "star"):
                words = [re.sub(r"run_it\d+", "run_it002", word) for word in words] + ["--k", "3", "--iter", "2"]
            assert "--help" in words or main([name, *words]) == 0, f"polarice {name} {shlex.join(words)}"
    return folder


OF_MAPS = ("initial3d", "class3d", "refine3d", "reconstruct", "mask", "postprocess", "map")
SMALLER = {  # of micrographs that are small and empty
    "ctf": "--res-max 10 --keep-ringless --threads 1",
    "pick": "--particle-diameter 40 --threshold -1 --keep-dirt --threads 1",
    "extract": "--box 80 --threads 1",
}


LOOSER = {  # rules that small and empty data meet
    "Class2D": "--min-score 0 --classes 1-3 --min-probability 0 --min-distance 1 --micrograph-angpix 1.5",
    "CtfFind": "--fit-resolution 1000 --defocus 0 1e6",
}


def _session(folder: Path) -> None:
    """Two small movies with their gain reference, and a table of cryoSPARC with its passthrough."""
    import tifffile

    rng = np.random.default_rng(0)
    (folder / "Movies").mkdir()
    for name in ("a", "b"):
        frames = rng.poisson(3, (4, 96, 128)).astype(np.uint8)
        tifffile.imwrite(folder / f"Movies/{name}.tiff", frames, photometric="minisblack")
    write_image(folder / "gain.mrc", np.ones((96, 128)), 2.0)
    table = read_particles(folder / "particles.star", folder)
    rows = cs_of_tables(table.optics_table, table.table)
    (folder / "J42").mkdir()
    write_cs(folder / "J42/particles.cs", rows)
    write_cs(folder / "J42/passthrough.cs", rows[["uid", "blob/sign"]])


def test_commands_of_the_guide_run_as_they_are_typed(typed):
    assert read_micrographs(typed / "MotionCorr/job008/micrographs.star").names[0] == "MotionCorr/job008/Movies/a.mrc"
    assert len(read_cs(typed / "Import/job010/particles.cs")) == 79
    assert len(read_particles(typed / "Class2D/job001/run_it004_data.star", typed).particles) == 79
    assert len(read_particles(typed / "Align2D/job002/run_it002_data.star", typed).particles) == 79
    assert (typed / "Class2D/job001/report.html").exists()
    assert read_particles(typed / "Extract/job013/particles.star", typed).particles.optics[0].box_px == 64
    assert len(read_particles(typed / "classes/run_it002_data.star", typed).particles) == 79
    assert len(np.load(typed / "simulated/truth.npz")["quat"]) == 50


def test_commands_of_relion_run_as_they_are_typed(typed):
    """All but the one that opens a window, on the iteration that is there."""
    if not shutil.which("relion_refine"):
        pytest.skip("relion_refine is not installed")
    shown = commands(ROOT / "docs/classes.md", "relion_(?!display)")
    assert {words[0] for words in shown} == {"relion_refine", "relion_stack_create"}
    for words in shown:
        words = [word.replace("it040", "it004") for word in words]
        words = ["5" if before == "--iter" else word for before, word in zip(["", *words], words, strict=False)]
        done = subprocess.run(words, cwd=typed, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout[-500:]}{done.stderr[-2000:]}"
    assert (typed / "aligned.mrcs").exists() and (typed / "Class2D/job001/relion_it005_classes.mrcs").exists()

"""Whether a release can be made from this checkout: `make release-check`.

Versions agree; README's links lead somewhere; licences are stated; the wheel and the source archive hold what they
should; the wheel works in a new environment that knows nothing of the checkout, down to a small demo. That environment
takes the packages that Polarice requires from the one that this runs in (fast, offline); --download has pip fetch them.
Prints a line for each check and ends with code 1 where one fails. Nothing in the checkout is changed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from packaging.requirements import Requirement

from polarice import __version__
from write_licences import PAGE, dependencies, page

ROOT = Path(__file__).parents[1]
CONTAINERS = ("Dockerfile", "polarice.def")
MOST_WHEEL_BYTES = 5 << 20
NO_SOURCE = (".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "demo", "gpu", "wheelhouse")


class Fault(Exception):
    """What stands against a release."""


def check_versions() -> str:
    """One version in the package, the citation, the changelog and the module file; nothing waits in the changelog."""
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    changes = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    if cited is None or cited[1] != __version__:
        raise Fault(f"CITATION.cff says {cited and cited[1]}, the package {__version__}")
    if changes[0].split()[0] != __version__:
        raise Fault(f"CHANGELOG.md begins with '{changes[0]}', the package is {__version__}")
    modules = sorted(path.stem for path in (ROOT / "packaging/modulefiles/polarice").glob("*.lua"))
    if modules != [__version__] or f'"Version: {__version__}"' not in _module_file():
        raise Fault(f"packaging/modulefiles has {modules}, the package is {__version__}")
    return __version__


def _module_file() -> str:
    return (ROOT / f"packaging/modulefiles/polarice/{__version__}.lua").read_text()


def check_readme() -> str:
    """Every link of the README and of the pages leads to a file, or is an address with https."""
    count = 0
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            count += 1
            target, _, anchor = link.partition("#")
            if link.startswith("https://"):
                continue
            if target and not (path.parent / target).exists():
                raise Fault(f"{path.relative_to(ROOT)}: {link} leads nowhere")
            if anchor and anchor not in _anchors(path.parent / target if target else path):
                raise Fault(f"{path.relative_to(ROOT)}: there is no heading for {link}")
    return f"{count} links lead somewhere"


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_licences() -> str:
    """docs/licences.md is what the installed packages and the bundled files state."""
    try:
        stated = page()
    except LookupError as error:
        raise Fault(str(error)) from None
    if PAGE.read_text(encoding="utf-8") != stated:
        raise Fault("docs/licences.md is behind: make docs")
    return f"{len(dependencies())} packages and every bundled file"


def check_pins() -> str:
    """constraints.txt pins every package that is required, within what pyproject.toml asks; containers use it."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in (x.partition("==") for x in lines)}
    if missing := sorted(set(dependencies()) - set(pinned)):
        raise Fault(f"constraints.txt has no version of {', '.join(missing)}")
    project = (ROOT / "pyproject.toml").read_text()
    for text in re.findall(r'^    "([a-z][\w.-]*[<>=][^"]*)",$', project, re.MULTILINE):
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in pinned and not requirement.specifier.contains(pinned[name], prereleases=True):
            raise Fault(f"constraints.txt pins {name} {pinned[name]}, pyproject.toml asks for {requirement.specifier}")
    for name in CONTAINERS:
        for line in re.findall(r"pip install .*", (ROOT / name).read_text()):
            if "-c constraints.txt" not in line:
                raise Fault(f"{name}: '{line}' is not held to constraints.txt")
    return f"{len(pinned)} versions"


def build(folder: Path) -> tuple[Path, Path | None]:
    """The wheel, and the source archive where `build` can be had; from a copy, without what earlier builds left."""
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NO_SOURCE))
    _run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)])
    wheel = next(folder.glob("*.whl"))
    tools = folder / "tools"
    _run([sys.executable, "-m", "venv", str(tools)])
    had = subprocess.run([str(tools / "bin/pip"), "install", "--quiet", "build"], capture_output=True, check=False)
    if had.returncode != 0:
        return wheel, None
    _run([str(tools / "bin/python"), "-m", "build", "--sdist", "--outdir", str(folder / "sdist"), str(source)])
    return wheel, next((folder / "sdist").glob("*.tar.gz"))


def check_wheel(wheel: Path) -> str:
    """It holds the package alone, with everything of it, and is small."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    inside = {name for name in names if name.startswith("polarice/")}
    source = ROOT / "src"
    ours = {path.relative_to(source).as_posix() for path in (source / "polarice").rglob("*") if path.is_file()}
    ours = {name for name in ours if "__pycache__" not in name}
    if inside != ours:
        raise Fault(f"{wheel.name} and src differ in {sorted(inside ^ ours)[:5]}")
    strange = {name for name in names - inside if ".dist-info/" not in name}
    if strange:
        raise Fault(f"{wheel.name} holds {sorted(strange)[:5]}")
    if not any(name.endswith("/LICENSE") for name in names):
        raise Fault(f"{wheel.name} holds no LICENSE")
    size = wheel.stat().st_size
    if size > MOST_WHEEL_BYTES:
        raise Fault(f"{wheel.name} has {size >> 20} MB")
    return f"{wheel.name}, {len(names)} files, {size / 1e6:.1f} MB"


def check_sdist(sdist: Path, wheel: Path, folder: Path) -> str:
    """The same wheel can be built from the source archive, which holds tests, docs and containers too."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in ("tests/test_cli.py", "docs/install.md", "constraints.txt", "scripts/release_check.py", *CONTAINERS):
        if wanted not in names:
            raise Fault(f"{sdist.name} lacks {wanted}")
    again = folder / "again"
    _run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(again), str(sdist)])
    with zipfile.ZipFile(next(again.glob("*.whl"))) as new, zipfile.ZipFile(wheel) as old:
        apart = {(each.filename, each.CRC) for each in new.infolist()} ^ {(e.filename, e.CRC) for e in old.infolist()}
    apart = {(name, crc) for name, crc in apart if ".dist-info/" not in name}
    if apart:
        raise Fault(f"the wheels of {sdist.name} and of the checkout differ in {sorted(apart)[:5]}")
    return f"{sdist.name}, {len(names)} files; the same wheel comes of it"


def install(wheel: Path, folder: Path, download: bool) -> Path:
    """The folder of programs of a new environment that holds the wheel."""
    environment = folder / "environment"
    _run([sys.executable, "-m", "venv", str(environment)])
    pip = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if download:
        _run([*pip, "-c", str(ROOT / "constraints.txt"), f"{wheel}[mpi]"])
    else:
        inner = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
        # Folders that a .pth file names are searched, their own .pth files (the checkout's) are not read.
        (inner / "packages_of_the_checkout.pth").write_text(sysconfig.get_path("purelib") + "\n")
        _run([*pip, "--no-deps", "--no-index", str(wheel)])
    return environment / "bin"


def check_installed(programs: Path, folder: Path) -> str:
    """The wheel's own package is imported, its programs work, and a small demo ends with a page."""
    place = folder / "place"
    place.mkdir()
    code = "import polarice, sys; print(polarice.__file__, polarice.__version__)"
    where, version = _run([str(programs / "python"), "-c", code], place).split()
    if not Path(where).is_relative_to(programs.parent) or version != __version__:
        raise Fault(f"the new environment imports {where}, version {version}")
    polarice = str(programs / "polarice")
    if _run([polarice, "--version"], place).strip() != f"polarice {__version__}":
        raise Fault("polarice --version says another version")
    since = time.monotonic()
    _run([polarice, "demo", "--o", "demo", "--particles", "100", "--k", "3", "--iter", "3", "--threads", "1"], place)
    if not (place / "demo/report.html").is_file():
        raise Fault("the demo made no page")
    took = time.monotonic() - since
    _run([polarice, "example", "first"], place)
    _run([polarice, "run", "first/workflow.toml", "--dry-run"], place)
    _run([polarice, "completion", "bash"], place)
    return f"polarice {version} in {programs.parent.name}; demo, example and workflow in order ({took:.0f} s)"


def _run(words: list[str], place: Path | None = None) -> str:
    """What a program prints; Fault with its last words where it fails. The checkout is hidden from it."""
    hidden = {name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(words, cwd=place, env=hidden, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Fault(f"{' '.join(words)} ended with code {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def _checked(name: str, check: Callable[[], str]) -> bool:
    try:
        print(f"OK       {name:10} {check()}", flush=True)
    except Fault as fault:
        print(f"problem  {name:10} {fault}", flush=True)
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--download", action="store_true", help="have pip fetch every package into the new environment")
    parser.add_argument("--fast", action="store_true", help="only what needs no building")
    options = parser.parse_args()
    good = _checked("versions", check_versions)
    good &= _checked("links", check_readme)
    good &= _checked("licences", check_licences)
    good &= _checked("pins", check_pins)
    if options.fast:
        return 0 if good else 1
    folder = Path(tempfile.mkdtemp(prefix="polarice-release-"))
    try:
        wheel, sdist = build(folder)
        good &= _checked("wheel", lambda: check_wheel(wheel))
        if sdist is None:
            print("note     sdist      not checked: the package build cannot be had")
        else:
            good &= _checked("sdist", lambda: check_sdist(sdist, wheel, folder))
        good &= _checked("installed", lambda: check_installed(install(wheel, folder, options.download), folder))
    except Fault as fault:
        print(f"problem  building   {fault}")
        good = False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

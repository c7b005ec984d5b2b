"""Write docs/licences.md: the licence of every package that Polarice stands on, and of every file bundled with it.

Packages are read from constraints.txt, their licences from what is installed. Ends with an error where a package states
no licence, where one is copyleft beyond its own files, and where a bundled file has no line in BUNDLED.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/licences.md"
OURS = "BSD-3-Clause, Polarice's own"
BUNDLED = {  # pattern of files below src/polarice that are no Python: (licence, source)
    "data/README.md": (OURS, ""),
    "data/ribosome70S.mrc": ("CC0-1.0", "computed from the atoms of PDB entry 7P6Z by scripts/make_ribosome_map.py"),
    "data/apoferritin/README.md": (OURS, ""),
    "data/apoferritin/particles.*": (
        "CC0-1.0", "EMPIAR-10146, cut by scripts/cut_apoferritin.py; Al-Azzawi et al., BMC Bioinf. 20 (2019) 326",
    ),
    "report/*.html": (OURS, ""),
    "report/*.css": (OURS, ""),
    "web/static/*.css": (OURS, ""),
    "web/static/*.js": (OURS, ""),
    "py.typed": (OURS, ""),
}  # fmt: skip
EXTRAS = ("", "mpi", "gpu", "dev")  # in this order: a package is listed where it first is needed
NEEDED_FOR = {"": "every run", "mpi": "several ranks", "gpu": "energy of GPUs", "dev": "tests and checks"}
STATED = {"nvidia-ml-py": "BSD-3-Clause"}  # for cards, and not always installed
COPYLEFT = re.compile(r"\b(A?GPL|LGPL|GNU|EUPL|SSPL)", re.IGNORECASE)


def licence_of(name: str) -> str:
    """The licence that an installed package states; LookupError where it states none, or is not installed."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        if name in STATED:
            return STATED[name]
        raise LookupError(f"{name} is not installed; make env") from None
    stated = (str(metadata.json.get(key) or "") for key in ("license_expression", "license"))
    short = next((text.strip() for text in stated if text.strip() and "\n" not in text and len(text) < 120), "")
    classified = [each.rpartition("::")[2].strip() for each in metadata.get_all("Classifier") or ()
                  if each.startswith("License ::")]  # fmt: skip
    found = short or ", ".join(classified)
    if not found:
        raise LookupError(f"{name} states no licence")
    return found


def dependencies() -> dict[str, str]:
    """Name of every package that Polarice requires, by whatever way: the extra that first needs it."""
    found = dict[str, str]()
    for extra in EXTRAS:
        waiting = [("polarice", extra)]
        while waiting:
            name, wanted = waiting.pop()
            for requirement in _requirements(name, wanted):
                key = re.sub(r"[-_.]+", "-", requirement.name).lower()
                if key != "polarice" and key not in found:
                    found[key] = extra
                    waiting.append((requirement.name, ""))
    return found


def _requirements(name: str, extra: str) -> Iterator[Requirement]:
    try:
        words = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, words):
        if "nvidia-" in requirement.name and name == "torch":
            continue  # CUDA's libraries, of a torch built for it: NVIDIA's own licence, said below the table
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def bundled() -> Iterator[tuple[str, str, str]]:
    """(file, licence, source) of every file in the package that is no Python; LookupError for one without a line."""
    source = ROOT / "src/polarice"
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_dir() or path.suffix in (".py", ".pyc") or "__pycache__" in name:
            continue
        known = next((value for pattern, value in BUNDLED.items() if fnmatch(name, pattern)), None)
        if known is None:
            raise LookupError(f"src/polarice/{name}: no licence is stated for it in {Path(__file__).name}")
        yield (name, *known)


def page() -> str:
    """The text of docs/licences.md."""
    lines = [
        "# Licences", "", "Made by `make docs`; `make release-check` holds it to what is installed.", "",
        "Polarice is BSD-3-Clause. Its wheel holds its own source and the files below, and no other package.", "",
        "## Packages that it stands on", "", "| package | licence, as it states | needed for |", "|---|---|---|",
    ]  # fmt: skip
    found = dependencies()
    for extra in EXTRAS:
        for name in sorted(name for name, first in found.items() if first == extra):
            licence = licence_of(name)
            if COPYLEFT.search(licence):
                raise LookupError(f"{name}: {licence} asks more of us than its own source")
            lines.append(f"| {name} | {licence} | {NEEDED_FOR[extra]} |")
    lines += [
        "", "PyTorch built for CUDA brings NVIDIA's libraries, under NVIDIA's licence. RELION, Slurm and browsers are",
        "called as programs where a user has them; nothing of theirs is in Polarice. Wheels of imagecodecs, pillow,",
        "scipy and numpy hold libraries under licences of their own, which lie in their `dist-info` folders.", "",
        "## Bundled files", "", "| file in `polarice/` | licence | source |", "|---|---|---|",
    ]  # fmt: skip
    lines += [f"| `{name}` | {licence} | {source} |" for name, licence, source in bundled()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

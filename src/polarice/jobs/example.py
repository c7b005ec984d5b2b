"""`polarice example`: bundled particles, a map, and a workflow that runs on them, in a folder of the user's."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polarice.io.atomic import replacing
from polarice.project.params import Parameters, PathRole, argument
from polarice.types import InputError

SUMMARY = "put real particles, a map and a workflow that runs on them into a folder"
EXAMPLE = "polarice example try_polarice"
DATA = Path(__file__).parents[1] / "data"
DEFAULT = Path("polarice_example")
FILES = {  # name in the folder: bundled file
    "particles.star": "apoferritin/particles.star",
    "particles.mrcs": "apoferritin/particles.mrcs",
    "ribosome70S.mrc": "ribosome70S.mrc",
    "README.md": "apoferritin/README.md",
}
WORKFLOW = """\
# Two data sets that come with Polarice. In this folder: polarice run workflow.toml
# Change a value and run it again: only what depends on it is done anew.

[[step]]
job = "class2d"                          # 550 real particles of apoferritin
name = "apoferritin"
particles = "particles.star"
k = 10
iter = 15
particle_diameter = 140

[[step]]
job = "simulate"                         # particles of the 70S ribosome, whose truth is known
inputs = "ribosome70S.mrc"
particles = 600
snr = 0.1

[[step]]
job = "class2d"
name = "ribosome"
particles = "{simulate}/particles.star"
k = 12
iter = 15
particle_diameter = 290
"""


@dataclass(frozen=True)
class Params(Parameters):
    """Where to."""

    folder: Path | None = argument(
        f"folder for the files; {DEFAULT} where none is given", flags=("--o",), path=PathRole("output", "folder")
    )


def run(params: Params) -> None:
    """Write the files. Raises InputError, before any is written, where another file stands in the place of one."""
    folder = params.folder or DEFAULT
    contents = {name: (DATA / source).read_bytes() for name, source in FILES.items()}
    contents["workflow.toml"] = WORKFLOW.encode()
    wanting = list(_wanting(folder, contents))
    folder.mkdir(parents=True, exist_ok=True)
    for name in wanting:
        with replacing(folder / name) as stream:
            stream.write(contents[name])
    there = "" if wanting else " (all were there)"
    print(f"{folder}: {', '.join(contents)}{there}")
    print(f"next: polarice run {shlex.quote(str(folder / 'workflow.toml'))}")


def _wanting(folder: Path, contents: dict[str, bytes]) -> Iterator[str]:
    """Names of files that are not there yet."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name another folder")
    for name, content in contents.items():
        path = folder / name
        if not path.exists() and not path.is_symlink():
            yield name
        elif not path.is_file() or path.read_bytes() != content:
            raise InputError(f"{path}: another file stands there, which is not written over; name another folder")

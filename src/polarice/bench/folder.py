"""A benchmark's folder: made, filled with simulated particles, written to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polarice.io.atomic import replacing
from polarice.types import InputError

DATA = Path(__file__).parents[1] / "data"
MARK = ".polarice-bench"  # the folder is a benchmark's own
FIELD_A = 448.0  # width of the simulated boxes, whatever their pixels: 3.5 A at 128 px
DIAMETER_A = 330.0  # of the simulated ribosome's mask


def make_folder(folder: Path, empty: bool) -> None:
    """Make it where it is not there. Raises InputError where that fails, where it has to be empty and is not,
    and where files are in it that no benchmark made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            if empty:
                raise InputError(f"{folder}: holds files already; choose another folder with --o")
            if not (folder / MARK).exists():
                raise InputError(f"{folder}: holds files that no benchmark made; choose another folder with --o")
        (folder / MARK).touch()
    except OSError as error:
        raise InputError(f"{folder}: cannot be used ({error.strerror}); choose another folder with --o") from error


def simulated(params: Any, folder: Path, box_px: int, threads: int) -> Path:
    """The table of simulated particles of the bundled ribosome, made where it is not there yet."""
    from polarice.jobs import simulate

    if not (folder / simulate.FILES[-1]).exists():
        simulate.run(
            simulate.Params(
                inputs=(DATA / "ribosome70S.mrc",),
                o=folder,
                particles=params.particles,
                box=box_px,
                angpix=FIELD_A / box_px,
                snr=params.snr,
                seed=params.seed,
                threads=threads,
            )
        )
    return folder / "particles.star"


def write_text(path: Path, text: str) -> None:
    with replacing(path, "w") as stream:
        stream.write(text)


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def heading(title: str, machine: dict[str, Any]) -> str:
    """Title and machine, as a page begins."""
    return (
        f"# {title}\n\n{machine['cpu']}, {machine['cores']} cores, {machine['device']}, torch {machine['torch']}, "
        f"Polarice {machine['polarice']}; {machine['date']}.\n"
    )

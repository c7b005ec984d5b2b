"""Ranks of a job at work on this machine, as the system knows them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from polarice.cluster import launched


def ranks_in(folder: Path) -> dict[int, int]:
    """Process numbers of the ranks that work in `folder`, by what launchers tell each of them."""
    found = {}
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            if os.readlink(each / "cwd") != str(folder):
                continue
            words, variables = (
                (each / name).read_text(errors="replace").split("\0") for name in ("cmdline", "environ")
            )
            launch = launched({name: value for name, _, value in (text.partition("=") for text in variables)})
            if launch is not None and words[0] == sys.executable and "-I" not in words:
                found[launch.rank] = int(each.name)
    return found

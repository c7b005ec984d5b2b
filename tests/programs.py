"""Other programs that our files are held against."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SECONDS = 300


def relion(*words: object, folder: str | Path = ".") -> str:
    """Run a program of RELION in `folder`; what it printed. The test is skipped where it is not installed."""
    if shutil.which(str(words[0])) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run([*map(str, words)], cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr

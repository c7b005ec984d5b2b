"""A working directory with the particles that a test module calls its SET."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from jobs.runs import stub_report


@pytest.fixture(autouse=True)
def no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs write no state.json here, whose thread writes when it likes: see tests/test_project.py."""
    monkeypatch.setattr("polarice.project.registry.working", lambda job, folder: nullcontext())


@pytest.fixture(scope="module")
def images(request: pytest.FixtureRequest) -> np.ndarray:
    """(n, N, N) float32, made once for the module."""
    return request.module.SET.images()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, images: np.ndarray) -> Path:
    """A working directory with the set, and reports that are not drawn."""
    request.module.SET.write(tmp_path, images)
    monkeypatch.chdir(tmp_path)
    stub_report(monkeypatch)
    return tmp_path

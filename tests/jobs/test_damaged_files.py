"""Checkpoints, histories and job.json of a run that something has damaged: refused by name, or passed over."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from polarice.io.arrays import require_plain
from polarice.jobs.batch import _submission
from polarice.project.provenance import NAME, read_job_json
from polarice.report.history import _whole_lines
from polarice.runs.checkpoint import _require_one_set, path_of, read_checkpoint
from polarice.types import InputError

DEEP = "[" * 100_000


def plain(folder: Path, **arrays: np.ndarray) -> zipfile.ZipFile:
    np.savez(folder / "a.npz", **arrays)
    return zipfile.ZipFile(folder / "a.npz")


def test_arrays_are_plain_numbers_as_long_as_they_say(tmp_path):
    require_plain(plain(tmp_path, x=np.zeros((3, 2)), y=np.arange(3)))
    with pytest.raises(ValueError, match="y holds no plain numbers"):
        require_plain(plain(tmp_path, x=np.zeros(3), y=np.array([{}], object)))
    np.savez_compressed(tmp_path / "b.npz", x=np.zeros(1_000_000))
    with pytest.raises(ValueError, match=r"x\.npy is compressed"):
        require_plain(zipfile.ZipFile(tmp_path / "b.npz"))
    array = (tmp_path / "c.npy", np.zeros(4))
    np.save(*array)
    whole = array[0].read_bytes().replace(b"(4,), }", b"(9999999999,), }").replace(b" " * 9 + b"\n", b"\n")
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("x.npy", whole)
    with pytest.raises(ValueError, match="not as long as its header says"):
        require_plain(zipfile.ZipFile(tmp_path / "c.npz"))


def particles(**changed: np.ndarray) -> dict[str, np.ndarray]:
    known = {
        "pose.class_of": np.array([0, 1, -1]),
        "pose.shift_px": np.zeros((3, 2)),
        "found.significant": np.zeros(3),
        "classes.weights": np.array([0.5, 0.5]),
        "classes.signal_power": np.zeros((2, 5)),
        "classes.ssnr": np.zeros((2, 5)),
        "classes.resolution_A": np.zeros(2),
    }
    return {**known, **changed}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pose.shift_px": np.zeros((4, 2))}, "do not fit together: of the particles"),
        ({"pose.shift_px": np.zeros(3)}, "do not fit together: pose.shift_px"),
        ({"found.significant": np.zeros((3, 2))}, "do not fit together: found.significant"),
        ({"cut_px": np.zeros((2, 2))}, "do not fit together: of the particles"),
        ({"classes.ssnr": np.zeros((3, 5))}, "classes.ssnr is missing, or not of the 2 classes"),
        ({"pose.class_of": np.array([0, 2, 1])}, "numbers that none of the 2 classes has"),
        (
            {"pose.class_of": np.array([0.0, 1.0, 1.0])},
            "is missing, or of another kind",
        ),
    ],
)
def test_arrays_of_the_particles_fit_together(changed, said):
    _require_one_set(particles())
    with pytest.raises(ValueError, match=said):
        _require_one_set(particles(**changed))


def test_a_checkpoint_that_is_another_file_is_named_without_advice_on_pickles(tmp_path):
    np.savez(path_of(tmp_path, 3), x=np.array([{}], object))
    with pytest.raises(InputError, match="run_it003") as told:
        read_checkpoint(tmp_path, 3, torch.device("cpu"))
    assert "pickle" not in str(told.value) and len(str(told.value).splitlines()) == 1


def test_deep_nesting_and_strange_values_are_damage_like_any_other(tmp_path):
    (tmp_path / NAME).write_text(DEEP)
    with pytest.raises(InputError, match="not readable as JSON"):
        read_job_json(tmp_path)
    assert _submission(DEEP) is None
    good = {"number": 1, "total": 5, "particles_used": 9, "seconds": {"expectation": 1.5}, "reseeded": [2]}
    bad = [{**good, "number": "1"}, {**good, "seconds": [1]}, {**good, "best_A": "x"}, {**good, "total": True},
           {**good, "best_A": 1e301}]  # fmt: skip
    lines = [json.dumps(row) for row in [good, *bad]] + [DEEP, "half"]
    (tmp_path / "history.jsonl").write_text("\n".join(lines) + "\n")
    assert _whole_lines(tmp_path / "history.jsonl")[1] == [good]

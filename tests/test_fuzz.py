"""Damaged files of every kind that Polarice reads (tests/fuzzing.py), and the exam's own exam."""

import random
import subprocess
import sys
import time

import numpy as np
import pytest

import fuzzing
from fuzzing_damage import OF, Damage, damage
from fuzzing_samples import SAMPLES, complaints, equal, make_samples
from polarice.types import Optics

CASES, SEED = 500, 1


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undamaged")
    make_samples(folder)
    return folder


def test_damaged_files_are_read_or_refused_in_one_line(undamaged):
    found = fuzzing.campaign(CASES, SEED, undamaged)
    assert not found, fuzzing.summary(found, SEED)


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.kind for sample in SAMPLES])
def test_undamaged_files_are_read(sample, undamaged):
    value = sample.read(undamaged / sample.kind)
    assert sample.complaint(value) == ""
    assert sample.rows is None or sample.rows(value) in (6, 12, 24)
    assert equal(value, sample.read(undamaged / sample.kind))


def test_a_case_is_the_same_each_time():
    data = b"data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n" + b"1.5 2.5\n" * 20
    for number in range(50):
        one, two = (damage(data, "star", random.Random(f"1 {number}")) for _ in range(2))
        assert one == two
    assert len({damage(data, "star", random.Random(f"1 {number}")).data for number in range(50)}) > 30


@pytest.mark.parametrize("texture", sorted(set(OF) - {"npz", "npy"}))
def test_damage_takes_any_bytes(texture):
    data = b"data_\nloop_\n_a #1\n1 2\n3 4\nx = 5\n" * 3
    for number in range(200):
        done = damage(data, texture, random.Random(number))
        assert isinstance(done, Damage) and done.said and isinstance(done.data, bytes)
        assert not (done.harmless and len(done.data) < len(data))


def test_the_oracle_complains_of_numbers_that_are_none():
    assert list(complaints(np.array([1.0, 2.0]))) == [] and list(complaints({"a": (1, "text", None)})) == []
    assert list(complaints({"a": np.array([1.0, np.nan])})) == ["hands out nan or inf a"]
    assert list(complaints([1e300])) == ["hands out a number beyond 1e+12"]
    [found] = complaints(Optics("g", float("inf"), 300.0, 2.7, 0.1, 64))
    assert found == "hands out inf pixel_size_A"


def test_the_oracle_compares_values():
    assert equal((1, np.arange(3), {"a": 1.5}), (1, np.arange(3), {"a": 1.5}))
    assert not equal(np.arange(3), np.arange(4)) and not equal({"a": 1.5}, {"a": 1.25}) and not equal([1], (1,))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a.star, row 3: no number", ""),
        ("row 3: no number", "message names no file"),
        ("a.star: one\ntwo", "message is not one line"),
        ("a.star " + "x" * 1000, "message too long"),
    ],
)
def test_the_oracle_reads_messages(text, complaint):
    assert fuzzing.message_complaint(text, ["a.star"]) == complaint


def test_a_case_that_takes_too_long_is_stopped(monkeypatch):
    monkeypatch.setattr(fuzzing, "CASE_S", 0.1)
    with pytest.raises(fuzzing.TooLong), fuzzing._limited():
        time.sleep(5)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print(7, flush=True); os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("print(7, flush=True); os._exit(3)", "ends with 3: "),
        ("print(7, flush=True); import time; time.sleep(60)", "hangs"),
    ],
)
def test_a_child_that_dies_or_hangs_is_told_of(monkeypatch, code, why):
    monkeypatch.setattr(fuzzing, "HANG_S", 0.5)
    words = [sys.executable, "-c", f"import os; {code}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert fuzzing._follow(child, [], 7, lambda case: None) == (7, why)


def test_failures_are_grouped_and_can_be_run_again():
    found = [
        fuzzing.Failure(case, "cs", "cut", "ValueError", "io/cryosparc.py:1 read_cs", "m\nessage") for case in (3, 9)
    ]
    text = fuzzing.summary([*found, fuzzing.Failure(4, "PDB", "cut", "hangs", "(PDB)", "")], 5)
    assert text.startswith("3 cases failed, in 2 ways") and "2 x ValueError at io/cryosparc.py:1 read_cs [cs]" in text
    assert "python tests/fuzzing.py --seed 5 --case 3\n" in text and "m essage" in text

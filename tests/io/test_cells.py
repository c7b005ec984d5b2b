"""Columns of text turned into numbers agree with float() to the last bit."""

import numpy as np
import pytest

from polarice.io.cells import Cells, NotANumber, split


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e-4, 1e7])
@pytest.mark.parametrize("form", ["%.6f", "%12.3f", "%.0f", "%.15g", "%e", "%.1f", "%.10f", "%+.3f", "%5.f."])
def test_numbers_are_rounded_as_float_rounds(form, scale):
    rng = np.random.default_rng(0)
    texts = [(form % value).strip().encode() for value in rng.normal(size=3000) * scale]
    numbers = Cells.of([b"q.9", *texts])[slice(1, None)].numbers()
    truth = np.array([float(text) for text in texts])
    np.testing.assert_array_equal(numbers.view(np.int64), truth.view(np.int64))


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("bad", [b"1.2.3", b"-", b".", b"", b"1-2", b"--1", b"1e", b"1,2", b"12a", b"-.", b"+", b"0x1"])
def test_what_is_no_number_is_named(bad, row):
    texts = [b"1.5", b"-2.5", b"3.5"]
    texts[row] = bad
    with pytest.raises(NotANumber) as caught:
        Cells.of([b"000000", *texts])[slice(1, None)].numbers()
    assert (caught.value.row, caught.value.text) == (row, bad.decode())


def test_mixed_numbers():
    texts = [
        b"1",
        b"-2.50",
        b"1e3",
        b"+7",
        b".5",
        b"5.",
        b"-0",
        b"123456789012345678",
        b"0.1234567890123456789",
        b"nan",
    ]
    np.testing.assert_array_equal(Cells.of(texts).numbers(), [float(text) for text in texts])


def test_codes_and_split_agree_with_python():
    rng = np.random.default_rng(1)
    names = [
        b"%06d@folder/%d.mrcs" % (n, k) for n, k in zip(range(1, 70_001), rng.integers(0, 300, 70_000), strict=True)
    ]
    names[69_000] = b"a_name_without_any_number_in_front.mrc"
    names[69_001] = b"00000000000000000000000000007@far.mrcs"
    before, after, there = Cells.of(names).split_at(b"@")
    assert before.texts() == [name.partition(b"@")[0] if b"@" in name else b"" for name in names]
    assert after.texts() == [name.partition(b"@")[2] if b"@" in name else name for name in names]
    np.testing.assert_array_equal(there, [b"@" in name for name in names])
    distinct, codes = after.codes()
    assert distinct == list(dict.fromkeys(after.texts()))
    assert [distinct[code] for code in codes] == after.texts()


def test_split_over_many_chunks(monkeypatch):
    monkeypatch.setattr("polarice.io.cells.CHUNK_BYTES", 100)
    rng = np.random.default_rng(2)
    rows = [[str(value) * int(rng.integers(1, 9)) for value in rng.integers(0, 99, 3)] for _ in range(500)]
    rows[250][1] = "x" * 300  # one line longer than a chunk
    text = "\n".join(("\t " if rng.random() < 0.3 else "") + "  ".join(row) for row in rows)
    text = text.replace("\n", "\n # a comment\n\n", 7)
    grid = split(text.encode(), 0, len(text), 3)
    found = [grid.span(column, column).texts() for column in range(3)]
    assert [[cell.decode() for cell in row] for row in zip(*found, strict=True)] == rows

"""What is done to files: each kind of damage takes the bytes and a random generator."""

from __future__ import annotations

import io
import random
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

STRANGE = (
    "nan",
    "inf",
    "-inf",
    "1e300",
    "-1e300",
    "-1",
    "0",
    "",
    "text",
    "1e-300",
    "99999999999999999999",
    "1.5",
    "0x10",
    "1_000",
    "x" * 3000,
    "\u00b5\u03a9",
    "None",
    "null",
    "true",
    "[]",
    '"',
    "'",
    "1,5",
    "1@2@3",
    "../../x",
    "\t",
    "#",
    "4294967295",
)
INTEGERS = (0, -1, 1, 2**31 - 1, -(2**31), 2**24, 2**16, 0x7FC00000, 0x7F800000)


@dataclass(frozen=True)
class Damage:
    data: bytes
    said: str
    harmless: bool = False  # the file means what it did
    rows: int | None = None  # how many rows more, where that is known


Mutation = Callable[[bytes, random.Random], Damage]


def damage(data: bytes, texture: str, rng: random.Random) -> Damage:
    """The data of this texture ("star", "rows", "text", "json", "binary", "tiff"), damaged in one way or another."""
    return rng.choice(OF[texture])(data, rng)


# -- bytes -------------------------------------------------------------------------------------------------------------


def _bits(data: bytes, rng: random.Random) -> Damage:
    changed, count = bytearray(data), rng.choice((1, 1, 3, 20))
    head = rng.random() < 0.5  # headers are short, and matter
    for _ in range(count if data else 0):
        changed[rng.randrange(min(len(data), 1024) if head else len(data))] ^= 1 << rng.randrange(8)
    return Damage(bytes(changed), f"{count} bits flipped")


def _bytes(data: bytes, rng: random.Random) -> Damage:
    changed, count = bytearray(data), rng.choice((1, 4, 30))
    for _ in range(count if data else 0):
        changed[rng.randrange(len(data))] = rng.randrange(256)
    return Damage(bytes(changed), f"{count} bytes replaced")


def _cut(data: bytes, rng: random.Random) -> Damage:
    length = rng.choice((0, 1, 2, rng.randrange(len(data)), rng.randrange(len(data)), len(data) - 1))
    return Damage(data[:length], f"cut after {length} of {len(data)} bytes")


def _chunk(data: bytes, rng: random.Random) -> Damage:
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice((1, 7, 64, 1000)))
    done, middle = rng.choice(
        (
            ("removed", b""),
            ("zeroed", bytes(stop - start)),
            ("doubled", data[start:stop] * 2),
            ("set", b"\xff" * (stop - start)),
        )
    )
    return Damage(data[:start] + middle + data[stop:], f"bytes {start} to {stop} {done}")


def _integer(data: bytes, rng: random.Random) -> Damage:
    """A size or offset: four or eight bytes at a place where formats keep such."""
    width = rng.choice((4, 4, 8))
    place = rng.randrange(max(1, min(len(data) - width, 1024) // 4)) * 4
    value = rng.choice((*INTEGERS, place, rng.randrange(len(data))))
    packed = struct.pack(rng.choice("<>") + ("i" if width == 4 else "q"), value)
    return Damage(data[:place] + packed + data[place + width :], f"{value} in {width} bytes at {place}")


def _loop(data: bytes, rng: random.Random) -> Damage:
    """The first directory's offset put in the place of a later one."""
    big = data[2] == 43
    offset = data[8:16] if big else data[4:8]
    zeros = [found.start() for found in re.finditer(bytes(len(offset)), data) if found.start() > len(data) // 2]
    place = rng.choice(zeros or [len(data) - len(offset)])
    return Damage(data[:place] + offset + data[place + len(offset) :], f"offset of the first directory at {place}")


# -- text --------------------------------------------------------------------------------------------------------------


def _lines(data: bytes, rng: random.Random) -> Damage:
    lines = data.split(b"\n")
    row, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    done = rng.choice(("dropped", "doubled", "swapped", "joined"))
    if done == "dropped":
        lines.pop(row)
    elif done == "doubled":
        lines.insert(row, lines[row])
    elif done == "swapped":
        lines[row], lines[other] = lines[other], lines[row]
    else:
        lines[row : row + 2] = [b" ".join(lines[row : row + 2])]
    return Damage(b"\n".join(lines), f"line {row + 1} {done}")


def _row(data: bytes, rng: random.Random) -> Damage:
    """A row of numbers once more, or gone: other rows stay."""
    lines = data.split(b"\n")
    block = next((n for n, line in enumerate(lines) if line.startswith((b"data_particles", b"data_m"))), 0)
    rows = [n for n in range(block + 1, len(lines)) if _is_row(lines[n])]
    if len(rows) < 2:
        return _lines(data, rng)
    row, more = rng.choice(rows), rng.random() < 0.5
    lines[row : row + 1] = [lines[row]] * 2 if more else []
    return Damage(
        b"\n".join(lines), f"row at line {row + 1} {'doubled' if more else 'dropped'}", rows=1 if more else -1
    )


def _is_row(line: bytes) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith((b"_", b"#", b"data_", b"loop_", b"image_name"))


def _field(data: bytes, rng: random.Random) -> Damage:
    lines = data.split(b"\n")
    filled = [n for n, line in enumerate(lines) if line.split()]
    row = rng.choice(filled[-max(1, len(filled) * 2 // 3) :] if rng.random() < 0.7 else filled)
    words = lines[row].split()
    place, other = rng.randrange(len(words)), rng.randrange(len(words))
    done = rng.choice(("replaced", "replaced", "replaced", "swapped", "dropped", "doubled"))
    if done == "replaced":
        words[place] = rng.choice(STRANGE).encode()
        done = f"replaced by {words[place][:20].decode()!r}"
    elif done == "swapped":
        words[place], words[other] = words[other], words[place]
    else:
        words[place : place + 1] = [] if done == "dropped" else [words[place]] * 2
    lines[row] = b" ".join(words)
    return Damage(b"\n".join(lines), f"line {row + 1}, word {place + 1} {done}")


def _number(data: bytes, rng: random.Random) -> Damage:
    found = list(re.finditer(rb"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.])", data))
    if not found:
        return _field(data, rng)
    one, value = rng.choice(found), rng.choice(STRANGE)
    return Damage(data[: one.start()] + value.encode() + data[one.end() :], f"{one[0].decode()} becomes {value[:20]!r}")


def _column(data: bytes, rng: random.Random) -> Damage:
    """A column of the last loop dropped, its label kept or not; or a label changed or named twice."""
    lines = data.split(b"\n")
    labels = [n for n, line in enumerate(lines) if line.startswith(b"_")]
    if not labels:
        return _field(data, rng)
    place = rng.choice(labels)
    done = rng.choice(("label dropped", "label doubled", "label changed", "dropped"))
    if done == "label changed":
        lines[place] = b"_rlnSomething"
    elif done == "label doubled":
        lines.insert(place, lines[place])
    elif done == "label dropped":
        lines.pop(place)
    else:
        index = next(back for back in range(place + 1) if not lines[place - back - 1].startswith(b"_"))
        row = place + 1
        while row < len(lines) and lines[row].startswith(b"_"):
            row += 1
        while row < len(lines) and _is_row(lines[row]):
            words = lines[row].split()
            lines[row] = b" ".join(words[:index] + words[index + 1 :])
            row += 1
        lines.pop(place)
    return Damage(b"\n".join(lines), f"column at line {place + 1}: {done}")


def _insert(data: bytes, rng: random.Random) -> Damage:
    what = rng.choice(
        (
            b"\xff\xfe",
            b"\x80",
            b"\0",
            b"\0" * 100,
            b"A" * 100_000,
            b"[" * 3000,
            b"{" * 50,
            b'"',
            b"'",
            b"\r",
            b"data_\n",
            b"loop_\n",
        )
    )
    place = rng.choice((0, rng.randrange(len(data)), len(data)))
    return Damage(data[:place] + what + data[place:], f"{what[:12]!r} ({len(what)} bytes) at {place}")


def _encoded(data: bytes, rng: random.Random) -> Damage:
    if rng.random() < 0.5:
        return Damage(data.decode("utf-8").encode("utf-16"), "in UTF-16")
    return Damage(b"\x1f\x8b" + data, "with gzip's first bytes")


def _harmless(data: bytes, rng: random.Random) -> Damage:
    """STAR that means the same."""
    if rng.random() < 0.3:
        return Damage(data.replace(b"\n", b"\r\n"), "with ends of lines of Windows", harmless=True)
    if rng.random() < 0.4:
        return Damage(data + b"\n" * rng.randrange(1, 5), "empty lines behind", harmless=True)
    if rng.random() < 0.5:
        return Damage(b"# a comment\n" + data, "a comment before", harmless=True)
    lines = [line + b"  " if _is_row(line) else line for line in data.split(b"\n")]
    return Damage(b"\n".join(lines), "blanks behind rows", harmless=True)


def _windows(data: bytes, rng: random.Random) -> Damage:
    return Damage(data.replace(b"\n", b"\r\n"), "with ends of lines of Windows", harmless=True)


def _nested(data: bytes, rng: random.Random) -> Damage:
    """A value of JSON or TOML replaced by one of another kind, or a deep one."""
    found = list(re.finditer(rb"(?<=[:=])\s*[^,\n{}\[\]]+", data))
    one = rng.choice(found) if found else None
    deep = rng.choice((50, 5000))
    value = rng.choice((b"[]", b"{}", b"null", b"true", b'"text"', b"1e999", b"NaN", b"-1", b"[" * deep + b"]" * deep))
    if one is None:
        return _insert(data, rng)
    return Damage(data[: one.start()] + b" " + value + data[one.end() :], f"{one[0][:30]!r} becomes {value[:20]!r}")


_ANY = (_bits, _bytes, _cut, _chunk)
_TEXT = (*_ANY, _lines, _lines, _field, _field, _number, _number, _insert, _encoded)
OF: dict[str, tuple[Mutation, ...]] = {
    "binary": (*_ANY, _bits, _integer, _integer, _integer),
    "tiff": (*_ANY, _bits, _integer, _integer, _integer, _loop),
    "text": _TEXT,
    "rows": (*_TEXT, _row, _windows),
    "star": (*_TEXT, _row, _row, _column, _column, _harmless),
    "json": (*_TEXT, _nested, _nested, _nested),
}


# -- arrays ------------------------------------------------------------------------------------------------------------


def _archive(data: bytes, rng: random.Random) -> Damage:
    """One array of an .npz file changed; the archive itself stays sound."""
    with np.load(io.BytesIO(data)) as stored:
        arrays = {name: stored[name] for name in stored.files}
    name = rng.choice(sorted(arrays))
    done = rng.choice(("left out", "shorter", "other axes", "text", "value", "value", "value", "no numbers", "objects"))
    array = arrays[name]
    if done == "left out":
        del arrays[name]
    elif done == "shorter":
        arrays[name] = array[:-1] if array.ndim else np.zeros(0, array.dtype)
    elif done == "other axes":
        arrays[name] = array[None]
    elif done == "text":
        arrays[name] = np.full(array.shape, "text")
    elif done == "no numbers":
        arrays[name] = np.full(array.shape, np.nan)
    elif done == "objects":
        arrays[name] = np.full(array.shape, None, object)
    else:
        value, arrays[name] = _spoilt(array, rng)
        done = f"value {value:g}"
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return Damage(stream.getvalue(), f"array {name}: {done}")


def _record(data: bytes, rng: random.Random) -> Damage:
    """One value of a structured array, or a whole column gone."""
    rows = np.load(io.BytesIO(data))
    name = rng.choice(rows.dtype.names)
    if rng.random() < 0.2:
        kept = [other for other in rows.dtype.names if other != name]
        changed, said = np.array(rows[kept].tolist(), _packed(rows, kept)), "left out"
    elif rows.dtype[name].base.kind == "S":
        changed, value = rows.copy(), rng.choice((b"", b"\xff\xfe", b"../x", b"a b", b">"))
        changed[name][rng.randrange(len(rows))] = value
        said = f"value {value!r}"
    else:
        changed = rows.copy()
        value, column = _spoilt(changed[name], rng)
        changed[name] = column
        said = f"value {value:g}"
    stream = io.BytesIO()
    np.save(stream, changed)
    return Damage(stream.getvalue(), f"column {name}: {said}")


def _packed(rows: np.ndarray, kept: list[str]) -> np.dtype:
    return np.dtype([(name, rows.dtype[name]) for name in kept])


def _spoilt(array: np.ndarray, rng: random.Random) -> tuple[float, np.ndarray]:
    """One element (all, where it has no axis) replaced by a strange value of the same type."""
    values = (0, 1, 2**31 - 1, 2**62) if array.dtype.kind in "ub" else (0, -1, -(2**31), 2**31 - 1, 2**62)
    value = rng.choice((np.nan, np.inf, -np.inf, 1e300, -1.0, 0.0, 1e30) if array.dtype.kind == "f" else values)
    changed = array.copy()
    with np.errstate(all="ignore"):
        place = np.array(value).astype(array.dtype)
    if changed.size:
        changed.reshape(-1)[rng.randrange(changed.size)] = place
    return float(value), changed


OF["npz"] = (_bits, _bytes, _cut, _chunk, _archive, _archive, _archive, _archive)
OF["npy"] = (_bits, _bytes, _cut, _chunk, _integer, _record, _record, _record, _record)

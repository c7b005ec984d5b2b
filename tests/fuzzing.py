"""Damaged input files, by the thousand: a reader hands out sane values or raises a plain InputError.

    python tests/fuzzing.py --n 5000 --seed 3            # longer than the suite does
    python tests/fuzzing.py --seed 3 --case 1234         # one case again, with its traceback

Cases run in a child of limited memory, each within limited time; where one kills the child, the next child goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

CASE_S = 4.0  # a case takes no longer
HANG_S = 15.0  # nor does what cannot be interrupted
MEMORY = 2 << 30  # bytes that a child may take beyond what it begins with
LONGEST_MESSAGE = 1000


class TooLong(BaseException):
    """A case has taken more than CASE_S."""


@dataclass(frozen=True)
class Failure:
    """One case that ended neither well nor with a plain InputError."""

    case: int
    kind: str
    damage: str
    what: str  # the exception's class, or the oracle's complaint
    place: str  # in Polarice's source
    message: str

    @property
    def group(self) -> tuple[str, str]:
        return self.what, self.place


# -- one case ----------------------------------------------------------------------------------------------------------


def damaged(folder: Path, seed: int, case: int, undamaged: Path):
    """(sample, damage): the case's file in `folder`, and its kind."""
    from fuzzing_damage import damage
    from fuzzing_samples import SAMPLES

    sample = SAMPLES[case % len(SAMPLES)]
    shutil.copytree(undamaged / sample.kind, folder, dirs_exist_ok=True)
    done = damage((folder / sample.file).read_bytes(), sample.texture, random.Random(f"{seed} {case}"))
    (folder / sample.file).write_bytes(done.data)
    return sample, done


def failure_of(seed: int, case: int, undamaged: Path, raising: bool = False) -> Failure | None:
    """What is wrong with the case; `raising` lets its exception through."""
    from fuzzing_samples import equal
    from polarice.types import InputError

    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        sample, done = damaged(folder, seed, case, undamaged)

        def failure(what: str, place: str = "", message: str = "") -> Failure:
            return Failure(case, sample.kind, done.said, what, place or f"({sample.kind})", message[:300])

        try:
            with _limited():
                value = sample.read(folder)
        except InputError as error:
            if done.harmless:
                return failure("refuses what is not damaged", _place(error), str(error))
            complaint = message_complaint(str(error), [each.name for each in folder.rglob("*")])
            return failure(complaint, _place(error), str(error)) if complaint else None
        except (Exception, TooLong) as error:
            if raising:
                raise
            broken = isinstance(error, AssertionError) and str(error)  # an oracle of the sample
            return failure(broken or type(error).__name__, "" if broken else _place(error), str(error))
        if complaint := sample.complaint(value):
            return failure(complaint)
        if done.harmless:
            same = equal(value, sample.read(undamaged / sample.kind))
            return None if same else failure("another result, and nothing was damaged")
        if done.rows is not None and sample.rows is not None:
            wanted = sample.rows(sample.read(undamaged / sample.kind)) + done.rows
            return None if sample.rows(value) == wanted else failure(f"{sample.rows(value)} rows, not {wanted}")
    return None


def message_complaint(text: str, names: Sequence[str]) -> str:
    """What is wrong with an InputError's text, given the names of the files that it may be about; "" where nothing."""
    if not text.strip() or len(text.splitlines()) > 1:
        return "message is not one line"
    if len(text) > LONGEST_MESSAGE:
        return "message too long"
    if not any(name in text for name in names):
        return "message names no file"
    return ""


@contextlib.contextmanager
def _limited():
    def too_long(*_):
        raise TooLong(f"more than {CASE_S:g} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, CASE_S)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("error")
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _place(error: BaseException) -> str:
    """The innermost line of Polarice that the error came by."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "/polarice/" in frame.filename:
            return f"{frame.filename.rpartition('/polarice/')[2]}:{frame.lineno} {frame.name}"
    return ""


# -- many of them ------------------------------------------------------------------------------------------------------


def campaign(n: int, seed: int, undamaged: Path, first: int = 0, progress=lambda case: None) -> list[Failure]:
    """Cases first .. first + n - 1 in children; their failures."""
    found, case, last = list[Failure](), first, first + n
    while case < last:
        words = [
            __file__,
            "--child",
            str(undamaged),
            "--seed",
            str(seed),
            "--first",
            str(case),
            "--n",
            str(last - case),
        ]
        with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            begun, why = _follow(child, found, case, progress)
        if begun == last:
            break
        if begun < case:
            raise RuntimeError(f"no case could be run: {why}")
        found.append(Failure(begun, kind_of(begun), f"see --seed {seed} --case {begun}", why, "(process)", ""))
        case = begun + 1
    return found


def _follow(child, found: list[Failure], first: int, progress) -> tuple[int, str]:
    """Take what the child says until it ends: the case that was then under work, and how it ended."""
    begun, rest, waiting = first - 1, b"", selectors.DefaultSelector()
    waiting.register(child.stdout, selectors.EVENT_READ)
    since = time.monotonic()
    while True:
        if not waiting.select(1.0):
            if time.monotonic() - since > HANG_S + (30 if begun < first else 0):
                child.kill()
                return begun, "hangs"
            continue
        chunk = child.stdout.read1(1 << 16)
        if not chunk:
            break
        since = time.monotonic()
        *lines, rest = (rest + chunk).split(b"\n")
        for told in map(json.loads, lines):
            if isinstance(told, int):
                begun = told
                progress(told)
            else:
                found.append(Failure(**told))
    code = child.wait()
    said = child.stderr.read().decode(errors="replace").strip().splitlines()
    return begun, signal.Signals(-code).name if code < 0 else f"ends with {code}: {' '.join(said[-1:])[:200]}"


def _child(undamaged: Path, seed: int, first: int, n: int) -> None:
    from fuzzing_samples import load

    load()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    out = sys.stdout
    for case in range(first, first + n):
        print(case, file=out, flush=True)
        if (failure := failure_of(seed, case, undamaged)) is not None:
            print(json.dumps(asdict(failure)), file=out, flush=True)
    print(first + n, file=out, flush=True)


def kind_of(case: int) -> str:
    from fuzzing_samples import SAMPLES

    return SAMPLES[case % len(SAMPLES)].kind


def summary(found: Sequence[Failure], seed: int) -> str:
    """Failures grouped by what and where, the most frequent first; for each how to run one of them again."""
    groups = defaultdict(list)
    for each in found:
        groups[each.group].append(each)
    lines = [f"{len(found)} cases failed, in {len(groups)} ways"]
    for (what, place), each in sorted(groups.items(), key=lambda item: -len(item[1])):
        one, kinds = each[0], ", ".join(sorted({failure.kind for failure in each}))
        lines.append(f"{len(each):4d} x {what} at {place} [{kinds}]")
        lines.append(f"       {one.damage}: {' '.join(one.message.split())[:160]}")
        lines.append(f"       python tests/fuzzing.py --seed {seed} --case {one.case}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500, help="cases")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="case to begin with")
    parser.add_argument("--case", type=int, help="run this one alone, in this process")
    parser.add_argument("--keep", type=Path, help="with --case: put its files there")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.child:
        _child(given.child, given.seed, given.first, given.n)
        return 0
    from fuzzing_samples import make_samples

    with tempfile.TemporaryDirectory(prefix="fuzz-samples-") as name:
        undamaged = Path(name)
        make_samples(undamaged)
        if given.case is not None:
            if given.keep:
                damaged(given.keep, given.seed, given.case, undamaged)
            failure = failure_of(given.seed, given.case, undamaged, raising=True)
            print(failure or f"case {given.case} of {kind_of(given.case)} ends as it should")
            return int(failure is not None)
        found = campaign(given.n, given.seed, undamaged, given.first)
    print(summary(found, given.seed))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

"""`polarice bench card`: everything that a card has to show, in one call of minutes; what fails stops nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from polarice.bench.folder import DIAMETER_A, heading, make_folder, simulated, write_json, write_text
from polarice.bench.measure import last_lines
from polarice.bench.results import markdown, number
from polarice.project.params import Parameters, as_dict, command_line, option, output
from polarice.types import InputError

SUMMARY = "tests, agreement with the processor, and times of the engine and of whole jobs on one card, in one call"
PARTS = ("card", "tests", "agreement", "engine", "align2d", "sml", "class2d")
TESTS = Path(__file__).parents[3] / "tests"
SMALL_BOX_PX, SMALL_K, SMALL_ITERATIONS = 64, 20, 8
ENGINE_ITERATIONS = 12
TOLERANCE = {"pose_deg": 0.02, "effective": 0.02}  # of the processor's score, relative
LAST_LINES = 30


@dataclass(frozen=True)
class Params(Parameters):
    """What is run, and how large it is."""

    o: Path = output("bench_card", "folder for card.json, card.md, particles, runs and logs")
    parts: tuple[str, ...] = option((), "run these parts only", derived="all", choices=PARTS)
    particles: int = option(57_001, "simulated particles of align2d, class2d and sml", low=30, high=10_000_000)
    box: int = option(160, "their box", unit="px", low=16, high=1024)
    k: int = option(300, "number of classes of align2d and class2d", low=1, high=100_000, flags=("-k", "--K"))
    iter: int = option(25, "iterations of align2d, each of all particles", low=1, high=999)
    nodes: int = option(1000, "nodes of the map of sml", low=2, high=100_000)
    map_iter: int = option(30, "iterations of sml", low=1, high=999)
    engine_k: tuple[int, ...] = option((20, 100, 300), "numbers of references of bench engine", low=1)
    engine_particles: int = option(4000, "simulated particles of bench engine and of the agreement", low=30)
    precision: tuple[str, ...] = option(
        ("float32", "tf32", "bfloat16"), "of bench engine", choices=("float32", "tf32", "bfloat16")
    )
    kernel: tuple[str, ...] = option(("plain", "fused"), "of bench engine", choices=("auto", "plain", "fused"))
    snr: float = option(0.05, "signal-to-noise ratio of the simulated particles", low=1e-6)
    memory: float | None = option(
        None, "memory that align2d and sml may take", derived="as they choose", unit="GiB", low=0.01
    )
    limit: float = option(240.0, "a part that takes longer is ended", unit="s", low=1)
    device: Literal["auto", "cpu", "cuda"] = option("cuda", "where to compute; cpu tries the call without a card")
    threads: int | None = option(
        None, "CPU threads", derived="all cores", resource=True, low=1, high=1024, flags=("--j",)
    )
    seed: int = option(1, "seed of everything random", low=0)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    command: list[str]
    exit_code: int | None  # None: ended at its limit
    wall_s: float
    log: str
    last: str  # lines of the log

    @property
    def status(self) -> str:
        if self.exit_code is None:
            return "ended at its limit"
        return "done" if self.exit_code == 0 else f"failed ({self.exit_code})"


def run(params: Params) -> None:
    """Run part after part and write what is known after each. Raises InputError where the device is not there."""
    from polarice.bench.timing import cores, machine
    from polarice.runs.resources import Computing

    threads = params.threads or cores()
    where = machine(Computing(threads=threads, device=params.device))
    make_folder(params.o, empty=True)
    told: dict[str, Any] = {
        "command": command_line("bench card", params),
        "parameters": as_dict(params),
        "machine": where,
        "parts": {},
    }
    for name in params.parts or PARTS:
        since = time.perf_counter()
        try:
            found = DO[name](params, threads)
        except Exception as error:  # whatever it is, the card is there for minutes and other parts wait
            found = {"status": f"failed ({type(error).__name__}: {error})"}
        told["parts"][name] = {**found, "whole_s": time.perf_counter() - since}
        print(f"{name}: {found['status']}, {told['parts'][name]['whole_s']:.1f} s", flush=True)
        write_json(params.o / "card.json", told)
        write_text(params.o / "card.md", page(told))
    print(f"\n{page(told)}\n{params.o / 'card.md'}")
    failed = [name for name, part in told["parts"].items() if part["status"] != "done"]
    if failed:
        raise InputError(f"not done: {', '.join(failed)}; see {params.o / 'card.json'} and the logs beside it")


def started(command: Sequence[str], log: Path, limit_s: float) -> Ended:
    """Run a command to its end or its limit, in a session of its own, all that it prints going to `log`."""
    since = time.perf_counter()
    with (
        log.open("wb") as stream,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True) as it,
    ):
        try:
            code: int | None = it.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if it.poll() is None:
                os.killpg(it.pid, signal.SIGKILL)
    return Ended(list(command), code, time.perf_counter() - since, str(log), last_lines(log, LAST_LINES))


def _ours(params: Params, name: str, *words: Any) -> dict[str, Any]:
    """One of our commands, as a user would give it."""
    command = [sys.executable, "-m", "polarice", *map(str, words)]
    ended = started(command, params.o / f"{name}.log", params.limit)
    return {**asdict(ended), "status": ended.status}


def _card(params: Params, _threads: int) -> dict[str, Any]:
    """What the driver says of the card."""
    if params.device == "cpu":
        return {"status": "done", "last": "no card asked for"}
    asked = "name,memory.total,memory.used,driver_version,power.limit,clocks.max.sm,utilization.gpu"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv"]
    ended = started(command, params.o / "card.log", params.limit)
    return {**asdict(ended), "status": ended.status}


def _tests(params: Params, _threads: int) -> dict[str, Any]:
    """The tests marked gpu, where the checkout is there."""
    if not TESTS.is_dir():
        return {"status": "left out (no tests beside this installation)"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(TESTS)]
    ended = started(command, params.o / "tests.log", params.limit)
    return {**asdict(ended), "status": ended.status}


def _agreement(params: Params, threads: int) -> dict[str, Any]:
    """The same small run on the processor and on the device: scores against the truth, and how alike the poses are."""
    from polarice.bench.programs import score

    small = {"particles": params.engine_particles, "box": SMALL_BOX_PX, "snr": params.snr, "seed": params.seed}
    table = simulated(_Of(small), params.o / "small", SMALL_BOX_PX, threads)
    found: dict[str, Any] = {"runs": {}, "scores": {}}
    devices = ("cpu", "cuda" if params.device != "cpu" else "cpu")
    for name, device in zip(("processor", "device"), devices, strict=True):
        out = params.o / f"small_{name}"
        given = ("--iter", SMALL_ITERATIONS, "--particle-diameter", DIAMETER_A, "--seed", params.seed)
        words = ("align2d", table, "--o", out, "-k", SMALL_K, *given, "--device", device, "--precision", "float32")
        found["runs"][name] = _ours(params, f"small_{name}", *words)
        if found["runs"][name]["status"] != "done":
            return {**found, "status": f"{name}: {found['runs'][name]['status']}"}
        found["scores"][name] = score(out, table.with_name("truth.npz"))
    one, other = found["scores"]["processor"], found["scores"]["device"]
    apart = {name: abs(other[name] / one[name] - 1) for name in TOLERANCE}
    found["relative_difference"] = apart
    agree = all(apart[name] <= limit for name, limit in TOLERANCE.items())
    return {**found, "status": "done" if agree else f"differs: {apart}"}


@dataclass(frozen=True)
class _Of:
    """A dict's entries as attributes, for `simulated`."""

    entries: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.entries[name]


def _engine(params: Params, threads: int) -> dict[str, Any]:
    out = params.o / "engine"
    words = [
        *("bench", "engine", "--o", out, "--k", *params.engine_k, "--box", params.box, "--threads", threads),
        *("--precision", *params.precision, "--kernel", *(params.kernel if params.device != "cpu" else ["plain"])),
        *("--particles", params.engine_particles, "--iter", ENGINE_ITERATIONS),
        *("--device", params.device, "--seed", params.seed, "--snr", params.snr),
    ]
    found = _ours(params, "engine", *words)
    if (out / "engine.json").exists():
        found["engine"] = json.loads((out / "engine.json").read_text())
    return found


def _align2d(params: Params, threads: int) -> dict[str, Any]:
    """Every iteration over all particles."""
    return _classes(params, threads, "align2d", ("--iter", params.iter, "--profile"))


def _class2d(params: Params, threads: int) -> dict[str, Any]:
    """As users run it: mini-batches that grow."""
    return _classes(params, threads, "class2d", ())


def _classes(params: Params, threads: int, job: str, more: tuple[Any, ...]) -> dict[str, Any]:
    from polarice.bench.programs import score

    table, out = _large(params, threads), params.o / job
    given = ("-k", params.k, "--particle-diameter", DIAMETER_A, "--seed", params.seed, *more)
    found = _job(params, job, out, table, *given)
    if found["status"] == "done":
        found["score"] = score(out, table.with_name("truth.npz"))
    return found


def _sml(params: Params, threads: int) -> dict[str, Any]:
    """On the truth's poses, so that it needs no other part."""
    table = _large(params, threads).with_name("truth.star")
    given = ("-k", params.nodes, "--iter", params.map_iter, "--particle-diameter", DIAMETER_A, "--seed", params.seed)
    return _job(params, "sml", params.o / "sml", table, *given)


def _large(params: Params, threads: int) -> Path:
    return simulated(params, params.o / f"{params.particles}_of_{params.box}px", params.box, threads)


def _job(params: Params, job: str, out: Path, *given: Any) -> dict[str, Any]:
    """One job: how it ended, what it used, its iterations, and its profile."""
    memory = () if params.memory is None else ("--memory", params.memory)
    found = _ours(params, job, job, *given, "--o", out, "--device", params.device, *memory)
    history = out / "history.jsonl"
    if history.exists():
        found["iterations"] = [json.loads(line) for line in history.read_text().splitlines()]
    for name in ("usage", "profile"):
        if (out / f"{name}.json").exists():
            found[name] = json.loads((out / f"{name}.json").read_text())
    return found


DO: dict[str, Callable[[Params, int], dict[str, Any]]] = {
    "card": _card, "tests": _tests, "agreement": _agreement, "engine": _engine, "align2d": _align2d, "sml": _sml,
    "class2d": _class2d,
}  # fmt: skip


def page(told: dict[str, Any]) -> str:
    """card.md."""
    lines = [[name, part["status"], number(part["whole_s"], ".1f")] for name, part in told["parts"].items()]
    text = heading("One card", told["machine"]) + "\n" + markdown(("part", "how it ended", "s in all"), lines)
    jobs = [(name, part) for name, part in told["parts"].items() if part.get("iterations")]
    if jobs:
        text += "\n" + markdown(JOB_HEAD, [_job_cells(name, part) for name, part in jobs])
        text += "\nS an iteration: without its writing. Largest: of all; the first ones also prepare the images.\n"
    if engine := told["parts"].get("engine", {}).get("engine"):
        from polarice.bench.engine import HEAD, NOTE, cells

        text += "\n" + markdown(HEAD, [cells(case) for case in engine["cases"]]) + "\n" + NOTE + "\n"
    return f"{text}\n    {told['command']}\n"


JOB_HEAD = (
    "job", "iterations", "wall s", "s loading", "s looking", "s first", "s of iterations", "s an iteration: median",
    "largest", "images/s", "degrees", "effective classes",
)  # fmt: skip
WRITING = "writing"


def _job_cells(name: str, part: dict[str, Any]) -> list[str]:
    from statistics import median

    seconds = [sum(s for what, s in each["seconds"].items() if what != WRITING) for each in part["iterations"]]
    usage = part.get("usage") or {}
    steps, score = usage.get("steps_s", {}), part.get("score") or {}
    used = sum(each["particles_used"] for each in part["iterations"])
    return [
        name,
        f"{len(seconds)}",
        number(part["wall_s"], ".1f"),
        *(number(steps.get(step), ".1f") for step in ("loading", "looking at images", "first classes", "iterations")),
        number(median(seconds), ".2f"),
        number(max(seconds), ".2f"),
        number(used / sum(seconds), ".0f"),
        number(score.get("pose_deg"), ".2f"),
        number(score.get("effective"), ".1f"),
    ]

"""From what was measured to what is stated: time per image, what the whole would take, ratios, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from polarice.bench.measure import Usage

COMPUTING = ("preparation", "expectation", "maximization")
WORSE = 1.05  # times the other's pose_deg is still the same quality
QUALITIES = ("pose_deg", "view_deg", "good", "effective", "shift_px")


@dataclass(frozen=True)
class Result:
    """One program's run as it was measured."""

    program: str
    version: str | None
    command: str
    log: str
    particles: int
    iterations: int
    usage: Usage
    compared: int  # images, in all iterations together
    iterations_s: Sequence[float] | None = None  # of each; None: not known
    stages_s: dict[str, float] = field(default_factory=dict)  # of all iterations, by Polarice's own clock
    gemm_share: float | None = None  # of the machine's rate of matrix products, over an expectation at the end
    score: dict[str, Any] | None = None
    note: str = ""
    ours: bool = False


def rows(results: Sequence[Result], particles: int, iterations: int) -> list[dict[str, Any]]:
    """What bench.json holds of each program; the first is Polarice, with which the others are compared.

    Another program that ran on less than `particles` and `iterations` is scaled up, what it took outside of its
    iterations left as it is.
    """
    found = [_row(each, particles, iterations) for each in results]
    ours = found[0]
    for row in found:
        row["ratio_wall"] = _ratio(row["whole_wall_s"], ours["whole_wall_s"])
        row["ratio_per_image"] = _ratio(row["ms_per_image"], ours["ms_per_image"])
    return found


def _row(result: Result, particles: int, iterations: int) -> dict[str, Any]:
    usage, done = result.usage, result.usage.exit_code == 0
    inside = usage.wall_s if result.iterations_s is None else sum(result.iterations_s)
    compute = sum(result.stages_s.get(stage, 0.0) for stage in COMPUTING) if result.stages_s else None
    scale = particles / result.particles * max(1.0, iterations / result.iterations)
    if result.ours:  # its shorter runs are what they are, those on a part of the particles are for their quality
        scale = 1.0
    return {
        **asdict(result),
        "status": "done" if done else "failed",
        "compute_s": compute,
        "ms_per_image": 1e3 * inside / result.compared if done else None,
        "images_per_s": result.compared / usage.wall_s if done else None,
        "whole_wall_s": usage.wall_s + (scale - 1) * inside if done else None,
        "extrapolated": f"from {result.particles} particles and {result.iterations} iterations" if scale != 1 else None,
    }


def reached(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each other program our shortest run whose quality is no worse, both on the same particles and on all.

    No worse: pose_deg at most WORSE times the other's, and at least as many effective classes. The time is that of the
    run on all the particles, from its start to the end of its report.
    """
    ours = [row for row in found if row["ours"] and row["score"]]
    whole = {row["iterations"]: row for row in ours if row["particles"] == found[0]["particles"]}
    answers = []
    for other in (row for row in found if not row["ours"] and row["score"]):
        asked = other["score"]
        same = {row["iterations"]: row for row in ours if row["score"]["particles"] == asked["particles"]}
        good = [
            iterations
            for iterations in sorted(whole.keys() & same.keys())
            if _no_worse(same[iterations]["score"], asked) and _no_worse(whole[iterations]["score"], asked)
        ]
        run, compared = (whole[good[0]], same[good[0]]) if good else (None, None)
        answers.append(
            {
                "peer": other["program"],
                "particles": asked["particles"],
                "peer_pose_deg": asked["pose_deg"],
                "peer_effective": asked["effective"],
                "iterations": good[0] if good else None,
                "pose_deg": compared["score"]["pose_deg"] if compared else None,
                "effective": compared["score"]["effective"] if compared else None,
                "whole_wall_s": run["whole_wall_s"] if run else None,
                "ratio": _ratio(other["whole_wall_s"], run["whole_wall_s"]) if run else None,
            }
        )
    return answers


def _no_worse(score: dict[str, Any], asked: dict[str, Any]) -> bool:
    return bool(score["pose_deg"] <= WORSE * asked["pose_deg"] and score["effective"] >= asked["effective"])


def told_reached(answer: dict[str, Any]) -> str:
    """One line of `reached`."""
    asked = f"{answer['peer_pose_deg']:.1f} degrees, {answer['peer_effective']:.1f} effective classes"
    start = f"To the quality of {answer['peer']} on the same {answer['particles']} particles ({asked}): "
    if answer["iterations"] is None:
        return f"{start}none of our runs."
    return (
        f"{start}polarice with {answer['iterations']} iterations ({answer['pose_deg']:.1f} degrees, "
        f"{answer['effective']:.1f}), which takes {answer['whole_wall_s']:.1f} s for all particles: "
        f"{answer['ratio']:.0f} times faster."
    )


def _ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


HEAD = (
    "program", "version", "particles", "iterations", "wall s", "compute s", "ms per image and iteration", "images/s",
    "GEMM share", "peak GB", "read GB", *QUALITIES, "ratio of time",
)  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    """A program's line of the table; the wall time is that of the whole."""
    start = [row["program"], row["version"] or "–", f"{row['particles']}", f"{row['iterations']}"]
    if row["status"] == "failed":
        return [*start, "failed", *["–"] * (len(HEAD) - len(start) - 1)]
    usage, score = row["usage"], row["score"] or {}
    wall = f"{row['whole_wall_s']:.1f}" + ("*" if row["extrapolated"] else "")
    return [
        *start,
        wall,
        number(row["compute_s"], ".1f"),
        number(row["ms_per_image"], ".3g"),
        number(row["images_per_s"], ".4g"),
        number(row["gemm_share"], ".2f"),
        number(usage["peak_bytes"] / 1e9, ".3g"),
        number(None if usage["bytes_read"] is None else usage["bytes_read"] / 1e9, ".3g"),
        *(number(score.get(name), ".3g") for name in QUALITIES),
        number(row["ratio_wall"], ".3g"),
    ]


def notes(found: Sequence[dict[str, Any]]) -> list[str]:
    """What has to be said under the table."""
    lines = [
        f"\\* {row['program']}: extrapolated {row['extrapolated']}; its scores are of that run."
        for row in found
        if row["extrapolated"] and row["status"] == "done"
    ]
    lines += [f"{row['program']}: {row['note']}." for row in found if row["note"]]
    lines += [told_reached(answer) for answer in reached(found)]
    return [
        *lines,
        "Wall s: the whole program. Compute s: preparation, expectation and maximization. Ms per image and iteration: "
        "within the iterations, reading and writing included (the whole program where it leaves no times). GEMM share: "
        "of the machine's rate of matrix products, reached by those of one more expectation of all images after the "
        "run, over all of its time. Read GB: by read calls; files mapped into memory are not counted.",
    ]


def number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns padded to be read as it stands."""
    width = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rule = ["-" * w for w in width]
    text = ["| " + " | ".join(f"{c:{w}}" for c, w in zip(line, width, strict=True)) + " |" for line in (head, *lines)]
    return "\n".join([text[0], "|" + "|".join(f"-{dashes}-" for dashes in rule) + "|", *text[1:]]) + "\n"

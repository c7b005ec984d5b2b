"""bench.png: time and quality of every program, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polarice.io.atomic import replacing

BLUE, ORANGE, GREEN = "#3b82c4", "#e07b39", "#3fa37a"


def write_picture(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Draw the programs that came to an end; InputError where the file cannot be written."""
    from matplotlib.figure import Figure

    done = [row for row in rows if row["status"] == "done"]
    names = [row["program"] for row in done]
    figure = Figure(figsize=(10, 1.6 + 0.5 * len(done)), layout="constrained")
    time, quality = figure.subplots(1, 2, sharey=True)
    figure.suptitle(title, fontsize=10)
    values = [row["ms_per_image"] for row in done]
    bars = time.barh(names, values, color=BLUE, height=0.5)
    time.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, fontsize=8)
    time.set_xscale("log")
    time.set_xlim(min(values, default=1) / 3, 3 * max(values, default=1))
    time.set_xlabel("ms per image and iteration")
    time.invert_yaxis()
    for name, colour, offset in (("pose_deg", GREEN, -0.17), ("view_deg", ORANGE, 0.17)):
        scored = [(place, row["score"][name]) for place, row in enumerate(done) if row["score"]]
        bars = quality.barh(
            [place + offset for place, _ in scored], [value for _, value in scored], 0.3, color=colour, label=name
        )
        quality.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    quality.set_xlabel("median angle to the class's mean (degrees)")
    quality.margins(x=0.15)
    if any(row["score"] for row in done):
        quality.legend(fontsize=8, frameon=False)
    for axis in (time, quality):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=130)

"""scaling.png: measured times, speed-up and efficiency; predicted efficiency on more nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polarice.bench.picture import BLUE, GREEN, ORANGE
from polarice.io.atomic import replacing

PURPLE = "#a768c2"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE)


def write_picture(path: Path, told: dict[str, Any], title: str) -> None:
    """Draw; InputError where the file cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    (times, speed), (compute, total) = figure.subplots(2, 2)
    figure.suptitle(title, fontsize=11)
    _measured(times, speed, told["runs"])
    _predicted(compute, told["predicted"], "compute", 0.95)
    _predicted(total, told["predicted"], "total", 0.90)
    handles, labels = compute.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=7.5, frameon=False)
    for axis in (times, speed, compute, total):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.grid(True, linewidth=0.4, alpha=0.5)
        axis.set_axisbelow(True)
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=120)


def _measured(times: Any, speed: Any, runs: list[dict[str, Any]]) -> None:
    ranks = [each["ranks"] for each in runs]
    for name, label, colour in (("total_s", "in all", ORANGE), ("compute_s", "compute", BLUE)):
        values = [each[name] for each in runs]
        times.plot(ranks, values, "o-", color=colour, label=label)
        speed.plot(ranks, [values[0] / each for each in values], "o-", color=colour, label=label)
    speed.plot(ranks, ranks, "--", color="#999999", linewidth=1, label="ideal")
    times.set_ylabel("seconds")
    speed.set_ylabel("speed-up")
    times.set_ylim(bottom=0)
    speed.set_ylim(bottom=0)
    for axis in (times, speed):
        axis.set_xticks(ranks)
        axis.set_xlabel("ranks (measured)")
        axis.legend(fontsize=8, frameon=False)


def _predicted(axis: Any, predicted: list[dict[str, Any]], name: str, wanted: float) -> None:
    names = list(dict.fromkeys(each["data"] for each in predicted))
    cores = list(dict.fromkeys(each["cores"] for each in predicted))
    for each in predicted:
        style = ("-" if each["network"] == "10 GbE" else "--", ":" if each["network"] == "10 GbE" else "-.")
        axis.plot(
            each["nodes"], [100 * value for value in each[f"{name}_efficiency"]],
            style[min(1, cores.index(each["cores"]))], color=COLOURS[names.index(each["data"]) % len(COLOURS)],
            linewidth=1.3, label=f"{each['data']}; {each['cores']} cores, {each['network']}",
        )  # fmt: skip
    axis.axhline(100 * wanted, color="#999999", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_ylim(0, 105)
    axis.set_xlabel("nodes (predicted)")
    axis.set_ylabel(f"efficiency, {'compute' if name == 'compute' else 'in all'} (%)")

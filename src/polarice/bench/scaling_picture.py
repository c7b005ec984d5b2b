"""scaling.png: measured times, speed-up and efficiency; predicted efficiency on more nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polarice.bench.picture import BLUE, GREEN, ORANGE
from polarice.io.atomic import replacing

PURPLE = "#a768c2"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE)


STYLES = ("-", "--", ":", "-.")
DEVICES = {"cpu": "o-", "cuda": "s--"}


def write_picture(path: Path, told: dict[str, Any], title: str) -> None:
    """Draw; InputError where the file cannot be written."""
    from matplotlib.figure import Figure

    rows = 2 if told["predicted"] else 1
    figure = Figure(figsize=(11, 3.5 * rows), layout="constrained")
    axes = figure.subplots(rows, 2).ravel()
    figure.suptitle(title, fontsize=11)
    _measured(axes[0], axes[1], told["runs"])
    if rows == 2:
        _predicted(axes[2], told["predicted"], "compute", 0.95)
        _predicted(axes[3], told["predicted"], "total", 0.90)
        handles, labels = axes[2].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7.5, frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.grid(True, linewidth=0.4, alpha=0.5)
        axis.set_axisbelow(True)
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=120)


def _measured(times: Any, speed: Any, runs: list[dict[str, Any]]) -> None:
    devices = list(dict.fromkeys(each["device"] for each in runs))
    for device in devices:
        own = [each for each in runs if each["device"] == device]
        ranks, style = [each["ranks"] for each in own], DEVICES[device]
        beside = f", {device}" if len(devices) > 1 else ""
        for name, label, colour in (("total_s", "in all", ORANGE), ("compute_s", "compute", BLUE)):
            values = [each[name] for each in own]
            times.plot(ranks, values, style, color=colour, label=label + beside)
            speed.plot(ranks, [values[0] / each for each in values], style, color=colour, label=label + beside)
    ranks = sorted({each["ranks"] for each in runs})
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
    """Of the largest set; the others stand in the table."""
    most = max(each["particles"] for each in predicted)
    shown = [each for each in predicted if each["particles"] == most]
    names = list(dict.fromkeys(each["data"] for each in shown))
    ways = list(dict.fromkeys((each["cores"], each["network"]) for each in shown))
    for each in shown:
        style = STYLES[ways.index((each["cores"], each["network"])) % len(STYLES)]
        axis.plot(
            each["nodes"], [100 * value for value in each[f"{name}_efficiency"]], style,
            color=COLOURS[names.index(each["data"]) % len(COLOURS)], linewidth=1.3,
            label=f"{each['data']}; {each['cores']} cores, {each['network']}",
        )  # fmt: skip
    axis.axhline(100 * wanted, color="#999999", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_ylim(0, 105)
    axis.set_xlabel("nodes (predicted)")
    axis.set_ylabel(f"efficiency, {'compute' if name == 'compute' else 'in all'} (%)")

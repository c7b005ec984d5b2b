"""`polarice bench scaling`: one job on 1, 2, ... ranks, and what that says of more nodes than there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from polarice.bench import link, scaling_links, scaling_predict
from polarice.bench.folder import heading, make_folder, simulated, write_json, write_text
from polarice.bench.results import markdown
from polarice.bench.scaling_model import (
    CHARTS,
    ETHERNET_10,
    FABRIC_100,
    ROUNDS,
    Disks,
    Network,
    Start,
    Work,
    compute_s,
    fitted_reduction,
    sums_bytes,
    total_s,
)  # fmt: skip
from polarice.bench.scaling_predict import HARMONICS_PER_RING, MISSION, Rates, engines, largest_node, predicted
from polarice.bench.scaling_runs import VOLUMES, fastest, launch_words, time_sums
from polarice.project.params import Parameters, as_dict, command_line, option, output
from polarice.types import InputError

SUMMARY = "time one job on 1, 2, ... ranks, and predict it on more nodes"


@dataclass(frozen=True)
class Params(Parameters):
    """What is run, on how many ranks, and the nodes that are predicted."""

    o: Path = output("bench_scaling", "folder for scaling.json, scaling.md, scaling.png and the runs")
    job: Literal["align2d", "class2d"] = option("align2d", "what to run")
    particles: int = option(4000, "number of simulated particles", low=30, high=10_000_000)
    box: int = option(128, "box of the simulated particles", unit="px", low=16, high=1024)
    snr: float = option(0.05, "signal-to-noise ratio of the simulated particles", low=1e-6)
    k: int = option(50, "number of classes", low=1, high=100_000, flags=("-k", "--K"))
    iter: int = option(25, "number of iterations", low=1, high=999)
    ranks: tuple[int, ...] = option((1, 2), "numbers of ranks, the first of them 1", low=1, high=100_000)
    threads: int = option(1, "processor threads of a rank", low=1, high=1024, flags=("--j",))
    repeat: int = option(2, "runs of each; the fastest is stated, and the spread", low=1, high=100)
    launcher: str = option("mpirun -n {ranks}", "what starts the ranks")
    node_cores: tuple[int, ...] = option((2, 64), "cores of the nodes that are predicted", low=1, high=4096)
    passes: bool = option(True, "time the engine and maps on the boxes and classes of the predicted sets")
    shared: float = option(2.0, "what a parallel file system gives all nodes together", unit="GB/s", low=0.001)
    links: tuple[int, ...] = option(
        (), "the job on two nodes played on this machine too, over networks of so many Mbit/s; needs root", low=1
    )
    latency: float = option(0.2, "latency of these networks", unit="ms", low=0, high=1000)
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "where to compute; auto: on the processor, and where there is a card on that as well"
    )
    seed: int = option(1, "seed of everything random", low=0)


def run(params: Params) -> None:
    """Run, fit, predict, and write. InputError where mpirun is missing or a run fails."""
    from polarice.bench.rank_times import cold_bytes_per_s
    from polarice.bench.timing import machine
    from polarice.runs.resources import Computing

    if params.ranks[0] != 1:
        raise InputError(f"--ranks {' '.join(map(str, params.ranks))}: what one rank takes comes first")
    if max(params.ranks) > 1:
        launch_words(params.launcher, 2)
    make_folder(params.o, empty=False)
    where = machine(Computing(threads=params.threads, device=params.device))
    table = simulated(params, params.o / f"{params.particles}_of_{params.box}px", params.box, params.threads)
    stack_bytes = table.with_name("particles.mrcs").stat().st_size
    runs = [fastest(params, table, ranks, device) for device in _devices(params, where) for ranks in params.ranks]
    sums = {ranks: time_sums(launch_words(params.launcher, ranks)) for ranks in params.ranks if ranks > 1}
    disk = cold_bytes_per_s(table.with_name("particles.mrcs"))
    told = {
        "command": command_line("bench scaling", params), "parameters": as_dict(params), "machine": where,
        "runs": runs, "sums": {"bytes": VOLUMES, "seconds": sums}, "disk_bytes_per_s": disk,
    }  # fmt: skip
    start = start_of(runs[: len(params.ranks)], params, stack_bytes)
    here = _work(params, runs[0], stack_bytes, start)
    pack = fitted_reduction(VOLUMES, next(iter(sums.values())))[1] if sums else 0.0
    told["check"] = checked(runs[: len(params.ranks)], here, sums, disk)
    told["links"] = scaling_links.over_links(params, table, here, pack, disk)
    engine = engines(params) if params.passes else []
    told["engine"] = [{"data": each.name, **times} for each, times in zip(MISSION, engine, strict=False)]
    rates = Rates(pack, Disks(disk, 1e9 * params.shared), start)
    sets = [(*each, network) for each in zip(MISSION, engine, strict=False) for network in (ETHERNET_10, FABRIC_100)]
    told["start"] = asdict(start)
    told["predicted"] = [predicted(*each, cores, rates) for each in sets for cores in params.node_cores]
    told["largest_node"] = [
        {"data": each[0].name, "network": each[2].name, "cores": largest_node(*each, rates)} for each in sets
    ]
    _write(params, told)


def _devices(params: Params, where: dict[str, Any]) -> list[str]:
    """Where the job runs: as said, or on the processor and on the card that there is."""
    if params.device != "auto":
        return [params.device]
    return ["cpu"] if where["device"] == "cpu" else ["cpu", "cuda"]


def start_of(runs: Sequence[dict[str, Any]], params: Params, stack_bytes: int) -> Start:
    """What the runs took beside computing: charts are what more ranks drew in less time than one."""
    one, steps = runs[0], runs[0]["steps_s"]
    more = next((each for each in runs if each["ranks"] > 1), None)
    draw_s = 0.0
    if more is not None and params.threads == 1:
        saved = steps["report"] - more["steps_s"]["report"]
        draw_s = min(max(0.0, saved / (1 - 1 / min(more["ranks"], CHARTS))), steps["report"])
    beside = max(0.0, steps["iterations"] - one["compute_s"])
    return Start(
        constant_s=steps["loading"] + beside + steps["report"] - draw_s,
        first_s=steps["first classes"] * params.threads,
        draw_s=draw_s,
        look_byte_s=steps["looking at images"] * params.threads / stack_bytes,
        box_px=params.box,
    )


def _work(params: Params, one: dict[str, Any], stack_bytes: int, start: Start) -> Work:
    """The job as the run on one rank shows it."""
    from polarice.bench.rank_times import steps

    images, share = steps(params.k, params.iter, params.particles, params.job == "class2d")
    weight = sum(n * s for n, s in zip(images, share, strict=True))
    stages, rings = one["stages_s"], one["rings"]
    return Work(
        name="here", images=images, share=share,
        image_s=(stages.get("preparation", 0.0) + stages["expectation"]) / weight,
        maximize_s=stages["maximization"] / sum(share),
        volume_bytes=sums_bytes(rings, round(HARMONICS_PER_RING * rings), params.k),
        stack_bytes=stack_bytes, start=start, cores=params.threads,
    )  # fmt: skip


def checked(
    runs: Sequence[dict[str, Any]], work: Work, sums: dict[int, list[float]], disk: float
) -> list[dict[str, Any]]:
    """What the model says of the other runs, made of the run on one rank and of sums alone, beside what they took."""
    found = []
    for each in runs[1:]:
        constant, slope = fitted_reduction(VOLUMES, sums[each["ranks"]])
        here = Network("here", math.inf, constant / (ROUNDS * math.ceil(math.log2(each["ranks"]))))
        compute = compute_s(work, each["ranks"], here, slope)
        total = total_s(work, each["ranks"], here, slope, Disks(disk, disk))
        found.append({
            "ranks": each["ranks"], "predicted_compute_s": compute, "predicted_total_s": total,
            "compute_error": compute / each["compute_s"] - 1, "total_error": total / each["total_s"] - 1,
        })  # fmt: skip
    return found


NOTE = (
    "Compute: preparation, expectation, maximization and messages, waiting for other ranks among them, by the clock of "
    "rank 0. In all: the command, from its start to its end, the report included, stacks read from a cold cache. Where "
    "other programs share the cores, clocks tell of them as well; the busiest rank's processor time does not."
)


def _write(params: Params, told: dict[str, Any]) -> None:
    """scaling.json, scaling.md, scaling.png."""
    from polarice.bench.scaling_picture import write_picture

    head = ("ranks", "on", *(word for what in ("compute s", "in all s", "busiest rank's processor s")
                       for word in (what, "speed-up", "efficiency")), "images per J")  # fmt: skip
    rows = []
    for each in told["runs"]:
        one = next(run for run in told["runs"] if run["device"] == each["device"])
        cells = [str(each["ranks"]), each["device"]]
        for name in ("compute_s", "total_s", "cpu_s"):
            faster = one[name] / each[name]
            cells += [f"{each[name]:.2f}", f"{faster:.2f}", f"{100 * faster / each['ranks']:.0f} %"]
        rows.append([*cells, f"{'about ' if each['estimated_energy'] else ''}{each['images_per_joule']:.3g}"])
    text = [markdown(head, rows).rstrip("\n"), NOTE]
    if told["machine"]["device"] == "cpu":
        text.append("No GPU is here, or none that PyTorch can use: a card was not measured beside the processor.")
    for each in told["runs"]:
        busiest = max(each["each_cpu_s"]) * each["ranks"] / sum(each["each_cpu_s"]) - 1
        if each["ranks"] > 1:
            text.append(f"The busiest of {each['ranks']} ranks takes {100 * busiest:.0f} % more than the mean.")
    for each in told["check"]:
        text.append(
            f"The model of the run on one rank says {each['predicted_compute_s']:.2f} s of compute and "
            f"{each['predicted_total_s']:.2f} s in all on {each['ranks']}: off by {100 * each['compute_error']:+.0f} % "
            f"and {100 * each['total_error']:+.0f} %."
        )
    if told["links"]:
        text.append(scaling_links.told(told["links"]))
    elif params.links:
        text.append(f"Networks were not measured: {link.missing()}.")
    if told["predicted"]:
        text += scaling_predict.told(told["predicted"], told["largest_node"], Start(**told["start"]))
    page = "\n\n".join(text)
    title = f"{params.job} on several ranks: {params.particles} particles of {params.box} px, K = {params.k}"
    write_json(params.o / "scaling.json", told)
    write_text(params.o / "scaling.md", f"{heading(title, told['machine'])}\n{page}\n\n    {told['command']}\n")
    write_picture(params.o / "scaling.png", told, title)
    print(f"\n{page}\n\n{params.o / 'scaling.md'}")

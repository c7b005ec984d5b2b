"""Where the time goes: one more pass over some of the images, operation by operation, on one thread or the GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polarice.io.atomic import replacing
from polarice.runs.products import counted_products, gemm_gflops, one_thread

if TYPE_CHECKING:
    from polarice.align.images import ParticleImages
    from polarice.runs.classification import ClassResult

IMAGES = {"cpu": 2000, "cuda": 16_384}
TOP = 25  # operations, or a card's kernels, that are named
PROFILE_NAME = "profile.json"
KINDS = {
    "matrix products": ("bmm", "mm", "baddbmm"),
    "interpolation": ("addmm", "sparse"),
    "Fourier transforms": ("_fft",),
    "copies": ("copy_", "index", "fill_", "cat", "gather", "zero_", "nonzero", "scatter", "roll", "_put_", "stack"),
    "arithmetic": (
        "mul", "add", "sub", "div", "exp", "log", "sum", "amax", "max", "clamp", "sqrt", "pow", "cos", "sin", "norm",
        "lt", "gt", "ge", "argmax", "softmax", "remainder", "neg", "abs", "cumsum", "where", "sort", "unique",
    ),
}  # fmt: skip
MEMORY_BOUND = ("copies", "arithmetic")  # few operations on each number that passes


def write_profile(folder: Path, images: ParticleImages, result: ClassResult, batch: int) -> Path:
    """Profile a pass as the run's last one, on one worker, and write profile.json."""
    from torch.profiler import ProfilerActivity, profile

    from polarice.align.images import Clock
    from polarice.align.model import Prior
    from polarice.align.store import CacheBudget, PolarStore
    from polarice.align.sweep import Sweep

    device = images.device.type
    state, rows, search = result.state, np.sort(result.found.used[: IMAGES[device]]), result.found.search
    sweep = Sweep(images, state.model, search, batch)
    store = PolarStore(rows, CacheBudget(4 * len(rows) * state.model.basis.r_max * state.model.basis.n_theta))

    def one_pass() -> Clock:
        clock = Clock()
        _, sums = sweep.run(rows, state.assignment, state.carried.crop_centre_px, store, clock)
        state.model.maximize(sums, Prior())
        return clock

    with one_thread():
        one_pass()  # makes what is made once, and fills the store
        stages = one_pass().seconds
        with counted_products() as products:
            one_pass()
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
        with profile(activities=activities) as profiled:
            one_pass()
        machine = gemm_gflops(images.device)
    by_operation, by_kernel = seconds_of(profiled.key_averages(), device)
    content = report(stages, by_kind(by_operation), sum(products) / 1e9, machine, len(rows))
    if device == "cuda":
        content["busy"] = sum(by_kernel.values()) / sum(stages.values())
    longest = sorted(by_kernel.items(), key=lambda each: -each[1])[:TOP]
    content["longest_ms_per_image"] = {name: 1e3 * seconds / len(rows) for name, seconds in longest}
    setting = {"iteration": state.number, "device": device, "precision": search.precision, "threads": 1}
    path = folder / PROFILE_NAME
    with replacing(path, "w") as stream:
        json.dump(setting | content, stream, indent=2)
    return path


def seconds_of(events: Any, device: str) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds by operation, and by what ran on the device: a card's kernels, of which operations start several.

    A card's profile holds each kernel twice: as itself, and as the own time of the operation that started it.
    """
    if device == "cpu":
        spent = {event.key: event.self_cpu_time_total / 1e6 for event in events}
        return spent, spent
    from torch.autograd import DeviceType

    both: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for event in events:
        of_kernel = event.device_type == DeviceType.CUDA
        both[of_kernel][event.key] = event.self_device_time_total / 1e6
    return both


def by_kind(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds by kind of operation, of seconds by name ("aten::bmm"); what has no kind is "other"."""
    total = dict.fromkeys([*KINDS, "other"], 0.0)
    for name, value in seconds.items():
        plain = name.rpartition("::")[2]
        total[_kind(plain)] += value
    return total


def _kind(name: str) -> str:
    for kind, names in KINDS.items():
        if name in names:
            return kind
    return next((kind for kind, names in KINDS.items() if any(part in name for part in names)), "other")


def report(
    stages: dict[str, float], spent: dict[str, float], gflop: float, machine_gflops: float, images: int
) -> dict[str, Any]:
    """What the file says; stages and kinds in seconds, gflop of all matrix products."""
    total = sum(spent.values()) or 1.0
    products = spent["matrix products"] or float("nan")
    return {
        "images": images,
        "stages_ms_per_image": {stage: 1e3 * value / images for stage, value in stages.items()},
        "operations_ms_per_image": {kind: 1e3 * value / images for kind, value in spent.items()},
        "share_in_matrix_products": spent["matrix products"] / total,
        "share_memory_bound": sum(spent[kind] for kind in MEMORY_BOUND) / total,
        "matrix_products": {
            "gflop_per_image": gflop / images,
            "gflops": gflop / products,
            "machine_gflops": machine_gflops,
            "share_of_machine_s_rate": gflop / products / machine_gflops,
        },
    }


def told(path: Path) -> str:
    """A few lines for the terminal."""
    content = json.loads(path.read_text())
    lines = [f"{path}: ms per image, one {'GPU' if content['device'] == 'cuda' else 'thread'}"]
    lines += [f"  {kind:20} {value:7.3f}" for kind, value in content["operations_ms_per_image"].items()]
    products = content["matrix_products"]
    lines.append(
        f"  {100 * content['share_in_matrix_products']:.0f} % in matrix products, at "
        f"{100 * products['share_of_machine_s_rate']:.0f} % of the machine's rate; "
        f"{100 * content['share_memory_bound']:.0f} % bound by memory"
    )
    return "\n".join(lines)

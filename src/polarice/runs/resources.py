"""What a job may use: device, threads, memory."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from polarice.cluster import SERIAL, Comm
from polarice.project.params import Parameters, PathRole, option
from polarice.types import InputError

if TYPE_CHECKING:
    import torch

    from polarice.align.fused import Kernel
    from polarice.align.products import Precision
    from polarice.align.store import CacheBudget

CARDS = Path("/proc/driver/nvidia/gpus")  # a folder for each
SCRATCH = PathRole("output", "folder", "scratch")


@dataclass(frozen=True, kw_only=True)
class Computing(Parameters):
    """Where a job computes."""

    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute", resource=True)
    threads: int | None = option(
        None, "CPU threads", derived="all cores", resource=True, low=1, high=1024, flags=("--j",)
    )


@dataclass(frozen=True, kw_only=True)
class Resources(Computing):
    """What a job over particles may use of a machine, and what that costs."""

    memory: float | None = option(
        None, "memory that the job, or each rank of several, may take beside the program's own 0.3: for classes, "
        "batches of images and, with what is left, to keep prepared images",
        derived="what it needs, and 2 GiB or a quarter of all for prepared images",
        unit="GiB", low=0.01, resource=True,
    )  # fmt: skip
    scratch: Path | None = option(
        None, "folder on a fast disk to keep all prepared images in, instead of memory", resource=True, path=SCRATCH
    )
    copy_to: Path | None = option(
        None, "folder on a node's own disk to copy its part of the stacks to, as long as the job runs",
        flags=("--scratch-dir",), resource=True, path=SCRATCH,
    )  # fmt: skip
    price: float | None = option(
        None, "price of a node for an hour; the report then states what images cost", low=0, resource=True
    )


@dataclass(frozen=True, kw_only=True)
class Comparing(Parameters):
    """How images are compared with references."""

    precision: Literal["auto", "float32", "tf32", "bfloat16"] = option(
        "auto",
        "numbers that images and references are multiplied in, with float32 sums; auto: float32, the fastest there is",
    )
    kernel: Literal["auto", "plain", "fused"] = option(
        "auto",
        "what compares images coarsely on a GPU: PyTorch's operations, or one kernel; auto: the kernel, if it works",
    )


def device_of(params: Computing, comm: Comm = SERIAL) -> torch.device:
    """Where to compute, by --device and --threads; ranks on a node take its cards in turn.

    Raises InputError where the device is not there.
    """
    _load_torch()
    import torch

    _keep_freed_memory()
    torch.set_num_threads(threads_of(params))
    there = torch.cuda.is_available()
    if params.device == "cuda" and not there:
        raise InputError("--device cuda: no CUDA device is there; use --device cpu")
    if params.device == "cpu" or not there:
        return torch.device("cpu")
    if comm.size == 1:
        return torch.device("cuda")
    torch.cuda.set_device(comm.node_ranks.index(comm.rank) % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device())


def card_of(device: torch.device) -> int | None:
    """Number of the CUDA card that a device is; None where it is none."""
    import torch

    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def take_card(comm: Comm) -> None:
    """Let this rank, and processes that it starts, see one of its node's cards; before torch has looked at them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = named.split(",") if named else [str(card) for card, _ in enumerate(CARDS.glob("*"))]
    if comm.size > 1 and cards:
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[comm.node_ranks.index(comm.rank) % len(cards)]


def first_card(device: str) -> int | None:
    """The card that a job works on whose --device is this: the first that it sees; None where it takes none."""
    if device == "cpu" or not any(CARDS.glob("*")):
        return None
    import torch

    return 0 if torch.cuda.is_available() else None


def threads_of(params: Computing) -> int:
    """As many as --threads says; else all that this process may use."""
    return params.threads or len(os.sched_getaffinity(0))


def workers_of(params: Computing, device: torch.device) -> int:
    """Threads that each work on a batch: all of them on a processor, one for a GPU."""
    return threads_of(params) if device.type == "cpu" else 1


def _load_torch() -> None:
    """Import PyTorch for the first time. It stays to the end, so Python looks for garbage in it neither meanwhile nor
    ever after, which saves a third of loading it and of leaving."""
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()


def _keep_freed_memory() -> None:
    """Ask glibc to keep large freed blocks: the engine's arrays come and go many times a second, and handing them back
    to the kernel each time costs a quarter of its speed. Elsewhere, nothing happens."""
    import ctypes

    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, 1 << 30)


def give_back_freed_memory() -> None:
    """Hand freed blocks back to the kernel after all, where glibc can: when what was freed will not be wanted again."""
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def precision_of(params: Comparing) -> Precision:
    """What images and references are multiplied in; by itself float32, the fastest on every device that was timed."""
    return "float32" if params.precision == "auto" else params.precision


def kernel_of(params: Comparing, device: torch.device) -> Kernel:
    """What compares images coarsely; told on stderr where a card could have the fused kernel and has not.

    Raises InputError where --kernel fused cannot be had.
    """
    from polarice.align.fused import works_on

    if params.kernel == "plain" or (params.kernel == "auto" and device.type == "cpu"):
        return "plain"
    if not (reason := works_on(device)):
        return "fused"
    if params.kernel == "fused":
        raise InputError(f"--kernel fused: {reason}; leave it out, or take --kernel plain")
    print(f"warning: the fused kernel is not used, plain operations are: {reason}", file=sys.stderr)
    return "plain"


def require_room(params: Resources, device: torch.device, held: int, what: str) -> None:
    """Raise InputError where `what`, of so many bytes, leaves no room for a single image."""
    limit = memory_bytes(params, device)
    if held < limit:
        return
    where = "the device has" if params.memory is None else f"--memory {params.memory:g} allows"
    raise InputError(
        f"{what} take up to {held / (1 << 30):.2g} GiB beside the images, {where} {limit / (1 << 30):.2g}; allow more, "
        "ask for fewer classes (--k), or compare images at a coarser resolution (--strict-highres-exp)"
    )


def batch_bytes(params: Resources, device: torch.device, workers: int, held: int = 0, parts: int = 2) -> int:
    """Memory of one batch beside what is held: small on a processor, for its cache's sake; an eighth of a GPU's.

    Of --memory one part in so many is for the batches of all workers, the others are for prepared images.
    """
    default = 64 << 20 if device.type == "cpu" else _all_bytes(device) // 8
    return default if params.memory is None else min(default, _beside(params, held) // (parts * workers))


def cache_budget_of(
    params: Resources, device: torch.device, ranks: int = 1, held: int = 0, parts: int = 2
) -> CacheBudget:
    """Where prepared images are kept: in memory, or in a file below --scratch."""
    from polarice.align.store import CacheBudget

    return CacheBudget(store_bytes(params, device, ranks, held, parts), params.scratch)


def store_bytes(params: Resources, device: torch.device, ranks: int = 1, held: int = 0, parts: int = 2) -> int:
    """Memory for prepared images beside what is held, of a rank among so many on a node; two fifths of a GPU's."""
    if params.memory is not None:
        return _beside(params, held) // parts * (parts - 1)
    everything = _all_bytes(device)
    if device.type == "cuda":
        return max(0, min(2 * everything // 5, everything - everything // 8 - held))
    return min(2 << 30, everything // (4 * ranks))


def pixel_bytes(params: Resources, device: torch.device, held: int = 0) -> int:
    """Memory for images as they are read, beside what is held, batches and prepared images: a quarter of a GPU's at the
    most, none of --memory and none on a processor, whose disk cache does as well."""
    if device.type != "cuda" or params.memory is not None:
        return 0
    everything = _all_bytes(device)
    left = everything - everything // 8 - held - store_bytes(params, device, held=held)
    return max(0, min(everything // 4, left))


def _beside(params: Resources, held: int) -> int:
    """What --memory leaves beside what is held."""
    assert params.memory is not None
    return max(0, _bytes(params.memory) - held)


def memory_bytes(params: Resources, device: torch.device) -> int:
    """What --memory allows; else all that the device has."""
    return _all_bytes(device) if params.memory is None else _bytes(params.memory)


def _bytes(memory_GiB: float) -> int:
    return int(memory_GiB * (1 << 30))


def _all_bytes(device: torch.device) -> int:
    """All the memory there is, in use or not: of the device, or of this machine and its control group."""
    import torch

    if device.type == "cpu":
        from polarice.runs.machine import cgroup_memory

        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min(machine, cgroup_memory() or machine)
    return int(torch.cuda.mem_get_info(device)[1])

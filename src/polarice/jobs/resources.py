"""What a job may use: device, threads, memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarice.cluster import SERIAL, Comm
from polarice.types import InputError

if TYPE_CHECKING:
    import torch

    from polarice.align.store import Room

CARDS = Path("/proc/driver/nvidia/gpus")  # a folder for each


def device_of(params: Any, comm: Comm = SERIAL) -> torch.device:
    """Where to compute, by --device and --threads; ranks on a node take its cards in turn.

    Raises InputError where the device is not there.
    """
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


def threads_of(params: Any) -> int:
    """As many as --threads says; else all that this process may use."""
    return params.threads or len(os.sched_getaffinity(0))


def workers_of(params: Any, device: torch.device) -> int:
    """Threads that each work on a batch: all of them on a processor, one for a GPU."""
    return threads_of(params) if device.type == "cpu" else 1


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


def batch_bytes(params: Any, device: torch.device, workers: int) -> int:
    """Memory of one batch: small on a processor, for its cache's sake; an eighth of a GPU's."""
    import torch

    default = 64 << 20 if device.type == "cpu" else torch.cuda.mem_get_info(device)[1] // 8
    return default if params.memory is None else min(default, int(params.memory * (1 << 30)) // (2 * workers))


def room_of(params: Any, device: torch.device, ranks: int = 1) -> Room:
    """Where prepared images are kept: in memory, or in a file below --scratch."""
    from polarice.align.store import Room

    return Room(store_bytes(params, device, ranks), params.scratch)


def store_bytes(params: Any, device: torch.device, ranks: int = 1) -> int:
    """Memory for prepared images, of a rank among so many on a node; on a GPU two fifths of it."""
    import torch

    if params.memory is not None:
        return int(params.memory * (1 << 30)) // 2
    if device.type == "cuda":
        return int(0.4 * torch.cuda.mem_get_info(device)[1])
    return min(2 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (4 * ranks))

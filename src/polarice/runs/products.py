"""How fast a machine multiplies matrices, and how many operations a pass spends on it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

GEMM_SIDE, GEMM_REPEAT = {"cpu": 2048, "cuda": 8192}, 5


def gemm_gflops(device: torch.device) -> float:
    """The best of a few products of square float32 matrices on torch's threads, in 1e9 operations per second."""
    import torch

    side = GEMM_SIDE[device.type]
    a, b = torch.rand(2, side, side, device=device).unbind()
    a @ b
    best = math.inf
    for _ in range(GEMM_REPEAT):
        wait_for(device)
        since = time.perf_counter()
        a @ b
        wait_for(device)
        best = min(best, time.perf_counter() - since)
    return 2 * side**3 / best / 1e9


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's operations undivided, as in a worker."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def counted_products() -> Iterator[list[int]]:
    """A list that takes the operations of each dense matrix product of this thread: 2 a real term, 8 a complex one."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    products: list[int] = []
    kinds = (torch.ops.aten.mm, torch.ops.aten.bmm)

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket in kinds and args[0].layout == torch.strided:
                products.append((8 if args[0].is_complex() else 2) * args[0].numel() * args[1].shape[-1])
            return func(*args, **(kwargs or {}))

    with Counted():
        yield products


def wait_for(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)

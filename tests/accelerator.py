"""An accelerator to be played on the processor: its tensors say they are elsewhere, and mixing the two is an error.

What runs on it runs as it would on a GPU as far as places are concerned: where each tensor is made, what meets what,
what is brought back before NumPy sees it. The arithmetic is the processor's, so results are the same to the bit.
torch's "meta" device lends its name, as it needs no driver.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
_MOVES = ("_to_copy", "copy_")
_INDEXED = ("index", "index_put_")  # by tensors that may stay on the processor


class Far(torch.Tensor):
    """A tensor on the accelerator; `near` holds its numbers."""

    to_device: torch.Tensor

    @staticmethod
    def __new__(cls, to_device: torch.Tensor) -> Far:
        dense = to_device.layout == torch.strided
        place = {"strides": to_device.stride(), "storage_offset": to_device.storage_offset()} if dense else {}
        return torch.Tensor._make_wrapper_subclass(cls, to_device.shape, device=DEVICE, dtype=to_device.dtype, **place)

    def __init__(self, to_device: torch.Tensor) -> None:
        self.to_device = to_device

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Played(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Lists(TorchFunctionMode):
    """Python's lists into tensors and back: torch would leave numbers behind that are meant for a "meta" device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": CPU}).to(kwargs["device"])
        if func is torch.Tensor.new_tensor and isinstance(args[0], Far):
            return func(args[0].to_device, *args[1:], **kwargs).to(DEVICE)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            return func(args[0], _index(args[1]), *args[2:])
        if func is torch.Tensor.tolist:
            return func(args[0].cpu())
        return func(*args, **kwargs)


def _index(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_index(each) for each in index)
    return torch.as_tensor(index) if isinstance(index, list | np.ndarray) else index


@contextmanager
def played() -> Iterator[torch.device]:
    """The device, for as long as it is there; torch's modes are a thread's own, so threads that begin enter them."""
    plain = threading.Thread.run

    def entered(thread: threading.Thread) -> None:
        with _Lists(), _Played():
            plain(thread)

    with _Lists(), _Played(), mock.patch.object(threading.Thread, "run", entered):
        yield DEVICE


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    far = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Far)]
    if far and name not in _MOVES:
        _require_far(func, (args[0], args[2:]) if name in _INDEXED else (args, kwargs))
    near_kwargs = {key: CPU if key == "device" else tree_map(_near, value) for key, value in kwargs.items()}
    result = func(*tree_map(_near, args), **near_kwargs)
    wanted = kwargs.get("device")
    stays = isinstance(args[0], Far) if name == "copy_" else bool(far)
    if not (stays if wanted is None else torch.device(wanted) == DEVICE):
        return result
    known = {id(tensor.to_device): tensor for tensor in far}  # what an operation wrote into is handed back as it was
    return tree_map(lambda leaf: known[id(leaf)] if id(leaf) in known else _far(leaf), result)


def _require_far(func: Any, among: Any) -> None:
    """As torch: single numbers may lie on the processor, all else may not."""
    for leaf in tree_leaves(among):
        if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Far) and leaf.dim():
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")


def _near(leaf: Any) -> Any:
    return leaf.to_device if isinstance(leaf, Far) else leaf


def _far(leaf: Any) -> Any:
    return Far(leaf) if isinstance(leaf, torch.Tensor) else leaf


class LateCard:
    """A card whose copies are made as late as they may be: when somebody waits for them.

    So a buffer that is overwritten while a copy from it is under way shows in what arrives. Whoever waits for a copy
    that another thread is making waits until it is made.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        self._device, self._making = device, threading.Lock()
        self.pinned_counts: list[int] = []
        self.under_way = 0
        self.most_under_way = 0

    def pinned(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        self.pinned_counts.append(count)
        return torch.empty(count, dtype=dtype)

    def copy(self, buffer: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
        there = torch.full(buffer.shape, float("nan"), dtype=buffer.dtype, device=self._device)
        with self._making:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        return there, [lambda: there.copy_(buffer)]

    def wait(self, ended: list[Any]) -> None:
        with self._making:
            if ended:
                ended.pop()()
                self.under_way -= 1

    def receive(self, there: torch.Tensor, ended: list[Any]) -> None:
        self.wait(ended)

"""Dataclasses, dicts and tuples of tensors and arrays as one buffer, so that a step needs one message."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def leaves(tree: Any) -> Iterator[Any]:
    """The tensors, arrays and numbers of a tree, in a fixed order."""
    if is_dataclass(tree) and not isinstance(tree, type):
        for each in fields(tree):
            yield from leaves(getattr(tree, each.name))
    elif isinstance(tree, dict):
        for key in sorted(tree):
            yield from leaves(tree[key])
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from leaves(item)
    else:
        yield tree


def rebuilt(tree: T, values: Iterator[Any]) -> T:
    """The tree with other leaves, taken from `values` in the order of `leaves`."""
    made: Any
    if is_dataclass(tree) and not isinstance(tree, type):
        made = type(tree)(**{each.name: rebuilt(getattr(tree, each.name), values) for each in fields(tree)})
    elif isinstance(tree, dict):
        found = {key: rebuilt(tree[key], values) for key in sorted(tree)}
        made = {key: found[key] for key in tree}
    elif isinstance(tree, tuple | list):
        made = type(tree)(rebuilt(item, values) for item in tree)
    else:
        made = next(values)
    return made


def summed(tree: T, all_reduce: Callable[[np.ndarray], None]) -> T:
    """The tree after `all_reduce` has summed its buffer in place: one of single precision, and one of double for all
    that is not. Kinds of numbers are kept."""
    own = list(leaves(tree))
    arrays = [_array(leaf) for leaf in own]
    reals = [_reals(array) for array in arrays]
    buffers, ends = {}, {np.float32: 0, np.float64: 0}
    for kind in ends:
        chosen = [each for each in reals if each.dtype == kind]
        if chosen:
            buffers[np.dtype(kind)] = np.concatenate(chosen)
            all_reduce(buffers[np.dtype(kind)])

    def unpacked() -> Iterator[Any]:
        for leaf, array, flat in zip(own, arrays, reals, strict=True):
            end = ends[flat.dtype.type] = ends[flat.dtype.type] + len(flat)
            values = buffers[flat.dtype][end - len(flat) : end]
            values = values.view(array.dtype) if array.dtype.kind == "c" else values
            values = np.rint(values) if array.dtype.kind in "iu" else values
            yield _like(leaf, values.reshape(array.shape).astype(array.dtype, copy=False))

    return rebuilt(tree, unpacked())


def dealt(parts: Sequence[T], rank: int, reduce_scatter: Callable[[np.ndarray, np.ndarray, list[int]], None]) -> T:
    """What `reduce_scatter` (from, into, counts) leaves of the ranks' parts, one for each rank, as this rank's part."""
    arrays = [_reals(_array(each)) for each in parts]
    own = np.empty_like(arrays[rank])
    reduce_scatter(np.concatenate(arrays), own, [len(each) for each in arrays])
    return _like(parts[rank], own.reshape(_array(parts[rank]).shape))


def joined(tree: T, gather: Callable[[np.ndarray], list[np.ndarray]]) -> T:
    """The tree with the arrays of all ranks one after another; `gather` gives every rank's bytes for this one's."""
    own = list(leaves(tree))
    arrays = [_array(leaf) for leaf in own]
    widths = [array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in arrays]
    buffers = gather(np.concatenate([np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]))

    def unpacked() -> Iterator[Any]:
        for place, (leaf, array) in enumerate(zip(own, arrays, strict=True)):
            pieces = []
            for buffer in buffers:
                rows = len(buffer) // sum(widths)
                start = rows * sum(widths[:place])
                pieces.append(buffer[start : start + rows * widths[place]].view(array.dtype))
            yield _like(leaf, np.concatenate(pieces).reshape(-1, *array.shape[1:]))

    return rebuilt(tree, unpacked())


def _array(leaf: Any) -> np.ndarray:
    return leaf.detach().cpu().numpy() if _is_tensor(leaf) else np.asarray(leaf)


def _reals(array: np.ndarray) -> np.ndarray:
    """An array's numbers as float32 where they are of single precision, else as float64; a complex one's as pairs."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if array.dtype.kind == "c":
        return flat.view(flat.real.dtype)
    return flat if array.dtype == np.float32 else flat.astype(np.float64, copy=False)


def _like(leaf: Any, array: np.ndarray) -> Any:
    """The array as what the leaf is: a tensor on its device, an array, or a plain number."""
    if _is_tensor(leaf):
        return sys.modules["torch"].from_numpy(array).to(leaf.device)
    return array if isinstance(leaf, np.ndarray) else type(leaf)(array.item())


def _is_tensor(leaf: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(leaf, torch.Tensor)

"""Complex matrix products in a stated precision: of float32 numbers or of what tensor cores take, with float32 sums.

    float32     24 bits of every operand count
    tf32        11 (TensorFloat-32)
    bfloat16    8

Tensor cores multiply real matrices. With real and imaginary parts beside each other, as they lie in memory, the product
of complex ones is a real one of twice the columns, and only the right operand has to be written anew:

    (.. Re a, Im a ..)  [[Re b, Im b], [-Im b, Re b]]  =  (.. Re ab, Im ab ..)

Operands are rounded here, to nearest, on every device: a tensor core given float32 would cut them off, which makes all
products smaller by a thousandth. So what a precision does to results can be seen on any machine; its speed, on a card.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DROPPED_BITS = {"tf32": 13, "bfloat16": 16}  # of float32's 24


def rounded(values: Tensor, precision: Precision) -> Tensor:
    """float32 values, those of a lower precision: to nearest, ties to even."""
    if precision == "float32":
        return values
    dropped = DROPPED_BITS[precision]
    bits = values.contiguous().view(torch.int32)
    odd = (bits >> dropped) & 1
    nearest = (bits + ((1 << (dropped - 1)) - 1) + odd) >> dropped << dropped
    return nearest.view(torch.float32)


def product(left: Tensor, right: Tensor, precision: Precision, out: Tensor | None = None) -> Tensor:
    """Batched left (b, n, k) times right (b, k, m), complex64; of float32 precision, torch's own."""
    if precision == "float32":
        return torch.bmm(left, right, out=out)
    beside = torch.stack([torch.view_as_real(right), torch.view_as_real(1j * right)], dim=2)  # (b, k, 2, m, 2)
    result = _real(torch.view_as_real(left).flatten(2), beside.flatten(3).flatten(1, 2), precision)
    found = torch.view_as_complex(result.unflatten(2, (-1, 2)))
    return found if out is None else out.copy_(found)


def product_over_rows(left: Tensor, right: Tensor, precision: Precision) -> Tensor:
    """Batched transpose of left (b, k, n) times right (b, k, m), complex64: (b, n, m)."""
    if precision == "float32":
        return torch.bmm(left.transpose(1, 2), right)
    first, second = (torch.view_as_real(each).flatten(2) for each in (left, right))  # (b, k, 2 n), (b, k, 2 m)
    parts = _real(first.transpose(1, 2), second, precision).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    real = parts[:, :, 0, :, 0] - parts[:, :, 1, :, 1]
    return torch.complex(real, parts[:, :, 0, :, 1] + parts[:, :, 1, :, 0])


def _real(left: Tensor, right: Tensor, precision: Precision) -> Tensor:
    """Batched real product of rounded operands."""
    left, right = rounded(left, precision), rounded(right, precision)
    if not left.is_cuda:
        return torch.bmm(left, right)
    if precision == "bfloat16":
        return torch.bmm(left.bfloat16(), right.bfloat16(), out_dtype=torch.float32)
    with _tensor_cores():
        return torch.bmm(left, right)


@contextmanager
def _tensor_cores() -> Iterator[None]:
    """CUDA may multiply float32 matrices as tf32 meanwhile; in the one thread that works on a card."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before

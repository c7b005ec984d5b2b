"""Products in a lower precision: rounded as stated, summed in float32, and what that does to log weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from align.scenes import engine_log_weights, run, scene
from align.test_oracle import oracle_log_weights
from polarice.align.products import PRECISIONS, product, product_over_rows, rounded

BITS = {"float32": 24, "tf32": 11, "bfloat16": 8}  # that count, the leading one among them
CLOSE = {"float32": (0, 1e-6), "tf32": (1e-4, 5e-4), "bfloat16": (1e-3, 4e-3)}  # two operands off by 0.4 of a last bit


def complex_pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    left, right = (rng.standard_normal((2, 3, *shape)).astype(np.float32) for shape in ((9, 50), (50, 7)))
    return torch.from_numpy(left[0] + 1j * left[1]), torch.from_numpy(right[0] + 1j * right[1])


def oracle_rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """float64: to so many bits, ties to even."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rounding_is_to_nearest(precision):
    values = np.random.default_rng(1).standard_normal(10_000).astype(np.float32) * 1e3
    ties = np.ldexp(np.arange(1.0, 4096.0, 2.0), -11).astype(np.float32) + 1  # halfway for tf32 and bfloat16, some
    values = np.concatenate([values, ties, -ties, [0.0]]).astype(np.float32)
    found = rounded(torch.from_numpy(values), precision)
    np.testing.assert_array_equal(found.double().numpy(), oracle_rounded(values, BITS[precision]))
    if precision == "bfloat16":
        assert torch.equal(found, torch.from_numpy(values).bfloat16().float())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_are_complex_products_of_rounded_operands(precision):
    left, right = complex_pair()
    exact = left.to(torch.complex128) @ right.to(torch.complex128)
    spread = float(np.sqrt(4 * 50))
    out = torch.empty(3, 9, 7, dtype=torch.complex64)
    for found in (
        product(left, right, precision),
        product(left, right, precision, out=out),
        product_over_rows(left.transpose(1, 2).contiguous(), right, precision),
        product(torch.cat([left, left], dim=2)[:, :, 50:], right, precision),  # a part of wider rows
    ):
        error = float((found - exact).abs().pow(2).mean().sqrt()) / spread
        low, high = CLOSE[precision]
        assert low < error < high
    assert torch.equal(out, product(left, right, precision))


def test_rounded_operands_are_multiplied_without_further_loss():
    left, right = complex_pair()
    for precision in ("tf32", "bfloat16"):
        first, second = (torch.view_as_complex(rounded(torch.view_as_real(each), precision)) for each in (left, right))
        exact = first.to(torch.complex128) @ second.to(torch.complex128)
        assert float((product(left, right, precision) - exact).abs().max()) < 3e-5


def test_log_weights_against_the_oracle():
    """Largest difference over an image's range: eight times as much for three bits less."""
    where = scene(48, 4000.0)
    truth = oracle_log_weights(where)
    spread = np.ptp(truth.reshape(len(truth), -1), axis=1)
    worst = {}
    for precision in PRECISIONS:
        ours = engine_log_weights(replace(where, search=replace(where.search, precision=precision)))
        worst[precision] = float((np.abs(ours - truth).max(axis=(1, 2, 3)) / spread).max())
    assert worst["float32"] < 3e-5
    assert 1e-5 < worst["tf32"] < 1e-3
    assert 4 * worst["tf32"] < worst["bfloat16"] < 1e-2


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_poses_and_sums_hardly_change(precision):
    where = scene(48, 4000.0, n=12)
    posterior, sums = run(where)
    rough, rough_sums = run(replace(where, search=replace(where.search, precision=precision)))
    assert torch.equal(rough.class_of, posterior.class_of)
    apart = (rough_sums.numerator - sums.numerator).abs().max() / sums.numerator.abs().max()
    assert 0 < float(apart) < {"tf32": 2e-3, "bfloat16": 2e-2}[precision]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_card_multiplies_as_the_processor(precision):
    left, right = complex_pair()
    device = torch.device("cuda")
    found = product(left.to(device), right.to(device), precision).cpu()
    assert float((found - product(left, right, precision)).abs().max()) < 1e-4
    over = product_over_rows(left.transpose(1, 2).contiguous().to(device), right.to(device), precision).cpu()
    assert float((over - product(left, right, precision)).abs().max()) < 1e-4
    assert not torch.backends.cuda.matmul.allow_tf32

"""The fused kernel: on Triton's interpreter, against float64 and against the plain operations; what is told of it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from align.scenes import scene
from align.test_sweep import searched
from polarice.align import fused
from polarice.align.expect import expect
from polarice.runs.resources import kernel_of
from polarice.types import InputError

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

ON_THE_INTERPRETER = """
import sys, torch
sys.path.insert(0, {tests!r})
from align.test_fused import both, CPU
from polarice.align import fused
error = fused.self_test(CPU)
assert error < 2e-5, error
for astigmatism_A in (0.0, 4000.0):
    both(astigmatism_A, CPU, 1e-4)
print("as the plain one")
"""


def both(astigmatism_A: float, device: torch.device, tolerance: float) -> None:
    """Three levels, of which the second has only some of the pairs: masses of pairs, and what comes of them."""
    where = searched(scene(48, astigmatism_A, n=24), True)
    assert len(where.search.levels) > 1
    given = (where.basis, where.engine_references(), where.batch)
    plain, sums = expect(*given, where.search, where.ring_noise)
    found, fused_sums = expect(*given, replace(where.search, kernel="fused"), where.ring_noise)
    assert torch.equal(plain.class_of, found.class_of)
    torch.testing.assert_close(plain.log_likelihood, found.log_likelihood, rtol=0, atol=tolerance)
    torch.testing.assert_close(plain.max_probability, found.max_probability, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        sums.numerator, fused_sums.numerator, rtol=1e-3, atol=float(sums.numerator.abs().max()) * 1e-4
    )


@needs_triton
def test_the_interpreter_gives_what_plain_operations_give():
    """In a process of its own: Triton asks once, when it is loaded, whether it is to interpret."""
    tests = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-c", ON_THE_INTERPRETER.format(tests=tests)],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip() == "as the plain one", done.stderr


def test_plain_sums_are_those_of_the_weights():
    """The reference itself, by the definition of the inverse transform."""
    spectrum = torch.randn(5, 3, dtype=torch.complex64)
    angle = 2 * torch.pi * torch.arange(16) / 16
    weights = spectrum[0].real[:, None] / 12 + sum(
        2 / 12 * (spectrum[q][:, None] * torch.exp(1j * q * angle)).real for q in range(1, 5)
    )
    expected = weights.logsumexp(dim=1) + torch.tensor([1.0, 2.0, 3.0])
    found = fused.plain_log_sums(spectrum, None, torch.tensor([1.0, 2.0, 3.0]), 12, 16)
    torch.testing.assert_close(found.float(), expected)


@pytest.mark.gpu
@needs_cuda
def test_a_card_gives_what_plain_operations_give():
    device = torch.device("cuda")
    assert fused.works_on(device) == ""
    assert fused.self_test(device) < 1e-4


def test_what_cannot_be_had_is_told(monkeypatch, capsys):
    with pytest.raises(InputError, match="--kernel fused: a card is needed, and this is cpu"):
        kernel_of(SimpleNamespace(kernel="fused"), CPU)
    assert kernel_of(SimpleNamespace(kernel="auto"), CPU) == "plain"
    card = torch.device("cuda")
    for error, words in ((0.5, "its log sums are off by 0.5"), (float("inf"), "off by inf")):
        fused.works_on.cache_clear()
        monkeypatch.setattr(fused, "self_test", lambda _device, error=error: error)
        assert kernel_of(SimpleNamespace(kernel="auto"), card) == "plain"
        assert words in capsys.readouterr().err
        with pytest.raises(InputError, match=words):
            kernel_of(SimpleNamespace(kernel="fused"), card)

    def fails(_device):
        raise ImportError("No module named 'triton'")

    fused.works_on.cache_clear()
    monkeypatch.setattr(fused, "self_test", fails)
    assert kernel_of(SimpleNamespace(kernel="auto"), card) == "plain"
    assert "ImportError: No module named 'triton'" in capsys.readouterr().err
    fused.works_on.cache_clear()
    monkeypatch.setattr(fused, "self_test", lambda _device: 1e-6)
    assert kernel_of(SimpleNamespace(kernel="auto"), card) == "fused"
    assert kernel_of(SimpleNamespace(kernel="plain"), card) == "plain"
    fused.works_on.cache_clear()

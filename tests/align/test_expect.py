"""Laws of the expectation: rotation, split of the data, order, twice the same, CPU and GPU."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from align.scenes import engine_log_weights, run, scene
from polarice.align.expect import PolarImages, Posterior, expect
from polarice.align.search import Search
from polarice.align.sums import Sums


def take(batch: PolarImages, rows: slice | torch.Tensor) -> PolarImages:
    return PolarImages(*(getattr(batch, f.name)[rows] for f in fields(batch)))


def apart(first: Sums, second: Sums) -> float:
    """Largest relative difference of any sum."""
    pairs = [(getattr(first, f.name), getattr(second, f.name)) for f in fields(Sums)]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


@pytest.mark.parametrize("box", [47, 48])
@pytest.mark.parametrize("cells", [1, 9])
def test_turning_image_and_ctf_turns_the_score(box, cells):
    """By exactly that many cells, at shift zero."""
    where = scene(box, 4000.0)
    where = replace(where, search=Search.over(where.basis, torch.zeros(1, 2), where.basis.n_theta, 3.0))
    batch = where.batch
    turned = replace(batch, field=batch.field.roll(cells, -1), ctf=batch.ctf.roll(cells, -1))
    before, after = (engine_log_weights(where, b) for b in (batch, turned))
    assert np.abs(after - np.roll(before, cells, -1)).max() < 1e-5 * np.ptp(before)


def test_finer_angles_pass_through_the_coarser_ones():
    where = scene(48, 4000.0)
    finer = replace(where, search=Search.over(where.basis, where.search.shifts_px, 2 * where.basis.n_theta, 3.0))
    coarse, fine = (engine_log_weights(w) for w in (where, finer))
    assert np.abs(fine[..., ::2] - coarse).max() < 1e-5 * np.ptp(coarse)


@pytest.mark.parametrize("sizes", [[1] * 16, [8, 8], [3, 13], [16]])
def test_any_split_gives_the_same_sums_and_poses(sizes):
    where = scene(48, 4000.0, n=16, noise_sd=1.0)
    whole_posterior, whole = run(where)
    batches = [take(where.batch, slice(end - size, end)) for size, end in zip(sizes, np.cumsum(sizes), strict=True)]
    results = [run(where, batch) for batch in batches]
    total = results[0][1]
    for _, sums in results[1:]:
        total = total + sums
    assert apart(total, whole) < 2e-5
    for f in fields(Posterior):
        together = torch.cat([getattr(posterior, f.name) for posterior, _ in results])
        torch.testing.assert_close(together, getattr(whole_posterior, f.name), rtol=1e-4, atol=1e-4)


def test_order_does_not_matter():
    where = scene(48, None, n=8)
    order = torch.tensor([3, 1, 7, 0, 5, 2, 6, 4])
    assert apart(run(where, take(where.batch, order))[1], run(where)[1]) < 2e-5


def test_twice_the_same_and_arguments_untouched():
    where = scene(48, 4000.0, n=8)
    batch, references, noise = where.batch, where.engine_references(), where.ring_noise
    everything = [batch, references, where.search]
    before = [{k: v.clone() for k, v in vars(o).items() if isinstance(v, torch.Tensor)} for o in everything]
    first = expect(where.basis, references, batch, where.search, noise)
    second = expect(where.basis, references, batch, where.search, noise)
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    for now, was in zip(everything, before, strict=True):
        assert was and all(torch.equal(getattr(now, k), v) for k, v in was.items())
    assert torch.equal(noise, where.ring_noise)


def test_sums_scale_and_count():
    where = scene(48, 0.0, n=5)
    posterior, sums = run(where)
    assert sums.count == 5
    assert float(sums.class_weight.sum()) == pytest.approx(5, rel=1e-6)
    assert apart(sums + sums, sums * 2) == 0
    assert float(sums.log_likelihood) == pytest.approx(float(posterior.log_likelihood.double().sum()), rel=1e-9)


def test_prior_on_shifts_counts_the_whole_shift():
    """A blank reference leaves the prior alone: the best shift is the one nearest to the origin, E|t|^2 is known."""
    where = scene(48, 0.0, n=4)
    blank = replace(where, references=np.zeros_like(where.references))
    posterior, sums = run(blank)
    whole = where.centre_px[:, None] + where.search.shifts_px.double().numpy()
    squared = (whole**2).sum(axis=2)
    nearest = whole[np.arange(4), squared.argmin(axis=1)]
    np.testing.assert_allclose(posterior.shift_px.numpy(), nearest, atol=1e-6)
    weight = np.exp(-squared / (2 * where.search.shift_sigma_px**2))
    expected = ((weight * squared).sum(axis=1) / weight.sum(axis=1)).sum()
    assert float(sums.squared_shift) == pytest.approx(expected, rel=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_the_cpu():
    cpu = scene(48, 4000.0, n=8)
    device = torch.device("cuda")
    gpu = replace(
        cpu,
        images=replace(cpu.images, device=device),
        basis=replace(cpu.basis, device=device),
        search=Search.over(replace(cpu.basis, device=device), cpu.search.shifts_px.to(device), cpu.basis.n_theta, 3.0),
    )
    on_cpu, sums_cpu = run(cpu)
    references = gpu.engine_references()
    on_gpu, sums_gpu = expect(gpu.basis, references, gpu.batch, gpu.search, gpu.ring_noise.to(device))
    assert torch.equal(on_gpu.class_of.cpu(), on_cpu.class_of)
    torch.testing.assert_close(on_gpu.psi_rad.cpu(), on_cpu.psi_rad)
    torch.testing.assert_close(on_gpu.log_likelihood.cpu(), on_cpu.log_likelihood, rtol=1e-3, atol=1e-2)
    for f in fields(Sums):
        a, b = getattr(sums_gpu, f.name).cpu(), getattr(sums_cpu, f.name)
        assert (a - b).abs().max() <= 1e-3 * b.abs().max(), f.name

"""Whole jobs on an accelerator that is played on the processor: every tensor is where it must be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import accelerator
from jobs.runs import assert_same_files, stub_report
from jobs.sets import ParticleSet
from polarice.align import expect, sweep, transfer
from polarice.jobs import align2d, class2d, sml
from polarice.references.manifold import model as manifold
from polarice.runs import classification, mapping

MEMORY_BYTES = 512 << 20  # an eighth of it for a batch, which is what a processor's batches get


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The accelerator is what jobs will be given; a folder with particles, from where they run."""
    stub_report(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (MEMORY_BYTES, MEMORY_BYTES))
    blocks = (sweep.PREPARED_AT_ONCE, manifold.RING_BLOCK_BYTES, expect.CACHED_BYTES, expect.CLASS_BLOCK_BYTES)
    for known in blocks:
        monkeypatch.setitem(known, "meta", known["cpu"])
    return ParticleSet(n=60).write(tmp_path)


def give(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (classification, mapping):
        monkeypatch.setattr(module, "device_of", lambda *_: accelerator.DEVICE)


def near_and_far(monkeypatch: pytest.MonkeyPatch, job: Any, params: Any) -> tuple[Path, Path]:
    """The folders `out` of a job on the processor and of the same on the accelerator, where the test still stands."""
    here = Path.cwd()
    for name in ("near", "far"):
        Path(name).mkdir()
    monkeypatch.chdir("near")
    job.run(params)
    monkeypatch.chdir("../far")
    give(monkeypatch)
    with accelerator.played():
        job.run(params)
    return here / "near/out", here / "far/out"


def test_tensors_of_two_devices_do_not_meet():
    with accelerator.played() as device:
        far = torch.arange(6.0, device=device).view(2, 3)
        far[:, 1] += torch.tensor([1.0, 2.0], device=device)
        assert far.device == device and far.cpu().tolist() == far.tolist() == [[0, 2, 2], [3, 6, 5]]
        with pytest.raises(RuntimeError, match="same device"):
            far + torch.ones(3)
        with pytest.raises(RuntimeError):
            far.numpy()


@pytest.mark.parametrize(("job", "precision"), [(align2d, "auto"), (class2d, "tf32")], ids=["align2d", "class2d"])
def test_a_job_on_it_leaves_what_it_leaves_on_the_processor(
    lent: Path, job: Any, precision: str, monkeypatch: pytest.MonkeyPatch
):
    """To the bit, since the arithmetic is the same; also when it goes on from a checkpoint, with its precision."""
    params = job.Params(particles=lent, o=Path("out"), k=3, iter=4, threads=1, memory=0.25, precision=precision)
    to_device, far = near_and_far(monkeypatch, job, params)
    assert_same_files(to_device, far, 4)
    for path in far.glob("run_it00[34]_*"):
        path.unlink()
    with accelerator.played():
        job.run(replace(params, particles=None, continue_=Path("out")))
    assert_same_files(to_device, far, 4)


@pytest.mark.parametrize("kept", ["in memory", "in part", "on a disk"])
def test_transfers_beside_the_computing_change_nothing(lent: Path, kept: str, monkeypatch: pytest.MonkeyPatch):
    """Through a played card whose copies come as late as they may, from images and from kept fields; to the bit."""
    where: dict[str, Any] = {"in part": {"memory": 0.01}, "on a disk": {"scratch": lent.parent}}.get(kept, {})
    params = align2d.Params(particles=lent, o=Path("out"), k=2, iter=3, threads=1, **where)
    cards: list[accelerator.LateCard] = []

    def prefetch_to(device: torch.device) -> transfer.PinnedPrefetch | transfer.Direct:
        if device != accelerator.DEVICE:
            return transfer.Direct(device)
        cards.append(accelerator.LateCard(device))
        return transfer.PinnedPrefetch(cards[-1])

    monkeypatch.setattr(transfer, "prefetch_to", prefetch_to)
    assert_same_files(*near_and_far(monkeypatch, align2d, params), 3)
    assert sum(len(card.pinned_counts) for card in cards) > 0
    assert all(card.under_way == 0 for card in cards)


@pytest.mark.parametrize("start", ["pca", "classes", "random"])
def test_a_map_on_it_is_the_map_on_the_processor(lent: Path, start: str, monkeypatch: pytest.MonkeyPatch):
    align2d.run(align2d.Params(particles=lent, o=Path("aligned"), k=2, iter=3, threads=1))
    table = (lent.parent / "aligned/run_it003_data.star").absolute()
    params = sml.Params(
        particles=table, image_dir=lent.parent, o=Path("out"), k="3x3", iter=4, start=start, threads=1, memory=0.25
    )
    assert_same_files(*near_and_far(monkeypatch, sml, params), 4)

"""Batches on their way to a card: none is overwritten, none is late, and on a processor nothing happens at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from accelerator import LateCard
from align.scenes import scene
from align.test_sweep import same, searched, swept
from polarice.align import transfer
from polarice.align.pixels import PixelStore
from polarice.align.store import CacheBudget, PolarStore
from polarice.align.transfer import PinnedPrefetch, sent, to_device
from polarice.io.read_ahead import read_ahead

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def batches(count: int) -> list[torch.Tensor]:
    """Of different sizes."""
    return [torch.full((2 + number % 3, 4), float(number)) for number in range(count)]


def all_before(items: Iterable[object]) -> Iterator[object]:
    """The worst reader there is: it makes everything before anything is taken."""
    return iter(list(items))


@pytest.mark.parametrize("ahead", [iter, read_ahead, all_before])
def test_what_arrives_is_what_was_sent(monkeypatch, ahead):
    card = LateCard()
    monkeypatch.setattr(transfer, "prefetch_to", lambda _device: PinnedPrefetch(card))
    for sent_, arrived in zip(batches(20), sent(batches(20), CPU, ahead), strict=True):
        assert torch.equal(sent_, arrived)
    assert card.under_way == 0
    assert card.most_under_way <= transfer.BUFFERS
    assert len(card.pinned_counts) <= 2 * transfer.BUFFERS  # a buffer is made anew only where it is too small


def test_without_waiting_a_buffer_would_be_overwritten(monkeypatch):
    """What the test above rests on: the played card shows it."""
    monkeypatch.setattr(LateCard, "wait", lambda self, ended: None)
    monkeypatch.setattr(LateCard, "receive", lambda self, there, ended: ended.pop()())
    monkeypatch.setattr(transfer, "prefetch_to", lambda _device: PinnedPrefetch(LateCard()))
    arrived = list(sent(batches(20), CPU, all_before))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(batches(20), arrived, strict=True))


def test_a_processor_gets_the_very_memory():
    made = batches(5)
    assert [there.data_ptr() for there in sent(made, CPU, read_ahead)] == [batch.data_ptr() for batch in made]


def test_a_pass_over_sent_images_is_the_pass(monkeypatch):
    """Streamed, prepared and kept: to the bit."""
    where, rows = searched(scene(48, 4000.0, n=40), True), np.arange(40)
    each = 4 * where.basis.r_max * where.basis.n_theta
    plain = swept(where, PolarStore(rows, CacheBudget(17 * each)))
    monkeypatch.setattr(transfer, "prefetch_to", lambda _device: PinnedPrefetch(LateCard()))
    same(plain, swept(where, PolarStore(rows, CacheBudget(17 * each))), 0.0)


@pytest.mark.gpu
@needs_cuda
def test_a_card_gets_what_was_sent():
    device = torch.device("cuda")
    large = [torch.randn(64, 256, 256) for _ in range(12)]
    for sent_, arrived in zip(large, sent((batch.clone() for batch in large), device, read_ahead), strict=True):
        torch.randn(4096, 4096, device=device).matmul(torch.randn(4096, 4096, device=device))  # keeps the card busy
        assert arrived.device.type == "cuda"
        assert torch.equal(arrived.cpu(), sent_)
    assert to_device(np.arange(5), device).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.gpu
@needs_cuda
def test_a_copy_runs_beside_what_the_card_computes():
    """A lane's copy ends while the main stream is still at work, and its buffer is pinned."""
    device = torch.device("cuda")
    lane = transfer.prefetch_to(device)
    assert isinstance(lane, PinnedPrefetch)
    lane.send(torch.randn(8, 8))  # makes what is made once
    torch.cuda.synchronize()
    busy = torch.randn(8192, 8192, device=device)
    for _ in range(50):
        busy = busy @ busy / 100
    at_work = torch.cuda.Event()
    at_work.record()
    _, arrived = lane.send(torch.randn(256, 256))
    arrived.synchronize()
    assert not at_work.query()
    assert all(buffer.is_pinned() for buffer in lane._buffers if buffer.numel())


class Counted:
    """A source that counts how often each image is read."""

    def __init__(self, source):
        self.source, self.box_px, self.times = source, source.box_px, np.zeros(len(source), int)

    def __len__(self):
        return len(self.source)

    def read(self, rows):
        np.add.at(self.times, rows, 1)
        return self.source.read(rows)


@pytest.mark.parametrize(("capacity", "again"), [(40, 0), (23, 17), (0, 40)])
def test_kept_pixels_are_read_once_and_change_nothing(capacity, again):
    """Of 40 images, those without room are read again by the next pass, and whole chunks of those that have some."""
    where, rows = searched(scene(48, 4000.0, n=40), True), np.arange(40)
    source = Counted(where.images.source)
    pixels = PixelStore(40, capacity, CPU)
    kept = replace(where, images=replace(where.images, source=source, pixels=pixels))
    plain = swept(where, PolarStore(rows, CacheBudget(0)))
    same(plain, swept(kept, PolarStore(rows, CacheBudget(0))), 0.0)
    assert (source.times == 1).all()
    same(plain, swept(kept, PolarStore(rows, CacheBudget(0))), 0.0)
    assert (source.times == 2).sum() >= again
    assert (source.times[:capacity] == 1).sum() >= min(capacity, 40 - again) // 2
    one_by_one = {int(chunk[0]): images for chunk, images in kept.images.batches(rows[::-1].copy(), 1)}
    for row, images in one_by_one.items():
        assert torch.equal(images[0], torch.from_numpy(where.images.read(np.array([row])))[0])
    assert (source.times[:capacity] <= 2).all()

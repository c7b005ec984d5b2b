"""Passes over the images: coarse to fine loses next to nothing; threads, batches and what is kept do not matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from align.scenes import Scene, run, scene
from polarice.align.expect import PRUNED_MASS, expect
from polarice.align.images import Clock
from polarice.align.memory_chunks import Portions
from polarice.align.polar import PolarBasis
from polarice.align.schedule import shift_grid
from polarice.align.search import Search
from polarice.align.store import CacheBudget, PolarStore
from polarice.align.sums import Sums
from polarice.align.sweep import Sweep, batch_size
from polarice.references.averages import Averages
from polarice.types import Assignment, InputError, Pose2D
from polarice.workers import in_turn


def searched(where: Scene, coarse_to_fine: bool, range_px: float = 3.0, step_px: float = 1.0) -> Scene:
    shifts = torch.from_numpy(shift_grid(range_px, step_px, np.array([0.2, -0.3]))).float()
    plan = Search.over(where.basis, shifts, where.basis.n_theta, 3.0, coarse_to_fine)
    return replace(where, search=plan)


@pytest.mark.parametrize("grid", [(4.0, 2.0), (3.0, 1.0), (1.0, 0.25)])
@pytest.mark.parametrize("noise_sd", [0.5, 1.5, 4.0])
def test_coarse_levels_lose_next_to_nothing(noise_sd, grid):
    """Against the dense pass: of the posterior on the average ten times what each level may leave out, at the most."""
    where = scene(64, 4000.0, n=64, noise_sd=noise_sd, rings=26)
    dense, pruned = (run(searched(where, coarse, *grid)) for coarse in (False, True))
    levels = searched(where, True, *grid).search.levels
    assert [level.rings < 26 for level in levels] == [True, True, False]
    lost = 1 - (pruned[0].log_likelihood - dense[0].log_likelihood).exp()
    assert float(lost.mean()) < 10 * PRUNED_MASS * len(levels[:-1])
    assert (dense[0].class_of == pruned[0].class_of).float().mean() > 0.98
    apart = (dense[1].numerator - pruned[1].numerator).abs().max() / dense[1].numerator.abs().max()
    assert float(apart) < 0.01


def test_a_level_tries_fewer_shifts_but_none_far_from_any():
    where = searched(scene(64, 0.0, n=1, rings=26), True, 1.5, 0.25)
    first, *_, last = where.search.levels
    assert len(first.shifts_px) < len(last.shifts_px) / 3
    away = torch.cdist(last.shifts_px, first.shifts_px).min(dim=1).values
    assert float(away.max()) * 2 * torch.pi * first.rings / 64 <= 0.4 + 1e-6


def swept(where: Scene, store: PolarStore, batch: int = 5, workers: int = 1) -> tuple[Assignment, Sums]:
    n = len(where.images)
    field = where.basis.sample(torch.from_numpy(where.references).float())
    noise = torch.ones(1, where.basis.box_px // 2 + 1, dtype=torch.float64)
    model = replace(Averages.empty(where.basis, 2, noise, 3.0, 0.3), field=field)
    nothing = Assignment(
        replace(Pose2D.unknown(n), shift_px=where.centre_px + 0.3),
        np.zeros(n),
        np.zeros(n, np.float32),
        np.zeros(n, np.int32),
    )
    sweep = Sweep(where.images, model, where.search, batch, workers)
    return sweep.run(np.arange(n), nothing, np.rint(where.centre_px), store, Clock())


def same(a: tuple[Assignment, Sums], b: tuple[Assignment, Sums], tolerance: float) -> None:
    assert np.array_equal(a[0].pose.class_of, b[0].pose.class_of)
    np.testing.assert_allclose(a[0].pose.shift_px, b[0].pose.shift_px, atol=1e-5)
    for each in fields(Sums):
        first, second = getattr(a[1], each.name), getattr(b[1], each.name)
        assert float((first - second).abs().max()) <= tolerance * float(first.abs().max()), each.name


@pytest.mark.parametrize("workers", [2, 3])
def test_threads_change_the_order_of_sums_alone(workers):
    where = searched(scene(48, 4000.0, n=40), True)
    rows = np.arange(40)
    alone = swept(where, PolarStore(rows, CacheBudget()))
    together = swept(where, PolarStore(rows, CacheBudget()), workers=workers)
    same(alone, together, 1e-6)
    again = swept(where, PolarStore(rows, CacheBudget()), workers=workers)
    same(together, again, 0.0)


def test_what_is_kept_gives_the_bits_of_what_is_made_anew(tmp_path):
    where = searched(scene(48, 4000.0, n=40), True)
    rows = np.arange(40)
    each = 4 * where.basis.r_max * where.basis.n_theta
    for store in (
        PolarStore(rows, CacheBudget(40 * each)),
        PolarStore(rows, CacheBudget(0, tmp_path)),
        PolarStore(rows, CacheBudget(17 * each)),
    ):
        first = swept(where, store)
        second = swept(where, store)  # nothing is prepared but what had no room
        same(first, second, 0.0)
    assert not any(tmp_path.iterdir())  # the scratch file has no name any more


def test_a_store_keeps_what_fits_and_forgets_what_moved():
    basis = scene(48, 0.0, n=1).basis
    each = 4 * basis.r_max * basis.n_theta
    rows = np.array([7, 2, 9, 4])
    store = PolarStore(rows, CacheBudget(3 * each))
    store.reset(basis)
    kept, streamed = store.parted(np.array([2, 4, 9]))
    assert kept.tolist() == [2, 9]
    assert streamed.tolist() == [4]
    at = np.zeros((2, 2))
    assert store.missing(kept, at).tolist() == [2, 9]
    fields_of = torch.arange(2.0)[:, None, None].expand(2, basis.r_max, basis.n_theta)
    store.put(kept, fields_of, at)
    assert store.missing(kept, at).tolist() == []
    assert store.missing(kept, np.array([[0.0, 0.0], [1.0, 0.0]])).tolist() == [9]
    assert torch.equal(store.take(np.array([9, 2])), fields_of.flip(0))
    store.reset(replace(basis, r_max=basis.r_max - 1))
    assert store.missing(kept, at).tolist() == [2, 9]


class ShortOfMemory:
    """Stands before a function that takes images, and has no room for more than `most` at once."""

    def __init__(self, function: Callable[..., Any], most: int, images: Callable[..., Any]) -> None:
        self.function, self.most, self.images = function, most, images
        self.seen: list[int] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.function(*args, **kwargs)  # memory ends when nearly all is done
        self.seen.append(len(self.images(*args)))
        if self.seen[-1] > self.most:
            raise torch.OutOfMemoryError("no room")
        return result


def test_where_memory_is_short_batches_are_halved(monkeypatch):
    """Sums of what failed are not added; what was too much is not tried again."""
    where = searched(scene(48, 4000.0, n=20), True)
    rows = np.arange(20)
    whole = swept(where, PolarStore(rows, CacheBudget()), batch=20)
    short = ShortOfMemory(expect, 6, lambda basis, references, batch, *_: batch)
    monkeypatch.setattr("polarice.align.sweep.expect", short)
    halved = swept(where, PolarStore(rows, CacheBudget()), batch=20)
    assert short.seen == [20, 10, 5, 5, 5, 5]
    same(whole, halved, 1e-5)
    assert float(halved[1].group_count.sum()) == 20


@pytest.mark.parametrize("kept", [0, 40])
def test_where_memory_is_short_fewer_images_are_prepared_at_once(monkeypatch, kept):
    """Streamed, and to be kept."""
    where = searched(scene(48, 4000.0, n=20), True)
    rows, room = np.arange(20), CacheBudget(kept * 4 * where.basis.r_max * where.basis.n_theta)
    whole = swept(where, PolarStore(rows, room), batch=20)
    short = ShortOfMemory(PolarBasis.sample, 3, lambda basis, images: images)
    monkeypatch.setattr(PolarBasis, "sample", lambda basis, images: short(basis, images))
    halved = swept(where, PolarStore(rows, room), batch=20)
    assert max(short.seen) in (20, 32) and short.seen[-1] <= 3
    same(whole, halved, 1e-5)


def test_no_room_for_a_single_image_is_said_in_words(monkeypatch):
    where = searched(scene(48, 4000.0, n=4), True)
    monkeypatch.setattr(
        "polarice.align.sweep.expect", ShortOfMemory(expect, 0, lambda basis, references, batch, *_: batch)
    )
    with pytest.raises(InputError, match="even for one image at a time; ask for fewer classes"):
        swept(where, PolarStore(np.arange(4), CacheBudget()), batch=4)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def fails(part: slice) -> int:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Portions().each(fails, 4)


def test_a_processor_that_cannot_allocate_is_short_of_memory_too():
    def work(part: slice) -> list[int]:
        if part.stop - part.start > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return list(range(part.start, part.stop))

    portions = Portions()
    assert portions.each(work, 7) == [[0], [1], [2], [3], [4], [5], [6]]
    assert portions.each(work, 2) == [[0], [1]]  # never more than has been found to fit


def test_a_store_without_room_for_all_keeps_fewer(monkeypatch):
    basis, rows = scene(48, 0.0, n=1).basis, np.arange(16)
    short = ShortOfMemory(torch.empty, 5, lambda *shape, **_: range(shape[0]))
    monkeypatch.setattr("polarice.align.store.torch.empty", short)
    store = PolarStore(rows, CacheBudget())
    store.reset(basis)
    kept, streamed = store.parted(rows)
    assert (len(kept), len(streamed)) == (4, 12)


def test_batches_fit_the_memory_given():
    where = searched(scene(48, 0.0, n=1), True)
    small, large = (batch_size(where.basis, 20, where.search, bytes_) for bytes_ in (1 << 20, 1 << 24))
    assert 1 <= small < large
    assert batch_size(where.basis, 2000, where.search, 1 << 24) < large


def test_work_comes_back_in_order_and_its_errors_too():
    assert list(in_turn(range(20), lambda worker, item: (worker, item), 3)) == [(i % 3, i) for i in range(20)]

    def fails(worker: int, item: int) -> int:
        if item == 5:
            raise ValueError(f"item {item}")
        return item

    got = []
    with pytest.raises(ValueError, match="item 5"):
        got.extend(in_turn(range(20), fails, 2))
    assert got == [0, 1, 2, 3, 4]


def test_scratch_folder_that_is_not_there(tmp_path):
    where = scene(48, 0.0, n=1)
    store = PolarStore(np.arange(4), CacheBudget(0, tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError):
        store.reset(where.basis)

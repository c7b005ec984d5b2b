"""What the benchmarks ask of the engine: the machine's rate of matrix products, and passes over all images."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from polarice.cluster import SERIAL, Serial
from polarice.runs.products import counted_products, gemm_gflops, one_thread, wait_for
from polarice.runs.resources import Computing, device_of
from polarice.types import InputError

if TYPE_CHECKING:
    from polarice.align.classify import Cuts
    from polarice.align.fit import State
    from polarice.align.search import Search
    from polarice.align.sweep import Sweep
    from polarice.references.averages import Averages
    from polarice.references.manifold.aligned import AlignedImages
    from polarice.references.manifold.model import Manifold

T = TypeVar("T")
MAP_RADIUS, MAP_IMAGES = 0.4, 256  # the particle's radius over the box; images that meet a map's nodes at once
SHIFT_STEP_PX = 2.0  # as in the first half of a run
COMPARED_IMAGES = 100  # whose log weights are compared between precisions
MOST_STEPS = 40  # radius of the largest disc of shifts


def cores() -> int:
    """Logical cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine(place: Computing) -> dict[str, Any]:
    """What figures were measured on. Raises InputError where the device is not there."""
    import torch

    from polarice.project.provenance import versions

    device = device_of(place)
    found = versions()
    return {
        "cpu": found["CPU"].rpartition(", ")[0],
        "cores": cores(),
        "threads": place.threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "polarice": found["polarice"],
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "load_before": os.getloadavg()[0],
        "gemm_gflops": gemm_gflops(device),
    }


def shift_range_px(shifts: int) -> float:
    """The radius of the disc that holds so many shifts of SHIFT_STEP_PX; InputError where no disc does."""
    index = np.arange(-MOST_STEPS, MOST_STEPS + 1) ** 2
    squares, count = np.unique(index[:, None] + index, return_counts=True)
    whole = squares <= MOST_STEPS**2
    counts = dict(zip(np.cumsum(count[whole]).tolist(), squares[whole].tolist(), strict=True))
    if shifts not in counts:
        near = ", ".join(map(str, sorted(sorted(counts, key=lambda count: abs(count - shifts))[:5])))
        raise InputError(f"--shifts {shifts}: no disc of the grid holds so many; take one of {near}")
    return SHIFT_STEP_PX * math.sqrt(counts[shifts])


def time_passes(params: Any, shifts: int, repeat: int) -> dict[str, Any]:
    """Time expectation and maximization of all images, from the last checkpoint of the finished class2d run `params`.

    Products are of `params.precision`. `fresh` prepares the images, `kept` finds them prepared. The flops are those of
    the matrix products, counted. `largest_error`, `changed_best`: see `errors_of`.
    """
    from polarice.align.store import CacheBudget, PolarStore
    from polarice.align.sweep import Sweep, batch_size
    from polarice.runs.checkpoint import read_checkpoint
    from polarice.runs.particle_job import disk_order, open_particles
    from polarice.runs.resources import batch_bytes, device_of, kernel_of, precision_of, workers_of

    device = device_of(params)
    table, images = open_particles(params, device)
    images = replace(images, pixels=None)  # a fresh pass reads
    state = read_checkpoint(params.o, params.iter, device)
    model, search = _wide(state, shifts)
    search = replace(search, precision=precision_of(params), kernel=kernel_of(params, device))
    workers = workers_of(params, device)
    size = batch_size(model.basis, len(model.weights), search, batch_bytes(params, device, workers))
    sweep = Sweep(images, model, search, size, workers)
    rows = disk_order(table.particles)
    fresh, kept = [], []
    for _ in range(repeat):
        store = PolarStore(rows, CacheBudget(4 * len(rows) * model.basis.r_max * model.basis.n_theta))
        fresh.append(_pass(sweep, state, rows, store))
        kept.append(_pass(sweep, state, rows, store))
    with counted_products() as products:
        _pass(replace(sweep, workers=1), state, rows, store)
    return {
        "rings": model.basis.r_max,
        "angles": model.basis.n_theta,
        "rings_of_levels": [level.rings for level in search.levels],
        "batch": size,
        "fresh": summary(fresh, len(rows)),
        "kept": summary(kept, len(rows)),
        "gflop_per_image": sum(products) / len(rows) / 1e9,
        **errors_of(sweep, state, rows),
    }


def errors_of(sweep: Sweep[Averages], state: State[Averages, Cuts], rows: np.ndarray) -> dict[str, float]:
    """What the precision of the sweep's products does to the log weights of some images, on the whole basis.

    largest_error: of a cell's log odds against the image's best cell, from those in float32, among cells that matter:
    by these within log(1 / PRUNED_MASS) of the best. changed_best: share of the images whose best class is another.
    """
    from polarice.align.expect import PRUNED_MASS, log_weights

    images, model, exact = sweep.images, sweep.model, replace(sweep.search, precision="float32")
    basis, largest, changed = model.basis, 0.0, 0
    references = model.references(images.even_harmonics(basis))
    chosen = rows[:: max(1, len(rows) // COMPARED_IMAGES)]
    for row in chosen.reshape(-1, 1):
        crop_centre_px = state.carried.crop_centre_px[row]
        field = images.fields(basis, images.read(row), crop_centre_px)
        batch = images.polar(basis, row, field, crop_centre_px, state.assignment.pose.shift_px[row])
        true, found = (
            log_weights(basis, references, batch, search, model.ring_noise)[0] for search in (exact, sweep.search)
        )
        matter = true > true.max() + math.log(PRUNED_MASS)
        error = (found - true)[matter]
        largest = max(largest, float((error - error[true[matter].argmax()]).abs().max()))
        best, wanted = (int(weights.amax(dim=(0, 2)).argmax()) for weights in (found, true))
        changed += best != wanted
    return {"largest_error": largest, "changed_best": changed / len(chosen)}


def summary(passes: list[dict[str, float]], images: int) -> dict[str, Any]:
    """Best and median time per image of passes, each {stage: seconds, "total": seconds}, and the best one's stages."""
    best = min(passes, key=lambda each: each["total"])
    return {
        "best_ms": 1e3 * best["total"] / images,
        "median_ms": 1e3 * statistics.median(each["total"] for each in passes) / images,
        "images_per_s": images / best["total"],
        "stages_ms": {stage: 1e3 * seconds / images for stage, seconds in best.items() if stage != "total"},
    }


def _wide(state: State[Averages, Cuts], shifts: int) -> tuple[Averages, Search]:
    """The model, and the search that an iteration of its run with a wide range of shifts would make."""
    import torch

    from polarice.align.classify import CONCENTRATED, FARTHEST_FROM_CUT_PX
    from polarice.align.schedule import shift_grid
    from polarice.align.search import Search

    range_px = shift_range_px(shifts)
    model = state.model
    slack_px = range_px + SHIFT_STEP_PX + FARTHEST_FROM_CUT_PX
    if slack_px > model.basis.slack_px:
        model = model.on(replace(model.basis, slack_px=slack_px))
    shifts_px = torch.from_numpy(shift_grid(range_px, SHIFT_STEP_PX, np.zeros(2))).float().to(model.basis.device)
    cells = shifts * len(model.weights) * model.basis.n_theta
    concentrated = float(state.assignment.significant.mean()) < CONCENTRATED * cells
    return model, Search.over(model.basis, shifts_px, model.basis.n_theta, model.shift_sigma_px, concentrated)


def _pass(sweep: Sweep[Averages], state: State[Averages, Cuts], rows: np.ndarray, store: Any) -> dict[str, float]:
    """Seconds by stage, and in all, of one expectation and maximization."""
    from polarice.align.images import Clock
    from polarice.align.model import Prior

    clock, since = Clock(), time.perf_counter()
    _, sums = sweep.run(rows, state.assignment, state.carried.crop_centre_px, store, clock)
    summed = time.perf_counter()
    sweep.model.maximize(sums, Prior())
    wait_for(sweep.model.basis.device)
    end = clock.add("maximization", summed)
    return {**clock.seconds, "total": end - since}


def time_map(box_px: int, k: int, rank: int = 0) -> dict[str, Any]:
    """What a map of k nodes on a line takes on one thread, on all rings of a box; of random images, as none is known.

    rank: in how many ways it varies, 0 for all. Preparation and expectation in ms per image; of a maximization, what is
    divided among ranks and what is not, in s; bytes: what each rank sends and takes in an iteration, as one sum: a
    numerator dealt out and rings joined are sent once, half as much.
    """
    import torch

    from polarice.align.polar import PolarBasis
    from polarice.references.manifold.aligned import AlignedImages
    from polarice.references.manifold.latent import LatentGrid
    from polarice.references.manifold.model import Manifold
    from polarice.references.manifold.subspace import STEPS

    basis = PolarBasis(box_px, MAP_RADIUS * box_px, box_px // 2, 0.0, torch.device("cpu"))
    basis.prepare()
    empty = Manifold.empty(basis, LatentGrid.of((k,)), torch.ones(1, box_px // 2 + 1, dtype=torch.float64), 0.5)
    model = replace(empty, coefficients=torch.randn(empty.coefficients.shape, dtype=torch.float64))
    packed, many = model.packed, MAP_IMAGES
    pixels = torch.randn(many, box_px, box_px)
    with one_thread():
        prepare_s, vectors = _timed(lambda: packed.vectors(basis.harmonics(basis.sample(pixels))))
        ones = torch.ones(many, basis.r_max, 1)
        images = AlignedImages(vectors, ones, ones[..., 0], torch.zeros(many, dtype=torch.int64))
        times = _thin_times(model.cut(rank), images) if rank else _free_times(model, images)
    products = 1 + STEPS if rank else 0
    sent = (1 + rank) * (packed.d + k) + products * k * rank / 2 if rank else (k + model.grid.m / 2) * packed.d
    return {
        "image_ms": 1e3 * times["expect_s"] / many, "prepare_ms": 1e3 * prepare_s / many,
        "divided_s": times["divided_s"], "maximize_s": max(0.0, times["whole_s"] - times["divided_s"]),
        "rings": basis.r_max, "bytes": 4.0 * (sent + k * basis.r_max), "messages": 6 + products,
    }  # fmt: skip


def _free_times(model: Manifold, images: AlignedImages) -> dict[str, float]:
    """Seconds of an expectation and a maximization, and of this what is shared out by rings."""
    from polarice.references.manifold.model import ManifoldPrior
    from polarice.references.manifold.nodes import expect_nodes

    nodes = model.nodes()
    expect_s, (_, sums) = _timed(lambda: expect_nodes(model.packed, nodes, images))
    whole_s, _ = _timed(lambda: model.maximize(sums, ManifoldPrior()))
    divided_s, _ = _timed(lambda: model._solved(sums, model.shares(SERIAL)))
    return {"expect_s": expect_s, "whole_s": whole_s, "divided_s": divided_s}


def _thin_times(model: Manifold, images: AlignedImages) -> dict[str, float]:
    """The same of a map of few ways; its images are looked at twice in an expectation."""
    from polarice.references.manifold import subspace
    from polarice.references.manifold.model import ManifoldPrior
    from polarice.references.manifold.nodes import expect_thin, gathered

    nodes, packed = model.nodes(), model.packed
    assert nodes.factors is not None
    design = nodes.factors[0]
    first_s, (_, sums, along) = _timed(lambda: expect_thin(packed, nodes, images))
    second_s, right = _timed(lambda: gathered(packed, nodes, images, along, None, design))
    sums = sums.double()
    whole_s, _ = _timed(lambda: model.maximize(sums, ManifoldPrior(), gather=lambda _: right).ring_power)
    seen, old = subspace.Weighted(sums.numerator[:, 1:], lambda _: right.double()), model._rows
    held, grid = model._held(sums), model.grid
    both_s, _ = _timed(lambda: subspace.improved(grid, model.shares(SERIAL), held, seen, old))
    power_s, _ = _timed(lambda: model._low_rank_power(slice(0, packed.basis.r_max)))
    one = model.shares(_OneOfMany(size=grid.k))
    alone_s, _ = _timed(lambda: subspace.first_step(grid, one, held, seen.along, old))
    return {"expect_s": first_s + second_s, "whole_s": whole_s, "divided_s": max(0.0, both_s + power_s - alone_s)}


@dataclass(frozen=True)
class _OneOfMany(Serial):
    """As many ranks as there are nodes, so that next to nothing is its own to do; what others would send is nothing."""

    def all_gather(self, parts: Any) -> Any:
        return parts.new_zeros(self.size, *parts.shape[1:])


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds of the faster of two calls, and what it gave."""
    best = math.inf
    for _ in range(2):
        since = time.perf_counter()
        found = work()
        best = min(best, time.perf_counter() - since)
    return best, found

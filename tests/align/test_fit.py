"""The whole loop on particles of known truth, on pure noise, and what must not change its answer."""

from dataclasses import dataclass, fields, replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from align.phantoms import Blobs, ctf_parameters, optics, particle_images
from polarice.align.classify import ClassExpectation, Cuts, Searched, Settings
from polarice.align.fit import IterationResult, State, fit
from polarice.align.image_statistics import survey
from polarice.align.images import ParticleImages
from polarice.align.policy import ClassPolicy
from polarice.align.schedule import Schedule, Step
from polarice.contrast_transfer import ctf_image
from polarice.fourier import centred_fft2, centred_ifft2
from polarice.references.averages import Averages
from polarice.runs.classification import first_state
from polarice.types import Pose2D

BOX_PX, RADIUS_PX, SPECIES = 48, 14.0, 4
DEFAULT = Settings()
Result = IterationResult[Averages, Cuts, Step, Searched[Averages]]


@dataclass(frozen=True)
class Sample:
    """Simulated particles and their truth."""

    images: ParticleImages
    species: tuple[Blobs, ...]
    truth: Pose2D


@cache
def sample(n: int = 400, noise_sd: float = 0.5, seed: int = 0) -> Sample:
    """n images, 48 px of 3 A, of four species of blobs; CTF with astigmatism, shifts of 1.5 px, white noise."""
    rng = np.random.default_rng(seed)
    species = tuple(Blobs.random(11.0, 10 + s, count=8, sigma_px=1.5) for s in range(SPECIES))
    truth = Pose2D(rng.integers(0, SPECIES, n).astype(np.int32), rng.uniform(0, 360, n), rng.normal(0, 1.5, (n, 2)))
    poses = zip(truth.class_of, truth.psi_deg, truth.shift_px, strict=True)
    clean = np.stack([species[c].image(BOX_PX, psi, shift) for c, psi, shift in poses])
    parameters = ctf_parameters(n, 1000.0, seed)
    seen = centred_ifft2(centred_fft2(clean) * ctf_image(optics(), parameters, BOX_PX)).real
    seen += noise_sd * rng.standard_normal(seen.shape)
    return Sample(particle_images(seen, RADIUS_PX, parameters, normalise=True), species, truth)


def run(
    images: ParticleImages,
    k: int,
    iterations: int = 12,
    settings: Settings = DEFAULT,
    after: State | None = None,
    seed: int = 0,
) -> list[Result]:
    """Every turn of a run from nothing, or from a state."""
    n = len(images)
    rows = np.arange(n)
    schedule = Schedule(k, iterations, n, start_px=5, limit_px=16, offset_range_px=4.0, offset_step_px=1.0)
    if after is None:
        noise = survey(images, rows, seed, 500).noise_power
        given = SimpleNamespace(seed=seed, tau2_fudge=settings.tau2_fudge, ref=None, threads=1)
        after = first_state(images, schedule, rows, noise, given)
    expect, policy = ClassExpectation[Averages](images, rows, settings), ClassPolicy[Averages]()
    return list(fit(after, schedule, expect, policy, seed))


@cache
def solved(seed: int = 0) -> Result:
    return run(sample().images, 5, 16, seed=seed)[-1]


def in_class_frame(pose: Pose2D, truth: Pose2D) -> tuple[np.ndarray, np.ndarray]:
    """Errors of psi (deg) and shift (px) of every particle, each (class, species) pair allowed one frame.

    A class average may lie turned by a and moved by d against its species: psi = psi_true - a and
    shift = shift_true - R(psi) d. Both are fitted, a by the circular mean and d by least squares.
    """
    turn, moved = np.full(len(pose.psi_deg), np.nan), np.full(len(pose.psi_deg), np.nan)
    for c in np.unique(pose.class_of):
        for s in np.unique(truth.class_of):
            rows = np.flatnonzero((pose.class_of == c) & (truth.class_of == s))
            if len(rows) < 3:
                continue
            offset = np.exp(1j * np.deg2rad(truth.psi_deg[rows] - pose.psi_deg[rows]))
            turn[rows] = np.abs(np.rad2deg(np.angle(offset / np.median(offset.real + 1j * offset.imag))))
            psi = np.deg2rad(pose.psi_deg[rows])
            difference = (truth.shift_px - pose.shift_px)[rows] @ [1, 1j] * np.exp(-1j * psi)
            centre = np.median(difference.real) + 1j * np.median(difference.imag)
            moved[rows] = np.abs(difference - centre)
    return turn, moved


def purity(found: np.ndarray, truth: np.ndarray) -> float:
    table = np.zeros((found.max() + 1, truth.max() + 1))
    np.add.at(table, (found, truth), 1)
    return float(table.max(axis=1).sum() / len(truth))


def rand_index(a: np.ndarray, b: np.ndarray) -> float:
    """Adjusted Rand index of two partitions (Hubert and Arabie 1985)."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)

    def pairs(x: np.ndarray) -> float:
        return float((x * (x - 1) / 2).sum())

    rows, columns, whole = pairs(table.sum(axis=1)), pairs(table.sum(axis=0)), pairs(np.array([len(a)]))
    expected = rows * columns / whole
    return (pairs(table) - expected) / ((rows + columns) / 2 - expected)


def same(a: Result, b: Result) -> bool:
    """Bit for bit: model and assignments."""
    models = [
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in ((getattr(a.state.model, f.name), getattr(b.state.model, f.name)) for f in fields(Averages))
    ]
    found, other = a.state.assignment, b.state.assignment
    arrays = [(getattr(found.pose, f.name), getattr(other.pose, f.name)) for f in fields(Pose2D)]
    arrays += [(getattr(found, n), getattr(other, n)) for n in ("log_likelihood", "max_probability", "significant")]
    return all(models) and all(np.array_equal(x, y) for x, y in arrays)


def test_species_and_poses_are_found():
    found, truth = solved().state.assignment.pose, sample().truth
    assert purity(found.class_of, truth.class_of) > 0.9
    turn, moved = in_class_frame(found, truth)
    assert np.nanmedian(turn) < 5
    assert np.nanmedian(moved) < 1
    assert np.isfinite(turn).mean() > 0.95


def test_every_class_is_used():
    counts = np.bincount(solved().state.assignment.pose.class_of, minlength=5)
    assert counts.min() >= 0.1 * 400 / 5
    assert float(solved().state.model.weights.min()) > 0.1 / 5


def test_averages_look_like_the_species():
    """Each average against the best turn of its members' species: through the poses, so a frame is not searched."""
    turn, truth = solved(), sample().truth
    averages, pose = turn.state.model.images().double().numpy(), turn.state.assignment.pose
    x = np.arange(BOX_PX) - BOX_PX // 2
    inside = np.hypot(x[:, None], x) <= RADIUS_PX
    alike = []
    for c, average in enumerate(averages):
        mine = np.flatnonzero(pose.class_of == c)
        kind = int(np.bincount(truth.class_of[mine]).argmax())
        mine = mine[truth.class_of[mine] == kind]
        psi = np.deg2rad(pose.psi_deg[mine])
        offset = np.exp(1j * (np.deg2rad(truth.psi_deg[mine]) - psi))
        angle = np.angle(np.median(offset.real) + 1j * np.median(offset.imag))
        moved = (truth.shift_px - pose.shift_px)[mine] @ [1, 1j] * np.exp(-1j * psi)
        shift = (np.median(moved.real), np.median(moved.imag))
        expected = sample().species[kind].image(BOX_PX, np.rad2deg(angle), shift)
        alike.append(np.corrcoef(average[inside], expected[inside])[0, 1])
    assert np.median(alike) > 0.9
    assert min(alike) > 0.8


def test_two_seeds_agree():
    first, second = solved(0).state.assignment.pose, solved(1).state.assignment.pose
    assert purity(second.class_of, sample().truth.class_of) > 0.9
    assert rand_index(first.class_of, second.class_of) > 0.6  # five classes for four species: one split is free


def test_noise_is_estimated():
    """The images were normalised to their background: the noise is white and near 1 on every ring."""
    noise = solved().state.model.ring_noise[0].numpy()
    assert np.abs(noise[2:] - 1).max() < 0.2


def test_batches_do_not_change_the_answer():
    """One image at a time, or all at once: at least 99 % of the poses the same, averages within 1e-3."""
    images = sample(n=120).images
    small, large = (run(images, 3, 5, Settings(batch_bytes=size))[-1].state for size in (1, 1 << 30))
    a, b = small.assignment.pose, large.assignment.pose
    to_device = (np.abs(a.psi_deg - b.psi_deg) < 0.02) & (np.abs(a.shift_px - b.shift_px) < 0.002).all(axis=1)
    agreed = (a.class_of == b.class_of) & to_device
    assert agreed.mean() > 0.99
    difference = (small.model.images() - large.model.images()).abs().max()
    assert difference < 1e-3 * large.model.images().abs().max()


@pytest.mark.parametrize("stop", [1, 3])
def test_going_on_from_a_state_is_the_uninterrupted_run(stop):
    images = sample(n=120).images
    whole = run(images, 4, 6)
    rest = run(images, 4, 6, after=whole[stop - 1].state)
    assert len(rest) == 6 - stop
    assert all(same(a, b) for a, b in zip(rest, whole[stop:], strict=True))


def test_a_run_leaves_its_state_and_images_alone():
    images = sample(n=120).images
    pixels = images.source.read(np.arange(120)).copy()
    first = run(images, 3, 2)
    state = first[0].state
    field, pose = state.model.field.clone(), replace(state.assignment.pose)
    copies = [x.copy() for x in (pose.class_of, pose.psi_deg, pose.shift_px)]
    again = run(images, 3, 2, after=state)
    assert same(again[-1], first[-1])
    assert torch.equal(state.model.field, field)
    for now, was in zip((pose.class_of, pose.psi_deg, pose.shift_px), copies, strict=True):
        np.testing.assert_array_equal(now, was)
    np.testing.assert_array_equal(images.source.read(np.arange(120)), pixels)


def test_pure_noise_gives_no_structure():
    """600 images of nothing in six classes.

    Measure 1: the RMS of each average inside the particle, in units of what averaging its n_c images of noise without
    alignment would leave, 1 / sqrt(n_c). Aligning noise to noise inflates it ("Einstein from noise"); the prior must
    hold it down to a third. Measure 2: no ring has an SSNR of 1. Measure 3: the noise is found to be all there is.
    """
    n, k = 600, 6
    noise = np.random.default_rng(7).standard_normal((n, BOX_PX, BOX_PX))
    images = particle_images(noise, RADIUS_PX, ctf_parameters(n, 500.0), normalise=True)
    model = run(images, k)[-1].state.model
    x = np.arange(BOX_PX) - BOX_PX // 2
    inside = np.hypot(x[:, None], x) <= RADIUS_PX
    rms = np.sqrt(np.square(model.images().numpy()[:, inside]).mean(axis=1))
    assert (rms * np.sqrt(n / k) < 1 / 3).all()
    assert float(model.ssnr.max()) < 1
    found = model.ring_noise[0].numpy()
    assert np.abs(found - 1).mean() < 0.05
    assert np.abs(found - 1).max() < 0.2  # the innermost ring is counted on a handful of coefficients

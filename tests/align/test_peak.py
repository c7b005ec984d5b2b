"""Poses between the grid's points: where the oracle's log weight peaks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from align.scenes import Scene, run, scene
from polarice.align import oracle
from polarice.align.expect import PolarImages
from polarice.align.peak import between_angles, between_shifts
from polarice.align.polar import PolarBasis
from polarice.align.search import Search


def log_weight(where: Scene, image: int, reference: int, pose: np.ndarray) -> float:
    """The oracle's, of one image at a pose (psi in rad, shift x and y from the image's centre in px)."""
    grids = where.ctf_grid[[image]], where.references[[reference]]
    weight = oracle.log_weights(where.disc, where.masked[[image]], *grids, (pose[None, 1:], pose[:1]), where.noise)
    whole = where.centre_px[image] + pose[1:]
    return float(weight.squeeze() + oracle.shift_log_prior(whole, where.search.shift_sigma_px))


@pytest.mark.parametrize("astigmatism_A", [None, 4000.0])
def test_the_pose_between_is_where_the_oracle_peaks(astigmatism_A):
    """In one iteration to a seventh of the grid's step, in a second, about the shift found, to a thirtieth of it.

    Angles to a fifth of theirs: angle and shift pull at each other.
    """
    where = scene(48, astigmatism_A, n=2, noise_sd=0.2)
    where = replace(where, search=_search(where, 0.9, off_px=0.3))
    first, _ = run(where)
    second, _ = run(replace(where, search=_search(where, 0.9)), _moved(where, first.shift_px))
    for image in range(2):
        one, two = (_pose(where, posterior, image) for posterior in (first, second))
        reference = int(second.class_of[image])
        best = minimize(
            lambda pose, image=image, reference=reference: -log_weight(where, image, reference, pose),
            two,
            method="BFGS",
        ).x
        assert np.hypot(*(one - best)[1:]) < 0.15 * 0.9
        assert np.hypot(*(two - best)[1:]) < 0.03 * 0.9
        assert abs(two[0] - best[0]) < 0.2 * 2 * np.pi / where.search.psi_count
        assert np.abs(best[1:] - np.rint(best[1:] / 0.9 - 1 / 3) * 0.9 - 0.3).max() > 0.1  # not on the grid


def _moved(where: Scene, shift_px: torch.Tensor) -> PolarImages:
    """The scene's batch, moved to other centres."""
    rows, centre_px = np.arange(len(where.images)), shift_px.double().numpy()
    field = where.images.fields(where.basis, where.images.source.read(rows), where.centre_px)
    return where.images.polar(where.basis, rows, field, where.centre_px, centre_px)


def _search(where: Scene, step_px: float, off_px: float = 0.0) -> Search:
    """Shifts up to two steps from a point off the centre."""
    grid = torch.cartesian_prod(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0)) * step_px
    return replace(Search.over(where.basis, grid + off_px, where.basis.n_theta, 3.0), between_px=step_px)


def _pose(where: Scene, posterior, image: int) -> np.ndarray:
    shift_px = posterior.shift_px[image].double().numpy() - where.centre_px[image]
    return np.array([float(posterior.psi_rad[image]), *shift_px])


def test_angles_peak_between_cells():
    """A parabola's own peak is found; a peak at the end of the row is between the last cell and the first."""
    cells = torch.arange(16.0)
    peaks = torch.tensor([4.3, 9.0, 15.6])
    distance = (cells - peaks[:, None] + 8) % 16 - 8
    weights = -3 * distance.square()
    found = between_angles(weights, weights.argmax(dim=1))
    torch.testing.assert_close(found % 16, peaks, atol=1e-5, rtol=0)


def test_a_flat_angle_stays_in_its_cell():
    assert between_angles(torch.zeros(2, 8), torch.tensor([0, 5])).tolist() == [0.0, 5.0]


def test_where_nothing_peaks_the_prior_alone_draws():
    """A blank reference: the best shift is the prior's, no shift at all."""
    basis = PolarBasis(32, 9.0, 8, slack_px=2.0)
    field = torch.randn(3, 8, basis.n_theta)
    shift_px = torch.tensor([[1.0, 0.0], [0.0, -0.5], [0.3, 0.4]])
    found = between_shifts(basis, field, torch.zeros_like(field), (shift_px, 2.0))
    torch.testing.assert_close(found, -shift_px)


def test_a_saddle_is_left_alone():
    basis = PolarBasis(32, 9.0, 8, slack_px=2.0)
    field = torch.randn(2, 8, basis.n_theta)
    found = between_shifts(basis, field, -100 * field, (torch.zeros(2, 2), 2.0))
    assert torch.equal(found, torch.zeros(2, 2))

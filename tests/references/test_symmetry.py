"""Point groups: closed, of the right size, and RELION's where it is installed; one unit of the sphere."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from polarice.references.directions import healpix, moved_poses, posed_views
from polarice.references.symmetry import in_one_unit, operators
from polarice.types import InputError

SIZES = {
    "C1": 1,
    "C4": 4,
    "c12": 12,
    "D2": 4,
    "D7": 14,
    "T": 12,
    "O": 24,
    "I": 60,
    "I1": 60,
    "I2": 60,
    "I3": 60,
    "I4": 60,
}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_groups_are_groups(name, size):
    group = operators(name)
    assert len(group) == size and np.allclose(group[0], np.eye(3))
    assert np.allclose(np.linalg.det(group), 1)
    products = np.einsum("aij,bjk->abik", group, group).reshape(-1, 9)
    away = np.abs(products[:, None] - group.reshape(1, -1, 9)).max(axis=2)
    assert (away.min(axis=1) < 1e-6).all()


@pytest.mark.parametrize("name", ["C4", "D2", "D7", "T", "O", "I1", "I2", "I3", "I4"])
@pytest.mark.skipif(shutil.which("relion_refine") is None, reason="no relion_refine")
def test_axes_are_relions(name):
    told = subprocess.run(
        ["relion_refine", "--sym", name, "--print_symmetry_ops"], capture_output=True, text=True, timeout=60
    ).stdout
    numbers = [np.array(each.split(), float) for each in re.findall(r"R\(\d+\)=\s*\n((?:[^\n]*\n){3})", told)]
    theirs = np.array([each.reshape(3, 3) for each in numbers])
    ours = operators(name)
    assert len(theirs) == len(ours)
    away = np.abs(theirs.reshape(-1, 1, 9) - ours.reshape(1, -1, 9)).max(axis=2)
    assert (away.min(axis=1) < 1e-3).all() and len(set(away.argmin(axis=1))) == len(ours)


@pytest.mark.parametrize("name", ["C1", "C3", "D2", "O", "I1"])
def test_one_unit_holds_every_direction_once(name):
    group, directions = operators(name), healpix(4)
    inside = in_one_unit(directions, group)
    assert inside.mean() == pytest.approx(1 / len(group), rel=0.1)
    mates = np.einsum("gij,nj->gni", group, directions)
    covered = (mates.reshape(-1, 3) @ directions[inside].T).reshape(len(group), len(directions), -1)
    assert (covered.max(axis=(0, 2)) > np.cos(np.radians(4))).all()


@pytest.mark.parametrize("name", ["", "C0", "C100", "D", "X", "I5", "C1x", "O2"])
def test_what_is_no_group_is_told(name):
    with pytest.raises(InputError, match="no such point group; known are C1 to C99"):
        operators(name)


def test_poses_follow_a_density_that_is_moved():
    """Every point of the moved density lies in the image where it lay before."""
    rng = np.random.default_rng(4)
    angles_deg = np.stack([rng.uniform(-180, 180, 50), rng.uniform(1, 179, 50), rng.uniform(-180, 180, 50)], axis=1)
    shift_px, points = rng.normal(size=(50, 2)), rng.normal(size=(20, 3))
    rotation, by_px = Rotation.random(rng=rng).as_matrix(), rng.normal(size=3)
    kept = angles_deg.copy()
    moved_deg, moved_px = moved_poses(angles_deg, shift_px, rotation, by_px)
    before = np.einsum("nij,pj->npi", posed_views(*angles_deg.T), points)[..., :2] + shift_px[:, None]
    now = points @ rotation.T + by_px
    after = np.einsum("nij,pj->npi", posed_views(*moved_deg.T), now)[..., :2] + moved_px[:, None]
    np.testing.assert_allclose(after, before, atol=1e-9)
    np.testing.assert_array_equal(angles_deg, kept)

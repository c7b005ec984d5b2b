"""How well classes of simulated particles agree with the truth: in degrees, in pixels, in classes that are in use.

A class holds one view if the true rotations of its particles, brought into the class average's frame by the in-plane
angles that were found, are the same rotation; and they are centred alike if their true centres, moved by what was
found, are the same point. The score says how far they are from that. The class average itself has no true pose: each
class is compared with the mean of its own particles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from polarice.types import Pose2D

GOOD_DEG = 20.0
LEAST_PARTICLES = 5  # of a class that counts
TRIMMINGS = 5


@dataclass(frozen=True)
class Score:
    """Medians are over all particles that have a class; lower is better, at a similar number of effective classes."""

    particles: int
    classes: int  # that hold at least LEAST_PARTICLES
    effective: float  # exp(entropy of the occupancies): K for K equally full classes
    view_deg: float  # median angle between a particle's view direction and the mean of its class
    pose_deg: float  # median angle between a particle's whole rotation and the mean of its class
    good: float  # share of the particles whose rotation is within GOOD_DEG
    shift_px: float  # median distance between a particle's centre and the median of its class
    purity: float | None  # share of the particles that are of their class's most frequent species


def score(pose: Pose2D, quat: np.ndarray, shift_px: np.ndarray, label: np.ndarray | None = None) -> Score:
    """Compare the poses that were found with the true ones; row i of every array is particle i.

    `quat` (n, 4) xyzw, `shift_px` (n, 2) and `label` (n,) as in `Truth`. Particles without a class (class_of < 0) are
    left out. Raises ValueError where no particle has a class.
    """
    there = np.flatnonzero(pose.class_of >= 0)
    if not len(there):
        raise ValueError("no particle has a class")
    pose, shift_px = pose.take(there), shift_px[there]
    rotation = Rotation.from_quat(quat[there])
    classes, members_of, count = np.unique(pose.class_of, return_inverse=True, return_counts=True)
    members = [np.flatnonzero(members_of == i) for i in range(len(classes))]
    share = count / count.sum()
    pose_deg = _pose_deg(rotation, pose.psi_deg, members)
    return Score(
        particles=len(there),
        classes=int((count >= LEAST_PARTICLES).sum()),
        effective=float(np.exp(-(share * np.log(share)).sum())),
        view_deg=float(np.median(_view_deg(rotation, members))),
        pose_deg=float(np.median(pose_deg)),
        good=float((pose_deg < GOOD_DEG).mean()),
        shift_px=float(np.median(_shift_px(shift_px - pose.shift_px, pose.psi_deg, members))),
        purity=None if label is None else _purity(label[there], members),
    )


def least_view_deg(classes: int) -> float:
    """The view_deg that `classes` equal classes cannot beat where views are uniform: each is a cap of the sphere.

    A cap of 1/K of the sphere has half of its area within arccos(1 - 1/K) of its centre.
    """
    return float(np.rad2deg(np.arccos(1 - 1 / classes)))


def _view_deg(rotation: Rotation, members: list[np.ndarray]) -> np.ndarray:
    """Angle of each particle's view direction (the third row of its rotation) with the mean of its class, (n,)."""
    view = rotation.as_matrix()[:, 2]
    angle = np.zeros(len(view))
    for of_class in members:
        mean = view[of_class].mean(axis=0)
        cosine = view[of_class] @ mean / max(np.linalg.norm(mean), 1e-12)
        angle[of_class] = np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))
    return angle


def _pose_deg(rotation: Rotation, psi_deg: np.ndarray, members: list[np.ndarray]) -> np.ndarray:
    """Angle of each particle's rotation, in its class's frame, with the class's mean rotation, (n,).

    The mean is trimmed: it is taken again over the nearer half, so that a few wrong particles do not move it.
    """
    turned = Rotation.from_euler("z", -psi_deg[:, None], degrees=True) * rotation  # x towards y is about +z
    angle = np.zeros(len(psi_deg))
    for of_class in members:
        kept = np.arange(len(of_class))
        mine = turned[of_class]
        for _ in range(TRIMMINGS):
            away = np.rad2deg((mine[kept].mean().inv() * mine).magnitude())
            if len(of_class) > 4:
                kept = np.flatnonzero(away <= np.median(away))
        angle[of_class] = away
    return angle


def _shift_px(residual_px: np.ndarray, psi_deg: np.ndarray, members: list[np.ndarray]) -> np.ndarray:
    """Distance of each particle's remaining shift, in its class's frame, from the class's median, (n,)."""
    c, s = np.cos(np.deg2rad(-psi_deg)), np.sin(np.deg2rad(-psi_deg))
    x, y = residual_px.T
    turned = np.stack([c * x - s * y, s * x + c * y], axis=1)
    for of_class in members:
        turned[of_class] -= np.median(turned[of_class], axis=0)
    return np.linalg.norm(turned, axis=1)


def _purity(label: np.ndarray, members: list[np.ndarray]) -> float:
    most = sum(int(np.unique(label[of_class], return_counts=True)[1].max()) for of_class in members)
    return most / len(label)


def purity(class_of: np.ndarray, label: np.ndarray) -> float:
    """Share of the particles (n,) that are of what most of their class are of."""
    _, members_of = np.unique(class_of, return_inverse=True)
    return _purity(label, [np.flatnonzero(members_of == i) for i in range(members_of.max() + 1)])


def adjusted_rand_index(class_of: np.ndarray, label: np.ndarray) -> float:
    """How far two partitions (n,) agree on which pairs belong together: 1 the same, 0 as by chance.

    Hubert and Arabie, J. Classification 2, 193 (1985).
    """

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    _, a = np.unique(class_of, return_inverse=True)
    _, b = np.unique(label, return_inverse=True)
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    rows, columns, whole = pairs(table.sum(axis=1)), pairs(table.sum(axis=0)), pairs(np.array([len(a)]))
    chance = rows * columns / whole
    most = (rows + columns) / 2
    return (pairs(table) - chance) / (most - chance) if most > chance else 1.0


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of two rows of numbers (n,); ties share their mean rank."""
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])

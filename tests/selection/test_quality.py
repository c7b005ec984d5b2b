"""Class averages judged: pictures with known faults, and classes of a simulated set with known junk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.runs import polarice
from polarice.io.rows import read_rows
from polarice.selection.classes import ClassSet
from polarice.selection.quality import AT_EDGE, ONE_SIDED, STREAKS, doubts, features_of, judge, unresolved
from polarice.selection.views import resemblance, sphere_of
from selection import pictures as p


def classes_of(images: list[np.ndarray], counts: list[int] | None = None) -> ClassSet:
    averages = np.stack([p.masked(image) for image in images])
    count = np.array(counts or [100] * len(images))
    resolution = np.where(count > 0, 20.0, np.inf)
    return ClassSet(count, resolution, averages, p.PIXEL_A, p.DIAMETER_A)


def test_particles_pass_and_faults_are_named():
    good = [p.particle(seed) for seed in range(6)]
    bad = [p.cut(7), p.edge(0), p.edge(130, -8), p.particle(8, 17, -8), 0 * good[0]]
    judged = judge(classes_of(good + bad, [100] * 10 + [0]))
    assert (judged.scores[:6] > 0.8).all() and not any(judged.gates[:6])
    assert (judged.scores[6:] == 0).all()
    assert STREAKS in judged.gates[6] and STREAKS not in "".join(judged.gates[7:])
    assert ONE_SIDED in judged.gates[7] and AT_EDGE in judged.gates[8] and ONE_SIDED in judged.gates[9]
    assert "no particles" in judged.gates[10]
    assert "Streaked, of particles cut by the edge of their micrographs: 7." in doubts(judged)
    assert "11" not in doubts(judged)


def test_streaks_are_found_on_every_side_and_layers_are_not_streaks():
    y, x = p.grid()
    layers = np.exp(-((x / 14) ** 2) - (y / 6) ** 2) * (1 + 0.5 * np.cos(2 * np.pi * x / 6))
    images = [np.rot90(p.cut(3), turns) for turns in range(4)] + [p.turned(p.cut(4), 37), layers]
    images += [p.particle(seed) for seed in range(6)]
    streak = features_of(classes_of(images)).streak
    assert (streak[:5] > 2.2).all(), streak
    assert (streak[5:] < 1.5).all(), streak


def test_scores_do_not_depend_on_scale_contrast_or_order():
    images = [p.particle(seed) for seed in range(5)] + [p.edge(20)]
    one = judge(classes_of(images))
    other = judge(classes_of([7 * image for image in images[::-1]]))
    np.testing.assert_allclose(one.scores, other.scores[::-1], atol=1e-5)
    assert one.reasons == other.reasons[::-1]


def test_averages_that_resolve_nothing_are_told():
    images = [p.particle(seed) for seed in range(3)]
    classes = classes_of(images)
    assert unresolved(classes) == ""
    coarse = replace(classes, resolution_A=np.array([50.0, 60.0, 20.0]))
    assert unresolved(coarse).startswith("the classes resolve little (50 A where the particle is 180 A wide)")


def test_what_is_unlike_the_others_scores_less():
    images = [p.particle(seed) for seed in range(6)]
    scores = judge(classes_of([*images, 0.05 * images[0], 30 * images[1]])).scores
    assert scores[6] < scores[:6].min() and scores[7] < 0.8 * scores[:6].min()


def test_the_same_view_is_known_turned_and_mirrored():
    images = np.stack([p.masked(p.particle(seed)) for seed in range(8)])
    again = np.stack([p.masked(p.turned(images[2], 71)), p.masked(p.turned(images[5][:, ::-1], -33))])
    assert (resemblance(again, images, p.RADIUS_PX) > 0.97).all()
    others = resemblance(images[:1], images[1:], p.RADIUS_PX)
    assert others[0] < 0.93 and resemblance(images, images[:0], p.RADIUS_PX).tolist() == [0.0] * 8


def test_share_of_the_sphere():
    rng = np.random.default_rng(0)
    z = rng.uniform(-1, 1, 20_000)
    rot, tilt = rng.uniform(-180, 180, len(z)), np.rad2deg(np.arccos(z))
    sphere = sphere_of(rot, tilt, np.abs(z) > 0.5)  # two caps, each half of its hemisphere
    assert sphere.before == 1.0 and abs(sphere.after - 0.5) < 0.08  # and the cells that the caps cut
    same = sphere_of(np.array([10.0, -170.0]), np.array([60.0, 120.0]), np.array([True, False]))
    assert same.before == same.after > 0  # opposite views are one


@pytest.mark.slow
def test_auto_on_a_simulated_set_with_junk(tmp_path, monkeypatch):
    """Another seed, box, noise and number of classes than those of the fit: particles against truth."""
    monkeypatch.chdir(tmp_path)
    source = Path(__file__).parents[2] / "src/polarice/data/ribosome70S.mrc"
    ended = polarice(
        f"simulate {source} --o s --particles 900 --box 56 --angpix 6 --snr 0.4 --junk 0.35 --seed 3 --threads 1"
    )
    assert ended.code == 0, ended.err
    ended = polarice("class2d s/particles.star --o c --k 16 --iter 20 --particle-diameter 290 --threads 1")
    assert ended.code == 0, ended.err
    ended = polarice("select c --o chosen --auto")
    assert ended.code == 0, ended.err
    truth = dict(np.load("s/truth.npz"))
    junk = np.isin(truth["label_names"].astype(str), ("noise", "edge", "contamination"))[truth["label"]]
    names = read_rows("chosen/particles.star").table.text("rlnImageName").tolist()
    rows = np.array([int(name.partition("@")[0]) - 1 for name in names])
    precision, recall = np.mean(~junk[rows]), np.sum(~junk[rows]) / np.sum(~junk)
    assert precision > 0.9 and recall > 0.85, (precision, recall)

"""What 3D classification does when: from one map together, forming, jointly; from several, jointly at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from align.phantoms import unassigned
from polarice.align.fit import State
from polarice.references.classes3d import ClassProgress, ClassSchedule
from polarice.references.refinement import RefineStep
from polarice.references.volumes import Volumes

SCHEDULE = ClassSchedule(
    box_px=64, pixel_size_A=5.0, diameter_A=300.0, iterations=40, limit_shell=31, first_shell=5, order=3
)


def state_of(number: int, step: RefineStep | None, progress: ClassProgress, shell: int, changed: float) -> State:
    """After iteration `number`, which has reached a shell."""
    maps = torch.zeros(2, 8, 8, 8)
    spectra = torch.zeros(2, 5, dtype=torch.float64)
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    model = Volumes(maps, weights, spectra, spectra, torch.tensor([shell, shell]), torch.ones(1, 5), 3.0, 1.0, 0.5)
    return State(number, model, unassigned(4), replace(progress, step=step), changed)


def course(schedule: ClassSchedule, shells: list[int], changed: list[float]) -> list[RefineStep]:
    """The steps taken where iteration i reaches shells[i] and changes the classes of so many, the last ones again."""
    progress = ClassProgress(np.zeros((4, 2)), np.zeros((4, 3)), np.zeros(4, np.int16))
    steps: list[RefineStep] = []
    state = state_of(0, None, progress, 5, 1.0)
    while (step := schedule.next(state)) is not None:
        before = state.carried
        assert isinstance(before, ClassProgress)
        progress = before.told(state.number, state.model, state.changed_class)
        place = len(steps)
        steps.append(step)
        reached = min(step.r_max, shells[min(place, len(shells) - 1)])
        state = state_of(step.number, step, progress, reached, changed[min(place, len(changed) - 1)])
    return steps


def test_from_one_map_poses_come_first_then_classes_then_both():
    steps = course(SCHEDULE, [10, 14, 18, 18, 18], [1.0, 0.0, 0.0, 0.0, 0.5, 0.3, 0.3, 0.2, 0.15, 0.05, 0.02, 0.001])
    together = [step for step in steps if step.pooled]
    assert [step.order for step in together] == [2, 2, 3, 3]  # 18 is no gain the second time
    assert together[0].best_alone and not together[1].best_alone and all(step.apart for step in together)
    forming = [step for step in steps if step.posed]
    assert steps[4 : 4 + len(forming)] == forming
    assert forming[0].apart and not any(step.apart for step in forming[1:])
    heat = [step.temperature for step in forming]
    assert np.allclose(heat[:7], [1.0, 10, 6, 3.6, 2.16, 1.296, 1.0]) and set(heat[7:]) == {1.0}
    rings = [step.r_max for step in forming]
    assert rings[:7] == 7 * [5] and rings[7:] == [7, 9, 11, 13, 15, 17, 19, 21, 23, 24]  # 1.15 times 18, and 4
    joint = steps[4 + len(forming) :]
    assert len(joint) >= 1 and not joint[0].local and all(step.local for step in joint[1:])
    assert all(step.order == 3 and step.r_max == 24 for step in joint)
    assert [step.number for step in steps] == list(range(1, len(steps) + 1)) and len(steps) == 25  # it ends by itself


def test_several_maps_are_compared_at_once():
    steps = course(replace(SCHEDULE, drawn=False), [10, 14, 18], [1.0, 0.2, 0.1, 0.02, 0.001])
    assert not any(step.pooled or step.posed or step.apart or step.local for step in steps)
    assert steps[0].r_max == 10 and steps[-1].order == 3
    assert 4 < len(steps) < 12


def test_kept_poses_are_never_searched():
    steps = course(replace(SCHEDULE, posed=True), [18], [1.0, 0.5, 0.3, 0.1, 0.02, 0.001])
    assert all(step.posed and step.shift_range_px == 0 for step in steps)
    assert steps[0].apart and len(steps) < 30
    few = course(replace(SCHEDULE, posed=True, drawn=False), [18], [1.0, 0.001])
    assert not any(step.apart for step in few) and len(few) < 8


def test_while_fewer_and_fewer_change_their_class_no_rings_are_added():
    """Rings follow once less than a tenth changes, or where that share no longer falls."""
    falling = [1.0, *(0.9 * 0.85 ** np.arange(40)).tolist()]
    rings = [step.r_max for step in course(replace(SCHEDULE, posed=True), [18], falling)]
    quiet = next(i for i, share in enumerate(falling) if share < 0.1)
    assert rings[: quiet + 1] == (quiet + 1) * [5] and rings[quiet + 1] == 7 and max(np.diff(rings)) == 2
    rings = [step.r_max for step in course(replace(SCHEDULE, posed=True), [18], [1.0] + 10 * [0.4] + [0.001])]
    assert rings[:7] == 7 * [5] and rings[7:9] == [7, 9]


def test_course_is_kept_by_iteration():
    progress = ClassProgress(np.zeros((4, 2)), np.zeros((4, 3)), np.zeros(4, np.int16))
    state = state_of(1, None, progress, 6, 1.0)
    told = progress.told(1, state.model, 1.0).told(2, state.model, 0.3)
    assert told.course.shape == (2, 2, 2)
    assert np.allclose(told.course[0], [[0.4, 6], [0.6, 6]])
    assert told.least_changed == 0.3 and told.still == 0 and told.part == 2
    assert told.told(3, state.model, 0.29).still == 1
    assert progress.told(0, state.model, 1.0) is progress

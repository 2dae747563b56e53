from __future__ import annotations

import numpy as np
import pytest

from data.errors import InputError
from data.tokens.action import ACTION_MAX, ACTION_MIN
from eval.expert.arm import CLOSE, OPEN, Arm, nearest_turn, rotation_vector
from eval.expert.grasp import plan_grasp
from eval.expert.scripts import demonstrate
from eval.simulator.interface import Goal
from tests.support.fake_simulator import FakeSimulator

BOX = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)


def about_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@pytest.mark.parametrize("angle", [0.0, 0.3, -2.0, 3.1])
def test_rotation_vector_is_axis_times_angle(angle: float) -> None:
    np.testing.assert_allclose(rotation_vector(about_z(angle)), [0, 0, angle], atol=1e-9)


def test_nearest_turn_is_the_equivalent_angle_closest_to_the_current_one() -> None:
    assert nearest_turn(3.0, 0.0) == pytest.approx(3.0 - np.pi)
    assert nearest_turn(-3.0, 3.0) == pytest.approx(-3.0 + 2 * np.pi)


def test_arm_stays_within_the_ranges_of_action_tokens() -> None:
    arm = Arm(FakeSimulator())
    for target in (np.full(3, 9.0), np.full(3, -9.0)):
        for yaw in (None, 0.1, 2.9):
            action = arm.toward(target, CLOSE, yaw)
            assert (action >= ACTION_MIN).all()
            assert (action <= ACTION_MAX).all()


def test_arm_turns_the_fingers_towards_the_target_direction() -> None:
    arm = Arm(FakeSimulator())
    assert arm.yaw() == pytest.approx(-np.pi / 2)
    position = FakeSimulator().hand
    turn = arm.toward(position, OPEN, arm.yaw() + 0.1)[3:6]
    np.testing.assert_allclose(turn, [0, 0, 0.2], atol=1e-9)  # gain 2 per radian


def test_lifting_succeeds_and_its_phases_are_in_order() -> None:
    simulator = FakeSimulator()
    simulator.reset(2)
    for action in demonstrate(simulator):
        simulator.step(action)
    assert simulator.success
    grips = np.array(simulator.actions)[:, 6]
    assert (np.diff(grips) >= 0).all()  # it closes once and never opens again
    assert np.linalg.norm(np.array(simulator.actions)[:, :6], axis=1).min() > 1e-4  # nothing is a no-op


def test_an_object_lost_on_the_way_up_is_grasped_again() -> None:
    simulator = FakeSimulator()
    simulator.reset(2)
    lost = False
    for action in demonstrate(simulator):
        simulator.step(action)
        if not lost and simulator.cube[2] > 0.04:
            lost, simulator.cube, simulator.held = True, np.array([-0.03, 0.02, 0.02]), False
    assert lost
    assert simulator.success
    grips = np.array(simulator.actions)[:, 6]
    assert (np.diff(grips) < 0).sum() == 1  # it opened once more


def test_unknown_goal_is_named() -> None:
    simulator = FakeSimulator()
    simulator.goals = lambda: (Goal("turnon", "stove"),)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="turnon"):
        list(demonstrate(simulator))


def test_grasp_goes_across_the_narrow_side() -> None:
    simulator = FakeSimulator({"book": BOX * [0.10, 0.02, 0.03]})
    grasp = plan_grasp(simulator, "book", current_yaw=0.0)
    assert abs(np.sin(grasp.yaw)) == pytest.approx(1.0)  # fingers open along y
    np.testing.assert_allclose(grasp.position[:2], 0.0, atol=1e-9)
    assert grasp.bottom < grasp.position[2] < grasp.top


def test_grasp_keeps_the_fingers_off_a_neighbour() -> None:
    cube = BOX * 0.02
    alone = plan_grasp(FakeSimulator({"cube": cube}), "cube", current_yaw=np.pi / 2)
    assert abs(np.sin(alone.yaw)) == pytest.approx(1.0)
    beside = BOX * 0.01 + [0.0, 0.05, 0.0]  # where a finger would come down
    crowded = plan_grasp(FakeSimulator({"cube": cube, "other": beside}), "cube", current_yaw=np.pi / 2)
    assert abs(np.sin(crowded.yaw)) < 0.9


def test_bowls_are_grasped_at_the_rim() -> None:
    grasp = plan_grasp(FakeSimulator({"black_bowl": BOX * [0.06, 0.06, 0.03]}), "black_bowl", 0.0)
    np.testing.assert_allclose(grasp.position, [0.0, 0.054, 0.018], atol=1e-9)

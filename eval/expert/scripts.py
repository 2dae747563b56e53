"""A scripted expert that reads the simulator's poses: lifting, picking and placing, and stacking.

It is a proportional controller: the commanded motion is a function of where gripper and object are,
so a policy that sees both can imitate it and can correct deviations. A demonstration is a generator that
yields one action and expects the simulator to be stepped before the next::

    for action in demonstrate(simulator):
        simulator.step(action)

It may fail: collection stores only successes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from eval.expert.arm import CLOSE, OPEN, Arm
from eval.expert.pick_and_place import pick_and_place
from eval.expert.stack import stack
from eval.simulator.interface import Goal, Simulator

# Phases of lifting are short, and slow enough that a frame every fifth step tells them apart.
_SPEED = 0.6  # maximum command along an axis; 1.0 asks the controller for 5 cm
_HOVER = 0.08  # height above the object in m while the gripper is beside it
_FUNNEL = 5.0  # m of height per m of horizontal error: the gripper descends inside a steep cone
_REACHED = 0.015  # m; closing tolerates more, so a slightly inaccurate imitator still grasps
_BELOW_CENTRE = 0.006  # m below the middle of the object
_LOST = 0.04  # m; an object farther from the grip point is not in the hand
_ATTEMPTS = 4
_APPROACH_LIMIT = 70
_CLOSE_STEPS = 6
_RAISE_STEPS = 14
_PRESS = -0.02  # a slight push while closing: an action of zeros would be filtered as a no-op


def demonstrate(simulator: Simulator) -> Iterator[NDArray[np.float64]]:
    """Actions [7] that try to reach the goals of the simulator's task one after the other.

    Raises:
        InputError: The task has a goal that the expert has no script for.
    """
    for goal in simulator.goals():
        if goal.predicate == "lift":
            yield from _lift(simulator, goal)
        elif goal.predicate in ("on", "in"):
            yield from pick_and_place(simulator, goal)
        elif goal.predicate == "stack":
            yield from stack(simulator, goal)
        else:
            task = simulator.task
            raise InputError(
                f"task {task.number} of {task.suite} ({task.instruction}): the scripted expert has lift, "
                f"on, in and stack, not {goal.predicate}; choose other tasks=[...]"
            )


def _lift(simulator: Simulator, goal: Goal) -> Iterator[NDArray[np.float64]]:
    """Descend onto the object in a funnel, close, raise; once more where the object is not in the hand."""
    arm = Arm(simulator, speed=_SPEED)
    for _ in range(_ATTEMPTS):
        yield from _approach(simulator, goal, arm)
        for z in [_PRESS] * _CLOSE_STEPS + [_SPEED] * _RAISE_STEPS:
            if np.linalg.norm(_grip_target(simulator, goal) - simulator.gripper().position) > _LOST:
                break
            yield np.array([0.0, 0.0, z, 0.0, 0.0, 0.0, CLOSE])
        else:
            return


def _approach(simulator: Simulator, goal: Goal, arm: Arm) -> Iterator[NDArray[np.float64]]:
    """Move the open gripper to the object, above it while it is beside it."""
    for _ in range(_APPROACH_LIMIT):
        target = _grip_target(simulator, goal)
        error = target - simulator.gripper().position
        if np.linalg.norm(error) < _REACHED:
            return
        aside = float(np.linalg.norm(error[:2]))
        height = min(_HOVER, _FUNNEL * max(0.0, aside - _REACHED / 3))
        yield arm.toward(target + np.array([0.0, 0.0, height]), OPEN)


def _grip_target(simulator: Simulator, goal: Goal) -> NDArray[np.float64]:
    """Where the fingers should close [3]."""
    return simulator.position(goal.subject) - np.array([0.0, 0.0, _BELOW_CENTRE])

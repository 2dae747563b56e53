"""Stack one object on another: like lifting, each command is a function of where gripper and objects are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from eval.expert.arm import CLOSE, OPEN, Arm, nearest_turn
from eval.expert.grasp import fingers_hit
from eval.simulator.interface import Goal, Simulator

# Phases are slow enough that a frame every fifth step tells them apart.
_SPEED = 0.6  # maximum command along an axis; 1.0 asks the controller for 5 cm
_HOVER = 0.08  # m above the object while the gripper is beside it
_CLEARANCE = 0.04  # m between the object in the hand and the target's top while they are apart
_SIDEWAYS = 0.015  # m of that from which on the object may move sideways
_BEYOND = 0.015  # m below where fingers close or open that the descent aims at, so that it does not slow down
_GRASP_FUNNEL = 0.005, 5.0  # m beside the axis, then m of height per m: the hand descends inside a steep cone
_PLACE_FUNNEL = 0.010, 3.0
_REACHED = 0.014  # m; closing tolerates more, so a slightly inaccurate imitator still grasps
_ALIGNED = 0.012  # m beside the target's middle within which the object may be let go
_DROP = 0.006  # m above the target from which it may be let go
_DROPPED = 0.04  # m between gripper and object beyond which it is no longer in the hand
_ATTEMPTS = 3  # to grasp and carry
_APPROACH_LIMIT = 70
_CARRY_LIMIT = 70
_CLOSE_STEPS = 6
_OPEN_STEPS = 7  # from closed to as wide as the object takes longer than the other way round
_WITHDRAW_STEPS = 4
_PRESS = 0.02  # a slight push while the fingers move: an action of zeros would be filtered as a no-op


def stack(simulator: Simulator, goal: Goal) -> Iterator[NDArray[np.float64]]:
    """Grasp `goal.subject`, put it onto `goal.target`, let go and withdraw; again if it falls on the way."""
    expert = _Stacking(simulator, goal)
    for _ in range(_ATTEMPTS):
        yield from expert.grasp()
        yield from expert.carry()
        if expert.holds():
            yield from expert.let_go()
            if expert.on_top():
                return


class _Stacking:
    """The phases of stacking; each is a generator of actions."""

    def __init__(self, simulator: Simulator, goal: Goal) -> None:
        self._simulator, self._goal = simulator, goal
        self._arm = Arm(simulator, speed=_SPEED)

    def grasp(self) -> Iterator[NDArray[np.float64]]:
        """Descend onto the object in a funnel, and close."""
        yaw = self._clear_yaw()
        for _ in range(_APPROACH_LIMIT):
            error = self._subject() - self._gripper()
            if np.linalg.norm(error) < _REACHED:
                break
            height = min(_HOVER, _funnel(error, *_GRASP_FUNNEL) - _BEYOND)
            over = self._subject() + np.array([0.0, 0.0, height])
            yield self._arm.toward(over, OPEN, yaw)
        for _ in range(_CLOSE_STEPS):
            yield np.array([0.0, 0.0, -_PRESS, 0.0, 0.0, 0.0, CLOSE])

    def carry(self) -> Iterator[NDArray[np.float64]]:
        """Raise the object, go over the target and down in a funnel; ends early when the object is lost."""
        for _ in range(_CARRY_LIMIT):
            if not self.holds():
                return
            to_target = self._simulator.position(self._goal.target) - self._subject()
            aside = float(np.linalg.norm(to_target[:2]))
            above = self._bottom() - self._target_top()
            if aside < _ALIGNED and above < _DROP:
                return
            height = min(_CLEARANCE, _funnel(to_target, *_PLACE_FUNNEL) - _BEYOND)
            move = np.array([*to_target[:2], height - above])
            if above < min(_SIDEWAYS, height):
                move[:2] = 0.0
            yield self._arm.toward(self._gripper() + move, CLOSE)

    def let_go(self) -> Iterator[NDArray[np.float64]]:
        """Open and go up."""
        for _ in range(_OPEN_STEPS):
            yield np.array([0.0, 0.0, _PRESS, 0.0, 0.0, 0.0, OPEN])
        for _ in range(_WITHDRAW_STEPS):
            yield np.array([0.0, 0.0, _SPEED, 0.0, 0.0, 0.0, OPEN])

    def holds(self) -> bool:
        """Whether the object is where the fingers are."""
        return bool(np.linalg.norm(self._subject() - self._gripper()) < _DROPPED)

    def on_top(self) -> bool:
        """Whether the object is higher than the target."""
        return self._bottom() > self._target_top() - _DROP

    def _clear_yaw(self) -> float | None:
        """Direction of the fingers in which neither comes down on the target; None: as they are."""
        corners = self._simulator.corners(self._goal.target)[:, :2]
        middle = self._subject()[:2]
        now = self._arm.yaw()
        if not _blocked(corners, middle, now):
            return None
        away = self._simulator.position(self._goal.target)[:2] - middle
        return nearest_turn(float(np.arctan2(away[1], away[0])) + np.pi / 2, now)

    def _gripper(self) -> NDArray[np.float64]:
        return self._simulator.gripper().position

    def _subject(self) -> NDArray[np.float64]:
        return self._simulator.position(self._goal.subject)

    def _bottom(self) -> float:
        return float(self._simulator.corners(self._goal.subject)[:, 2].min())

    def _target_top(self) -> float:
        return float(self._simulator.corners(self._goal.target)[:, 2].max())


def _funnel(error: NDArray[np.float64], radius: float, slope: float) -> float:
    """Height in m of the cone around the place to go to, for a gripper that is `error` [3] beside it."""
    return slope * max(0.0, float(np.linalg.norm(error[:2])) - radius)


def _blocked(corners: NDArray[np.float64], middle: NDArray[np.float64], yaw: float) -> bool:
    """Whether an open finger around `middle` [2] would hit an object whose corners [N, 2] are given."""
    across = np.array([np.cos(yaw), np.sin(yaw)])
    edges = np.concatenate([corners, *((corners + other) / 2 for other in corners)])
    return fingers_hit(edges, middle, across, np.array([-across[1], across[0]]))

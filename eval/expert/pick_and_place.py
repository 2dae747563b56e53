"""Pick an object up and put it on or into another one, for LIBERO's tasks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from eval.expert.arm import CLOSE, OPEN, Arm
from eval.expert.grasp import Grasp, plan_grasp
from eval.simulator.interface import Goal, Simulator

_CARRY_LIMIT = 0.25  # m between gripper and object beyond which it has been dropped
_IN_SUFFIX = "_contain_region"


def pick_and_place(simulator: Simulator, goal: Goal) -> Iterator[NDArray[np.float64]]:
    """Grasp `goal.subject`, carry it over `goal.target`, let go and withdraw."""
    return _PickAndPlace(simulator, goal).actions()


class _PickAndPlace:
    """The phases of one pick and place; each is a generator of actions."""

    def __init__(self, simulator: Simulator, goal: Goal) -> None:
        self._simulator = simulator
        self._goal = goal
        self._arm = Arm(simulator)
        self._grasp: Grasp = plan_grasp(simulator, goal.subject, self._arm.yaw())
        inside = goal.predicate == "in"
        self._clearance = 0.10 if inside else 0.08
        self._drop = 0.03 if inside else 0.012

    def actions(self) -> Iterator[NDArray[np.float64]]:
        """Actions of all phases; ends early when the object slipped out of the hand."""
        grasp = self._grasp
        x, y, z = grasp.position
        hover = max(z + 0.10, grasp.top + 0.06)
        yield from self._move(np.array([x, y, hover]), OPEN, tolerance=0.02)
        yield from self._move(np.array([x, y, z + 0.03]), OPEN, tolerance=0.015, limit=30)
        yield from self._move(grasp.position, OPEN, tolerance=0.006, limit=25)
        yield from self._hold(grasp.position, CLOSE, steps=12)

        carry = z + max(0.0, self._target_top() - grasp.bottom) + self._clearance
        yield from self._move(np.array([x, y, carry]), CLOSE, tolerance=0.03)
        if np.linalg.norm(self._in_hand()) > _CARRY_LIMIT:
            return
        yield from self._move(self._over_target(carry), CLOSE, tolerance=0.012, limit=80)
        yield from self._move(self._over_target(self._release_height()), CLOSE, tolerance=0.01, limit=40)
        yield from self._hold(self._gripper(), OPEN, steps=8)
        above = self._gripper() + np.array([0.0, 0.0, 0.10])
        yield from self._move(above, OPEN, tolerance=0.03, limit=15)
        yield from self._hold(above, OPEN, steps=5)

    def _move(
        self, position: NDArray[np.float64], grip: float, tolerance: float, limit: int = 60
    ) -> Iterator[NDArray[np.float64]]:
        for _ in range(limit):
            yield self._arm.toward(position, grip, self._grasp.yaw)
            if np.linalg.norm(position - self._gripper()) < tolerance:
                return

    def _hold(self, position: NDArray[np.float64], grip: float, steps: int) -> Iterator[NDArray[np.float64]]:
        for _ in range(steps):
            yield self._arm.toward(position, grip, self._grasp.yaw)

    def _gripper(self) -> NDArray[np.float64]:
        return self._simulator.gripper().position

    def _in_hand(self) -> NDArray[np.float64]:
        """Gripper relative to the object [3]."""
        return self._gripper() - self._simulator.position(self._goal.subject)

    def _over_target(self, height: float) -> NDArray[np.float64]:
        """Gripper position that holds the object over the middle of the target."""
        middle = self._target_middle() + self._in_hand()[:2]
        return np.array([middle[0], middle[1], height])

    def _release_height(self) -> float:
        lowest = self._simulator.corners(self._goal.subject)[:, 2].min()
        return float(self._target_top() + self._drop + self._gripper()[2] - lowest)

    def _target_body(self) -> str | None:
        """The object or fixture that the target is or belongs to; None for a bare site."""
        name = self._goal.target.removesuffix(_IN_SUFFIX)
        return name if name in self._simulator.bodies() else None

    def _target_middle(self) -> NDArray[np.float64]:
        """Middle [2] of the target seen from above."""
        if self._goal.target in self._simulator.bodies():
            corners = self._simulator.corners(self._goal.target)
            return (corners.max(axis=0)[:2] + corners.min(axis=0)[:2]) / 2
        return self._simulator.position(self._goal.target)[:2]

    def _target_top(self) -> float:
        """Height at which the object may be released."""
        body = self._target_body()
        if body is None:
            return float(self._simulator.position(self._goal.target)[2])
        heights = self._simulator.corners(body)[:, 2]
        if self._goal.predicate == "in":
            return float(heights.max() - 0.05)  # inside, below the rim
        return float(np.sort(heights)[len(heights) // 2])

"""Proportional control of the arm: from a target gripper pose to one action."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eval.simulator.interface import Simulator

OPEN, CLOSE = -1.0, 1.0

_POSITION_GAIN = 10.0  # command per m of error; the controller moves 5 cm at a command of 1
_ROTATION_GAIN = 2.0  # command per rad of error; the controller turns 0.5 rad at a command of 1

# Commands stay within the ranges of action tokens (those of LIBERO's demonstrations).
_MAX_MOVE = 0.9375
_MAX_TURN = np.array([0.32571429, 0.375, 0.375])


class Arm:
    """Converts target gripper poses into actions.

    Args:
        simulator: Simulator of the gripper.
        speed: Maximum command along an axis, at most 0.9375.
    """

    def __init__(self, simulator: Simulator, speed: float = _MAX_MOVE) -> None:
        self._simulator = simulator
        self._speed = min(speed, _MAX_MOVE)

    def toward(
        self, position: NDArray[np.float64], grip: float, yaw: float | None = None
    ) -> NDArray[np.float64]:
        """One action [7] towards a position, gripper pointing down.

        Args:
            position: Target position [3] of the grip point.
            grip: `OPEN` or `CLOSE`.
            yaw: Target direction in which the fingers open, radians about the world's z axis from x; None
                does not turn the hand.
        """
        action = np.zeros(7)
        gripper = self._simulator.gripper()
        action[:3] = np.clip(_POSITION_GAIN * (position - gripper.position), -self._speed, self._speed)
        if yaw is not None:
            error = rotation_vector(self._pointing_down(yaw) @ gripper.rotation.T)
            action[3:6] = np.clip(_ROTATION_GAIN * error, -_MAX_TURN, _MAX_TURN)
        action[6] = grip
        return action

    def yaw(self) -> float:
        """Current direction in which the fingers open, radians about z."""
        axis = self._simulator.gripper().rotation @ self._simulator.finger_axis()
        return float(np.arctan2(axis[1], axis[0]))

    def _pointing_down(self, yaw: float) -> NDArray[np.float64]:
        """Rotation [3, 3] of a gripper that points down with its fingers opening along `yaw`."""
        axis = self._simulator.finger_axis()
        fingers, down = np.array([np.cos(yaw), np.sin(yaw), 0.0]), np.array([0.0, 0.0, -1.0])
        if abs(axis[1]) > 0.5:
            y = fingers * axis[1]
            return np.stack([np.cross(y, down), y, down], axis=1)
        x = fingers * axis[0]
        return np.stack([x, np.cross(down, x), down], axis=1)


def nearest_turn(yaw: float, reference: float) -> float:
    """The angle among ``yaw + k pi`` nearest to `reference`: a gripper turned by pi is the same."""
    return yaw + np.pi * round((reference - yaw) / np.pi)


def rotation_vector(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Axis times angle [3] of a rotation matrix [3, 3]; the angle is in [0, pi)."""
    sine = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    length = np.linalg.norm(sine)  # 2 sin(angle)
    if length < 1e-9:
        return np.zeros(3)
    angle = np.arctan2(length, np.trace(rotation) - 1.0)
    return sine / length * angle

"""Time steps in which nothing happens."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

NO_OP_MOTION = 1e-4  # norm of the six pose numbers, in the action's own units


def moving_steps(actions: ArrayLike) -> NDArray[np.bool_]:
    """Which actions [T, 7] are not no-ops, bool [T].

    A no-op changes neither the pose (norm of the first six numbers below `NO_OP_MOTION`) nor the gripper
    command since the last step that is no no-op. Published training drops them (WorldVLA, OpenVLA).
    """
    values = np.asarray(actions)
    moves = np.linalg.norm(values[:, :6], axis=1) >= NO_OP_MOTION
    keep = np.zeros(len(values), np.bool_)
    gripper: float | None = None
    for t, command in enumerate(values[:, 6]):
        if moves[t] or (gripper is not None and command != gripper):
            keep[t] = True
            gripper = float(command)
    return keep

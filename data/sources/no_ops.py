"""Time steps in which nothing happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.config import NoOps
from data.contracts import DEFAULT_EMBODIMENT

NO_OP_MOTION = 1e-4  # norm of the numbers that move the robot, in the action's own units
_GRIPPER = "gripper"


@dataclass(frozen=True, slots=True)
class NoOpRule:
    """What makes a step a no-op.

    Attributes:
        kind: `motion`, `change` or `keep` (the setting `no_ops`).
        grippers: Columns of the action that are commands to a gripper: every change of theirs counts.
    """

    kind: NoOps
    grippers: tuple[int, ...]

    @classmethod
    def of(cls, action: Sequence[str], kind: NoOps | None = None) -> NoOpRule:
        """The rule of an action with these names; by default `motion` where they begin with x y z.

        Such numbers are movements of the hand, which stands still at zero. Others, of joints for instance,
        are positions: the robot stands still where they stay the same.
        """
        moves = tuple(action[:3]) == DEFAULT_EMBODIMENT.action[:3]
        grippers = tuple(column for column, name in enumerate(action) if _GRIPPER in name.lower())
        return cls(kind or ("motion" if moves else "change"), grippers)


DEFAULT_RULE = NoOpRule.of(DEFAULT_EMBODIMENT.action)


def moving_steps(actions: ArrayLike, rule: NoOpRule = DEFAULT_RULE) -> NDArray[np.bool_]:
    """Which actions [T, D] are not no-ops, bool [T].

    By `motion` a no-op changes neither the pose (norm of the numbers that are no gripper's below
    `NO_OP_MOTION`) nor a gripper's command since the last step that is no no-op. Published training drops
    them (WorldVLA, OpenVLA). By `change` the pose is compared with that of the last step that is no no-op;
    the first step is none if any other one is not. By `keep` there are none.
    """
    values = np.asarray(actions)
    if rule.kind == "keep":
        return np.ones(len(values), np.bool_)
    others = [column for column in range(values.shape[1]) if column not in rule.grippers]
    poses, commands = values[:, others], values[:, list(rule.grippers)]
    if rule.kind == "change":
        return _changing(poses, commands)
    moves = np.linalg.norm(poses, axis=1) >= NO_OP_MOTION
    keep = np.zeros(len(values), np.bool_)
    last: NDArray[np.float64] | None = None
    for t, command in enumerate(commands):
        if moves[t] or (last is not None and (command != last).any()):
            keep[t] = True
            last = command
    return keep


def _changing(poses: NDArray[np.float64], commands: NDArray[np.float64]) -> NDArray[np.bool_]:
    keep = np.zeros(len(poses), np.bool_)
    last = 0
    for t in range(1, len(poses)):
        if np.linalg.norm(poses[t] - poses[last]) >= NO_OP_MOTION or (commands[t] != commands[last]).any():
            keep[t] = True
            last = t
    if keep.any():
        keep[0] = True
    return keep

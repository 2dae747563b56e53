"""Initial states of demonstrations beside the expert's own path, so that it shows how to come back to it."""

from __future__ import annotations

import numpy as np

from eval.expert.arm import CLOSE, OPEN, Arm
from eval.simulator.interface import Simulator

_ASIDE = 0.08  # m from the object along x and y, at most
_ABOVE = 0.16  # m above the object, at most
_LEAST_STEPS, _MOST_STEPS = 6, 24


def displace(simulator: Simulator, initial_state: int, probability: float) -> bool:
    """Move the gripper towards a drawn place near the task's object, with open or closed fingers.

    An imitator that was shown only the expert's own path has never seen what follows from its errors: a
    closed hand beside the object, or one high above it. Whether, where to and for how long is drawn from the
    number of the initial state.

    Args:
        simulator: The task, in its initial state.
        initial_state: Its number.
        probability: That the gripper is moved.

    Returns:
        Whether it was.
    """
    random = np.random.default_rng(initial_state)
    if random.random() >= probability:
        return False
    subject = simulator.goals()[0].subject
    offset = random.uniform([-_ASIDE, -_ASIDE, 0.0], [_ASIDE, _ASIDE, _ABOVE])
    target = simulator.position(subject) + offset
    grip = random.choice([OPEN, CLOSE])
    arm = Arm(simulator)
    for _ in range(random.integers(_LEAST_STEPS, _MOST_STEPS)):
        simulator.step(arm.toward(target, float(grip)))
    return True

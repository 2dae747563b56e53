"""What the scripted expert would do in the states that a policy comes into."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from eval.expert.arm import OPEN
from eval.expert.scripts import demonstrate
from eval.simulator.interface import Simulator

_ASKED = "lift"  # predicate of goals whose script is a function of where gripper and object are


def can_be_asked(simulator: Simulator) -> bool:
    """Whether the task's expert can be asked in any state.

    Lifting can: while the hand is open, its action is a function of the poses alone. Picking and placing
    plans its grasp at the start and counts the steps of its phases: its action in a state that it has not
    come into itself means nothing.
    """
    goals = simulator.goals()
    return len(goals) == 1 and goals[0].predicate == _ASKED


class ExpertReference:
    """The expert of a lifting task, asked before every step of somebody else's episode.

    Before each step a new script is asked. Where it would move with an open hand, that is its action. Where
    it would close the hand it goes on, a step of the script for a step of the simulator, for as long as the
    object is within reach: closing and raising are counted in steps. When such a script has ended there is no
    action.

    It reads poses and changes nothing in the simulator.
    """

    def __init__(self) -> None:
        self._grasping: Iterator[NDArray[np.float64]] | None = None

    def action(self, simulator: Simulator) -> NDArray[np.float64] | None:
        """The expert's action [7] in the simulator's present state; None: its script has ended."""
        simulator.state()  # brings the poses up to date, as for `eval.policy.expert_policy`
        script = demonstrate(simulator)
        fresh = next(script)
        if fresh[-1] == OPEN:
            self._grasping = None
            return fresh
        if self._grasping is None:
            self._grasping = script
            return fresh
        return next(self._grasping, None)

"""The scripted expert as a policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.expert.scripts import demonstrate
from eval.policy.interface import Observation
from eval.simulator.interface import EMBODIMENT, SETTLE_ACTION, Simulator


class ExpertPolicy:
    """The scripted expert. It reads the simulator's poses before every action."""

    embodiment = EMBODIMENT
    chunk = 1
    history = 0
    cameras: tuple[str, ...] = ()
    pixels = 0
    # Reading the state brings the poses that the script reads up to date: after a physics step they are one
    # substep old, unless something has been rendered or observed since.
    uses_state = True

    def __init__(self) -> None:
        self._scripts: dict[int, Iterator[NDArray[np.float64]]] = {}

    def reset(self, environment: int, simulator: Simulator) -> None:
        """Start the script of the simulator's task."""
        self._scripts[environment] = demonstrate(simulator)

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        """The script's next action [B, 1, 7]; it stands still when the script has ended."""
        still = np.array(SETTLE_ACTION)
        actions = [next(self._scripts[observation.environment], still) for observation in observations]
        return np.stack(actions)[:, None]

"""The interface of a policy: observations in, chunks of actions out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eval.simulator.interface import Simulator


@dataclass(frozen=True, slots=True)
class Observation:
    """What a policy sees before it decides on its next chunk of actions.

    Attributes:
        environment: Number of the environment that this comes from.
        instruction: What the robot is told.
        frames: The newest frames of the policy's camera, oldest first, uint8 [pixels, pixels, 3] each;
            fewer than the policy's history at an episode's start, none for a policy without eyes.
        state: Proprioception [8], as in `data.contracts.Demonstration`.
    """

    environment: int
    instruction: str
    frames: Sequence[NDArray[np.uint8]]
    state: NDArray[np.float64]


class Policy(Protocol):
    """Decides on the next K actions of each of several environments."""

    @property
    def chunk(self) -> int:
        """K, actions that are executed before the policy looks again."""
        ...

    @property
    def history(self) -> int:
        """M, frames that it looks at; 0: none."""
        ...

    @property
    def camera(self) -> str:
        """Camera whose frames it looks at."""
        ...

    @property
    def pixels(self) -> int:
        """Side of these frames."""
        ...

    def reset(self, environment: int, simulator: Simulator) -> None:
        """A new episode begins in an environment. Only the expert may look into the simulator."""
        ...

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        """Actions [B, K, 7] for B observations, in the simulator's units."""
        ...

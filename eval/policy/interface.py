"""The interface of a policy: observations in, chunks of actions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eval.simulator.interface import Simulator


@dataclass(frozen=True, slots=True)
class Observation:
    """Input of a policy for its next chunk of actions.

    Attributes:
        environment: Number of the environment that it belongs to.
        instruction: The task in words.
        frames: The newest frames of the policy's camera, oldest first, uint8 [pixels, pixels, 3] each;
            fewer than the policy's history at an episode's start, none for a policy with history 0.
        state: Proprioception [8], as in `data.contracts.Demonstration`.
    """

    environment: int
    instruction: str
    frames: Sequence[NDArray[np.uint8]]
    state: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """What results say of a policy.

    Attributes:
        settings: Cameras, history, chunk, action ranges and checksums of the tokenizers, as JSON; None: there
            are none.
        notes: What could not be verified, and what was assumed.
        precision: Arithmetic of its network, `fp32` or `bf16`; None: it has none.
    """

    settings: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    precision: str | None = None


class Policy(Protocol):
    """Chooses the next K actions of each of several environments."""

    @property
    def chunk(self) -> int:
        """K, actions executed before the next observation."""
        ...

    @property
    def history(self) -> int:
        """M, number of frames in an observation; 0: none."""
        ...

    @property
    def camera(self) -> str:
        """Camera of these frames."""
        ...

    @property
    def pixels(self) -> int:
        """Side of these frames in pixels."""
        ...

    def reset(self, environment: int, simulator: Simulator) -> None:
        """Start a new episode in an environment. Only the expert may query the simulator."""
        ...

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        """Actions [B, K, 7] for B observations, in the simulator's units."""
        ...

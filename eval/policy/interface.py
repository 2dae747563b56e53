"""The interface of a policy: observations in, chunks of actions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from data.contracts import Embodiment
from eval.simulator.interface import Simulator


@dataclass(frozen=True, slots=True)
class Observation:
    """Input of a policy for its next chunk of actions.

    Attributes:
        environment: Number of the environment that it belongs to.
        instruction: The task in words.
        frames: The newest m time steps, oldest first, each with a frame of every camera of the policy, in
            the order of its cameras: uint8 [m, V, pixels, pixels, 3]. m is the policy's history M, less at
            an episode's start, 0 for a policy that sees no frames.
        state: Proprioception float64 [S] at the moment of the newest frames, the numbers of the policy's
            embodiment; None for a policy that does not use it.
        with_entropy: Whether the entropy of the policy's distributions is asked for, too.
    """

    environment: int
    instruction: str
    frames: NDArray[np.uint8]
    state: NDArray[np.float64] | None = None
    with_entropy: bool = False


class Decision(NamedTuple):
    """What a policy decides for B observations.

    Attributes:
        actions: [B, K, D], as `Policy.act` returns them.
        entropy: Entropy in nats of the action tokens, of each action the mean over its numbers: fp32 [B, K].
            None: not asked for, or the policy has no distributions (an action head, a script).
    """

    actions: NDArray[np.float64]
    entropy: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """What results say of a policy.

    Attributes:
        settings: Cameras, history, chunk, action ranges and checksums of the tokenizers, as JSON
            (`pretrain.policy_settings.PolicySettings.acting_json`); None: there are none.
        notes: What could not be verified, and what was assumed.
        precision: Arithmetic of its network, `fp32` or `bf16`; None: it has none.
        decoder: How it decides, `discrete` or `continuous`; None: it has no network.
        weights: Which weights of a checkpoint it has, `trained`, or `averaged` with the decay of the average;
            None: it is of no checkpoint.
    """

    settings: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    precision: str | None = None
    decoder: str | None = None
    weights: str | None = None


class Policy(Protocol):
    """Chooses the next K actions of each of several environments."""

    @property
    def embodiment(self) -> Embodiment:
        """What the numbers of its actions and states are."""
        ...

    @property
    def chunk(self) -> int:
        """K, actions executed before the next observation."""
        ...

    @property
    def history(self) -> int:
        """M, number of time steps whose frames an observation has; 0: none."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras of these frames, in their order."""
        ...

    @property
    def pixels(self) -> int:
        """Side of these frames in pixels."""
        ...

    @property
    def uses_state(self) -> bool:
        """Whether an observation has the state."""
        ...

    def reset(self, environment: int, simulator: Simulator) -> None:
        """Start a new episode in an environment. Only the expert may query the simulator."""
        ...

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        """Actions [B, K, D] for B observations, in the robot's or simulator's units."""
        ...


@runtime_checkable
class ScoringPolicy(Policy, Protocol):
    """A policy that can say how sure it is."""

    def decide(self, observations: Sequence[Observation]) -> Decision:
        """The same actions as `act`, to the bit, and their entropy where an observation asks for it."""
        ...


def decide(policy: Policy, observations: Sequence[Observation]) -> Decision:
    """A policy's decision: without entropy where none is asked for, or it has none."""
    if isinstance(policy, ScoringPolicy) and any(each.with_entropy for each in observations):
        return policy.decide(observations)
    return Decision(policy.act(observations), None)

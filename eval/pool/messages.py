"""What the processes of an evaluation tell one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from eval.policy.interface import Policy
from eval.simulator.interface import Suite

OpenSuite = Callable[[str], Suite]
"""Opens a suite by name in any process: importable under its own name."""


class PolicySource(Protocol):
    """Names a policy so that another process can load it; it is pickled."""

    @property
    def name(self) -> str:
        """What the results call it."""
        ...

    @property
    def served(self) -> bool:
        """Whether a policy server runs it for all workers; else each worker runs one beside its simulator."""
        ...

    def load(self) -> Policy:
        """Load the policy.

        Raises:
            InputError: It cannot be used.
        """
        ...

    def identity(self) -> str:
        """Equal only where the policy acts alike."""
        ...


@dataclass(frozen=True, slots=True)
class EpisodeSpec:
    """One episode that is to be run.

    Attributes:
        suite: Name of the suite.
        task: Number of the task.
        initial_state: Number of the initial state.
        horizon: Longest episode in steps.
        videos: Folder for the episode's video; None: it is not filmed.
    """

    suite: str
    task: int
    initial_state: int
    horizon: int
    videos: Path | None = None


@dataclass(frozen=True, slots=True)
class PolicyShape:
    """What a worker must know of a policy that another process runs; see `eval.policy.interface.Policy`."""

    chunk: int
    history: int
    camera: str
    pixels: int

    @classmethod
    def of(cls, policy: Policy) -> PolicyShape:
        """The shape of a policy."""
        return cls(policy.chunk, policy.history, policy.camera, policy.pixels)


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception in another process.

    Attributes:
        message: Of the exception.
        user_mistake: Whether it was an `InputError`.
        trace: Its traceback.
    """

    message: str
    user_mistake: bool
    trace: str


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds within which a process must get on; one that does not is killed and replaced.

    Attributes:
        step: One step of the simulator, or one frame drawn.
        start: A simulator opens or is reset, or a policy is loaded.
        answer: A policy server answers.
    """

    step: float = 60.0
    start: float = 900.0
    answer: float = 600.0

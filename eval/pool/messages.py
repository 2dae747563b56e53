"""Messages between the processes of an evaluation."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.contracts import DEFAULT_EMBODIMENT, Embodiment
from data.files import user_mistake
from eval.config import Observations, Reset
from eval.policy.interface import Policy, PolicyRecord
from eval.recording.recorder import RecordingPlace
from eval.simulator.interface import Suite

OpenSuite = Callable[[str], Suite]
"""Opens a suite by name in any process: importable under its own name."""


class PolicySource(Protocol):
    """Identifies a policy so that another process can load it; it is pickled."""

    @property
    def name(self) -> str:
        """Name in the results."""
        ...

    @property
    def uses_server(self) -> bool:
        """Whether a policy server runs it for all workers; else each worker runs it beside its simulator."""
        ...

    def load(self) -> Policy:
        """Load the policy.

        Raises:
            InputError: It cannot be used.
        """
        ...

    def identity(self) -> str:
        """Text that is equal only for policies that act alike."""
        ...

    def record(self) -> PolicyRecord:
        """What results say of it; it is not loaded.

        Raises:
            InputError: It cannot be used.
        """
        ...


@dataclass(frozen=True, slots=True)
class EpisodeSpec:
    """One episode to run.

    Attributes:
        suite: Name of the suite.
        task: Number of the task.
        initial_state: Number of the initial state.
        horizon: Maximum length of the episode in steps.
        observations: What frames and proprioception show; see `eval.config.EvaluationSettings`.
        videos: Folder for the episode's video; None: no video.
        reset: How the episode starts; None: as the suite's episodes do.
        recording: Where the episode is recorded for a data set; None: it is not.
    """

    suite: str
    task: int
    initial_state: int
    horizon: int
    observations: Observations = "recomputed"
    videos: Path | None = None
    reset: Reset | None = None
    recording: RecordingPlace | None = None


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """What a worker needs to know of a policy run by a server; see `eval.policy.interface.Policy`."""

    chunk: int
    history: int
    cameras: tuple[str, ...]
    pixels: int
    uses_state: bool
    embodiment: Embodiment = DEFAULT_EMBODIMENT

    @classmethod
    def of(cls, policy: Policy) -> PolicySpec:
        """The spec of a loaded policy."""
        return cls(
            policy.chunk,
            policy.history,
            policy.cameras,
            policy.pixels,
            policy.uses_state,
            policy.embodiment,
        )


@dataclass(frozen=True, slots=True)
class RemoteError:
    """An exception raised in another process.

    Attributes:
        message: Message of the exception.
        is_input_error: Whether it is an `InputError`: a mistake of the user, which a retry would meet again.
        traceback: Formatted traceback.
    """

    message: str
    is_input_error: bool
    traceback: str


def remote_error(error: Exception) -> RemoteError:
    """The message about an exception that is being handled; a full disk is the user's to empty."""
    mistake = user_mistake(error)
    return RemoteError(str(mistake or error), mistake is not None, traceback.format_exc())


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds within which a process must make progress; else it is killed and replaced.

    Attributes:
        step: One step of the simulator, or one rendered frame (`step_seconds`).
        start: Opening or resetting a simulator, or loading a policy (`start_seconds`).
        answer: One answer of a policy server (`answer_seconds`).
    """

    step: float = 60.0
    start: float = 900.0
    answer: float = 600.0

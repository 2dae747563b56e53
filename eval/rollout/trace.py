"""The actions of one episode: what the policy chose, how sure it was, what the expert would do.

A file beside the episode's video, of the same name with the ending `.actions.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.files import write_text_whole
from eval.rollout.expert_reference import ExpertReference, can_be_asked
from eval.simulator.interface import Simulator

TRACE_SUFFIX = ".actions.json"
_DIGITS = 5  # significant ones of a stored number


def trace_of(video: Path) -> Path:
    """The file of the actions of the episode that a video shows."""
    return video.with_suffix(TRACE_SUFFIX)


@dataclass(frozen=True)
class ActionTrace:
    """The actions of an episode of T steps, decided in N chunks of K.

    Attributes:
        names: Of the D numbers of an action.
        chunks: Predicted actions float64 [N, K, D]; the first T of them, in their order, were executed.
        steps: T.
        entropy: Entropy of the action tokens in nats, mean over the numbers of an action, float64 [N, K];
            None: the policy has no distributions.
        expert: What the scripted expert would have done in each step's state, float64 [T, D]; NaN where its
            script had ended. None: the task's expert cannot be asked.
    """

    names: tuple[str, ...]
    chunks: NDArray[np.float64]
    steps: int
    entropy: NDArray[np.float64] | None
    expert: NDArray[np.float64] | None

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        content = {
            "names": list(self.names),
            "steps": self.steps,
            "chunks": _numbers(self.chunks),
            "entropy": None if self.entropy is None else _numbers(self.entropy),
            "expert": None if self.expert is None else _numbers(self.expert),
        }
        write_text_whole(path, json.dumps(content) + "\n")


def _numbers(values: NDArray[np.float64]) -> list[object]:
    """An array as nested lists; what is not finite is null."""
    if values.ndim > 1:
        return [_numbers(row) for row in values]
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in values]


class TraceRecorder:
    """Gathers the trace of an episode while it runs; asking the expert changes nothing in the simulator."""

    def __init__(self) -> None:
        self._chunks: list[NDArray[np.float64]] = []
        self._entropies: list[NDArray[np.float32]] = []
        self._expert: list[NDArray[np.float64] | None] = []
        self._reference: ExpertReference | None = None
        self._steps = 0

    def decided(self, chunk: NDArray[np.float64], entropy: NDArray[np.float32] | None) -> None:
        """Add a predicted chunk [K, D], and its entropy [K]."""
        self._chunks.append(np.array(chunk, np.float64))
        if entropy is not None:
            self._entropies.append(entropy)

    def observe(self, simulator: Simulator) -> None:
        """Called before each step: the simulator in the state that an action will be executed in."""
        if self._steps == 0 and can_be_asked(simulator):
            self._reference = ExpertReference()
        if self._reference is not None:
            self._expert.append(self._reference.action(simulator))
        self._steps += 1

    def result(self, names: Sequence[str]) -> ActionTrace | None:
        """The trace of an episode whose actions have these names; None: nothing was decided."""
        if not self._chunks or not self._steps:
            return None
        known = len(self._entropies) == len(self._chunks)
        missing = np.full(len(names), np.nan)
        expert = [missing if action is None else action for action in self._expert]
        return ActionTrace(
            names=tuple(names),
            chunks=np.stack(self._chunks),
            steps=self._steps,
            entropy=np.stack(self._entropies).astype(np.float64) if known else None,
            expert=np.stack(expert) if expert else None,
        )

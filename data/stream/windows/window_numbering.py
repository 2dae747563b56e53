"""What the orders need of the numbered windows of one kind of sample.

A window is the span of time steps of a sample: an episode and a time step t with all the steps that the
sample needs after t. The length of the sample follows from the index alone: the words of the instruction, and
the number of frames of history before t.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


class WindowNumbering(ABC):
    """All windows of one kind, numbered such that the bounds on their lengths do not decrease.

    Args:
        steps: int [E], time steps of each episode.
        ahead: Steps that must follow t within the episode (K - 1 for action samples, P for world samples).
    """

    def __init__(self, steps: NDArray[np.integer], ahead: int) -> None:
        self._steps, self._ahead = steps, ahead

    @property
    @abstractmethod
    def count(self) -> int:
        """Windows of all episodes."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """Tokens of the longest sample; 0 if there is none."""

    @property
    @abstractmethod
    def mean_length(self) -> float:
        """Mean tokens of a sample over all windows."""

    @abstractmethod
    def lengths(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Most tokens of the samples of windows, int64 [N]; they do not decrease with the numbers."""

    @abstractmethod
    def locate(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Window numbers -> episode and time step of each, both int64."""

    @property
    def episodes(self) -> int:
        """Number of episodes, including those without a window."""
        return len(self._steps)

    @property
    def max_steps(self) -> int:
        """Time steps of the longest episode."""
        return int(self._steps.max(initial=0))

    @property
    def min_steps(self) -> int:
        """Least time steps of an episode that holds a window."""
        return self._ahead + 1

    def ids(self, episodes: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of windows counted episode by episode, in the order of the index, int64 [N]."""
        return self._begins[episodes] + times

    @cached_property
    def _begins(self) -> NDArray[np.int64]:
        ends = np.cumsum(np.maximum(self._steps.astype(np.int64) - self._ahead, 0))
        return np.concatenate([np.zeros(1, np.int64), ends[:-1]])


def window_counts(steps: NDArray[np.int32], ahead: int) -> NDArray[np.int32]:
    """Windows of each episode, int32 [E], of `steps` of which `ahead` must follow; overwrites the steps."""
    steps -= ahead
    return np.maximum(steps, 0, out=steps)


def window_ends(counts: NDArray[np.int32]) -> NDArray[np.unsignedinteger]:
    """Windows up to and including each episode, [E], in as few bytes as hold them; overwrites the counts."""
    if int(counts.sum(dtype=np.int64)) >= 1 << 32:
        return np.cumsum(counts, dtype=np.uint64)
    ends = counts.view(np.uint32)
    return np.cumsum(ends, dtype=np.uint32, out=ends)  # in place: there may be millions of episodes

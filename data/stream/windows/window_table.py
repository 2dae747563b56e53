"""The windows of one kind of sample over all episodes, numbered from the shortest sample to the longest.

A window is the span of time steps of a sample: an episode and a time step t with all the steps that the
sample needs after t. The length of the sample follows from the index alone: the words of the instruction, and
the number of frames of history before t. Windows of equal length form a class, and the numbers run class by
class, so that neighbouring numbers have nearly equal lengths, as `data.stream.order.stratified_sampler`
requires.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data.stream.windows.stable_order import stable_order
from data.stream.windows.window_numbering import WindowNumbering, window_counts, window_ends


@dataclass(frozen=True, slots=True)
class _Classes:
    """Windows of equal length; every array is int64 [classes], sorted by length.

    Attributes:
        lengths: Tokens of a sample.
        ends: Number of windows up to and including the class.
        firsts: For a class with full history the number of such windows in the sorted episodes before it; for
            a class at the episodes' start its first episode in sorted order.
        times: Time step of a class at the episodes' start; -1: a class with full history.
    """

    lengths: NDArray[np.int64]
    ends: NDArray[np.int64]
    firsts: NDArray[np.int64]
    times: NDArray[np.int64]


class WindowTable(WindowNumbering):
    """All windows of one kind. Memory: 4 bytes an episode, and 4 more unless the episodes are sorted.

    Args:
        steps: int [E], time steps of each episode.
        ahead: Steps that must follow t within the episode (K - 1 for action samples, P for world samples).
        history: M, largest number of frames up to t; windows at an episode's start have fewer.
        texts: int [E], tokens of each episode's words.
        length: Words and frames of history -> tokens of a sample.
    """

    def __init__(
        self,
        steps: NDArray[np.integer],
        ahead: int,
        history: int,
        texts: NDArray[np.integer],
        length: Callable[[int, int], int],
    ) -> None:
        super().__init__(steps, ahead)
        self._history = history
        self._order = _sorted_order(texts, steps if history > 1 else None)
        counts = window_counts(self._sorted(steps).astype(np.int32), ahead + history - 1)
        self._full_ends = window_ends(counts)
        self._classes = self._find_classes(self._sorted(texts), length)

    @property
    def count(self) -> int:
        """Windows of all episodes."""
        return int(self._classes.ends[-1]) if len(self._classes.ends) else 0

    @property
    def longest(self) -> int:
        """Tokens of the longest sample; 0 if there is none."""
        return int(self._classes.lengths[-1]) if self.count else 0

    @property
    def mean_length(self) -> float:
        """Mean tokens of a sample over all windows."""
        counts = np.diff(self._classes.ends, prepend=0)
        return float(counts @ self._classes.lengths) / max(self.count, 1)

    def lengths(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the samples of windows, int64 [N]; they increase with the numbers."""
        return self._classes.lengths[np.searchsorted(self._classes.ends, numbers, side="right")]

    def locate(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Window numbers -> episode and time step of each, both int64."""
        classes = self._classes
        rows = np.searchsorted(classes.ends, numbers, side="right")
        begins = classes.ends[rows] - np.diff(classes.ends, prepend=0)[rows]
        places = classes.firsts[rows] + numbers - begins
        full = classes.times[rows] < 0
        ends = self._full_ends
        keys = places.astype(ends.dtype)  # else all ends would be cast to the dtype of the places
        episodes = np.where(full, np.searchsorted(ends, keys, side="right"), places)
        before = np.where(episodes > 0, ends[episodes - 1].astype(np.int64), 0)
        times = np.where(full, self._history - 1 + places - before, classes.times[rows])
        return (episodes if self._order is None else self._order[episodes].astype(np.int64)), times

    def _sorted(self, values: NDArray[np.integer]) -> NDArray[np.integer]:
        return values if self._order is None else values[self._order]

    def _find_classes(self, texts: NDArray[np.integer], length: Callable[[int, int], int]) -> _Classes:
        """Create a class for each combination of prompt length and number of frames that occurs."""
        rows: list[tuple[int, int, int, int]] = []  # length, windows, first, time
        edges = [0, *(np.flatnonzero(np.diff(texts)) + 1).tolist(), len(texts)] if len(texts) else []
        steps = self._sorted(self._steps)
        for begin, end in pairwise(edges):
            words = int(texts[begin])
            for time in range(
                self._history - 1
            ):  # sorted by steps: the episodes that are long enough are last
                first = begin + int(np.searchsorted(steps[begin:end], self._ahead + time + 1))
                rows.append((length(words, time + 1), end - first, first, time))
            before = int(self._full_ends[begin - 1]) if begin else 0
            rows.append((length(words, self._history), int(self._full_ends[end - 1]) - before, before, -1))
        rows = sorted(row for row in rows if row[1])
        table = np.array(rows, np.int64).reshape(-1, 4)
        return _Classes(table[:, 0], np.cumsum(table[:, 1]), table[:, 2], table[:, 3])


def _sorted_order(texts: NDArray[np.integer], steps: NDArray[np.integer] | None) -> NDArray[np.int32] | None:
    """Order of episodes by number of words, then (if given) by time steps; None where they are sorted."""
    increasing, same = texts[1:] > texts[:-1], texts[1:] == texts[:-1]
    if steps is not None:
        same &= steps[1:] >= steps[:-1]
    if bool((increasing | same).all()):
        return None
    if steps is None:
        return stable_order(texts)
    order = stable_order(steps)  # the less important key first
    return order[stable_order(texts[order])]

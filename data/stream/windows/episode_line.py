"""The windows of one kind of sample numbered episode by episode, for the local order.

The episodes lie along a line, sorted by the length of their longest sample, and all windows of an episode
follow each other. The sort is stable, so neighbours on the line are near each other in their shard. The bound
on the length of a window is that of its episode: the few shorter ones at the episode's start count with it::

    episodes, short to long      |---- 4 ----|-- 0 --|------ 2 ------|- 1 -|---- 3 ----|
    window numbers               0 1 2 ...                                            N-1
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from data.stream.windows.stable_order import parts, stable_order
from data.stream.windows.window_numbering import WindowNumbering, window_counts, window_ends


class EpisodeLine(WindowNumbering):
    """All windows of one kind along a line of episodes. Memory: 4 bytes an episode, and 4 more where sorted.

    Args:
        steps: int [E], time steps of each episode.
        ahead: Steps that must follow t within the episode (K - 1 for action samples, P for world samples).
        history: M, largest number of frames up to t; windows at an episode's start have fewer.
        texts: int [E], tokens of each episode's words.
        length: Words and frames of history -> tokens of a sample.

    Attributes:
        order: int32 [E], the episodes along the line; None: by their numbers.
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
        counts = window_counts(steps.astype(np.int32), ahead)
        longest, self._tokens = _sample_lengths(counts, texts, history, length)
        self.order = None if bool((longest[1:] >= longest[:-1]).all()) else stable_order(longest)
        self._bounds, sizes = _distinct(longest)
        del longest  # there may be millions of episodes
        if self.order is not None:
            counts = counts[self.order]
        self._ends = window_ends(counts)
        self._bound_ends = self._ends[np.cumsum(sizes) - 1].astype(np.int64)

    def along(self, order: NDArray[np.int32]) -> EpisodeLine:
        """The same windows with the episodes in another order, int32 [E].

        Raises:
            ValueError: The samples have several lengths, so that the order of the episodes is not free.
        """
        if len(np.unique(self._bounds[np.diff(self._bound_ends, prepend=0) > 0])) > 1:
            raise ValueError("samples of several lengths cannot be laid in any order of their episodes")
        line = EpisodeLine.__new__(EpisodeLine)
        WindowNumbering.__init__(line, self._steps, self._ahead)
        line.order, line._tokens = order, self._tokens
        line._bounds, line._bound_ends = self._bounds, self._bound_ends
        steps = self._steps[order].astype(np.int32, copy=False)
        line._ends = window_ends(window_counts(steps, self._ahead))
        return line

    @property
    def count(self) -> int:
        """Windows of all episodes."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def longest(self) -> int:
        """Tokens of the longest sample; 0 if there is none."""
        return int(self._bounds[-1]) if self.count else 0

    @property
    def mean_length(self) -> float:
        """Mean tokens of a sample over all windows."""
        return self._tokens / max(self.count, 1)

    def lengths(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the longest sample of the episode of each window, int64 [N]."""
        return self._bounds[np.searchsorted(self._bound_ends, numbers, side="right")]

    def locate(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Window numbers -> episode and time step of each, both int64."""
        places = self.places(numbers)
        times = numbers - self.begins(places)
        return (places if self.order is None else self.order[places].astype(np.int64)), times

    def places(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place on the line, from 0, of the episode of each window, int64 [N]."""
        keys = numbers.astype(self._ends.dtype)  # else all ends would be cast to the dtype of the numbers
        return np.searchsorted(self._ends, keys, side="right")

    def begins(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the first window at or after each place on the line (E: its end), int64 [N]."""
        return np.where(places > 0, self._ends[places - 1].astype(np.int64), 0)


def _distinct(numbers: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct numbers in order, and how often each occurs, int64."""
    found = [np.unique(numbers[part], return_counts=True) for part in parts(len(numbers))]
    values, members = np.unique(np.concatenate([each for each, _ in found]), return_inverse=True)
    counts = np.zeros(len(values), np.int64)
    np.add.at(counts, members, np.concatenate([each for _, each in found]))
    return values.astype(np.int64), counts


def _sample_lengths(
    counts: NDArray[np.int32],
    texts: NDArray[np.integer],
    history: int,
    length: Callable[[int, int], int],
) -> tuple[NDArray[np.int32], int]:
    """Tokens of the longest sample of each episode, int32 [E] (0: it has none), and those of all samples."""
    table = np.zeros((int(texts.max(initial=0)) + 1, history + 1), np.int64)  # by words and frames
    present = np.zeros(len(table), bool)
    for part in parts(len(texts)):
        present[texts[part]] = True
    for words in np.flatnonzero(present).tolist():
        table[words, 1:] = [length(words, frames) for frames in range(1, history + 1)]
    first = np.cumsum(table, axis=1)  # tokens of the first samples of an episode
    longest, tokens = np.empty(len(counts), np.int32), 0
    for part in parts(len(counts)):
        words, frames = texts[part], np.minimum(counts[part], history)
        longest[part] = table[words, frames]
        tokens += int((first[words, frames] + (counts[part] - frames) * table[words, history]).sum())
    return longest, tokens

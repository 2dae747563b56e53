"""Every episode of a data set read once: which are damaged, and how actions and states are distributed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from data.contracts import Episode
from data.errors import InputError
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex

BINS = 32
_READERS = 8


@dataclass
class RangeCounts:
    """How often the numbers of actions or states lie where in their ranges.

    Attributes:
        minimum, maximum: Ranges of the D numbers.
        counts: int64 [D, BINS], for each number a histogram of the time steps over its range.
        outside: int64 [D], time steps outside of it, which are clipped.
    """

    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    counts: NDArray[np.int64]
    outside: NDArray[np.int64]

    @classmethod
    def over(cls, minimum: tuple[float, ...], maximum: tuple[float, ...]) -> RangeCounts:
        """Nothing counted so far."""
        width = len(minimum)
        return cls(minimum, maximum, np.zeros((width, BINS), np.int64), np.zeros(width, np.int64))

    def add(self, values: NDArray[np.floating]) -> None:
        """Count the numbers [T, D] of one episode."""
        for number, (low, high) in enumerate(zip(self.minimum, self.maximum, strict=True)):
            column = values[:, number].astype(np.float64)
            self.counts[number] += np.histogram(column, BINS, (low, high))[0]
            self.outside[number] += int(((column < low) | (column > high)).sum())


@dataclass
class DatasetScan:
    """The result of reading every episode.

    Attributes:
        actions: Over the ranges that they are quantised over.
        states: Over the ranges of the index, or from the smallest to the largest of the training split.
        episodes, bytes: Number and size of the episodes read, damaged ones included.
        damaged: One line for each bad episode: shard, episode, offset, and what is wrong.
    """

    actions: RangeCounts
    states: RangeCounts
    episodes: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list[str])

    @classmethod
    def of(cls, index: DatasetIndex) -> DatasetScan:
        """Nothing read so far."""
        states = index.state_ranges or index.statistics["states"]
        return cls(
            RangeCounts.over(index.action_ranges.minimum, index.action_ranges.maximum),
            RangeCounts.over(states.minimum, states.maximum),
        )


def scan_dataset(index: DatasetIndex, report: Callable[[int], None]) -> DatasetScan:
    """Read and verify every episode, several at a time; memory does not grow with the data set.

    Args:
        index: The data set.
        report: Called with the number of episodes read so far.
    """
    scan = DatasetScan.of(index)
    for number, episode in _episodes(index):
        entry = index.episodes[number]
        scan.episodes += 1
        scan.bytes += entry.size
        if isinstance(episode, InputError):
            scan.damaged.append(str(episode))
        else:
            scan.actions.add(episode.actions)
            scan.states.add(episode.states)
        report(scan.episodes)
    return scan


def _episodes(index: DatasetIndex) -> Iterator[tuple[int, Episode | InputError]]:
    """Every episode, or the error of reading it, in order."""

    def read(number: int) -> Episode | InputError:
        try:
            return read_episode(index, index.episodes[number])
        except InputError as error:
            return error

    with ThreadPoolExecutor(_READERS, thread_name_prefix="dataset-scan") as pool:
        pending = iter(range(len(index.episodes)))
        ahead: deque[tuple[int, Future[Episode | InputError]]] = deque()
        for number in islice(pending, 2 * _READERS):
            ahead.append((number, pool.submit(read, number)))
        while ahead:
            number, future = ahead.popleft()
            yield number, future.result()
            ahead.extend((following, pool.submit(read, following)) for following in islice(pending, 1))

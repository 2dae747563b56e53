"""Every episode of a data set read once: which are damaged, and how the actions are distributed."""

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
class DatasetScan:
    """The result of reading every episode.

    Attributes:
        episodes, bytes: Number and size of the episodes read, damaged ones included.
        damaged: One line for each bad episode: shard, episode, offset, and what is wrong.
        actions: int64 [D, BINS], for each action dimension a histogram of the time steps over the range that
            it is quantised over.
        outside: int64 [D], time steps outside of that range, which are clipped.
    """

    actions: NDArray[np.int64]
    outside: NDArray[np.int64]
    episodes: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list[str])

    @classmethod
    def of(cls, index: DatasetIndex) -> DatasetScan:
        """Nothing read so far."""
        width = index.embodiment.action_dim
        return cls(np.zeros((width, BINS), np.int64), np.zeros(width, np.int64))

    def count(self, index: DatasetIndex, actions: NDArray[np.float64]) -> None:
        """Add the actions float64 [T, D] of one episode."""
        low = np.asarray(index.action_ranges.minimum)
        high = np.asarray(index.action_ranges.maximum)
        for number in range(index.embodiment.action_dim):
            values = actions[:, number]
            limits = float(low[number]), float(high[number])
            self.actions[number] += np.histogram(values, BINS, limits)[0]
            self.outside[number] += int(((values < limits[0]) | (values > limits[1])).sum())


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
            scan.count(index, episode.actions)
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

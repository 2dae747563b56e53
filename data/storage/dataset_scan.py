"""Every episode of a data set read once: what is damaged, and how the actions are distributed."""

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
from data.storage.index import DatasetIndex, read_episode
from data.tokens.vocabulary import ACTION_DIM

BINS = 32
_READERS = 8


@dataclass
class Survey:
    """What reading every episode brought to light.

    Attributes:
        episodes, bytes: Read, whole or not.
        damaged: One line for each bad episode: shard, episode, offset, and what is wrong.
        actions: int64 [7, BINS], how many steps have each action number within each of the equal parts of
            the range that it is quantised over.
        outside: int64 [7], how many steps lie outside of the range and are clipped.
    """

    episodes: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list[str])
    actions: NDArray[np.int64] = field(default_factory=lambda: np.zeros((ACTION_DIM, BINS), np.int64))
    outside: NDArray[np.int64] = field(default_factory=lambda: np.zeros(ACTION_DIM, np.int64))

    def count(self, index: DatasetIndex, actions: NDArray[np.float32]) -> None:
        """Add the actions float32 [T, 7] of one episode."""
        low = np.asarray(index.action_ranges.minimum)
        high = np.asarray(index.action_ranges.maximum)
        for number in range(ACTION_DIM):
            values = actions[:, number].astype(np.float64)
            limits = float(low[number]), float(high[number])
            self.actions[number] += np.histogram(values, BINS, limits)[0]
            self.outside[number] += int(((values < limits[0]) | (values > limits[1])).sum())


def survey(index: DatasetIndex, tell: Callable[[int], None]) -> Survey:
    """Read and verify every episode, several at a time; memory does not grow with the data set.

    Args:
        index: The data set.
        tell: Told the number of episodes read so far.
    """
    found = Survey()
    for number, episode in _episodes(index):
        entry = index.episodes[number]
        found.episodes += 1
        found.bytes += entry.size
        if isinstance(episode, InputError):
            found.damaged.append(str(episode))
        else:
            found.count(index, episode.actions)
        tell(found.episodes)
    return found


def _episodes(index: DatasetIndex) -> Iterator[tuple[int, Episode | InputError]]:
    """Every episode, or what is wrong with it, in order."""

    def read(number: int) -> Episode | InputError:
        try:
            return read_episode(index, index.episodes[number])
        except InputError as error:
            return error

    with ThreadPoolExecutor(_READERS, thread_name_prefix="survey") as pool:
        todo = iter(range(len(index.episodes)))
        ahead: deque[tuple[int, Future[Episode | InputError]]] = deque()
        for number in islice(todo, 2 * _READERS):
            ahead.append((number, pool.submit(read, number)))
        while ahead:
            number, future = ahead.popleft()
            yield number, future.result()
            ahead.extend((following, pool.submit(read, following)) for following in islice(todo, 1))

"""Reads units of episodes in several threads, in order, with a bound on what is on its way."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from data.contracts import Episode
from data.errors import InputError
from data.storage.episode_reader import read_episodes
from data.stream.datasets import StreamDataset

BYTES_AHEAD = 128 * 2**20
"""Bytes of the units on their way, stored and decoded, from which on no further one is requested."""

Outcomes = list[Episode | InputError]


class UnitReader:
    """Reads units, episodes of one data set that are requested together. For one thread at a time.

    Args:
        datasets: The data sets; their episodes are numbered through, the first data set first.
        readers: Units read at the same time.
    """

    def __init__(self, datasets: Sequence[StreamDataset], readers: int) -> None:
        self._datasets, self._ahead_limit = datasets, 2 * readers
        self._bases: list[int] = np.cumsum([0, *(len(dataset.entries) for dataset in datasets)]).tolist()
        self._step_bytes = [_step_bytes(dataset) for dataset in datasets]
        self._threads = ThreadPoolExecutor(readers, thread_name_prefix="episode-reader")
        self._ahead: deque[tuple[list[int], int, Future[Outcomes]]] = deque()
        self._bytes_ahead = 0

    def read(self, units: Sequence[list[int]]) -> Iterator[tuple[int, Episode | InputError]]:
        """Read units, some of them ahead.

        Args:
            units: Numbers of episodes that are absent, each of one data set; no episode twice.

        Yields:
            Number and episode, or its error, in the order of the units.
        """
        self._drop_ahead()
        pending = deque(units)
        while pending or self._ahead:
            while pending and self._has_room():
                self._submit(pending.popleft())
            numbers, size, future = self._ahead[0]
            outcomes = future.result()
            self._ahead.popleft()
            self._bytes_ahead -= size
            yield from zip(numbers, outcomes, strict=True)

    def close(self) -> None:
        """End the threads that read; what has not begun is cancelled."""
        self._threads.shutdown(cancel_futures=True)

    def _has_room(self) -> bool:
        """Whether another unit may be requested."""
        few = len(self._ahead) < self._ahead_limit and self._bytes_ahead < BYTES_AHEAD
        return few or not self._ahead

    def _submit(self, numbers: list[int]) -> None:
        dataset = bisect_right(self._bases, numbers[0]) - 1
        episodes = [number - self._bases[dataset] for number in numbers]
        size = self._step_bytes[dataset] * int(self._datasets[dataset].steps[episodes].sum())
        self._ahead.append((numbers, size, self._threads.submit(_read, self._datasets[dataset], episodes)))
        self._bytes_ahead += size

    def _drop_ahead(self) -> None:
        """Wait for what an earlier reading that was broken off left: it may be requested again now."""
        running = [future for _, _, future in self._ahead if not future.cancel()]
        wait(running)  # of one that was cancelled `wait` may never hear
        self._ahead.clear()
        self._bytes_ahead = 0


def _read(dataset: StreamDataset, episodes: list[int]) -> Outcomes:
    return read_episodes(dataset.index, [dataset.entries[episode] for episode in episodes])


def _step_bytes(dataset: StreamDataset) -> int:
    """Bytes of a time step, as it is stored (at most) and decoded."""
    index = dataset.index
    codes = 2 * len(index.cameras) * (1 + index.variants) * index.image.rows * index.image.columns
    return 2 * (codes + 8 * index.embodiment.action_dim + 4 * index.embodiment.state_dim)

"""Reads units of episodes in several threads, in order, with a bound on what is on its way."""

from __future__ import annotations

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
        self._bases = np.cumsum([0, *(len(dataset.entries) for dataset in datasets)])
        self._step_bytes = [_step_bytes(dataset) for dataset in datasets]
        self._threads = ThreadPoolExecutor(readers, thread_name_prefix="episode-reader")
        self._ahead: deque[tuple[list[int], int, Future[Outcomes]]] = deque()

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
            numbers, _, future = self._ahead[0]
            outcomes = future.result()
            self._ahead.popleft()
            yield from zip(numbers, outcomes, strict=True)

    def close(self) -> None:
        """End the threads that read; what has not begun is cancelled."""
        self._threads.shutdown(cancel_futures=True)

    def _has_room(self) -> bool:
        """Whether another unit may be requested."""
        ahead = sum(size for _, size, _ in self._ahead)
        return not self._ahead or (len(self._ahead) < self._ahead_limit and ahead < BYTES_AHEAD)

    def _submit(self, numbers: list[int]) -> None:
        number = int(np.searchsorted(self._bases, numbers[0], side="right")) - 1
        dataset, base = self._datasets[number], int(self._bases[number])
        entries = [dataset.entries[episode - base] for episode in numbers]
        size = sum(entry.size + self._step_bytes[number] * entry.length for entry in entries)
        self._ahead.append((numbers, size, self._threads.submit(read_episodes, dataset.index, entries)))

    def _drop_ahead(self) -> None:
        """Wait for what an earlier reading that was broken off left: it may be requested again now."""
        running = [future for _, _, future in self._ahead if not future.cancel()]
        wait(running)  # of one that was cancelled `wait` may never hear
        self._ahead.clear()


def _step_bytes(dataset: StreamDataset) -> int:
    """Bytes of a decoded time step."""
    index = dataset.index
    codes = 2 * len(index.cameras) * (1 + index.variants) * index.image.rows * index.image.columns
    return codes + 8 * index.embodiment.action_dim + 4 * index.embodiment.state_dim

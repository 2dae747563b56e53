"""Tokenised episodes in the memory of one process: a ring of time steps of fixed size.

Episodes are stored one after the other in a few arrays, so that many samples are cut by a few array
operations. When the ring is full, the episodes read first are overwritten. (Windows come in a random order,
so every episode is equally likely to be requested next, and least recently used would serve no better.)
Where the ring cannot hold all episodes and the node has a cache, windows of the other episodes are read
from the cache without their episodes (`data.stream.cached_windows`); only episodes that are not in the
cache are read as a whole.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from data.config import DataConfig
from data.contracts import Episode
from data.errors import InputError
from data.storage.episode_reader import read_episode
from data.stream.cached_windows import CachedWindowReader
from data.stream.datasets import StreamDataset
from data.stream.plan import PlannedWindows
from data.stream.samples import SampleForm
from data.stream.time_steps import LocatedWindows, TimeSteps, tokenise
from data.tokens.state import check_state_ranges
from data.tokens.vocabulary import IMAGE_CODE_COUNT

_LOG = logging.getLogger(__name__)
MEGABYTE = 2**20
_ABSENT, _BAD = -1, -2


class EpisodeMemory:
    """The episodes of all data sets, numbered through (the first data set first). For one thread at a time.

    Args:
        datasets: The data sets.
        form: Sizes of the samples.
        config: Cameras, ranges and limits.

    Attributes:
        steps: The ring.
        skipped: Numbers of the bad episodes that were skipped.

    Raises:
        InputError: The ranges of states are invalid.
    """

    def __init__(self, datasets: Sequence[StreamDataset], form: SampleForm, config: DataConfig) -> None:
        check_state_ranges(config.state_ranges.minimum, config.state_ranges.maximum)
        self._datasets, self._form, self._config = datasets, form, config
        counts = [len(dataset.entries) for dataset in datasets]
        self._bases = np.cumsum([0, *counts])
        longest = max(int(dataset.steps.max()) for dataset in datasets)
        total = sum(int(dataset.steps.sum(dtype=np.int64)) for dataset in datasets)
        requested = config.memory_megabytes * MEGABYTE // TimeSteps.empty(1, form).nbytes
        self._size = min(max(requested, longest), total)  # an episode must fit
        self._wraps = self._size < total
        self.steps = TimeSteps.empty(self._size, form)
        use_cache = self._wraps and all(map(_has_usable_cache, datasets))
        self._cached_windows = CachedWindowReader(datasets, form, config) if use_cache else None
        self._begins = np.full(sum(counts), _ABSENT, np.int32)
        self._held: deque[tuple[int, int, int]] = deque()  # begin, end, episode; in the order of reading
        self._end = 0
        self._readers = ThreadPoolExecutor(config.readers, thread_name_prefix="episode-reader")
        self._closed = False
        self.skipped: list[int] = []

    def fetch(self, windows: PlannedWindows) -> Iterator[LocatedWindows]:
        """Bring the time steps of windows into memory, part by part if they do not fit at once.

        Yields:
            Windows that can be cut before the next part is requested. A window whose episode is bad is in
            no part.

        Raises:
            InputError: An episode is missing or damaged (names shard, episode and offset), and no more may
                be skipped.
        """
        numbers = self._bases[windows.datasets] + windows.episodes
        missing = np.arange(len(numbers), dtype=np.int64)
        cache_was_read = self._cached_windows is None
        while True:
            begins = self._begins[numbers[missing]]
            present = begins >= 0
            if present.any():
                which = missing[present]
                yield LocatedWindows(which, self.steps, begins[present] + windows.times[which])
            missing = missing[begins == _ABSENT]
            if self._cached_windows is not None and not cache_was_read:
                done = np.zeros(len(numbers), bool)
                for part in self._cached_windows.read(windows, missing):
                    done[part.which] = True
                    yield part
                missing, cache_was_read = missing[~done[missing]], True
            if not len(missing):
                return
            self._read(list(dict.fromkeys(numbers[missing].tolist())))

    def close(self) -> None:
        """End the threads that read; their retries are cancelled, so that an outage does not delay this."""
        self._closed = True
        for dataset in self._datasets:
            dataset.index.store.cancel_retries()
        self._readers.shutdown(cancel_futures=True)

    def _read(self, numbers: list[int]) -> None:
        """Read the first of some episodes, as many as fit into the ring together."""
        lengths = np.cumsum([self._length(number) for number in numbers])
        # Half of a ring that wraps: an episode that does not fit at its end begins again at its start.
        room = self._size // 2 if self._wraps else self._size
        count = max(1, int(np.searchsorted(lengths, room, side="right")))
        pending = iter(numbers[:count])
        ahead = deque(
            (number, self._readers.submit(self._read_episode, number))
            for number in islice(pending, 2 * self._config.readers)
        )
        while ahead:
            number, future = ahead.popleft()
            try:
                self._store(number, future.result())
            except InputError as error:
                self._skip(number, error)
            ahead.extend(
                (following, self._readers.submit(self._read_episode, following))
                for following in islice(pending, 1)
            )

    def _store(self, number: int, episode: Episode) -> None:
        length = episode.length
        if self._end + length > self._size:
            while self._held and self._held[0][0] >= self._end:  # of the previous round
                self._drop_oldest()
            self._end = 0
        begin, end = self._end, self._end + length
        while self._held and self._held[0][0] < end and self._held[0][1] > begin:
            self._drop_oldest()
        index, steps = self._locate(number)[0].index, self.steps.part(begin, end)
        tokenise(episode.codes, episode.actions, episode.states, index, self._config, steps)
        self._begins[number] = begin
        self._held.append((begin, end, number))
        self._end = end

    def _drop_oldest(self) -> None:
        self._begins[self._held.popleft()[2]] = _ABSENT

    def _skip(self, number: int, error: InputError) -> None:
        allowed = self._config.skip_bad_episodes
        if self._closed or len(self.skipped) >= allowed:
            raise error
        self.skipped.append(number)
        self._begins[number] = _BAD
        _LOG.warning(
            "skipped %d of data.skip_bad_episodes=%d episodes: %s", len(self.skipped), allowed, error
        )

    def _locate(self, number: int) -> tuple[StreamDataset, int]:
        """The data set of an episode, and its number within it."""
        dataset = int(np.searchsorted(self._bases, number, side="right")) - 1
        return self._datasets[dataset], number - int(self._bases[dataset])

    def _length(self, number: int) -> int:
        dataset, episode = self._locate(number)
        return int(dataset.steps[episode])

    def _read_episode(self, number: int) -> Episode:
        dataset, episode = self._locate(number)
        return read_episode(dataset.index, dataset.entries[episode])


def _has_usable_cache(dataset: StreamDataset) -> bool:
    """Whether windows may be read from a cache: there is one, and none of the codes can be invalid."""
    index = dataset.index
    return index.cached_episodes is not None and index.image.codebook_size <= IMAGE_CODE_COUNT

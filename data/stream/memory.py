"""Tokenised episodes in one process's memory: a ring of time steps that never grows.

Episodes lie one after the other in three arrays, so that many samples are cut by a few array operations.
When the ring is full, those read first give way. (Windows come in a random order, so no episode is more
likely to be wanted again than another, and last used would serve no better.) Where the ring cannot hold all
episodes and the node has a cache, windows of those that it does not hold are read from the cache, without
their episodes (`data.stream.slices`); only what is not kept there either is read whole.
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
from data.storage.index import read_episode
from data.stream.datasets import Source
from data.stream.plan import PlannedWindows
from data.stream.sequence import SampleForm
from data.stream.slices import Cut, SliceReader
from data.stream.steps import TimeSteps, tokenise
from data.tokens.state import check_state_ranges
from data.tokens.vocabulary import IMAGE_CODE_COUNT

_LOG = logging.getLogger(__name__)
MEGABYTE = 2**20
_ABSENT, _BAD = -1, -2


class EpisodeMemory:
    """The episodes of all sources by number (those of the first source first). For one thread at a time.

    Args:
        sources: The data sets.
        form: Of the samples.
        config: Cameras, ranges and bounds.

    Attributes:
        steps: The ring.
        skipped: Numbers of the episodes that were left out because they are bad.

    Raises:
        InputError: Ranges of states that cannot be.
    """

    def __init__(self, sources: Sequence[Source], form: SampleForm, config: DataConfig) -> None:
        check_state_ranges(config.state_ranges.minimum, config.state_ranges.maximum)
        self._sources, self._form, self._config = sources, form, config
        counts = [len(source.entries) for source in sources]
        self._bases = np.cumsum([0, *counts])
        longest = max(int(source.steps.max()) for source in sources)
        total = sum(int(source.steps.sum(dtype=np.int64)) for source in sources)
        step = TimeSteps.empty(1, form)
        asked = (
            config.memory_megabytes
            * MEGABYTE
            // (2 * (step.frames.size + step.actions.size + step.states.size))
        )
        self._size = min(max(asked, longest), total)  # an episode must fit
        self._turns = self._size < total
        self.steps = TimeSteps.empty(self._size, form)
        sliced = self._turns and all(map(_can_slice, sources))
        self._slices = SliceReader(sources, form, config) if sliced else None
        self._begins = np.full(sum(counts), _ABSENT, np.int32)
        self._held: deque[tuple[int, int, int]] = deque()  # begin, end, episode: read first comes first
        self._end = 0
        self._readers = ThreadPoolExecutor(config.readers, thread_name_prefix="episode-reader")
        self._closed = False
        self.skipped: list[int] = []

    def cuts(self, windows: PlannedWindows) -> Iterator[Cut]:
        """Bring the time steps of some windows into memory, part by part if they do not fit at once.

        Yields:
            Which windows (int64, places in the argument) can be cut before the next part is asked for, the
            time steps that they are cut from, and at which of these time step t of each lies (int64). A
            window whose episode is bad comes in no part.

        Raises:
            InputError: An episode is missing or damaged (names shard, episode and offset), and no more may
                be skipped.
        """
        numbers = self._bases[windows.sources] + windows.episodes
        waiting = np.arange(len(numbers), dtype=np.int64)
        sliced = self._slices is None
        while True:
            begins = self._begins[numbers[waiting]]
            here = begins >= 0
            if here.any():
                which = waiting[here]
                yield which, self.steps, begins[here] + windows.times[which]
            waiting = waiting[begins == _ABSENT]
            if self._slices is not None and not sliced:
                done = np.zeros(len(numbers), bool)
                for cut in self._slices.read(windows, waiting):
                    done[cut[0]] = True
                    yield cut
                waiting, sliced = waiting[~done[waiting]], True
            if not len(waiting):
                return
            self._read(list(dict.fromkeys(numbers[waiting].tolist())))

    def close(self) -> None:
        """End the threads that read; what they wait for is given up, so that this takes no outage's time."""
        self._closed = True
        for source in self._sources:
            source.index.store.give_up()
        self._readers.shutdown(cancel_futures=True)

    def _read(self, numbers: list[int]) -> None:
        """Read the first of some episodes, as many as fit into the ring together."""
        lengths = np.cumsum([self._length(number) for number in numbers])
        # Half of a ring that turns: an episode at its end that does not fit there begins again at its start.
        room = self._size // 2 if self._turns else self._size
        count = max(1, int(np.searchsorted(lengths, room, side="right")))
        todo = iter(numbers[:count])
        ahead = deque(
            (number, self._readers.submit(self._fetch, number))
            for number in islice(todo, 2 * self._config.readers)
        )
        while ahead:
            number, future = ahead.popleft()
            try:
                self._keep(number, future.result())
            except InputError as error:
                self._skip(number, error)
            ahead.extend(
                (following, self._readers.submit(self._fetch, following)) for following in islice(todo, 1)
            )

    def _keep(self, number: int, episode: Episode) -> None:
        length = episode.length
        if self._end + length > self._size:
            while self._held and self._held[0][0] >= self._end:  # left over from the round before
                self._drop()
            self._end = 0
        begin, end = self._end, self._end + length
        while self._held and self._held[0][0] < end and self._held[0][1] > begin:
            self._drop()
        index, steps = self._locate(number)[0].index, self.steps.part(begin, end)
        tokenise(episode.codes, episode.actions, episode.states, index, self._config, steps)
        self._begins[number] = begin
        self._held.append((begin, end, number))
        self._end = end

    def _drop(self) -> None:
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

    def _locate(self, number: int) -> tuple[Source, int]:
        source = int(np.searchsorted(self._bases, number, side="right")) - 1
        return self._sources[source], number - int(self._bases[source])

    def _length(self, number: int) -> int:
        source, episode = self._locate(number)
        return int(source.steps[episode])

    def _fetch(self, number: int) -> Episode:
        source, place = self._locate(number)
        return read_episode(source.index, source.entries[place])


def _can_slice(source: Source) -> bool:
    """Whether its windows may be read without their episodes: there is a cache, and no code to be refused."""
    return source.index.kept is not None and source.index.image.codebook_size <= IMAGE_CODE_COUNT

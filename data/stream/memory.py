"""Tokenised episodes in one process's memory: a ring of time steps that never grows.

Episodes lie one after the other in three arrays, so that many samples are cut by a few array operations.
When the ring is full, those read first give way. (Windows come in a random order, so no episode is more
likely to be wanted again than another, and last used would serve no better.)
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.errors import InputError
from data.storage.index import read_episode
from data.stream.sequence import SampleForm, action_blocks
from data.stream.sources import Source
from data.tokens.action import encode
from data.tokens.image_block import write_image_blocks
from data.tokens.state import check_state_ranges, state_blocks
from data.tokens.vocabulary import ACTION_BLOCK_LENGTH, STATE_BLOCK_LENGTH

MEGABYTE = 2**20
_ABSENT, _BAD = -1, -2


@dataclass(frozen=True, slots=True)
class TimeSteps:
    """What samples are cut from; every id is below 65,536.

    Attributes:
        frames: uint16 [T, V * L], the image blocks of all cameras.
        actions: uint16 [T, 9], action blocks.
        states: uint16 [T, 10], state blocks; [T, 0] where samples hold no state.
    """

    frames: NDArray[np.uint16]
    actions: NDArray[np.uint16]
    states: NDArray[np.uint16]

    @classmethod
    def empty(cls, steps: int, form: SampleForm) -> TimeSteps:
        """Room for `steps` time steps; memory is taken when it is first written."""
        width = STATE_BLOCK_LENGTH if form.state else 0
        return cls(
            np.empty((steps, form.frame), np.uint16),
            np.empty((steps, ACTION_BLOCK_LENGTH), np.uint16),
            np.empty((steps, width), np.uint16),
        )

    def write(self, begin: int, other: TimeSteps) -> None:
        """Copy all of `other` to the time steps from `begin` on."""
        part = slice(begin, begin + len(other.frames))
        self.frames[part], self.actions[part], self.states[part] = other.frames, other.actions, other.states


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
        self._begins = np.full(sum(counts), _ABSENT, np.int32)
        self._held: deque[tuple[int, int, int]] = deque()  # begin, end, episode: read first comes first
        self._end = 0
        self._readers = ThreadPoolExecutor(config.readers, thread_name_prefix="episode-reader")
        self.skipped: list[int] = []

    def resident(
        self, sources: NDArray[np.int64], episodes: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Bring the episodes of some windows into memory, part by part if they do not fit at once.

        Yields:
            Which windows (int64, places in the arguments) can be cut before the next part is asked for,
            and the time step of the ring at which the episode of each begins. A window whose episode is
            bad comes in no part.

        Raises:
            InputError: An episode is missing or damaged (names shard, episode and offset), and no more may
                be skipped.
        """
        numbers = self._bases[sources] + episodes
        waiting = np.arange(len(numbers), dtype=np.int64)
        while True:
            begins = self._begins[numbers[waiting]]
            here = begins >= 0
            if here.any():
                yield waiting[here], begins[here].astype(np.int64)
            waiting = waiting[begins == _ABSENT]
            if not len(waiting):
                return
            self._read(list(dict.fromkeys(numbers[waiting].tolist())))

    def close(self) -> None:
        """End the threads that read."""
        self._readers.shutdown(cancel_futures=True)

    def _read(self, numbers: list[int]) -> None:
        """Read the first of some episodes, as many as fit into the ring together."""
        lengths = np.cumsum([self._length(number) for number in numbers])
        # Half of a ring that turns: an episode at its end that does not fit there begins again at its start.
        room = self._size // 2 if self._turns else self._size
        count = max(1, int(np.searchsorted(lengths, room, side="right")))
        todo = iter(numbers[:count])
        ahead = deque(
            (number, self._readers.submit(self._tokenise, number))
            for number in islice(todo, 2 * self._config.readers)
        )
        while ahead:
            number, future = ahead.popleft()
            try:
                episode = future.result()
            except InputError as error:
                self._skip(number, error)
            else:
                self._keep(number, episode)
            ahead.extend(
                (following, self._readers.submit(self._tokenise, following)) for following in islice(todo, 1)
            )

    def _keep(self, number: int, episode: TimeSteps) -> None:
        length = len(episode.frames)
        if self._end + length > self._size:
            while self._held and self._held[0][0] >= self._end:  # left over from the round before
                self._drop()
            self._end = 0
        begin, end = self._end, self._end + length
        while self._held and self._held[0][0] < end and self._held[0][1] > begin:
            self._drop()
        self.steps.write(begin, episode)
        self._begins[number] = begin
        self._held.append((begin, end, number))
        self._end = end

    def _drop(self) -> None:
        self._begins[self._held.popleft()[2]] = _ABSENT

    def _skip(self, number: int, error: InputError) -> None:
        allowed = self._config.skip_bad_episodes
        if len(self.skipped) >= allowed:
            raise error
        self.skipped.append(number)
        self._begins[number] = _BAD
        print(
            f"data: skipped {len(self.skipped)} of data.skip_bad_episodes={allowed} episodes: {error}",
            file=sys.stderr,
            flush=True,
        )

    def _locate(self, number: int) -> tuple[Source, int]:
        source = int(np.searchsorted(self._bases, number, side="right")) - 1
        return self._sources[source], number - int(self._bases[source])

    def _length(self, number: int) -> int:
        source, episode = self._locate(number)
        return int(source.steps[episode])

    def _tokenise(self, number: int) -> TimeSteps:
        source, place = self._locate(number)
        episode = read_episode(source.index, source.entries[place])
        steps = TimeSteps.empty(episode.length, self._form)
        for view, camera in enumerate(self._config.cameras):
            part = slice(view * self._form.image, (view + 1) * self._form.image)
            write_image_blocks(episode.codes[camera], source.index.image.pixels, steps.frames[:, part])
        actions = action_blocks(encode(episode.actions, source.index.action_ranges))
        steps.actions[:] = actions.reshape(episode.length, -1)
        if self._form.state:
            ranges = self._config.state_ranges
            steps.states[:] = state_blocks(episode.states, ranges.minimum, ranges.maximum)
        return steps

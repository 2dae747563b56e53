"""Planned windows -> the arrays of packed sequences, all samples at once.

Writes what `sequence` and `packing.pack` define (tests hold the two equal), but by a few operations on
whole arrays: a sample is made of pieces whose lengths are fixed (frames, action blocks, answers) and of
its words, so pieces of one sort are copied for all samples together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.contracts import PackedBatch
from data.stream.buffer_pool import BufferPool
from data.stream.plan import Kind, PlannedWindows
from data.stream.prompts import WORLD, PromptTexts
from data.stream.samples import SampleForm, answer_block_ids
from data.stream.cached_windows import Cut
from data.stream.time_steps import TimeSteps
from data.tokens.vocabulary import (
    ACTION_BLOCK_LENGTH,
    BOS,
    END_OF_TURN,
    IGNORED_LABEL,
    PADDING,
    STATE_BLOCK_LENGTH,
)

_Ints = NDArray[np.int64]
_OF_PADDING = np.array([PADDING, IGNORED_LABEL, 0, 0, 0], np.int32)  # as the fields of `PackedBatch`


class Episodes(Protocol):
    """Where windows are cut from: `EpisodeMemory`, or `BlankEpisodes`."""

    def cuts(self, windows: PlannedWindows) -> Iterator[Cut]:
        """As `EpisodeMemory.cuts`."""
        ...


class Assembler:
    """Cuts planned windows and packs them.

    Args:
        form: Of the samples.
        texts: Words of the prompts.
        memory: The episodes.
        sequence_length: S, tokens of a sequence.
    """

    def __init__(self, form: SampleForm, texts: PromptTexts, memory: Episodes, sequence_length: int) -> None:
        self._form, self._texts, self._memory, self._length = form, texts, memory, sequence_length
        self._buffers = BufferPool()

    def assemble(self, windows: PlannedWindows, first: int, last: int) -> PackedBatch:
        """Sequences `first` to `last` (exclusive) of the step that `windows` are planned for.

        A window whose episode is bad and may be skipped becomes padding; everything else stays where it
        is.

        Raises:
            InputError: An episode is missing or damaged.
            ValueError: The samples of a sequence do not fit; nothing is ever cut.
        """
        places = _Places.of(windows, first, self._form, self._texts, self._length)
        fields = self._buffers.take((5, (last - first) * self._length))
        tokens, labels, positions, segments, blocks = fields
        labels[:], blocks[:] = IGNORED_LABEL, 0
        good = np.zeros(len(windows), bool)
        for part, steps, now in self._memory.cuts(windows):
            good[part] = True
            self._copy_steps(tokens, places.take(part), steps, now)
        places = places.take(np.flatnonzero(good))
        self._copy_words(tokens, places)
        tokens[places.answers - 1] = END_OF_TURN
        tokens[places.ends - 1] = END_OF_TURN
        self._write_labels(labels, tokens, places)
        self._write_blocks(blocks, places)
        _write_segments(segments, positions, places)
        fields[:, _gaps(places, len(tokens))] = _OF_PADDING[:, None]
        return PackedBatch(*fields.reshape(5, last - first, self._length))

    def _copy_steps(self, tokens: NDArray[np.int32], places: _Places, steps: TimeSteps, now: _Ints) -> None:
        """Frames, actions and states; `now`: where time step t of each window lies in `steps`."""
        form = self._form
        action, world = np.flatnonzero(~places.worlds), np.flatnonzero(places.worlds)
        if len(action):
            t, seen, at = now[action], places.frames[action], places.words_end[action]
            if form.state:
                _runs(tokens, STATE_BLOCK_LENGTH)[at] = steps.states[t]
                at = at + STATE_BLOCK_LENGTH
            for frame in range(form.history):
                has = np.flatnonzero(seen > frame)
                rows = t[has] - seen[has] + 1 + frame
                _runs(tokens, form.frame)[at[has] + frame * form.frame] = steps.frames[rows]
            _copy_runs(tokens, places.answers[action], steps.actions, t, form.chunk)
        if len(world):
            t, at = now[world], places.words_end[world]
            _runs(tokens, form.frame)[at] = steps.frames[t]
            _copy_runs(tokens, at + form.frame, steps.actions, t, form.predicted)
            _copy_runs(tokens, places.answers[world], steps.frames, t + 1, form.predicted)

    def _copy_words(self, tokens: NDArray[np.int32], places: _Places) -> None:
        words = places.words_end - places.starts - 1
        before = np.cumsum(words) - words
        count = np.arange(int(words.sum()), dtype=np.int64)
        into = np.repeat(places.starts + 1 - before, words) + count
        tokens[into] = self._texts.ids[np.repeat(self._texts.begins[places.texts] - before, words) + count]
        tokens[places.starts] = BOS

    def _write_labels(self, labels: NDArray[np.int32], tokens: NDArray[np.int32], places: _Places) -> None:
        """The next token wherever that belongs to an answer."""
        for worlds, size in ((False, self._form.action_answer), (True, self._form.world_answer)):
            answers = places.answers[places.worlds == worlds]
            if len(answers):
                _runs(labels, size)[answers - 1] = _runs(tokens, size)[answers]

    def _write_blocks(self, blocks: NDArray[np.int32], places: _Places) -> None:
        answers, before = places.answers[~places.worlds], places.answers[places.worlds]
        if len(answers):
            ids = answer_block_ids(self._form.chunk)
            _runs(blocks, len(ids))[answers] = ids
        if len(before):
            ids = -answer_block_ids(self._form.predicted)
            _runs(blocks, len(ids))[before - 1 - len(ids)] = ids


class _Places:
    """Where samples lie in the sequences laid end to end; every array is [N].

    Attributes:
        worlds: bool, whether it is a world sample.
        texts: Number of its text.
        frames: Time steps of history that it holds.
        numbers: Its number within the sequence, from 1.
        starts, words_end, answers, ends: First token of the sample, first after its words, first of its
            answer, first after it.
    """

    def __init__(
        self, worlds: NDArray[np.bool_], texts: _Ints, frames: _Ints, numbers: _Ints, borders: _Ints
    ) -> None:
        self.worlds, self.texts, self.frames, self.numbers = worlds, texts, frames, numbers
        self._borders = borders
        self.starts, self.words_end, self.answers, self.ends = borders

    @classmethod
    def of(
        cls, windows: PlannedWindows, first: int, form: SampleForm, prompts: PromptTexts, length: int
    ) -> _Places:
        """Lay the samples of each sequence one after the other."""
        worlds = windows.kinds == Kind.WORLD
        texts = np.full(len(windows), WORLD, np.int64)
        for source, of_episodes in enumerate(prompts.of_episodes):
            here = np.flatnonzero(~worlds & (windows.sources == source))
            texts[here] = of_episodes[windows.episodes[here]]
        frames = np.where(worlds, 1, np.minimum(windows.times + 1, form.history))
        words = prompts.lengths[texts].astype(np.int64)
        between = np.where(worlds, form.predicted * ACTION_BLOCK_LENGTH, form.state * STATE_BLOCK_LENGTH)
        answers = 1 + words + frames * form.frame + between + 1
        sizes = answers + np.where(worlds, form.world_answer, form.action_answer)
        rows = windows.sequences - first
        begins = np.searchsorted(rows, rows)  # first sample of the same sequence; rows rise
        ends = np.cumsum(sizes)
        offsets = ends - sizes - (ends - sizes)[begins]
        if len(sizes) and int((offsets + sizes).max()) > length:
            raise ValueError(
                f"samples of {int((offsets + sizes).max())} tokens do not fit a sequence of {length}"
            )
        starts = rows * length + offsets
        borders = np.stack([starts, starts + 1 + words, starts + answers, starts + sizes])
        numbers = np.arange(1, len(rows) + 1, dtype=np.int64) - begins
        return cls(worlds, texts, frames, numbers, borders)

    def take(self, which: _Ints) -> _Places:
        """Some of the samples."""
        return _Places(
            self.worlds[which],
            self.texts[which],
            self.frames[which],
            self.numbers[which],
            self._borders[:, which],
        )


def _write_segments(segments: NDArray[np.int32], positions: NDArray[np.int32], places: _Places) -> None:
    """Segment ids and positions of all samples; the gaps between them are left as they are.

    Samples of one sort differ in their words alone. So they are written by a run of the shortest one's size
    from each start, and shorter runs that end with each sample.
    """
    sizes, sorts = places.ends - places.starts, np.where(places.worlds, 0, places.frames)
    count = np.arange(int(sizes.max(initial=0)), dtype=np.int32)
    for sort in np.flatnonzero(np.bincount(sorts)):
        of = np.flatnonzero(sorts == sort)
        starts, size, numbers = places.starts[of], sizes[of], places.numbers[of, None]
        shortest, longest = int(size.min()), int(size.max())
        _runs(segments, shortest)[starts] = numbers
        _runs(positions, shortest)[starts] = count[:shortest]
        for done in range(shortest, longest, shortest):
            run = min(shortest, longest - done)
            begins = np.minimum(done, size - run)
            _runs(segments, run)[starts + begins] = numbers
            _runs(positions, run)[starts + begins] = begins[:, None].astype(np.int32) + count[:run]


def _gaps(places: _Places, total: int) -> _Ints:
    """Every place of `total` that belongs to no sample."""
    begins, ends = np.append(0, places.ends), np.append(places.starts, total)
    sizes = ends - begins
    return np.repeat(begins - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum(), dtype=np.int64)


def _runs(array: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    """The `size` elements from each element on, as a view [N - size + 1, size] that can be written.

    As numpy's `sliding_window_view`, which takes 20 us longer: a batch makes a dozen such views.
    """
    return np.ndarray((len(array) - size + 1, size), array.dtype, array, strides=2 * array.strides)


def _copy_runs(
    tokens: NDArray[np.int32], at: _Ints, rows: NDArray[np.uint16], first: _Ints, count: int
) -> None:
    """Copy rows `first` .. `first + count - 1` to each place, one after the other."""
    size, width = count * rows.shape[1], rows.itemsize
    runs = np.ndarray((len(rows) - count + 1, size), rows.dtype, rows, strides=(rows.shape[1] * width, width))
    _runs(tokens, size)[at] = runs[first]

"""Planned windows -> the arrays of packed sequences, all samples at once.

The samples are those of `data.stream.samples`, written by a few operations on whole arrays: a sample
consists of pieces of fixed lengths (frames, action blocks, answers) and of its words, so pieces of one kind
are copied for all samples together. The actions of action samples come as numbers too. The tests compare the
result with one written sample by sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.contracts import PackedBatch
from data.stream.buffer_pool import BufferPool
from data.stream.plan import Kind, PlannedWindows
from data.stream.prompts import WORLD, PromptTexts
from data.stream.samples import SampleForm, answer_block_ids
from data.stream.time_steps import LocatedWindows, TimeSteps
from data.tokens.vocabulary import (
    ACTION_BLOCK_LENGTH,
    ACTION_DIM,
    BOS,
    END_OF_TURN,
    IGNORED_LABEL,
    PADDING,
    STATE_BLOCK_LENGTH,
)

_Ints = NDArray[np.int64]
_Number = TypeVar("_Number", np.uint16, np.float32)
_PADDING_VALUES = np.array(
    [PADDING, IGNORED_LABEL, 0, 0, 0], np.int32
)  # in the order of the fields of `PackedBatch` that have a value for each token


class EpisodeSource(Protocol):
    """Provides the time steps of windows: `EpisodeMemory`, or `BlankEpisodes`."""

    def fetch(self, windows: PlannedWindows) -> Iterator[LocatedWindows]:
        """As `EpisodeMemory.fetch`."""
        ...


class BatchAssembler:
    """Cuts planned windows from episodes and packs them.

    Args:
        form: Sizes of the samples.
        texts: Words of the prompts.
        episodes: The episodes.
        sequence_length: S, tokens of a sequence.
    """

    def __init__(
        self, form: SampleForm, texts: PromptTexts, episodes: EpisodeSource, sequence_length: int
    ) -> None:
        self._form, self._texts, self._episodes, self._length = form, texts, episodes, sequence_length
        self._buffers = BufferPool()

    def assemble(self, windows: PlannedWindows, first: int, last: int) -> PackedBatch:
        """Assemble sequences `first` to `last` (exclusive) of the step that `windows` are planned for.

        A window whose episode is bad and may be skipped becomes padding, without actions; nothing else moves.

        Raises:
            InputError: An episode is missing or damaged.
            ValueError: The samples of a sequence do not fit; samples are never cut.
        """
        layout = _SampleLayout.of(windows, first, self._form, self._texts, self._length)
        fields = self._buffers.take((5, (last - first) * self._length))
        tokens, labels, positions, segments, blocks = fields
        labels[:], blocks[:] = IGNORED_LABEL, 0
        present, targets = np.zeros(len(windows), bool), _ActionTargets(layout, self._form.chunk)
        for which, steps, now in self._episodes.fetch(windows):
            present[which] = True
            self._copy_steps(tokens, layout.take(which), steps, now)
            targets.copy(which, steps, now)
        layout = layout.take(np.flatnonzero(present))
        self._copy_words(tokens, layout)
        tokens[layout.answers - 1] = END_OF_TURN
        tokens[layout.ends - 1] = END_OF_TURN
        self._write_labels(labels, tokens, layout)
        self._write_blocks(blocks, layout)
        _write_segments(segments, positions, layout)
        fields[:, _gaps(layout, len(tokens))] = _PADDING_VALUES[:, None]
        return PackedBatch(
            *fields.reshape(5, last - first, self._length),
            action_starts=layout.answers[~layout.worlds],
            action_targets=targets.of(present),
        )

    def _copy_steps(
        self, tokens: NDArray[np.int32], layout: _SampleLayout, steps: TimeSteps, now: _Ints
    ) -> None:
        """Copy frames, actions and states; `now`: position of time step t of each window in `steps`."""
        form = self._form
        action, world = np.flatnonzero(~layout.worlds), np.flatnonzero(layout.worlds)
        if len(action):
            t, seen, at = now[action], layout.frames[action], layout.words_end[action]
            if form.state:
                _runs(tokens, STATE_BLOCK_LENGTH)[at] = steps.states[t]
                at = at + STATE_BLOCK_LENGTH
            for frame in range(form.history):
                has = np.flatnonzero(seen > frame)
                rows = t[has] - seen[has] + 1 + frame
                _runs(tokens, form.frame)[at[has] + frame * form.frame] = steps.frames[rows]
            _copy_runs(tokens, layout.answers[action], steps.actions, t, form.chunk)
        if len(world):
            t, at = now[world], layout.words_end[world]
            _runs(tokens, form.frame)[at] = steps.frames[t]
            _copy_runs(tokens, at + form.frame, steps.actions, t, form.predicted)
            _copy_runs(tokens, layout.answers[world], steps.frames, t + 1, form.predicted)

    def _copy_words(self, tokens: NDArray[np.int32], layout: _SampleLayout) -> None:
        words = layout.words_end - layout.starts - 1
        before = np.cumsum(words) - words
        count = np.arange(int(words.sum()), dtype=np.int64)
        into = np.repeat(layout.starts + 1 - before, words) + count
        tokens[into] = self._texts.ids[np.repeat(self._texts.begins[layout.texts] - before, words) + count]
        tokens[layout.starts] = BOS

    def _write_labels(
        self, labels: NDArray[np.int32], tokens: NDArray[np.int32], layout: _SampleLayout
    ) -> None:
        """Write the next token wherever it belongs to an answer."""
        for worlds, size in ((False, self._form.action_answer), (True, self._form.world_answer)):
            answers = layout.answers[layout.worlds == worlds]
            if len(answers):
                _runs(labels, size)[answers - 1] = _runs(tokens, size)[answers]

    def _write_blocks(self, blocks: NDArray[np.int32], layout: _SampleLayout) -> None:
        answers, before = layout.answers[~layout.worlds], layout.answers[layout.worlds]
        if len(answers):
            ids = answer_block_ids(self._form.chunk)
            _runs(blocks, len(ids))[answers] = ids
        if len(before):
            ids = -answer_block_ids(self._form.predicted)
            _runs(blocks, len(ids))[before - 1 - len(ids)] = ids


class _SampleLayout:
    """Positions of samples in the sequences laid end to end; every array is [N], int64 but for `worlds`.

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
    ) -> _SampleLayout:
        """Lay the samples of each sequence one after the other."""
        worlds = windows.kinds == Kind.WORLD
        texts = np.full(len(windows), WORLD, np.int64)
        for dataset, of_episodes in enumerate(prompts.of_episodes):
            where = np.flatnonzero(~worlds & (windows.datasets == dataset))
            texts[where] = of_episodes[windows.episodes[where]]
        frames = np.where(worlds, 1, np.minimum(windows.times + 1, form.history))
        words = prompts.lengths[texts].astype(np.int64)
        between = np.where(worlds, form.predicted * ACTION_BLOCK_LENGTH, form.state * STATE_BLOCK_LENGTH)
        answers = 1 + words + frames * form.frame + between + 1
        sizes = answers + np.where(worlds, form.world_answer, form.action_answer)
        rows = windows.sequences - first
        begins = np.searchsorted(rows, rows)  # first sample of the same sequence; rows ascend
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

    def take(self, which: _Ints) -> _SampleLayout:
        """Some of the samples."""
        return _SampleLayout(
            self.worlds[which],
            self.texts[which],
            self.frames[which],
            self.numbers[which],
            self._borders[:, which],
        )


class _ActionTargets:
    """Continuous actions of the action samples of a layout: float32, K rows of 7 each, in their order."""

    def __init__(self, layout: _SampleLayout, chunk: int) -> None:
        self._is_action = ~layout.worlds
        self._numbers = np.cumsum(self._is_action) - 1  # of each action sample among these
        self._chunk = chunk
        self._values = np.empty((int(self._is_action.sum()), chunk * ACTION_DIM), np.float32)

    def copy(self, which: _Ints, steps: TimeSteps, now: _Ints) -> None:
        """Copy those of samples `which`; `now`: position of time step t of each of them in `steps`."""
        actions = self._is_action[which]
        rows = _row_runs(steps.normalised_actions, self._chunk)
        self._values[self._numbers[which[actions]]] = rows[now[actions]]

    def of(self, present: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Those of the action samples that are present, [N, K, 7]."""
        kept = present[self._is_action]
        values = self._values if kept.all() else self._values[kept]
        return values.reshape(-1, self._chunk, ACTION_DIM)


def _write_segments(segments: NDArray[np.int32], positions: NDArray[np.int32], layout: _SampleLayout) -> None:
    """Write segment ids and positions of all samples; the gaps between them are not touched.

    Samples of one kind and history differ only in their words. So they are written by a run of the shortest
    one's size from each start, and shorter runs that end with each sample.
    """
    sizes, groups = layout.ends - layout.starts, np.where(layout.worlds, 0, layout.frames)
    count = np.arange(int(sizes.max(initial=0)), dtype=np.int32)
    for group in np.flatnonzero(np.bincount(groups)):
        members = np.flatnonzero(groups == group)
        starts, size, numbers = layout.starts[members], sizes[members], layout.numbers[members, None]
        shortest, longest = int(size.min()), int(size.max())
        _runs(segments, shortest)[starts] = numbers
        _runs(positions, shortest)[starts] = count[:shortest]
        for done in range(shortest, longest, shortest):
            run = min(shortest, longest - done)
            begins = np.minimum(done, size - run)
            _runs(segments, run)[starts + begins] = numbers
            _runs(positions, run)[starts + begins] = begins[:, None].astype(np.int32) + count[:run]


def _gaps(layout: _SampleLayout, total: int) -> _Ints:
    """Positions below `total` that belong to no sample."""
    begins, ends = np.append(0, layout.ends), np.append(layout.starts, total)
    sizes = ends - begins
    return np.repeat(begins - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum(), dtype=np.int64)


def _runs(array: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    """The `size` elements from each element on, as a writable view [N - size + 1, size].

    Equal to numpy's `sliding_window_view`, which takes 20 us longer; a batch needs a dozen such views.
    """
    return np.ndarray((len(array) - size + 1, size), array.dtype, array, strides=2 * array.strides)


def _copy_runs(
    tokens: NDArray[np.int32], at: _Ints, rows: NDArray[np.uint16], first: _Ints, count: int
) -> None:
    """Copy rows `first` .. `first + count - 1` to each position, one after the other."""
    _runs(tokens, count * rows.shape[1])[at] = _row_runs(rows, count)[first]


def _row_runs(rows: NDArray[_Number], count: int) -> NDArray[_Number]:
    """`count` rows from each row on, one after the other, as a view [N - count + 1, count * width]."""
    shape = (len(rows) - count + 1, count * rows.shape[1])
    return np.ndarray(shape, rows.dtype, rows, strides=rows.strides)

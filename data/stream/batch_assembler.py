"""Planned windows -> the arrays of packed sequences, all samples at once.

The samples are those of `data.stream.samples`, written by a few operations on whole arrays: a sample
consists of pieces of fixed lengths (frames, action blocks, answers) and of its words, so pieces of one kind
are copied for all samples of one form together. The actions of action samples come as numbers too. The tests
compare the result with one written sample by sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.contracts import PackedBatch
from data.stream.array_runs import copy_runs, row_runs, runs
from data.stream.buffer_pool import BufferPool
from data.stream.episodes.time_steps import LocatedWindows
from data.stream.order.plan import PlannedWindows
from data.stream.sample_layout import FormSizes, SampleLayout, gaps, write_segments
from data.stream.samples import SampleForm, answer_block_ids
from data.stream.setup import StreamSetup
from data.stream.source_format import SourceFormat
from data.tokens.vocabulary import BOS, END_OF_TURN, IGNORED_LABEL, PADDING

_Ints = NDArray[np.int64]
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
        setup: Data sets, words and sizes of the samples, and length of the sequences.
        episodes: The episodes.
    """

    def __init__(self, setup: StreamSetup, episodes: EpisodeSource) -> None:
        self._forms, self._texts, self._episodes = setup.forms, setup.texts, episodes
        self._length, self._segments = setup.plan.sequence_length, setup.plan.largest_segment
        self._sizes, self._buffers = FormSizes(setup.forms), BufferPool()
        self._distinct = list(dict.fromkeys(setup.forms))
        self._form_numbers = np.array([self._distinct.index(form) for form in setup.forms])
        sources = setup.datasets[0].sources
        self._sources = np.array([dataset.number for dataset in setup.datasets], np.int32)
        self._numbers_present = _present(sources)[self._sources]
        self._missing = {
            number: _missing_labels(dataset.source)
            for number, dataset in enumerate(setup.datasets)
            if dataset.source.embodiment.missing
        }

    def assemble(self, windows: PlannedWindows, first: int, last: int) -> PackedBatch:
        """Assemble sequences `first` to `last` (exclusive) of the step that `windows` are planned for.

        A window whose episode is bad and may be skipped becomes padding, without actions; nothing else moves.

        Raises:
            InputError: An episode is missing or damaged.
            ValueError: The samples of a sequence do not fit; samples are never cut.
        """
        layout = SampleLayout.of(windows, first, self._sizes, self._texts, self._length)
        fields = self._buffers.take((5, (last - first) * self._length))
        tokens, labels, positions, segments, blocks = fields
        labels[:], blocks[:] = IGNORED_LABEL, 0
        present, targets = np.zeros(len(windows), bool), _ActionTargets(layout, self._numbers_present)
        for located in self._episodes.fetch(windows):
            present[located.which] = True
            part = layout.take(located.which)
            form = self._forms[int(part.datasets[0])]
            _copy_steps(tokens, part, form, located)
            targets.copy(part, form, located)
        layout = layout.take(np.flatnonzero(present))
        self._copy_words(tokens, layout)
        tokens[layout.answers - 1] = END_OF_TURN
        tokens[layout.ends - 1] = END_OF_TURN
        for form, part in self._by_form(layout):
            _write_labels(labels, tokens, part, form)
            _write_blocks(blocks, part, form)
        self._ignore_missing(labels, layout)
        write_segments(segments, positions, layout)
        fields[:, gaps(layout, len(tokens))] = _PADDING_VALUES[:, None]
        return PackedBatch(
            *fields.reshape(5, last - first, self._length),
            action_starts=layout.answers[~layout.worlds],
            action_targets=targets.of(present),
            action_present=self._numbers_present[layout.datasets[~layout.worlds]],
            sources=self._segment_sources(layout, last - first),
        )

    def _by_form(self, layout: SampleLayout) -> Iterator[tuple[SampleForm, SampleLayout]]:
        """The samples of each form."""
        if len(self._distinct) == 1:
            yield self._distinct[0], layout
            return
        numbers = self._form_numbers[layout.datasets]
        for number, form in enumerate(self._distinct):
            yield form, layout.take(np.flatnonzero(numbers == number))

    def _copy_words(self, tokens: NDArray[np.int32], layout: SampleLayout) -> None:
        words = layout.words_end - layout.starts - 1
        before = np.cumsum(words) - words
        count = np.arange(int(words.sum()), dtype=np.int64)
        into = np.repeat(layout.starts + 1 - before, words) + count
        tokens[into] = self._texts.ids[np.repeat(self._texts.begins[layout.texts] - before, words) + count]
        tokens[layout.starts] = BOS

    def _ignore_missing(self, labels: NDArray[np.int32], layout: SampleLayout) -> None:
        """Take the labels from the numbers of an action that a robot does not have."""
        for dataset, places in self._missing.items():
            answers = layout.answers[~layout.worlds & (layout.datasets == dataset)]
            labels[answers[:, None] + places] = IGNORED_LABEL

    def _segment_sources(self, layout: SampleLayout, sequences: int) -> NDArray[np.int32]:
        """As `PackedBatch.sources`."""
        sources = np.zeros((sequences, self._segments + 1), np.int32)
        sources[layout.starts // self._length, layout.numbers] = self._sources[layout.datasets]
        return sources


class _ActionTargets:
    """Continuous actions of the action samples of a layout, float32 [N, K, D], in their order.

    Args:
        layout: The layout.
        numbers_present: bool [data sets, K, D], as `PackedBatch.action_present`.
    """

    def __init__(self, layout: SampleLayout, numbers_present: NDArray[np.bool_]) -> None:
        self._is_action = ~layout.worlds
        self._numbers = np.cumsum(self._is_action) - 1  # of each action sample among these
        shape = numbers_present.shape[1:]
        self._values = np.zeros((int(self._is_action.sum()), *shape), np.float32)

    def copy(self, part: SampleLayout, form: SampleForm, located: LocatedWindows) -> None:
        """Copy those of the samples `part` of the layout."""
        actions = np.flatnonzero(~part.worlds)
        if not len(actions):  # there may be fewer time steps than a chunk has
            return
        rows = row_runs(located.steps.normalised_actions, form.chunk)[located.positions[actions]]
        into = self._numbers[located.which[actions]]
        if self._values.shape[1:] == (form.chunk, form.action_dim):
            self._values.reshape(len(self._values), -1)[into] = rows
        else:
            own = rows.reshape(-1, form.chunk, form.action_dim)
            self._values[into, : form.chunk, : form.action_dim] = own

    def of(self, present: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Those of the action samples that are present."""
        kept = present[self._is_action]
        return self._values if kept.all() else self._values[kept]


def _copy_steps(
    tokens: NDArray[np.int32], layout: SampleLayout, form: SampleForm, located: LocatedWindows
) -> None:
    """Copy frames, actions and states of windows of one form."""
    steps, now, shown = located.steps, located.positions, located.variants
    frames, views = steps.frames.reshape(-1, form.frame), steps.frames.shape[1]
    action, world = np.flatnonzero(~layout.worlds), np.flatnonzero(layout.worlds)
    if len(action):
        t, seen, at, variant = now[action], layout.frames[action], layout.words_end[action], shown[action]
        if form.state_dim:
            runs(tokens, form.state_block)[at] = steps.states[t]
            at = at + form.state_block
        for frame in range(form.history):
            has = np.flatnonzero(seen > frame)
            rows = (t[has] - seen[has] + 1 + frame) * views + variant[has]
            runs(tokens, form.frame)[at[has] + frame * form.frame] = frames[rows]
        copy_runs(tokens, layout.answers[action], steps.actions, t, form.chunk)
    if len(world):
        t, at, variant = now[world], layout.words_end[world], shown[world]
        runs(tokens, form.frame)[at] = frames[t * views + variant]
        copy_runs(tokens, at + form.frame, steps.actions, t, form.predicted)
        for frame in range(form.predicted):
            into = layout.answers[world] + frame * form.frame
            runs(tokens, form.frame)[into] = frames[(t + 1 + frame) * views + variant]


def _write_labels(
    labels: NDArray[np.int32], tokens: NDArray[np.int32], layout: SampleLayout, form: SampleForm
) -> None:
    """Write the next token wherever it belongs to an answer."""
    for worlds, size in ((False, form.action_answer), (True, form.world_answer)):
        answers = layout.answers[layout.worlds == worlds]
        if len(answers):
            runs(labels, size)[answers - 1] = runs(tokens, size)[answers]


def _write_blocks(blocks: NDArray[np.int32], layout: SampleLayout, form: SampleForm) -> None:
    answers, before = layout.answers[~layout.worlds], layout.answers[layout.worlds]
    if len(answers):
        ids = answer_block_ids(form.chunk, form.action_dim)
        runs(blocks, len(ids))[answers] = ids
    if len(before):
        ids = -answer_block_ids(form.predicted, form.action_dim)
        runs(blocks, len(ids))[before - 1 - len(ids)] = ids


def _present(sources: Sequence[SourceFormat]) -> NDArray[np.bool_]:
    """Which numbers of the longest chunk of the widest action an action sample has, bool [sources, K, D]."""
    chunk = max(source.chunk for source in sources)
    width = max(source.embodiment.action_dim for source in sources)
    present = np.zeros((len(sources), chunk, width), bool)
    for own, source in zip(present, sources, strict=True):
        own[: source.chunk, : source.embodiment.action_dim] = source.embodiment.present
    return present


def _missing_labels(source: SourceFormat) -> _Ints:
    """Positions of the labels of missing numbers from the first token of an action sample's answer on.

    The label at a position is the token after it, and an action block begins with a token of its own.
    """
    numbers = np.flatnonzero(~source.embodiment.present)
    blocks = np.arange(source.chunk)[:, None] * (source.embodiment.action_dim + 2)
    return (blocks + numbers).ravel()

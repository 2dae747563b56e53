"""Where the samples of planned windows lie in their sequences, and the arrays that follow from it alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.stream.array_runs import runs
from data.stream.order.layout import KINDS
from data.stream.order.plan import Kind, PlannedWindows
from data.stream.prompts import WORLD, PromptTexts
from data.stream.samples import SampleForm

_Ints = NDArray[np.int64]


class FormSizes:
    """The sizes of the samples of several data sets, as arrays.

    Args:
        forms: Of each data set; history and frames are the same for all.

    Attributes:
        history: M, largest number of time steps that an action sample sees.
        frame: Tokens of one time step's images.
        between: int64 [data sets, kinds], tokens of a prompt beside words, frames and its ends: the state, or
            the actions before a world sample's answer.
        answers: int64 [data sets, kinds], tokens of an answer.
    """

    def __init__(self, forms: Sequence[SampleForm]) -> None:
        self.history, self.frame = forms[0].history, forms[0].frame
        self.between = np.empty((len(forms), KINDS), np.int64)
        self.answers = np.empty((len(forms), KINDS), np.int64)
        for number, form in enumerate(forms):
            self.between[number] = form.state_block, form.predicted * form.action_block
            self.answers[number] = form.action_answer, form.world_answer


class SampleLayout:
    """Positions of samples in the sequences laid end to end; every array is [N], int64 but for `worlds`.

    Attributes:
        worlds: bool, whether it is a world sample.
        datasets: Number of its data set.
        texts: Number of its text.
        frames: Time steps of history that it holds.
        numbers: Its number within the sequence, from 1.
        starts, words_end, answers, ends: First token of the sample, first after its words, first of its
            answer, first after it.
    """

    def __init__(
        self,
        worlds: NDArray[np.bool_],
        datasets: _Ints,
        texts: _Ints,
        frames: _Ints,
        numbers: _Ints,
        borders: _Ints,
    ) -> None:
        self.worlds, self.datasets = worlds, datasets
        self.texts, self.frames, self.numbers = texts, frames, numbers
        self._borders = borders
        self.starts, self.words_end, self.answers, self.ends = borders

    @classmethod
    def of(
        cls, windows: PlannedWindows, first: int, sizes: FormSizes, prompts: PromptTexts, length: int
    ) -> SampleLayout:
        """Lay the samples of each sequence one after the other.

        Args:
            windows: Planned windows of some sequences.
            first: Number of the first of these sequences.
            sizes: Of the samples of each data set.
            prompts: Words of the prompts.
            length: S, tokens of a sequence.

        Raises:
            ValueError: The samples of a sequence do not fit.
        """
        worlds = windows.kinds == Kind.WORLD
        texts = np.full(len(windows), WORLD, np.int64)
        for dataset, of_episodes in enumerate(prompts.of_episodes):
            where = np.flatnonzero(~worlds & (windows.datasets == dataset))
            texts[where] = of_episodes[windows.episodes[where]]
        frames = np.where(worlds, 1, np.minimum(windows.times + 1, sizes.history))
        words = prompts.lengths[texts].astype(np.int64)
        of_kind = windows.datasets, windows.kinds
        answers = 1 + words + frames * sizes.frame + sizes.between[of_kind] + 1
        tokens = answers + sizes.answers[of_kind]
        rows = windows.sequences - first
        begins = np.searchsorted(rows, rows)  # first sample of the same sequence; rows ascend
        ends = np.cumsum(tokens)
        offsets = ends - tokens - (ends - tokens)[begins]
        if len(tokens) and int((offsets + tokens).max()) > length:
            raise ValueError(
                f"samples of {int((offsets + tokens).max())} tokens do not fit a sequence of {length}"
            )
        starts = rows * length + offsets
        borders = np.stack([starts, starts + 1 + words, starts + answers, starts + tokens])
        numbers = np.arange(1, len(rows) + 1, dtype=np.int64) - begins
        return cls(worlds, windows.datasets, texts, frames, numbers, borders)

    def take(self, which: _Ints) -> SampleLayout:
        """Some of the samples."""
        return SampleLayout(
            self.worlds[which],
            self.datasets[which],
            self.texts[which],
            self.frames[which],
            self.numbers[which],
            self._borders[:, which],
        )


def write_segments(segments: NDArray[np.int32], positions: NDArray[np.int32], layout: SampleLayout) -> None:
    """Write segment ids and positions of all samples; the gaps between them are not touched.

    Samples of one kind and history differ only in their words, and in what the robots have. So they are
    written by a run of the shortest one's size from each start, and shorter runs that end with each sample.
    """
    sizes, groups = layout.ends - layout.starts, np.where(layout.worlds, 0, layout.frames)
    count = np.arange(int(sizes.max(initial=0)), dtype=np.int32)
    for group in np.flatnonzero(np.bincount(groups)):
        members = np.flatnonzero(groups == group)
        starts, size, numbers = layout.starts[members], sizes[members], layout.numbers[members, None]
        shortest, longest = int(size.min()), int(size.max())
        runs(segments, shortest)[starts] = numbers
        runs(positions, shortest)[starts] = count[:shortest]
        for done in range(shortest, longest, shortest):
            run = min(shortest, longest - done)
            begins = np.minimum(done, size - run)
            runs(segments, run)[starts + begins] = numbers
            runs(positions, run)[starts + begins] = begins[:, None].astype(np.int32) + count[:run]


def gaps(layout: SampleLayout, total: int) -> _Ints:
    """Positions below `total` that belong to no sample."""
    begins, ends = np.append(0, layout.ends), np.append(layout.starts, total)
    sizes = ends - begins
    return np.repeat(begins - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum(), dtype=np.int64)

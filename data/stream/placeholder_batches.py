"""Batches without their episodes: the shape of the planned batch, for a step that will not count.

Ranks compute a step together, so a rank whose batch is not ready has to take part nevertheless. Segments,
positions, action blocks and the number of labels of each kind are those of the planned batch, so that every
collective of the step has the size that the other ranks expect; the frames and actions are blank.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from data.stream.datasets import StreamDataset
from data.stream.episodes.time_steps import LocatedWindows, TimeSteps, tokenise
from data.stream.order.plan import PlannedWindows
from data.stream.samples import SampleForm


class BlankEpisodes:
    """Replacement of `EpisodeMemory`: every episode is available at once, and none is read.

    Args:
        datasets: The data sets.
        forms: Sizes of the samples of each.
        cameras: Cameras of a frame.
        skipped: Numbers of the bad episodes that the planned batch does not contain either.

    Attributes:
        steps: For each data set as many blank time steps as its longest episode has; each episode begins at
            the first.
    """

    def __init__(
        self,
        datasets: Sequence[StreamDataset],
        forms: Sequence[SampleForm],
        cameras: Sequence[str],
        skipped: Collection[int],
    ) -> None:
        self.steps = [
            _blank_steps(dataset, form, cameras) for dataset, form in zip(datasets, forms, strict=True)
        ]
        self._bases = np.cumsum([0, *(len(dataset.entries) for dataset in datasets)])
        self._skipped = skipped

    def fetch(self, windows: PlannedWindows) -> Iterator[LocatedWindows]:
        """Yield all windows but those of skipped episodes, in one part a data set."""
        skipped = np.array(sorted(self._skipped), np.int64)
        numbers = self._bases[windows.datasets] + windows.episodes
        present = ~np.isin(numbers, skipped)
        for dataset, steps in enumerate(self.steps):
            which = np.flatnonzero(present & (windows.datasets == dataset))
            if len(which):
                yield LocatedWindows(which, steps, windows.times[which], np.zeros_like(which))


def _blank_steps(dataset: StreamDataset, form: SampleForm, cameras: Sequence[str]) -> TimeSteps:
    longest, index = int(dataset.steps.max()), dataset.index
    codes = np.zeros((longest, index.image.rows, index.image.columns), np.uint16)
    actions = np.zeros((longest, index.embodiment.action_dim), np.float64)
    states = np.zeros((longest, index.embodiment.state_dim), np.float32)
    steps = TimeSteps.empty(longest, form)
    tokenise([dict.fromkeys(cameras, codes)], actions, states, dataset, cameras, steps)
    return steps

"""Batches without their episodes: the shape of the planned batch, for a step that will not count.

Ranks compute a step together, so a rank whose batch is not ready has to take part nevertheless. Segments,
positions, action blocks and the number of labels of each kind are those of the planned batch, so that every
collective of the step has the size that the other ranks expect; the frames and actions are blank.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from data.config import DataConfig
from data.stream.datasets import StreamDataset
from data.stream.plan import PlannedWindows
from data.stream.samples import SampleForm
from data.stream.time_steps import LocatedWindows, TimeSteps, tokenise
from data.tokens.vocabulary import ACTION_DIM, STATE_DIM


class BlankEpisodes:
    """Replacement of `EpisodeMemory`: every episode is available at once, and none is read.

    Args:
        datasets: The data sets.
        form: Sizes of the samples.
        config: Cameras and ranges.
        skipped: Numbers of the bad episodes that the planned batch does not contain either.

    Attributes:
        steps: As many blank time steps as the longest episode has; each episode begins at the first.
    """

    def __init__(
        self,
        datasets: Sequence[StreamDataset],
        form: SampleForm,
        config: DataConfig,
        skipped: Collection[int],
    ) -> None:
        longest = max(int(dataset.steps.max()) for dataset in datasets)
        index = datasets[0].index
        grid = (longest, index.image.rows, index.image.columns)
        codes = {camera: np.zeros(grid, np.uint16) for camera in config.cameras}
        actions = np.zeros((longest, ACTION_DIM), np.float64)
        states = np.zeros((longest, STATE_DIM), np.float32)
        self.steps = TimeSteps.empty(longest, form)
        tokenise(codes, actions, states, index, config, self.steps)
        self._bases = np.cumsum([0, *(len(dataset.entries) for dataset in datasets)])
        self._skipped = skipped

    def fetch(self, windows: PlannedWindows) -> Iterator[LocatedWindows]:
        """Yield all windows but those of skipped episodes, in one part."""
        skipped = np.array(sorted(self._skipped), np.int64)
        numbers = self._bases[windows.datasets] + windows.episodes
        present = np.flatnonzero(~np.isin(numbers, skipped))
        yield LocatedWindows(present, self.steps, windows.times[present])

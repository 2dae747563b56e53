"""Batches without their episodes: the shape of what was planned, for a step that will not count.

Ranks compute a step together, so a rank whose batch does not come has to take part all the same. Segments,
positions, action blocks and the number of labels of each kind are those of the planned batch, so that every
collective of the step has the size that the other ranks expect; the frames and actions are blank.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from data.config import DataConfig
from data.stream.datasets import Source
from data.stream.plan import PlannedWindows
from data.stream.samples import SampleForm
from data.stream.cached_windows import Cut
from data.stream.time_steps import TimeSteps, tokenise
from data.tokens.vocabulary import ACTION_DIM, STATE_DIM


class BlankEpisodes:
    """In place of `EpisodeMemory`: every episode is there at once, and none is read.

    Args:
        sources: The data sets.
        form: Of the samples.
        config: Cameras and ranges.
        left_out: Numbers of the episodes that the planned batch has not either, because they are bad.

    Attributes:
        steps: As many blank time steps as the longest episode has; each episode begins at the first.
    """

    def __init__(
        self, sources: Sequence[Source], form: SampleForm, config: DataConfig, left_out: Collection[int]
    ) -> None:
        longest = max(int(source.steps.max()) for source in sources)
        index = sources[0].index
        grid = (longest, index.image.rows, index.image.columns)
        codes = {camera: np.zeros(grid, np.uint16) for camera in config.cameras}
        actions = np.zeros((longest, ACTION_DIM), np.float32)
        states = np.zeros((longest, STATE_DIM), np.float32)
        self.steps = TimeSteps.empty(longest, form)
        tokenise(codes, actions, states, index, config, self.steps)
        self._bases = np.cumsum([0, *(len(source.entries) for source in sources)])
        self._left_out = left_out

    def cuts(self, windows: PlannedWindows) -> Iterator[Cut]:
        """All windows but those of episodes left out, in one part; every episode begins at the first step."""
        bad = np.array(sorted(self._left_out), np.int64)
        numbers = self._bases[windows.sources] + windows.episodes
        there = np.flatnonzero(~np.isin(numbers, bad))
        yield there, self.steps, windows.times[there]

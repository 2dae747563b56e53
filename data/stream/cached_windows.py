"""Windows out of the cache of a node: only the time steps that they hold.

Where a process cannot hold the data set, most windows are of episodes that it does not hold. To read and
tokenise an episode for each of them costs a hundred times what a window costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.storage.cached_episodes import KeptEpisodes, Rows, codes_field
from data.stream.datasets import Source
from data.stream.plan import Kind, PlannedWindows
from data.stream.samples import SampleForm
from data.stream.time_steps import TimeSteps, tokenise

_ROWS = 4096  # time steps read and tokenised together

_Ints = NDArray[np.int64]
Cut = tuple[_Ints, TimeSteps, _Ints]  # which windows, what they are cut from, where time step t of each lies


class SliceReader:
    """Reads windows of episodes that the cache of the node keeps. For one thread at a time.

    Args:
        sources: The data sets; all with a cache.
        form: Of the samples.
        config: Cameras and ranges.
    """

    def __init__(self, sources: Sequence[Source], form: SampleForm, config: DataConfig) -> None:
        self._sources, self._form, self._config = sources, form, config
        self._kept = [_kept(source) for source in sources]
        most = max(_ROWS, form.history + max(form.chunk - 1, form.predicted))  # a window must fit
        self._steps = TimeSteps.empty(most, form)
        self._memory = bytearray(most * max(kept.row.itemsize for kept in self._kept))

    def read(self, windows: PlannedWindows, which: _Ints) -> Iterator[Cut]:
        """Some of the windows, those of them whose episodes are kept, part by part.

        Each part is to be used before the next one is asked for.
        """
        which = which[np.lexsort((windows.episodes[which], windows.sources[which]))]
        worlds = windows.kinds[which] == Kind.WORLD
        times, sources = windows.times[which], windows.sources[which]
        begins = np.maximum(times - np.where(worlds, 0, self._form.history - 1), 0)
        ends = times + 1 + np.where(worlds, self._form.predicted, self._form.chunk - 1)
        for first, last in _parts(ends - begins, sources, len(self._steps.frames)):
            part = slice(first, last)
            counts = ends[part] - begins[part]
            places = np.cumsum(counts) - counts
            rows, good = self._fetch(
                int(sources[first]), windows.episodes[which[part]], begins[part], counts, places
            )
            if good.any():
                steps = self._tokenise(int(sources[first]), rows)
                yield which[part][good], steps, (places + times[part] - begins[part])[good]

    def _fetch(
        self, source: int, episodes: _Ints, begins: _Ints, counts: _Ints, places: _Ints
    ) -> tuple[Rows, NDArray[np.bool_]]:
        """Rows of windows one after the other, and whether those of each were there (else they are zeros)."""
        kept, entries = self._kept[source], self._sources[source].entries
        width, memory = kept.row.itemsize, memoryview(self._memory)
        good = np.zeros(len(episodes), bool)
        edges = [0, *(np.flatnonzero(np.diff(episodes)) + 1).tolist(), len(episodes)]
        where = list(zip(begins.tolist(), (places * width).tolist(), (counts * width).tolist(), strict=True))
        for first, last in pairwise(edges):
            parts = [(begin, memory[at : at + size]) for begin, at, size in where[first:last]]
            good[first:last] = kept.read(entries.digest(int(episodes[first])), parts)
        rows = np.frombuffer(memory, kept.row, int(counts.sum()))
        if not good.all():
            rows[np.repeat(~good, counts)] = np.zeros((), kept.row)
        return rows, good

    def _tokenise(self, source: int, rows: Rows) -> TimeSteps:
        codes = {camera: rows[codes_field(camera)] for camera in self._config.cameras}
        steps = self._steps.part(0, len(rows))
        index = self._sources[source].index
        tokenise(codes, rows["actions"], rows["states"], index, self._config, steps)
        return steps


def _kept(source: Source) -> KeptEpisodes:
    if source.index.kept is None:
        raise ValueError(f"{source.name} has no cache")
    return source.index.kept


def _parts(counts: _Ints, sources: _Ints, most: int) -> Iterator[tuple[int, int]]:
    """Runs of windows of one source with at most `most` time steps together."""
    ends = np.cumsum(counts)
    edges = [0, *(np.flatnonzero(np.diff(sources)) + 1).tolist(), len(sources)]
    for begin, end in pairwise(edges):
        while begin < end:
            before = int(ends[begin - 1]) if begin else 0
            last = min(int(np.searchsorted(ends, before + most, side="right")), end)
            yield begin, last
            begin = last

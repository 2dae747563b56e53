"""Windows read from the cache of a node: only the time steps that they hold.

Where a process cannot hold the data set, most windows belong to episodes that are not in its memory. Reading
and tokenising the whole episode for each of them costs a hundred times what a window costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.storage.cached_episodes import CachedEpisodes, Rows, codes_field
from data.stream.datasets import StreamDataset
from data.stream.plan import Kind, PlannedWindows
from data.stream.samples import SampleForm
from data.stream.time_steps import LocatedWindows, TimeSteps, tokenise

_ROWS = 4096  # time steps read and tokenised together

_Ints = NDArray[np.int64]


class CachedWindowReader:
    """Reads windows of episodes in the cache of the node. For one thread at a time.

    Args:
        datasets: The data sets; all with a cache.
        form: Sizes of the samples.
        config: Cameras and ranges.
    """

    def __init__(self, datasets: Sequence[StreamDataset], form: SampleForm, config: DataConfig) -> None:
        self._datasets, self._form, self._config = datasets, form, config
        self._cached = [_cached_episodes(dataset) for dataset in datasets]
        limit = max(_ROWS, form.history + max(form.chunk - 1, form.predicted))  # a window must fit
        self._steps = TimeSteps.empty(limit, form)
        self._memory = bytearray(limit * max(cached.row.itemsize for cached in self._cached))

    def read(self, windows: PlannedWindows, which: _Ints) -> Iterator[LocatedWindows]:
        """Read those of the windows `which` whose episodes are in the cache, part by part.

        Each part is valid until the next one is requested.
        """
        which = which[np.lexsort((windows.episodes[which], windows.datasets[which]))]
        worlds = windows.kinds[which] == Kind.WORLD
        times, datasets = windows.times[which], windows.datasets[which]
        begins = np.maximum(times - np.where(worlds, 0, self._form.history - 1), 0)
        ends = times + 1 + np.where(worlds, self._form.predicted, self._form.chunk - 1)
        for first, last in _parts(ends - begins, datasets, len(self._steps.frames)):
            part = slice(first, last)
            counts = ends[part] - begins[part]
            offsets = np.cumsum(counts) - counts
            dataset = int(datasets[first])
            rows, valid = self._read_rows(
                dataset, windows.episodes[which[part]], begins[part], counts, offsets
            )
            if valid.any():
                positions = offsets + times[part] - begins[part]
                yield LocatedWindows(which[part][valid], self._tokenise(dataset, rows), positions[valid])

    def _read_rows(
        self, dataset: int, episodes: _Ints, begins: _Ints, counts: _Ints, offsets: _Ints
    ) -> tuple[Rows, NDArray[np.bool_]]:
        """Rows of windows one after the other, and whether those of each are valid (else they are zeros)."""
        cached, entries = self._cached[dataset], self._datasets[dataset].entries
        width, memory = cached.row.itemsize, memoryview(self._memory)
        valid = np.zeros(len(episodes), bool)
        edges = [0, *(np.flatnonzero(np.diff(episodes)) + 1).tolist(), len(episodes)]
        ranges = zip(begins.tolist(), (offsets * width).tolist(), (counts * width).tolist(), strict=True)
        views = [(begin, memory[at : at + size]) for begin, at, size in ranges]
        for first, last in pairwise(edges):
            valid[first:last] = cached.read(entries.digest(int(episodes[first])), views[first:last])
        rows = np.frombuffer(memory, cached.row, int(counts.sum()))
        if not valid.all():
            rows[np.repeat(~valid, counts)] = np.zeros((), cached.row)
        return rows, valid

    def _tokenise(self, dataset: int, rows: Rows) -> TimeSteps:
        codes = {camera: rows[codes_field(camera)] for camera in self._config.cameras}
        steps = self._steps.part(0, len(rows))
        index = self._datasets[dataset].index
        tokenise(codes, rows["actions"], rows["states"], index, self._config, steps)
        return steps


def _cached_episodes(dataset: StreamDataset) -> CachedEpisodes:
    if dataset.index.cached_episodes is None:
        raise ValueError(f"{dataset.name} has no cache")
    return dataset.index.cached_episodes


def _parts(counts: _Ints, datasets: _Ints, limit: int) -> Iterator[tuple[int, int]]:
    """Runs of windows of one data set with at most `limit` time steps together."""
    ends = np.cumsum(counts)
    edges = [0, *(np.flatnonzero(np.diff(datasets)) + 1).tolist(), len(datasets)]
    for begin, end in pairwise(edges):
        while begin < end:
            before = int(ends[begin - 1]) if begin else 0
            last = min(int(np.searchsorted(ends, before + limit, side="right")), end)
            yield begin, last
            begin = last

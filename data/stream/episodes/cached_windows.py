"""Windows read from the cache of a node: only the time steps that they hold.

Where a process cannot hold the data set, most windows belong to episodes that are not in its memory. Reading
and tokenising the whole episode for each of them costs a hundred times what a window costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.storage.cached_episodes import CachedEpisodes, Rows, codes_field
from data.stream.datasets import StreamDataset
from data.stream.episodes.time_steps import LocatedWindows, TimeSteps, tokenise
from data.stream.order.plan import Kind, PlannedWindows
from data.stream.samples import SampleForm

_ROWS = 4096  # time steps read and tokenised together

_Ints = NDArray[np.int64]


class CachedWindowReader:
    """Reads windows of episodes in the cache of the node. For one thread at a time.

    Args:
        datasets: Data sets of one form by their numbers; all with a cache.
        form: Sizes of their samples.
        config: Cameras and variants.
    """

    def __init__(self, datasets: Mapping[int, StreamDataset], form: SampleForm, config: DataConfig) -> None:
        self._datasets, self._form, self._config = datasets, form, config
        self._cached = {number: _cached_episodes(dataset) for number, dataset in datasets.items()}
        limit = max(_ROWS, form.history + max(form.chunk - 1, form.predicted))  # a window must fit
        self._steps = TimeSteps.empty(limit, form)
        self._memory = bytearray(limit * max(cached.row.itemsize for cached in self._cached.values()))

    def read(self, windows: PlannedWindows, which: _Ints) -> Iterator[LocatedWindows]:
        """Read those of the windows `which` whose episodes are in the cache, part by part.

        Each part is valid until the next one is requested. Only the variant that a window shows is tokenised.
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
                shown = np.repeat(windows.variants[which[part]], counts)
                steps = self._tokenise(dataset, rows, shown)
                positions = (offsets + times[part] - begins[part])[valid]
                yield LocatedWindows(which[part][valid], steps, positions, np.zeros_like(positions))

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

    def _tokenise(self, number: int, rows: Rows, shown: _Ints) -> TimeSteps:
        """Time steps whose frames are, for each row, those of the variant that it is `shown` in."""
        steps, cameras = self._steps.part(0, len(rows)), self._config.cameras
        codes = {camera: self._codes(rows, camera, shown) for camera in cameras}
        tokenise([codes], rows["actions"], rows["states"], self._datasets[number], cameras, steps)
        return steps

    def _codes(self, rows: Rows, camera: str, shown: _Ints) -> NDArray[np.uint16]:
        recorded = rows[codes_field(camera)]
        if not self._config.variants:
            return recorded
        codes = recorded.copy()
        for variant in range(1, self._config.variants + 1):
            where = np.flatnonzero(shown == variant)
            codes[where] = rows[codes_field(camera, variant)][where]
        return codes


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

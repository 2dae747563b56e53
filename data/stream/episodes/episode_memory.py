"""Tokenised episodes in the memory of one process, in rings of time steps of fixed size.

Data sets whose samples have one form share a ring (`data.stream.episodes.episode_ring`); of several rings
each has the share of the memory that its data sets have of all time steps, in bytes.

Episodes are read by units. In the local order the unit is the missing episode's block, whose other episodes
are needed soon as well, unless the memory is too small for that (`EpisodeMemory.expect`). Where a ring holds
all its episodes and the data set lies in an object store, it is a run of neighbours of the shard
(`data.stream.episodes.shard_runs`): all of it will be needed. Else it is one episode.

Where a ring holds neither all its episodes nor those that a local order draws from at a time, and the node
has a cache, windows of the other episodes are read from the cache without their episodes
(`data.stream.episodes.cached_windows`); only episodes that are not in the cache are read as a whole.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.contracts import Episode
from data.errors import InputError
from data.storage.store import is_object_store
from data.stream.datasets import StreamDataset
from data.stream.episodes.cached_windows import CachedWindowReader
from data.stream.episodes.episode_ring import ABSENT, EpisodeRing
from data.stream.episodes.shard_runs import ShardRuns
from data.stream.episodes.time_steps import LocatedWindows, TimeSteps, tokenise
from data.stream.episodes.unit_reader import UnitReader
from data.stream.order.episode_blocks import EpisodeBlocks
from data.stream.order.plan import PlannedWindows
from data.stream.samples import SampleForm
from data.tokens.vocabulary import IMAGE_CODE_COUNT

_LOG = logging.getLogger(__name__)
MEGABYTE = 2**20
_BAD = -2


@dataclass(frozen=True, slots=True)
class _Group:
    """The data sets whose samples have one form; `cached_windows` None: their windows need no cache."""

    ring: EpisodeRing
    cached_windows: CachedWindowReader | None


class EpisodeMemory:
    """The episodes of all data sets, numbered through (the first data set first). For one thread at a time.

    Args:
        datasets: The data sets.
        forms: Sizes of the samples of each.
        config: Cameras, variants and limits.
        blocks: Blocks of episodes of each data set where the order is local; None, or none at all: it is not.

    Attributes:
        skipped: Numbers of the bad episodes that were skipped.
    """

    def __init__(
        self,
        datasets: Sequence[StreamDataset],
        forms: Sequence[SampleForm],
        config: DataConfig,
        blocks: Sequence[EpisodeBlocks | None] = (),
    ) -> None:
        self._datasets, self._config = datasets, config
        counts = [len(dataset.entries) for dataset in datasets]
        self._bases = np.cumsum([0, *counts])
        self._begin_list: list[int] = self._bases.tolist()
        self._begins = np.full(sum(counts), ABSENT, np.int32)
        distinct = list(dict.fromkeys(forms))
        self._group_of = np.array([distinct.index(form) for form in forms])
        sizes = _ring_sizes(datasets, forms, distinct, config)
        self._blocks = blocks or [None] * len(datasets)
        self._is_local = self._holds_open = any(each is not None for each in self._blocks)
        self._groups = [
            self._make_group(number, form, *sizes[number]) for number, form in enumerate(distinct)
        ]
        self._units = [self._units_of(number) for number in range(len(datasets))]
        self._reader = UnitReader(datasets, config.readers)
        self._closed = False
        self.skipped: list[int] = []

    @property
    def rings(self) -> tuple[EpisodeRing, ...]:
        """The rings, one for each form of samples."""
        return tuple(group.ring for group in self._groups)

    def expect(self, open_megabytes: float) -> None:
        """Tell how much the episodes take that a local order draws from at a time; without it, they fit."""
        self._holds_open = self._is_local and open_megabytes <= self._config.memory_megabytes

    def fetch(self, windows: PlannedWindows) -> Iterator[LocatedWindows]:
        """Bring the time steps of windows into memory, part by part if they do not fit at once.

        Yields:
            Windows that can be cut before the next part is requested, of data sets of one form. A window
            whose episode is bad is in no part.

        Raises:
            InputError: An episode is missing or damaged (names shard, episode and offset), and no more may
                be skipped.
        """
        numbers = self._bases[windows.datasets] + windows.episodes
        groups = self._group_of[windows.datasets]
        for number, group in enumerate(self._groups):
            yield from self._fetch(group, windows, numbers, np.flatnonzero(groups == number))

    def _fetch(
        self,
        group: _Group,
        windows: PlannedWindows,
        numbers: NDArray[np.int64],
        missing: NDArray[np.int64],
    ) -> Iterator[LocatedWindows]:
        """As `fetch`, of the windows `missing`, all of one group; `numbers`: episodes of all windows."""
        cache_was_read = group.cached_windows is None or self._holds_open
        while True:
            begins = self._begins[numbers[missing]]
            present = begins >= 0
            if present.any():
                which = missing[present]
                positions = begins[present] + windows.times[which]
                yield LocatedWindows(which, group.ring.steps, positions, windows.variants[which])
            missing = missing[begins == ABSENT]
            if group.cached_windows is not None and not cache_was_read:
                done = np.zeros(len(numbers), bool)
                for part in group.cached_windows.read(windows, missing):
                    done[part.which] = True
                    yield part
                missing, cache_was_read = missing[~done[missing]], True
            if not len(missing):
                return
            self._read(list(dict.fromkeys(numbers[missing].tolist())))

    def close(self) -> None:
        """End the threads that read; their retries are cancelled, so that an outage does not delay this."""
        self._closed = True
        for dataset in self._datasets:
            dataset.index.store.cancel_retries()
            if dataset.index.cache is not None:
                dataset.index.cache.cancel_waits()
        self._reader.close()

    def _read(self, numbers: list[int]) -> None:
        """Read the first of some episodes of one group with their units, as many as its ring has room for."""
        for number, outcome in self._reader.read(self._choose_units(numbers)):
            try:
                if isinstance(outcome, InputError):
                    raise outcome
                self._store(number, outcome)
            except InputError as error:
                if number in numbers:  # else it is judged when a window needs it
                    self._skip(number, error)

    def _choose_units(self, numbers: list[int]) -> list[list[int]]:
        """Units of the first of some absent episodes of one group; together they fit into its ring."""
        room = self._ring(self._dataset_number(numbers[0])).room
        units: list[list[int]] = []
        chosen: set[int] = set()
        for number in numbers:
            if number in chosen:
                continue
            unit = self._unit(number)
            steps = sum(map(self._length, unit))
            if steps > room and not units:
                unit, steps = [number], self._length(number)
            if steps > room and units:
                break
            units.append(unit)
            chosen.update(unit)
            room -= steps
        return units

    def _unit(self, number: int) -> list[int]:
        """The absent episodes of the unit of an absent episode."""
        dataset = self._dataset_number(number)
        units, base = self._units[dataset], self._begin_list[dataset]
        if units is None or (self._is_local and not self._holds_open):
            return [number]
        members = (base + episode for episode in units.of(number - base))
        return [member for member in members if self._begins[member] == ABSENT]

    def _units_of(self, number: int) -> EpisodeBlocks | ShardRuns | None:
        """How the episodes of a data set are read; None: one by one."""
        dataset, blocks = self._datasets[number], self._blocks[number]
        if blocks is not None:
            return blocks
        if self._ring(number).wraps or not is_object_store(dataset.index.url):
            return None
        return ShardRuns(dataset.entries)

    def _store(self, number: int, episode: Episode) -> None:
        dataset = self._dataset_number(number)
        ring = self._ring(dataset)
        begin, into = ring.place(episode.length)
        views = (episode.codes, *episode.variants)[: 1 + self._config.variants]
        of, cameras = self._datasets[dataset], self._config.cameras
        tokenise(views, episode.actions, episode.states, of, cameras, into)
        ring.add(number, begin, episode.length)

    def _skip(self, number: int, error: InputError) -> None:
        allowed = self._config.skip_bad_episodes
        if self._closed or len(self.skipped) >= allowed:
            raise error
        self.skipped.append(number)
        self._begins[number] = _BAD
        _LOG.warning(
            "skipped %d of data.skip_bad_episodes=%d episodes: %s", len(self.skipped), allowed, error
        )

    def _make_group(self, number: int, form: SampleForm, size: int, total: int) -> _Group:
        """A group of data sets whose ring has `size` of all their `total` time steps."""
        ring = EpisodeRing(form, self._config.variants, size, total, self._begins)
        members = {i: dataset for i, dataset in enumerate(self._datasets) if int(self._group_of[i]) == number}
        use_cache = ring.wraps and all(map(_has_usable_cache, members.values()))
        return _Group(ring, CachedWindowReader(members, form, self._config) if use_cache else None)

    def _dataset_number(self, number: int) -> int:
        return bisect_right(self._begin_list, number) - 1

    def _ring(self, dataset: int) -> EpisodeRing:
        """The ring of a data set."""
        return self._groups[int(self._group_of[dataset])].ring

    def _length(self, number: int) -> int:
        dataset = self._dataset_number(number)
        return int(self._datasets[dataset].steps[number - self._begin_list[dataset]])


def _has_usable_cache(dataset: StreamDataset) -> bool:
    """Whether windows may be read from a cache: there is one, and none of the codes can be invalid."""
    index = dataset.index
    return index.cached_episodes is not None and index.image.codebook_size <= IMAGE_CODE_COUNT


def _ring_sizes(
    datasets: Sequence[StreamDataset],
    forms: Sequence[SampleForm],
    distinct: Sequence[SampleForm],
    config: DataConfig,
) -> list[tuple[int, int]]:
    """Time steps that the ring of each distinct form holds, and those of all its episodes."""
    members = [[d for d, own in zip(datasets, forms, strict=True) if own == form] for form in distinct]
    widths = [TimeSteps.empty(1, form, config.variants).nbytes for form in distinct]
    totals = [sum(int(dataset.steps.sum(dtype=np.int64)) for dataset in group) for group in members]
    demand = sum(total * width for total, width in zip(totals, widths, strict=True))
    sizes: list[tuple[int, int]] = []
    for group, total in zip(members, totals, strict=True):
        longest = max(int(dataset.steps.max()) for dataset in group)
        requested = config.memory_megabytes * MEGABYTE * total // demand  # the width of a step cancels out
        sizes.append((min(max(requested, longest), total), total))  # an episode must fit
    return sizes

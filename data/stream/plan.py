"""Which windows every sequence of every step holds: a pure function, with nothing stored.

Each kind of sample of each data set is an endless stream of its own (`slots`), of which every step takes
the same number; where in the step's sequences they lie is the same for all steps (`layout`). So any step
is found without looking at those before it, and the number of ranks does not enter: sequences are
numbered over the whole step, and a rank takes its share of them. Cost: the windows asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data.config import MixtureConfig
from data.errors import InputError
from data.stream.layout import KINDS, SourceWindows, plan_layout
from data.stream.stratified_sampler import SlotStreams


class Kind(IntEnum):
    """The two kinds of sample; the value is the column in layouts and the order within a sequence."""

    ACTION = 0
    WORLD = 1


@dataclass(frozen=True, slots=True)
class PlannedWindows:
    """Windows in the order of their sequences; every array is int64 [N].

    Attributes:
        sequences: Number of the sequence within the global batch.
        kinds: `Kind` of the sample.
        sources: Number of the data set.
        episodes: Number of the episode within its data set's split.
        times: Time step t of the window.
    """

    sequences: NDArray[np.int64]
    kinds: NDArray[np.int64]
    sources: NDArray[np.int64]
    episodes: NDArray[np.int64]
    times: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sequences)


class Plan:
    """The order of one split of one or several data sets for one seed.

    Args:
        sources: The data sets.
        mixture: Weights of the kinds of sample.
        sequences: G, sequences in a step, over all ranks.
        sequence_length: S, tokens of a sequence.
        seed: Names the order; another seed, another order.
        fingerprint: Of the data, so that changed data is not taken for the same order.

    Raises:
        InputError: A kind is asked for of which a data set holds no window, or as `layout.plan_layout`.
    """

    def __init__(
        self,
        sources: Sequence[SourceWindows],
        mixture: MixtureConfig,
        sequences: int,
        sequence_length: int,
        seed: int,
        fingerprint: str,
    ) -> None:
        _check_windows(sources, mixture)
        self.sources, self.mixture = tuple(sources), mixture
        self.global_batch, self.sequence_length = sequences, sequence_length
        self.layout = plan_layout(sources, mixture, sequences, sequence_length)
        tables = [table for source in sources for table in source.tables]
        names = [
            f"{fingerprint}/{seed}/{number}/{kind.name}" for number in range(len(sources)) for kind in Kind
        ]
        self._streams = SlotStreams(
            [table.count for table in tables], self.layout.counts.reshape(-1).tolist(), names
        )
        counts = self.layout.counts.reshape(-1)
        streams = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        slots = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
        # Within a sequence: actions, then worlds, each data set by data set.
        order = np.lexsort((slots, streams // KINDS, streams % KINDS, self.layout.sequences))
        self._streams_of, self._slots = streams[order], slots[order]
        sizes = np.bincount(self.layout.sequences, minlength=sequences)
        self._begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])

    def samples_per_step(self, kind: Kind, source: int | None = None) -> int:
        """Samples of a kind in every step, over all ranks; of one data set or of all."""
        column = self.layout.counts[:, kind]
        return int(column.sum() if source is None else column[source])

    def share(self, rank: int, ranks: int) -> tuple[int, int]:
        """First and last (exclusive) sequence of data-parallel rank `rank` of `ranks`.

        Raises:
            InputError: The global batch does not divide by the ranks.
        """
        if ranks < 1 or self.global_batch % ranks:
            raise InputError(
                f"trainer.global_batch is {self.global_batch}, which {ranks} data-parallel ranks cannot "
                "share evenly; choose a multiple of the ranks"
            )
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} is not one of {ranks}")
        each = self.global_batch // ranks
        return rank * each, (rank + 1) * each

    def step(self, step: int, first: int = 0, last: int | None = None) -> PlannedWindows:
        """Windows of sequences `first` to `last` (exclusive; default all) of one optimiser step."""
        if step < 0:
            raise InputError(f"step is {step}, expected 0 or more")
        last = self.global_batch if last is None else last
        part = slice(int(self._begins[first]), int(self._begins[last]))
        streams, slots = self._streams_of[part], self._slots[part]
        drawn = self._streams.at(step, streams, slots)
        episodes, times = np.empty_like(slots), np.empty_like(slots)
        for number in range(KINDS * len(self.sources)):
            of = np.flatnonzero(streams == number)
            if len(of):
                table = self.sources[number // KINDS].tables[number % KINDS]
                episodes[of], times[of] = table.locate(drawn[of])
        sizes = np.diff(self._begins[first : last + 1])
        sequences = np.repeat(np.arange(first, last, dtype=np.int64), sizes)
        return PlannedWindows(sequences, streams % KINDS, streams // KINDS, episodes, times)

    def ids(self, windows: PlannedWindows) -> NDArray[np.int64]:
        """An id for each window, int64 [N], unique over data sets and kinds.

        Data set by data set, first its action windows, then its world windows, each episode by episode.
        """
        ids = np.empty_like(windows.times)
        for number in range(KINDS * len(self.sources)):
            source, kind = divmod(number, KINDS)
            of = np.flatnonzero((windows.sources == source) & (windows.kinds == kind))
            table = self.sources[source].tables[kind]
            ids[of] = self._id_begins[number] + table.ids(windows.episodes[of], windows.times[of])
        return ids

    def epochs(self, step: int) -> dict[str, float]:
        """How often each data set's windows have been taken before `step`: `{"<name>/action": 1.25, ...}`."""
        return {
            f"{self.sources[number // KINDS].name}/{Kind(number % KINDS).name.lower()}": epochs
            for number, epochs in enumerate(self._streams.epochs(step))
            if self._streams.slots[number]
        }

    @property
    def padding(self) -> float:
        """Mean share of a step's tokens that are padding, over an epoch."""
        return self.layout.padding(self.sources, self.global_batch * self.sequence_length)

    @property
    def longest_sample(self) -> int:
        """Tokens of the longest possible sample."""
        return max(table.longest for source in self.sources for table in source.tables)

    @cached_property
    def _id_begins(self) -> list[int]:
        counts = [table.count for source in self.sources for table in source.tables]
        return np.concatenate([[0], np.cumsum(counts)]).tolist()


def _check_windows(sources: Sequence[SourceWindows], mixture: MixtureConfig) -> None:
    for source in sources:
        for kind, table, weight in zip(Kind, source.tables, (mixture.action, mixture.world), strict=True):
            if weight > 0 and not table.count:
                raise InputError(
                    f"{source.name}: no {kind.name.lower()} window in {table.episodes} episodes of at most "
                    f"{table.most_steps} steps, expected an episode of at least {table.needed}; prepare "
                    "longer episodes or change data.chunk, data.predicted_frames or data.mixture"
                )

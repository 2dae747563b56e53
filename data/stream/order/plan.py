"""The windows of every sequence of every step: a pure function without state.

Each kind of sample of each data set is an endless stream of its own (`data.stream.order.stratified_sampler`),
of which every step takes the same number; their places in the sequences are the same for all steps
(`data.stream.order.layout`). So any step is computed without the steps before it, and the number of ranks
does not matter: sequences are numbered over the whole step, and a rank takes its share of them. The cost is
that of the requested windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.config import MixtureConfig
from data.errors import InputError
from data.stream.order.episode_blocks import EpisodeBlocks
from data.stream.order.layout import KINDS, DatasetWindows, plan_layout
from data.stream.order.local_layout import mix_layout
from data.stream.order.local_order import LocalOrder
from data.stream.order.local_sampler import LocalSampler
from data.stream.order.permutation import mix, round_keys
from data.stream.order.stratified_sampler import StratifiedSampler

Order = Literal["full", "local"]

MAX_STEP = 10**10
"""Last step of a plan: `step * places` stays within int64 for up to 9e8 places of a stream in a step."""


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
        datasets: Number of the data set.
        episodes: Number of the episode within its data set's split.
        times: Time step t of the window.
        variants: Which of the frames all of it shows: 0, the recorded ones, or those of a variant, from 1.
    """

    sequences: NDArray[np.int64]
    kinds: NDArray[np.int64]
    datasets: NDArray[np.int64]
    episodes: NDArray[np.int64]
    times: NDArray[np.int64]
    variants: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sequences)


class DataPlan:
    """The order of one split of one or several data sets for one seed.

    Args:
        datasets: The data sets.
        mixture: Weights of the kinds of sample.
        sequences: G, sequences in a step, over all ranks.
        sequence_length: S, tokens of a sequence.
        seed: Seed of the order.
        fingerprint: Checksum of the data; changed data has another order.
        variants: N, further variants of the frames, of which each window draws one in each epoch, or the
            recorded frames.
        pool_episodes: None: the full order. Else the local one, with so many episodes that a slot draws from
            at a time; the windows are numbered along lines of episodes (`data.stream.windows.episode_line`).

    Attributes:
        datasets: The data sets, with the windows as they are drawn.
        layout: Of every step.
        order: `full` or `local`.
        blocks: For each data set the episodes that are read together; None: each one alone.

    Raises:
        InputError: A kind has a weight but a data set holds no window of it, or as `layout.plan_layout`.
    """

    def __init__(
        self,
        datasets: Sequence[DatasetWindows],
        mixture: MixtureConfig,
        sequences: int,
        sequence_length: int,
        seed: int,
        fingerprint: str,
        variants: int = 0,
        pool_episodes: int | None = None,
    ) -> None:
        _check_windows(datasets, mixture)
        self.datasets, self.mixture = tuple(datasets), mixture
        self.global_batch, self.sequence_length = sequences, sequence_length
        self.layout = plan_layout(datasets, mixture, sequences, sequence_length)
        seeds = [f"{fingerprint}/{seed}/{number}" for number in range(len(datasets))]
        names = [f"{each}/{kind.name}" for each in seeds for kind in Kind]
        self.order: Order = "full" if pool_episodes is None else "local"
        self.blocks: tuple[EpisodeBlocks | None, ...] = (None,) * len(datasets)
        self._sampler: StratifiedSampler | LocalSampler
        if pool_episodes is None:
            windows = [table.count for dataset in datasets for table in dataset.tables]
            self._sampler = StratifiedSampler(windows, self.layout.counts.reshape(-1).tolist(), names)
        else:
            self.layout = mix_layout(self.layout, sequences, sequence_length)
            local = LocalOrder.of(datasets, self.layout, pool_episodes, names, seeds)
            self.datasets, self._sampler, self.blocks = local.datasets, local.sampler, local.blocks
        self._variants = variants
        self._variant_keys = np.array([round_keys(f"{name}/variants")[0] for name in names])
        counts = self.layout.counts.reshape(-1)
        streams = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        slots = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
        # Within a sequence: action samples, then world samples, each by data set.
        order = np.lexsort((slots, streams // KINDS, streams % KINDS, self.layout.sequences))
        self._streams_of, self._slots = streams[order], slots[order]
        sizes = np.bincount(self.layout.sequences, minlength=sequences)
        self._begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])

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
        """Windows of sequences `first` to `last` (exclusive; default all) of one optimiser step.

        Raises:
            InputError: The step is not one of 0 to `MAX_STEP`.
        """
        if not 0 <= step <= MAX_STEP:
            raise InputError(f"step is {step}, expected 0 to {MAX_STEP}")
        last = self.global_batch if last is None else last
        part = slice(int(self._begins[first]), int(self._begins[last]))
        streams, slots = self._streams_of[part], self._slots[part]
        drawn = self._sampler.draw(step, streams, slots)
        episodes, times = np.empty_like(slots), np.empty_like(slots)
        for number in range(KINDS * len(self.datasets)):
            where = np.flatnonzero(streams == number)
            if len(where):
                table = self.datasets[number // KINDS].tables[number % KINDS]
                episodes[where], times[where] = table.locate(drawn[where])
        sizes = np.diff(self._begins[first : last + 1])
        sequences = np.repeat(np.arange(first, last, dtype=np.int64), sizes)
        variants = self._draw_variants(step, streams, slots, episodes, times)
        return PlannedWindows(sequences, streams % KINDS, streams // KINDS, episodes, times, variants)

    def ids(self, windows: PlannedWindows) -> NDArray[np.int64]:
        """An id for each window, int64 [N], unique over data sets and kinds.

        Data set by data set, first its action windows, then its world windows, each episode by episode.
        """
        ids = np.empty_like(windows.times)
        for number in range(KINDS * len(self.datasets)):
            dataset, kind = divmod(number, KINDS)
            where = np.flatnonzero((windows.datasets == dataset) & (windows.kinds == kind))
            table = self.datasets[dataset].tables[kind]
            ids[where] = self._id_begins[number] + table.ids(windows.episodes[where], windows.times[where])
        return ids

    def ids_of_ranks(self, step: int, ranks: int) -> list[list[int]]:
        """The ids of the windows of each of `ranks` data-parallel ranks in a step.

        Joined over the ranks the ids are the same for any number of them.

        Raises:
            InputError: The global batch does not divide by `ranks`.
        """
        shares = [self.share(rank, ranks) for rank in range(max(ranks, 1))]
        return [self.ids(self.step(step, *share)).tolist() for share in shares]

    def epochs(self, step: int) -> dict[str, float]:
        """Epochs of each data set's windows before `step`: `{"<name>/action": 1.25, ...}`."""
        return {
            f"{self.datasets[number // KINDS].name}/{Kind(number % KINDS).name.lower()}": epochs
            for number, epochs in enumerate(self._sampler.epochs(step))
            if self.layout.counts.flat[number]
        }

    @property
    def largest_segment(self) -> int:
        """Largest number of samples in a sequence."""
        return int(np.diff(self._begins).max())

    @property
    def padding(self) -> float:
        """Mean share of a step's tokens that are padding, over an epoch."""
        return self.layout.padding(self.datasets, self.global_batch * self.sequence_length)

    @property
    def longest_sample(self) -> int:
        """Tokens of the longest possible sample."""
        return max(table.longest for dataset in self.datasets for table in dataset.tables)

    def _draw_variants(
        self,
        step: int,
        streams: NDArray[np.int64],
        slots: NDArray[np.int64],
        episodes: NDArray[np.int64],
        times: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Draw one of N + 1 for each window, evenly, by a hash of its stream, its epoch and the window."""
        if not self._variants:
            return np.zeros_like(times)
        drawn = self._variant_keys[streams]
        for number in (self._sampler.epochs_of(step, streams, slots), episodes, times):
            drawn = mix(drawn + number.astype(np.uint64))
        return (drawn % np.uint64(self._variants + 1)).astype(np.int64)

    @cached_property
    def _id_begins(self) -> list[int]:
        counts = [table.count for dataset in self.datasets for table in dataset.tables]
        return np.concatenate([[0], np.cumsum(counts)]).tolist()


def _check_windows(datasets: Sequence[DatasetWindows], mixture: MixtureConfig) -> None:
    for dataset in datasets:
        for kind, table, weight in zip(Kind, dataset.tables, (mixture.action, mixture.world), strict=True):
            if weight > 0 and not table.count:
                raise InputError(
                    f"{dataset.name}: no {kind.name.lower()} window in {table.episodes} episodes of at most "
                    f"{table.max_steps} steps, expected an episode of at least {table.min_steps}; prepare "
                    "longer episodes or change data.chunk, data.predicted_frames or data.mixture"
                )

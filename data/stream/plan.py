"""Which windows every sequence of every step holds: a pure function, with nothing stored.

Each kind of sample is an endless stream of its own: all windows of the dataset in a shuffled order,
then all again in another order, and so on. A step takes the next n of each kind (n is fixed), so

    position = step * n + i        epoch, rest = divmod(position, windows of the kind)
    window   = shuffle(dataset, seed, kind, epoch)(rest)

Every window comes exactly once an epoch, any step is found without looking at those before it, and
the number of ranks does not enter: sequences are numbered over the whole step, and a rank takes its
share of them. Cost and memory: the windows asked for, and one number an episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.stream.permutation import permute


class Kind(IntEnum):
    """The two kinds of sample; the value is the row in layouts and the order within a sequence."""

    ACTION = 0
    WORLD = 1


@dataclass(frozen=True, slots=True)
class WindowTable:
    """The windows of one kind over all episodes, numbered episode by episode.

    Attributes:
        ends: int64 [E]: number of windows in the episodes up to and with this one.
    """

    ends: NDArray[np.int64]

    @classmethod
    def of_actions(cls, lengths: NDArray[np.int64], chunk: int) -> WindowTable:
        """Windows at time t with all `chunk` actions t .. t + chunk - 1."""
        return cls(np.cumsum(np.maximum(lengths - chunk + 1, 0), dtype=np.int64))

    @classmethod
    def of_worlds(cls, lengths: NDArray[np.int64]) -> WindowTable:
        """Windows at time t with a frame at t + 1."""
        return cls(np.cumsum(np.maximum(lengths - 1, 0), dtype=np.int64))

    @property
    def count(self) -> int:
        """Windows of all episodes."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def locate(self, windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Window numbers -> episode and time step of each, both int64."""
        episodes = np.searchsorted(self.ends, windows, side="right").astype(np.int64)
        begins = np.where(episodes > 0, self.ends[episodes - 1], 0)
        return episodes, windows - begins


@dataclass(frozen=True, slots=True)
class PlannedWindows:
    """Windows in the order of their sequences; every array is int64 [N].

    Attributes:
        ids: Unique over both kinds: action windows first, then world windows.
        sequences: Number of the sequence within the global batch.
        kinds: `Kind` of the sample.
        episodes: Number of the episode within its split.
        times: Time step t of the window.
    """

    ids: NDArray[np.int64]
    sequences: NDArray[np.int64]
    kinds: NDArray[np.int64]
    episodes: NDArray[np.int64]
    times: NDArray[np.int64]


class Plan:
    """The order of one dataset split for one seed.

    Args:
        lengths: int64 [E], time steps of each episode.
        chunk: K, actions an action window needs.
        layout: int64 [2, G], action and world samples of each sequence, from `packing.sample_layout`.
        seed: Names the order; another seed, another order.
        fingerprint: Of the dataset, so that changed data is not taken for the same order.

    Raises:
        InputError: The mixture asks for a kind of which the episodes hold no window.
    """

    def __init__(
        self, lengths: NDArray[np.int64], chunk: int, layout: NDArray[np.int64], seed: int, fingerprint: str
    ) -> None:
        self.windows = (WindowTable.of_actions(lengths, chunk), WindowTable.of_worlds(lengths))
        self.layout = layout
        self._key = f"{fingerprint}/{seed}"
        self._sequence_ends = np.concatenate([np.zeros((2, 1), np.int64), np.cumsum(layout, axis=1)], axis=1)
        longest = int(lengths.max()) if len(lengths) else 0
        for kind, needed in ((Kind.ACTION, chunk), (Kind.WORLD, 2)):
            if self.samples_per_step(kind) and not self.windows[kind].count:
                raise InputError(
                    f"no {kind.name.lower()} window in {len(lengths)} episodes of at most {longest} steps, "
                    f"expected an episode of at least {needed}; prepare longer episodes or change "
                    "data.chunk or data.mixture"
                )

    @property
    def global_batch(self) -> int:
        """G, sequences in a step over all ranks."""
        return self.layout.shape[1]

    def samples_per_step(self, kind: Kind) -> int:
        """Samples of a kind in every step, over all ranks."""
        return int(self._sequence_ends[kind, -1])

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
        table = np.concatenate([self._of_kind(kind, step, first, last) for kind in Kind], axis=1)
        order = np.argsort(table[1], kind="stable")  # within a sequence: actions, then worlds
        return PlannedWindows(*table[:, order])

    def _of_kind(self, kind: Kind, step: int, first: int, last: int) -> NDArray[np.int64]:
        """The windows of one kind, int64 [5, N], rows in the order of `PlannedWindows`."""
        ends = self._sequence_ends[kind]
        start, stop = int(ends[first]), int(ends[last])
        windows = self._stream(kind, step * self.samples_per_step(kind) + start, stop - start)
        episodes, times = self.windows[kind].locate(windows)
        ids = windows + (self.windows[Kind.ACTION].count if kind == Kind.WORLD else 0)
        sequences = np.repeat(np.arange(first, last, dtype=np.int64), self.layout[kind, first:last])
        return np.stack([ids, sequences, np.full(len(windows), kind, np.int64), episodes, times])

    def _stream(self, kind: Kind, position: int, count: int) -> NDArray[np.int64]:
        """Windows at `position` .. `position + count - 1` of the kind's endless stream."""
        size = self.windows[kind].count
        parts: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        while count:
            epoch, rest = divmod(position, size)
            taken = min(count, size - rest)
            key = f"{self._key}/{kind.name}/{epoch}"
            parts.append(permute(np.arange(rest, rest + taken, dtype=np.int64), size, key))
            position, count = position + taken, count - taken
        return np.concatenate(parts)

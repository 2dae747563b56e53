"""The order of windows that visits few episodes at a time: `data.shuffle=local`.

As in the full order (`data.stream.order.stratified_sampler`) each of the n slots of a step draws from a
stratum of the N windows, every window occurs exactly once in an epoch of N places, and any step is computed
without the others. But the windows are numbered episode by episode, so a stratum is a run of episodes, and a
slot visits these pool by pool (`data.stream.order.visit_table`)::

    place = step * n + label      epoch, rest = divmod(place, N)      row within the stratum = rest // n

N rarely divides by n, so the slots of some run of labels have one window more, another run in each epoch. The
labels are spread evenly over the line (`data.stream.order.visiting_order.spread`), so the borders of the
strata move by a few windows only: a slot keeps its episodes from epoch to epoch.

What is computed for a slot and an epoch (a few numbers for each block of its episodes) is kept for the steps
that follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.stream.order.permutation import mix, permute, round_keys
from data.stream.order.visit_table import Pieces, VisitTable, make_visits
from data.stream.order.visiting_order import spread
from data.stream.windows.episode_line import EpisodeLine

_Ints = NDArray[np.int64]
_EPOCHS_KEPT = 4  # of a stream: a step may end one, and the next steps are prepared ahead


@dataclass(frozen=True, slots=True)
class _Epoch:
    """One epoch of a stream.

    Attributes:
        begins, sizes: int64 [n], the stratum of each slot.
        index: int64 [n], place of each slot in `visits`, or -1.
        visits: The slots that were requested.
    """

    begins: _Ints
    sizes: _Ints
    index: _Ints
    visits: VisitTable


class EpochRows(NamedTuple):
    """Slots of one stream and one epoch in a step.

    Attributes:
        epoch: Number of the epoch.
        which: int64 [N], their numbers within the request.
        visits: Their strata.
        places: int64 [N], place of each slot in `visits`.
        rows: int64 [N], row within the stratum that each slot has come to.
    """

    epoch: int
    which: _Ints
    visits: VisitTable
    places: _Ints
    rows: _Ints


class LocalStream:
    """The endless stream of one kind of windows of one data set.

    Args:
        line: The windows, at least one.
        pieces: Of the line.
        positions: int64 [n], position of the stratum of each slot along the line: each of 0 .. n - 1 once.
        pool_episodes: Episodes that a slot draws from at a time.
        name: The seed of the order; another name, another order.
        visits: The seed of the order of the blocks, the same for both kinds of a data set.
    """

    def __init__(
        self, line: EpisodeLine, pieces: Pieces, positions: _Ints, pool_episodes: int, name: str, visits: str
    ) -> None:
        self.windows, self.slots = line.count, len(positions)
        self._line, self._pieces, self._positions = line, pieces, positions
        self._labels = spread(self.slots)[positions]
        self._pool_episodes, self._visits, self.keys = pool_episodes, visits, round_keys(name)
        self._epochs: dict[int, _Epoch] = {}

    def rows(self, step: int, slots: _Ints) -> Iterator[EpochRows]:
        """Where slots int64 [N] of a step are in their strata, epoch by epoch."""
        places = step * self.slots + self._labels[slots]
        first, last = int(places.min()) // self.windows, int(places.max()) // self.windows
        epochs = np.full_like(places, first) if first == last else places // self.windows
        rows = (places - epochs * self.windows) // self.slots
        for epoch in range(first, last + 1):
            which = np.flatnonzero(epochs == epoch) if first < last else np.arange(len(slots))
            if len(which):
                state = self._epoch(epoch, slots[which])
                yield EpochRows(epoch, which, state.visits, state.index[slots[which]], rows[which])

    def epochs_of(self, step: int, slots: _Ints) -> _Ints:
        """The epoch that slots int64 [N] of a step are in, int64 [N], from 0."""
        return (step * self.slots + self._labels[slots]) // self.windows

    def pools(self, epoch: int, slots: _Ints) -> list[_Ints]:
        """int64 [pools], windows of each pool of each slot in an epoch, in the order of the drawing."""
        state = self._epoch(epoch, slots)
        return [state.visits.pool_sizes(int(place)) for place in state.index[slots]]

    def _epoch(self, epoch: int, slots: _Ints) -> _Epoch:
        """The epoch, with at least these slots; made anew, never changed: several threads may draw."""
        kept = self._epochs
        state = kept.get(epoch) or self._new_epoch(epoch)
        missing = slots[state.index[slots] < 0]
        if len(missing):
            state = self._with_slots(epoch, state, missing)
        if kept.get(epoch) is not state:
            others = [(number, other) for number, other in kept.items() if number != epoch]
            self._epochs = dict([*others, (epoch, state)][-_EPOCHS_KEPT:])
        return state

    def _new_epoch(self, epoch: int) -> _Epoch:
        size, extra = divmod(self.windows, self.slots)
        shift = epoch * self.windows % self.slots  # label at which the epoch begins
        sizes = size + ((self._labels - shift) % self.slots < extra)
        along = np.empty_like(sizes)
        along[self._positions] = sizes
        begins = (np.cumsum(along) - along)[self._positions]
        return _Epoch(begins, sizes, np.full(self.slots, -1), VisitTable.empty())

    def _with_slots(self, epoch: int, state: _Epoch, slots: _Ints) -> _Epoch:
        shares = (_tweaks(np.full_like(slots, epoch), slots) >> np.uint64(11)).astype(np.float64) / 2.0**53
        visits = make_visits(
            self._line,
            self._pieces,
            state.begins[slots],
            state.sizes[slots],
            shares,
            self._pool_episodes,
            f"{self._visits}/{epoch}",
        )
        index = state.index.copy()
        index[slots] = np.arange(len(slots)) + len(state.visits.begins) - 1
        return _Epoch(state.begins, state.sizes, index, state.visits.joined(visits))


class LocalSampler:
    """The endless streams of several kinds of windows, computed together; as `StratifiedSampler`.

    Args:
        streams: Of each data set and kind; None: it has no slots.
    """

    def __init__(self, streams: Sequence[LocalStream | None]) -> None:
        self.streams = tuple(streams)
        unused = round_keys("")
        self._keys = np.stack([unused if each is None else each.keys for each in streams], axis=1)

    def draw(self, step: int, streams: _Ints, slots: _Ints) -> _Ints:
        """Window numbers, int64 [N], of slots int64 [N] of a step, each of its stream int64 [N]."""
        epochs, rows, first, sizes = (np.empty_like(slots) for _ in range(4))
        found = list[tuple[_Ints, EpochRows]]()
        for stream, members in self._parts(streams):
            for part in stream.rows(step, slots[members]):
                which = members[part.which]
                found.append((which, part))
                epochs[which], rows[which] = part.epoch, part.rows
                first[which], sizes[which] = part.visits.pool_of(part.places, part.rows)
        tweaks = mix(_tweaks(epochs, slots) + first.astype(np.uint64))
        rows = first + permute(rows - first, sizes, self._keys[:, streams], tweaks)
        for which, part in found:
            first[which] = part.visits.windows_at(part.places, rows[which])
        return first

    def epochs_of(self, step: int, streams: _Ints, slots: _Ints) -> _Ints:
        """The epoch of each window that `draw` returns, int64 [N], from 0."""
        epochs = np.empty_like(slots)
        for stream, members in self._parts(streams):
            epochs[members] = stream.epochs_of(step, slots[members])
        return epochs

    def epochs(self, step: int) -> list[float]:
        """Epochs of each stream in the steps before `step`."""
        return [step * each.slots / each.windows if each else 0.0 for each in self.streams]

    def _parts(self, streams: _Ints) -> Iterator[tuple[LocalStream, _Ints]]:
        for number, stream in enumerate(self.streams):
            if stream is not None and len(members := np.flatnonzero(streams == number)):
                yield stream, members


def _tweaks(epochs: _Ints, slots: _Ints) -> NDArray[np.uint64]:
    """A seed for each slot in an epoch, uint64 [N]."""
    return mix(mix(epochs.astype(np.uint64)) + slots.astype(np.uint64))

"""The order of the windows of one kind: an endless stream of which every step takes the next n.

The n places of a step are its slots. The windows, sorted by length, are divided into n strata of equal size
(within one window), and slot s always draws from stratum s, in an order that is shuffled anew in each epoch::

    windows, short to long   0 1 2 3 | 4 5 6 7 | 8 9 10      N = 11 windows, n = 3 slots
    step 0                       2        4        9         one window of each stratum
    step 1                       0        7       10

So all steps have the same lengths up to the differences within a stratum: over the whole step these sum to at
most the difference between the longest and the shortest sample. Therefore sequences are packed once, for all
steps. Every window occurs exactly once in an epoch (N places of the stream, whole steps or not):

    place = step * n + slot      epoch, rest = divmod(place, N)

A stratum is the set of places of its slot in the epoch, so sizes and borders follow from (N, n, epoch) by
arithmetic, and any step is computed without the others. The number of ranks does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.stream.order.permutation import mix, permute, round_keys


class StratifiedSampler:
    """The endless streams of several kinds of windows, computed together.

    Args:
        windows: N of each stream, number of its windows; more than 0 where it has slots.
        slots: n of each stream, its windows of each step.
        names: The seed of each stream's order; another name, another order.
    """

    def __init__(self, windows: Sequence[int], slots: Sequence[int], names: Sequence[str]) -> None:
        self.windows, self.slots = np.array(windows, np.int64), np.array(slots, np.int64)
        self._keys = np.stack([round_keys(name) for name in names], axis=1)

    def draw(self, step: int, streams: NDArray[np.int64], slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Window numbers, int64 [N], of slots int64 [N] of a step, each of its stream int64 [N]."""
        windows, count = self.windows[streams], self.slots[streams]
        places = step * count + slots
        epochs = places // windows
        shift = epochs * windows % count  # slot in which the epoch begins
        size, extra = windows // count, windows % count
        first = (slots - shift) % count  # first place of the slot within the epoch
        rows = (places - epochs * windows - first) // count
        begins = slots * size + _extras_before(slots, shift, extra, count)
        tweaks = mix(mix(epochs.astype(np.uint64)) + slots.astype(np.uint64))
        return begins + permute(rows, size + (first < extra), self._keys[:, streams], tweaks)

    def epochs_of(self, step: int, streams: NDArray[np.int64], slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """The epoch of each window that `draw` returns, int64 [N], from 0."""
        return (step * self.slots[streams] + slots) // self.windows[streams]

    def epochs(self, step: int) -> list[float]:
        """Epochs of each stream in the steps before `step`."""
        streams = zip(self.slots.tolist(), self.windows.tolist(), strict=True)
        return [step * slots / windows if slots else 0.0 for slots, windows in streams]


def largest_draws(windows: int, count: int) -> NDArray[np.int64]:
    """The largest of `windows` numbers that each of `count` slots can draw in any epoch, int64 [count]."""
    slots = np.arange(count, dtype=np.int64)
    size, extra = divmod(windows, count)
    largest = slots * size + np.minimum(slots, extra) + size - (extra == 0)
    return np.minimum(largest, windows - 1)


def _extras_before(
    slots: NDArray[np.int64], shift: NDArray[np.int64], extra: NDArray[np.int64], count: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Number of slots before each with one window more: the `extra` slots from `shift` on, cyclically."""
    wrapped = np.maximum(shift + extra - count, 0)  # of them at the beginning of the cycle
    return np.minimum(slots, wrapped) + np.clip(slots - shift, 0, extra - wrapped)

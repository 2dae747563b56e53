"""The layout of a step for the local order: both kinds of a data set side by side in any run of sequences.

A data set's world samples come from the same episodes as its action samples
(`data.stream.order.local_order`), and ranks take runs of sequences. So each rank should have, in proportion,
as many of the one as of the other. But sequences that are packed tightly often hold one kind only. Nothing
but the sequence of each sample is changed here: as many samples as the fullest layout has.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from data.stream.order.layout import KINDS, StepLayout
from data.stream.order.packing import assign_mixed

_ONE = 1 << 16  # a whole sequence; integers, so that the order is the same on every machine
_SHARES = [Fraction(part, 16) for part in range(16, 0, -1)]


def mix_layout(layout: StepLayout, sequences: int, sequence_length: int) -> StepLayout:
    """Give each sequence its share of every kind of sample, as far as all samples still fit.

    Args:
        layout: The fullest layout of a step.
        sequences: G.
        sequence_length: S, tokens of a sequence.
    """
    ends = np.cumsum(layout.counts.reshape(-1)).tolist()
    streams = [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
    for share in _SHARES:
        assigned = assign_mixed(layout.lengths, streams, share, sequences, sequence_length)
        if assigned is not None and len(np.unique(assigned)) == sequences:
            return _balance(replace(layout, sequences=assigned), sequences)
    return _balance(layout, sequences)


def _balance(layout: StepLayout, sequences: int) -> StepLayout:
    """Number the sequences anew: each next one is that which leaves the run of all so far most balanced."""
    kinds, members = np.unique(_excesses(layout, sequences), axis=0, return_inverse=True)
    of_kind = np.argsort(members.reshape(-1), kind="stable")  # sequences of each distinct content
    left = np.bincount(members.reshape(-1))
    following = np.cumsum(left) - left
    squares, total = (kinds * kinds).sum(axis=1), np.zeros(kinds.shape[1], np.int64)
    numbers = np.empty(sequences, np.int64)
    for number in range(sequences):
        growth = squares + 2 * (kinds @ total)  # of the squared excess of the run
        best = int(np.argmin(np.where(left > 0, growth, np.iinfo(np.int64).max)))
        numbers[of_kind[following[best]]] = number
        following[best] += 1
        left[best] -= 1
        total += kinds[best]
    return replace(layout, sequences=numbers[layout.sequences])


def _excesses(layout: StepLayout, sequences: int) -> NDArray[np.int64]:
    """What each sequence has too much, int64 [sequences, data sets + 1], in `_ONE`-ths of a sequence.

    Of each data set: of action samples against world samples. Last: of world samples of all data sets.
    """
    counts = layout.counts.reshape(-1)
    streams = np.repeat(np.arange(len(counts)), counts)
    table = np.zeros((sequences, len(counts)), np.int64)
    np.add.at(table, (layout.sequences, streams), 1)
    table = table.reshape(sequences, -1, KINDS)
    actions, worlds = table[:, :, 0], table[:, :, 1]
    all_actions, all_worlds = layout.counts[:, 0], layout.counts[:, 1]
    both = (all_actions > 0) & (all_worlds > 0)
    share = np.where(both, all_actions + all_worlds, 0) * sequences * _ONE // len(layout.sequences)
    excess = actions * share // np.maximum(all_actions, 1) - worlds * share // np.maximum(all_worlds, 1)
    of_worlds = worlds.sum(axis=1) * sequences * _ONE // max(int(all_worlds.sum()), 1) - _ONE
    return np.column_stack([excess, of_worlds])

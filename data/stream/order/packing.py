"""Assignment of samples to sequences by their lengths (bin packing)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def assign_sequences(
    lengths: NDArray[np.int64], sequences: int, sequence_length: int
) -> NDArray[np.int64] | None:
    """Assign each sample to a sequence, int64 [N]; None where no assignment was found that fits all.

    Two methods are tried. *Even*: the numbers of samples of two sequences differ by at most one, short
    samples are in the fuller sequences, and long beside short. *Best fit decreasing*: each sample, from the
    longest on, goes where it leaves the least room. The first is nearly optimal for samples of similar
    length, the second for different ones. Samples are never cut.

    Args:
        lengths: int64 [N], largest number of tokens of each sample.
        sequences: G.
        sequence_length: S, tokens of a sequence.
    """
    if int(lengths.sum()) > sequences * sequence_length or int(lengths.max(initial=0)) > sequence_length:
        return None
    order = np.argsort(-lengths, kind="stable")
    assigned = _even(lengths, order, sequences, sequence_length)
    room = np.full(sequences, sequence_length, np.int64)
    return _best_fit(lengths, order, room) if assigned is None else assigned


def assign_mixed(
    lengths: NDArray[np.int64],
    streams: Sequence[slice],
    share: Fraction,
    sequences: int,
    sequence_length: int,
) -> NDArray[np.int64] | None:
    """As `assign_sequences`, with every kind of sample in all parts of the sequences.

    Of each stream (a kind of a data set) the share is dealt out evenly over the sequences; the rest goes
    where it leaves the least room.

    Args:
        lengths: int64 [N], largest number of tokens of each sample.
        streams: Samples of each stream, whose lengths do not decrease.
        share: Of the samples that are dealt out, from 0 to 1.
        sequences: G.
        sequence_length: S, tokens of a sequence.
    """
    assigned = np.full(len(lengths), -1, np.int64)
    for stream in streams:
        count = stream.stop - stream.start
        dealt = int(count * share)
        if dealt:
            which = stream.start + np.arange(dealt, dtype=np.int64) * count // dealt
            assigned[which] = _dealt(dealt, sequences)
    given = assigned >= 0
    room = sequence_length - np.bincount(assigned[given], lengths[given], sequences).astype(np.int64)
    if int(room.min()) < 0:
        return None
    rest = np.flatnonzero(~given)
    placed = _best_fit(lengths, rest[np.argsort(-lengths[rest], kind="stable")], room)
    if placed is None:
        return None
    assigned[rest] = placed[rest]
    return assigned


def _dealt(count: int, sequences: int) -> NDArray[np.int64]:
    """Sequences of samples that are dealt out in rows back and forth; the last row is spread over all."""
    assigned = _back_and_forth(count, sequences)
    rest = count % sequences
    if rest:
        assigned[count - rest :] = (2 * np.arange(rest, dtype=np.int64) + 1) * sequences // (2 * rest)
    return assigned


def _even(
    lengths: NDArray[np.int64], order: NDArray[np.int64], sequences: int, sequence_length: int
) -> NDArray[np.int64] | None:
    count, fuller = divmod(len(lengths), sequences)  # `fuller` sequences hold one sample more
    first = len(lengths) - fuller * (count + 1)  # from here on: the short samples
    assigned = np.empty_like(order)
    assigned[order[:first]] = fuller + _back_and_forth(first, sequences - fuller)
    assigned[order[first:]] = _back_and_forth(len(lengths) - first, fuller)
    sums = np.bincount(assigned, weights=lengths, minlength=sequences)
    return assigned if sums.max(initial=0) <= sequence_length else None


def _back_and_forth(count: int, width: int) -> NDArray[np.int64]:
    """Columns of dealing out from left to right and back: 0 1 2, 2 1 0, 0 1 2, ..."""
    row, column = np.divmod(np.arange(count, dtype=np.int64), max(width, 1))
    return np.where(row % 2, width - 1 - column, column)


def _best_fit(
    lengths: NDArray[np.int64], order: NDArray[np.int64], tokens_left: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Place all samples of one length at once, so that the time depends on the number of lengths.

    Args:
        lengths: int64 [N], of all samples.
        order: Those that are placed, from the longest to the shortest.
        tokens_left: int64 [G], room of each sequence.
    """
    assigned = np.empty_like(lengths)
    room = {int(left): np.flatnonzero(tokens_left == left) for left in np.unique(tokens_left)}
    edges = [0, *(np.flatnonzero(np.diff(lengths[order])) + 1).tolist(), len(order)]
    for begin, end in pairwise(edges):
        pending = order[begin:end]
        if not len(pending):
            continue
        length = int(lengths[pending[0]])
        for left in sorted(tokens for tokens in room if tokens >= length):
            capacity = left // length  # samples that fit each of these sequences
            candidates = room.pop(left)
            used = -(-len(pending) // capacity)
            taken = np.repeat(candidates[:used], capacity)[: len(pending)]
            assigned[pending[: len(taken)]] = taken
            counts = np.bincount(np.searchsorted(candidates[:used], taken), minlength=0)
            for count in set(counts.tolist()):
                _add(room, left - count * length, candidates[: len(counts)][counts == count])
            _add(room, left, candidates[used:])
            pending = pending[len(taken) :]
            if not len(pending):
                break
        if len(pending):
            return None
    return assigned


def _add(room: dict[int, NDArray[np.int64]], left: int, sequences: NDArray[np.int64]) -> None:
    if len(sequences):
        others = room.get(left, np.empty(0, np.int64))
        room[left] = np.sort(np.concatenate([others, sequences]))

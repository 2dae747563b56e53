"""Several samples in each sequence: which go together, and how they lie in the arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data.contracts import PackedBatch
from data.stream.samples import Sample
from data.tokens.vocabulary import IGNORED_LABEL, PADDING


def pack(rows: Sequence[Sequence[Sample]], sequence_length: int) -> PackedBatch:
    """Lay the samples of each row one after the other, padding after the last.

    Args:
        rows: The samples of each of the B sequences.
        sequence_length: S, tokens of a sequence.

    Raises:
        ValueError: The samples of a row do not fit; nothing is ever cut.
    """
    shape = (len(rows), sequence_length)
    tokens = np.full(shape, PADDING, np.int32)
    labels = np.full(shape, IGNORED_LABEL, np.int32)
    positions, segments, blocks = (np.zeros(shape, np.int32) for _ in range(3))
    count = np.arange(sequence_length, dtype=np.int32)
    for b, row in enumerate(rows):
        end = 0
        for number, sample in enumerate(row, start=1):
            start, end = end, end + len(sample)
            if end > sequence_length:
                raise ValueError(f"samples of {end} tokens do not fit a sequence of {sequence_length}")
            tokens[b, start:end] = sample.tokens
            labels[b, start:end] = sample.labels
            positions[b, start:end] = count[: len(sample)]
            segments[b, start:end] = number
            blocks[b, start:end] = sample.blocks
    return PackedBatch(tokens, labels, positions, segments, blocks)


def fit(lengths: NDArray[np.int64], sequences: int, sequence_length: int) -> NDArray[np.int64] | None:
    """Into which sequence each sample goes, int64 [N]; None if no way was found to fit them all.

    Two ways are tried. *Even*: every sequence holds as many samples as every other or one more, the short
    ones where there is one more, and long beside short. *Best fit decreasing*: each sample, from the
    longest on, where it leaves the least room. The first is nearly perfect for samples of similar length,
    the second for different ones. Nothing is ever cut.

    Args:
        lengths: int64 [N], the most tokens that each sample may have.
        sequences: G.
        sequence_length: S, tokens of a sequence.
    """
    if int(lengths.sum()) > sequences * sequence_length or int(lengths.max(initial=0)) > sequence_length:
        return None
    order = np.argsort(-lengths, kind="stable")
    found = _even(lengths, order, sequences, sequence_length)
    return _best_fit(lengths, order, sequences, sequence_length) if found is None else found


def _even(
    lengths: NDArray[np.int64], order: NDArray[np.int64], sequences: int, sequence_length: int
) -> NDArray[np.int64] | None:
    each, more = divmod(len(lengths), sequences)
    first = len(lengths) - more * (each + 1)  # from here on: the short samples
    found = np.empty_like(order)
    found[order[:first]] = more + _back_and_forth(first, sequences - more)
    found[order[first:]] = _back_and_forth(len(lengths) - first, more)
    sums = np.bincount(found, weights=lengths, minlength=sequences)
    return found if sums.max(initial=0) <= sequence_length else None


def _back_and_forth(count: int, width: int) -> NDArray[np.int64]:
    """0 1 2, 2 1 0, 0 1 2, ...: the columns that dealing out from left to right and back goes through."""
    row, column = np.divmod(np.arange(count, dtype=np.int64), max(width, 1))
    return np.where(row % 2, width - 1 - column, column)


def _best_fit(
    lengths: NDArray[np.int64], order: NDArray[np.int64], sequences: int, sequence_length: int
) -> NDArray[np.int64] | None:
    """Samples of one length at once, so that the time depends on how many lengths there are."""
    found = np.empty_like(order)
    room = {sequence_length: np.arange(sequences, dtype=np.int64)}  # tokens left -> sequences
    edges = [0, *(np.flatnonzero(np.diff(lengths[order])) + 1).tolist(), len(order)]
    for begin, end in pairwise(edges):
        waiting = order[begin:end]
        if not len(waiting):
            continue
        length = int(lengths[waiting[0]])
        for left in sorted(tokens for tokens in room if tokens >= length):
            each = left // length
            which = room.pop(left)
            used = -(-len(waiting) // each)
            taken = np.repeat(which[:used], each)[: len(waiting)]
            found[waiting[: len(taken)]] = taken
            counts = np.bincount(np.searchsorted(which[:used], taken), minlength=0)
            for many in set(counts.tolist()):
                _add(room, left - many * length, which[: len(counts)][counts == many])
            _add(room, left, which[used:])
            waiting = waiting[len(taken) :]
            if not len(waiting):
                break
        if len(waiting):
            return None
    return found


def _add(room: dict[int, NDArray[np.int64]], left: int, sequences: NDArray[np.int64]) -> None:
    if len(sequences):
        held = room.get(left, np.empty(0, np.int64))
        room[left] = np.sort(np.concatenate([held, sequences]))

"""The action mask split exactly into three passes of kernels that know only plain and causal attention.

A varlen kernel takes stretches of queries, each with its own stretch of keys, and lets every query see
all keys of its stretch or, causal, those up to its own place counted from the end of both. The rule of
`pretrain.model.mask` is the union of three such passes that never name a pair twice::

    1  causal   each run of tokens outside answer blocks   x   the sample up to the end of the run
    2  all      answer tokens between ordinary tokens      x   the sample's ordinary tokens before
    3  causal   the tokens of each answer block            x   the same tokens

    blocks  0 0 1 1 2 2 0      0 0 1 1 2 2 0   <- key
                             0 1
                             0 1 1
                             1 2 2 3
                             1 2 2 3 3
                             2 2 2     3
                             2 2 2     3 3
                             0 1 1 1 1 1 1 1

A query outside answer blocks is in pass 1 alone; one of an answer block is in pass 3 and, if there is an
ordinary token before it, in pass 2: the parts are merged by their log-sum-exp.

Holds for any segment and block ids, on the host, in numpy. T = B * S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pass:
    """One call of a varlen kernel: n stretches, Q queries and K keys in all.

    Attributes:
        queries: Which tokens the queries are, int64 [Q]; each token at most once.
        keys: Which tokens the keys are, int64 [K]; a token may be a key of several stretches.
        query_starts: Where stretches of queries start, int32 [n + 1] (`cu_seqlens_q`).
        key_starts: Where stretches of keys start, int32 [n + 1] (`cu_seqlens_k`).
        most_queries: Queries of the longest stretch.
        most_keys: Keys of the longest stretch.
        causal: Whether a query sees the keys up to its own place only, counted from the end.
    """

    queries: Ints
    keys: Ints
    query_starts: NDArray[np.int32]
    key_starts: NDArray[np.int32]
    most_queries: int
    most_keys: int
    causal: bool


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The passes; None where nothing is left for one.

    Attributes:
        ordinary: Pass 1.
        prefix: Pass 2.
        within: Pass 3.
    """

    ordinary: Pass | None
    prefix: Pass | None
    within: Pass | None


def split(segments: ArrayLike, blocks: ArrayLike) -> SplitPlan:
    """Plan the passes of packed sequences.

    Args:
        segments: Segment ids [B, S].
        blocks: Action block ids [B, S].
    """
    segment, block = np.asarray(segments), np.asarray(blocks).ravel()
    row = np.repeat(np.arange(segment.shape[0]), segment.shape[1])
    # Sample after sample; packed sequences lie so already.
    order = np.lexsort((segment.ravel(), row))
    sample = _number(row[order], segment.ravel()[order])
    block = block[order]
    first = np.searchsorted(sample, sample)  # place of the first token of each token's sample
    return SplitPlan(
        _ordinary(order, sample, block, first),
        _prefix(order, sample, block, first),
        _within(order, sample, block),
    )


def _ordinary(order: Ints, sample: Ints, block: Ints, first: Ints) -> Pass | None:
    places = np.flatnonzero(block <= 0)
    # A run ends where the next place is another sample's or in an answer block.
    gap = places - np.arange(len(places))
    starts = _starts(_number(sample[places], gap))
    ends = places[starts[1:] - 1] + 1
    from_first = first[places[starts[:-1]]]
    keys, key_starts = _ranges(from_first, ends - from_first)
    return _pass(order[places], order[keys], starts, key_starts, causal=True)


def _prefix(order: Ints, sample: Ints, block: Ints, first: Ints) -> Pass | None:
    ordinary = np.flatnonzero(block == 0)
    passed = np.cumsum(block == 0) - (block == 0)  # ordinary tokens before each place
    before = passed - passed[first]  # those of the same sample
    places = np.flatnonzero((block > 0) & (before > 0))
    starts = _starts(_number(sample[places], before[places]))
    heads = places[starts[:-1]]
    keys, key_starts = _ranges(passed[first[heads]], before[heads])
    return _pass(order[places], order[ordinary[keys]], starts, key_starts, causal=False)


def _within(order: Ints, sample: Ints, block: Ints) -> Pass | None:
    places = np.flatnonzero(block > 0)
    places = places[np.lexsort((block[places], sample[places]))]
    starts = _starts(_number(sample[places], block[places]))
    return _pass(order[places], order[places], starts, starts, causal=True)


def _number(*columns: Ints) -> Ints:
    """Number the stretches of equal rows of several columns [n], from 0."""
    change = np.zeros(len(columns[0]), bool)
    for column in columns:
        change[1:] |= column[1:] != column[:-1]
    return np.cumsum(change)


def _starts(numbers: Ints) -> Ints:
    """Where each number of a list 0, 0, 1, 1, ... starts, and the end of the list."""
    count = numbers[-1] + 1 if len(numbers) else 0
    return np.searchsorted(numbers, np.arange(count + 1))


def _ranges(starts: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """The numbers start .. start + length - 1 of each pair, and where each pair's numbers start."""
    ends = np.cumsum(lengths)
    bounds = np.concatenate([[0], ends])
    return np.arange(bounds[-1]) + np.repeat(starts - bounds[:-1], lengths), bounds


def _pass(queries: Ints, keys: Ints, query_starts: Ints, key_starts: Ints, causal: bool) -> Pass | None:
    if not len(queries):
        return None
    return Pass(
        queries=queries,
        keys=keys,
        query_starts=query_starts.astype(np.int32),
        key_starts=key_starts.astype(np.int32),
        most_queries=int(np.diff(query_starts).max()),
        most_keys=int(np.diff(key_starts).max()),
        causal=causal,
    )

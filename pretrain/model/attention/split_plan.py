"""The action mask split exactly into three passes of kernels that support only full and causal attention.

A varlen kernel takes ranges of queries, each with its own range of keys, and lets every query see all keys
of its range or, causal, those up to its own index counted from the end of both. The rule of
`pretrain.model.mask` is the union of three such passes, which are disjoint::

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

A query outside answer blocks is in pass 1 only; one of an answer block is in pass 3 and, if there is an
ordinary token before it, in pass 2: the results are merged by their log-sum-exp.

Valid for any segment and block ids; computed on the host, in numpy. T = B * S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AttentionPass:
    """One call of a varlen kernel: n ranges, Q queries and K keys in total.

    Attributes:
        queries: Token indices of the queries, int64 [Q]; each token at most once.
        keys: Token indices of the keys, int64 [K]; a token may be a key of several ranges.
        query_starts: Starts of the ranges of queries, int32 [n + 1] (`cu_seqlens_q`).
        key_starts: Starts of the ranges of keys, int32 [n + 1] (`cu_seqlens_k`).
        max_queries: Queries of the longest range.
        max_keys: Keys of the longest range.
        causal: Whether a query sees only the keys up to its own index, counted from the end.
    """

    queries: Ints
    keys: Ints
    query_starts: NDArray[np.int32]
    key_starts: NDArray[np.int32]
    max_queries: int
    max_keys: int
    causal: bool


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The passes; None for one without queries.

    Attributes:
        ordinary: AttentionPass 1.
        prefix: AttentionPass 2.
        within: AttentionPass 3.
    """

    ordinary: AttentionPass | None
    prefix: AttentionPass | None
    within: AttentionPass | None


def split(segments: ArrayLike, blocks: ArrayLike) -> SplitPlan:
    """Plan the passes of packed sequences.

    Args:
        segments: Segment ids [B, S].
        blocks: Action block ids [B, S].
    """
    segment, block = np.asarray(segments), np.asarray(blocks).ravel()
    row = np.repeat(np.arange(segment.shape[0]), segment.shape[1])
    # Ordered by sample, as packed sequences are already.
    order = np.lexsort((segment.ravel(), row))
    sample = _number(row[order], segment.ravel()[order])
    block = block[order]
    first = np.searchsorted(sample, sample)  # index of the first token of each token's sample
    return SplitPlan(
        _ordinary(order, sample, block, first),
        _prefix(order, sample, block, first),
        _within(order, sample, block),
    )


def _ordinary(order: Ints, sample: Ints, block: Ints, first: Ints) -> AttentionPass | None:
    places = np.flatnonzero(block <= 0)
    # A run ends where the next token is of another sample or in an answer block.
    gap = places - np.arange(len(places))
    starts = _starts(_number(sample[places], gap))
    ends = places[starts[1:] - 1] + 1
    from_first = first[places[starts[:-1]]]
    keys, key_starts = _ranges(from_first, ends - from_first)
    return _pass(order[places], order[keys], starts, key_starts, causal=True)


def _prefix(order: Ints, sample: Ints, block: Ints, first: Ints) -> AttentionPass | None:
    ordinary = np.flatnonzero(block == 0)
    passed = np.cumsum(block == 0) - (block == 0)  # ordinary tokens before each token
    before = passed - passed[first]  # those of the same sample
    places = np.flatnonzero((block > 0) & (before > 0))
    starts = _starts(_number(sample[places], before[places]))
    heads = places[starts[:-1]]
    keys, key_starts = _ranges(passed[first[heads]], before[heads])
    return _pass(order[places], order[ordinary[keys]], starts, key_starts, causal=False)


def _within(order: Ints, sample: Ints, block: Ints) -> AttentionPass | None:
    places = np.flatnonzero(block > 0)
    places = places[np.lexsort((block[places], sample[places]))]
    starts = _starts(_number(sample[places], block[places]))
    return _pass(order[places], order[places], starts, starts, causal=True)


def _number(*columns: Ints) -> Ints:
    """Number the runs of equal rows of several columns [n], from 0: int64 [n]."""
    change = np.zeros(len(columns[0]), bool)
    for column in columns:
        change[1:] |= column[1:] != column[:-1]
    return np.cumsum(change)


def _starts(numbers: Ints) -> Ints:
    """Start of each number in a list 0, 0, 1, 1, ... [n], and the length of the list."""
    count = numbers[-1] + 1 if len(numbers) else 0
    return np.searchsorted(numbers, np.arange(count + 1))


def _ranges(starts: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """The numbers start .. start + length - 1 of each pair, concatenated, and the start of each pair's."""
    ends = np.cumsum(lengths)
    bounds = np.concatenate([[0], ends])
    return np.arange(bounds[-1]) + np.repeat(starts - bounds[:-1], lengths), bounds


def _pass(
    queries: Ints, keys: Ints, query_starts: Ints, key_starts: Ints, causal: bool
) -> AttentionPass | None:
    if not len(queries):
        return None
    return AttentionPass(
        queries=queries,
        keys=keys,
        query_starts=query_starts.astype(np.int32),
        key_starts=key_starts.astype(np.int32),
        max_queries=int(np.diff(query_starts).max()),
        max_keys=int(np.diff(key_starts).max()),
        causal=causal,
    )

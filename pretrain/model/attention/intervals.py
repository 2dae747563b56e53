"""The action mask as two intervals of keys for each query.

In a packed sequence a query sees the keys [start, end) and [own, query]: the prompt of its sample and the
earlier tokens of its answer block. A query outside answer blocks sees all earlier tokens of its sample::

    tokens    t i a a b b e    an action sample that starts at index 0
    index     0 1 2 3 4 5 6
    start     0 0 0 0 0 0 0
    end       . . 2 2 2 2 .    . is the end of the sequence
    own       0 0 2 2 4 4 6

A kernel then reads vectors at the query alone, once a row, and torch packs the mask into words of 32 keys
where flash-attn-4 takes them (Blackwell).

Masks that do not have this form (actions before the last image that an answer does not see, ordinary tokens
between answer blocks) are detected exactly. Computed on the host, in numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Intervals:
    """For each of T = B * S tokens as a query, indices into the B * S tokens: int32 [T] each.

    Attributes:
        start: Start of its sample.
        end: End of the sample's ordinary tokens before the first action; T for a query outside answer blocks.
        own: Start of its answer block, or of its run of tokens with another block id.
    """

    start: NDArray[np.int32]
    end: NDArray[np.int32]
    own: NDArray[np.int32]


def intervals(segments: ArrayLike, blocks: ArrayLike) -> Intervals | None:
    """The mask of segment and block ids [B, S] as intervals, or None if it has another form."""
    segment, block = np.asarray(segments), np.asarray(blocks).ravel()
    row = np.repeat(np.arange(segment.shape[0]), segment.shape[1])
    segment = segment.ravel()
    index = np.arange(len(block))
    new_sample = _changes(row, segment)
    new_block = new_sample | _changes(block)
    start = np.maximum.accumulate(np.where(new_sample, index, 0))
    own = np.maximum.accumulate(np.where(new_block, index, 0))
    # The first action token of each sample: the next one from the sample's start on.
    action = np.where(block != 0, index, len(block))
    end = np.minimum.accumulate(action[::-1])[::-1][start]
    ordinary = np.cumsum(block == 0) - (block == 0)
    answer = block > 0
    between = ordinary[own] - ordinary[end.clip(max=len(block) - 1)]  # ordinary tokens between end and own
    heads = np.flatnonzero(new_block & answer)
    if between[answer].any() or not _distinct(row[new_sample], segment[new_sample]):
        return None
    if not _distinct(start[heads], block[heads]):
        return None
    return Intervals(
        start.astype(np.int32),
        np.where(answer, end, len(block)).astype(np.int32),
        own.astype(np.int32),
    )


def _changes(*columns: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether each row of several columns [n] differs from the previous one; the first does. bool [n]."""
    change = np.zeros(len(columns[0]), bool)
    change[:1] = True
    for column in columns:
        change[1:] |= column[1:] != column[:-1]
    return change


def _distinct(*columns: NDArray[np.integer]) -> bool:
    """Whether no two rows of several columns [n] are equal."""
    order = np.lexsort(columns)
    return bool(_changes(*(column[order] for column in columns)).all())

"""FlexAttention's block-sparse form of the action mask, made on the device from two or three vectors.

The sequence is cut into blocks of queries and blocks of keys. A kernel skips the pairs of blocks that
are empty, computes the full ones without looking at the mask, and asks the mask token by token in the
partial ones. Which is which follows from least and greatest values over each block: no S x S tensor is
ever made, and the host does not wait. Two samples, blocks of 4 tokens::

    segments   1111 1111 1122 2222 2222 2200        . empty    / partial    # full

        1111   /
        1111   #    /
        1122   /    /    /
        2222   .    .    /    /
        2222   .    .    /    #    /
        2200   .    .    /    /    /    /

Never wrong, but in doubt partial.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def from_intervals(start: Tensor, end: Tensor, own: Tensor, block_size: tuple[int, int]) -> BlockMask:
    """The mask whose queries see the keys of two intervals.

    Args:
        start: int32 [T], as in `intervals.Intervals`.
        end: See there.
        own: See there.
        block_size: Queries and keys of a block.
    """
    query = _Places.of(len(start), block_size[0], start.device)
    key = _Places.of(len(start), block_size[1], start.device)
    (first_start, last_start), (first_end, last_end), (first_own, last_own) = (
        _bounds(vector, query, column=True) for vector in (start, end, own)
    )
    hidden = (key.first >= last_end) & (key.last < first_own)
    empty = (key.last < first_start) | hidden
    seen = (key.first >= last_own) | (key.last < first_end)
    full = (key.first >= last_start) & seen

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= start[query]) & ((key < end[query]) | (key >= own[query]))

    return _block_mask(empty, full, query, key, block_size, visible)


def from_ids(segments: Tensor, blocks: Tensor, block_size: tuple[int, int]) -> BlockMask:
    """The mask of any segment and block ids, by the rule of `pretrain.model.mask`.

    Args:
        segments: Segment ids int32 [T].
        blocks: Action block ids int32 [T].
        block_size: Queries and keys of a block.
    """
    query = _Places.of(len(segments), block_size[0], segments.device)
    key = _Places.of(len(segments), block_size[1], segments.device)
    q_segment, q_block = (_bounds(vector, query, column=True) for vector in (segments, blocks))
    k_segment, k_block = (_bounds(vector, key) for vector in (segments, blocks))
    actions_only = _cut(blocks, key).ne(0).all(1)
    ordinary_only = (k_block[0] == 0) & (k_block[1] == 0)
    hidden = (q_block[0] > 0) & actions_only & _apart(q_block, k_block)
    empty = _apart(q_segment, k_segment) | hidden
    seen = (q_block[1] <= 0) | ordinary_only | _all_equal(q_block, k_block)
    full = _all_equal(q_segment, k_segment) & seen

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mine, other = blocks[query], blocks[key]
        same = segments[query] == segments[key]
        return (key <= query) & same & ((mine <= 0) | (other == 0) | (mine == other))

    return _block_mask(empty, full, query, key, block_size, visible)


@dataclass(frozen=True, slots=True)
class _Places:
    """Where n blocks of `size` tokens lie.

    Attributes:
        first, last: Place of the first and last token of each block [n]; the last of all may lie beyond
            the end of the sequence.
        size: Tokens of a block.
        length: Tokens of the sequence.
    """

    first: Tensor
    last: Tensor
    size: int
    length: int

    @classmethod
    def of(cls, length: int, size: int, device: torch.device) -> _Places:
        first = torch.arange(-(-length // size), device=device) * size
        return cls(first, first + size - 1, size, length)


def _cut(vector: Tensor, places: _Places) -> Tensor:
    """[T] -> [n, size]; the last token stands in for what is missing of the last block."""
    missing = len(places.first) * places.size - places.length
    return torch.cat([vector, vector[-1:].expand(missing)]).view(-1, places.size)


def _bounds(vector: Tensor, places: _Places, column: bool = False) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each block, [n] each, or [n, 1] as a column."""
    cut = _cut(vector, places)
    return cut.amin(1, keepdim=column), cut.amax(1, keepdim=column)


def _apart(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    return (one[1] < other[0]) | (other[1] < one[0])


def _all_equal(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    return (one[0] == one[1]) & (other[0] == other[1]) & (one[0] == other[0])


def _block_mask(
    empty: Tensor, full: Tensor, query: _Places, key: _Places, block_size: tuple[int, int], visible: Rule
) -> BlockMask:
    """Causality added to what is empty and what is full, bool [Q, K]."""
    empty = empty | (key.first > query.last[:, None])
    whole = query.last < query.length  # a block of keys beyond the end is later than all queries
    full = full & (key.last <= query.first[:, None]) & whole[:, None]
    partial = ~empty & ~full
    return BlockMask(
        (query.length, key.length),
        *_ordered(partial),
        *_ordered(full),
        *_ordered(partial.T),
        *_ordered(full.T),
        BLOCK_SIZE=block_size,
        mask_mod=visible,
    )


def _ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of chosen columns of rows, int32 [1, 1, R], and the columns, the chosen first [1, 1, R, C]."""
    order = torch.argsort(chosen.to(torch.int8), dim=1, descending=True, stable=True)
    return chosen.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None].contiguous()

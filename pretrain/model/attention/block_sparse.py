"""FlexAttention's block-sparse form of the action mask, built on the device from two or three vectors.

The sequence is divided into blocks of queries and blocks of keys. A kernel skips empty pairs of blocks,
computes full ones without the mask, and evaluates the mask token by token in partial ones. The kind of a
pair follows from minimum and maximum over each block: no S x S tensor is allocated, and the host does not
wait. Two samples, blocks of 4 tokens::

    segments   1111 1111 1122 2222 2222 2200        . empty    / partial    # full

        1111   /
        1111   #    /
        1122   /    /    /
        2222   .    .    /    /
        2222   .    .    /    #    /
        2200   .    .    /    /    /    /

The classification is conservative: a pair may be partial although it is full or empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def from_intervals(start: Tensor, end: Tensor, own: Tensor, block_size: tuple[int, int]) -> BlockMask:
    """The mask in which each query sees the keys of two intervals.

    Args:
        start: int32 [T], as in `intervals.Intervals`.
        end: int32 [T], likewise.
        own: int32 [T], likewise.
        block_size: Number of queries and of keys in a block.
    """
    query = _Tiles.of(len(start), block_size[0], start.device)
    key = _Tiles.of(len(start), block_size[1], start.device)
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
        block_size: Number of queries and of keys in a block.
    """
    query = _Tiles.of(len(segments), block_size[0], segments.device)
    key = _Tiles.of(len(segments), block_size[1], segments.device)
    q_segment, q_block = (_bounds(vector, query, column=True) for vector in (segments, blocks))
    k_segment, k_block = (_bounds(vector, key) for vector in (segments, blocks))
    actions_only = _blocked(blocks, key).ne(0).all(1)
    ordinary_only = (k_block[0] == 0) & (k_block[1] == 0)
    hidden = (q_block[0] > 0) & actions_only & _disjoint(q_block, k_block)
    empty = _disjoint(q_segment, k_segment) | hidden
    seen = (q_block[1] <= 0) | ordinary_only | _all_equal(q_block, k_block)
    full = _all_equal(q_segment, k_segment) & seen

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mine, other = blocks[query], blocks[key]
        same = segments[query] == segments[key]
        return (key <= query) & same & ((mine <= 0) | (other == 0) | (mine == other))

    return _block_mask(empty, full, query, key, block_size, visible)


@dataclass(frozen=True, slots=True)
class _Tiles:
    """A sequence divided into n blocks of `size` tokens.

    Attributes:
        first, last: Index of the first and last token of each block, int64 [n]; the very last may be beyond
            the end of the sequence.
        size: Tokens of a block.
        length: Tokens of the sequence.
    """

    first: Tensor
    last: Tensor
    size: int
    length: int

    @classmethod
    def of(cls, length: int, size: int, device: torch.device) -> _Tiles:
        first = torch.arange(-(-length // size), device=device) * size
        return cls(first, first + size - 1, size, length)


def _blocked(vector: Tensor, tiles: _Tiles) -> Tensor:
    """[T] -> [n, size]; the last block is padded with the last token."""
    missing = len(tiles.first) * tiles.size - tiles.length
    return torch.cat([vector, vector[-1:].expand(missing)]).view(-1, tiles.size)


def _bounds(vector: Tensor, tiles: _Tiles, column: bool = False) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each block, [n] each, or [n, 1] as a column."""
    values = _blocked(vector, tiles)
    return values.amin(1, keepdim=column), values.amax(1, keepdim=column)


def _disjoint(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    return (one[1] < other[0]) | (other[1] < one[0])


def _all_equal(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    return (one[0] == one[1]) & (other[0] == other[1]) & (one[0] == other[0])


def _block_mask(
    empty: Tensor, full: Tensor, query: _Tiles, key: _Tiles, block_size: tuple[int, int], visible: Rule
) -> BlockMask:
    """Combine empty and full pairs, bool [Q, K] each, with causality."""
    empty = empty | (key.first > query.last[:, None])
    complete = query.last < query.length  # keys beyond the end are later than all queries
    full = full & (key.last <= query.first[:, None]) & complete[:, None]
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
    """Chosen columns of each row of bool [R, C], as `BlockMask` takes them.

    Returns:
        Their number, int32 [1, 1, R], and all columns, the chosen ones first, int32 [1, 1, R, C].
    """
    order = torch.argsort(chosen.to(torch.int8), dim=1, descending=True, stable=True)
    return chosen.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None].contiguous()

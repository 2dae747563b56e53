"""The backends `flex` (Triton) and `flash` (flash-attn-4): FlexAttention under a block-sparse mask.

The sequence is cut into blocks of queries and blocks of keys. A kernel skips the pairs of blocks that
are empty, computes the full ones without looking at the mask, and asks the mask token by token in the
partial ones. Which is which follows from the least and greatest segment and block id of each block:
two integer vectors go to the device, and no S x S tensor is ever made. Two samples of three blocks
each, blocks of 4 tokens::

    segments   1111 1111 1122 2222 2222 2200        . empty    / partial    # full

        1111   /
        1111   #    /
        1122   /    /    /
        2222   .    .    /    /
        2222   .    .    /    #    /
        2200   .    .    /    /    /    /

A micro-batch [B, S] is attended as one sequence of B * S tokens whose rows have segment ids of their own:
the mask then reads vectors of one dimension (those of two are slow on flash-attn-4), and pairs of
different rows are empty like pairs of different samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, FlexKernelOptions, flex_attention

from pretrain.model.attention.call import AttentionMask
from pretrain.model.attention.host import on_device

TRITON_BLOCK = (128, 128)
TRITON: FlexKernelOptions = {"BACKEND": "TRITON"}
FLASH: FlexKernelOptions = {"BACKEND": "FLASH"}


def flash_block(capability: tuple[int, int]) -> tuple[int, int]:
    """Queries and keys of a block that flash-attn-4 takes: two query tiles at once from Blackwell on."""
    return (128, 128) if capability[0] == 9 else (256, 128)


@cache
def compiled_attention() -> Callable[..., Tensor]:
    """FlexAttention as one fused kernel; called uncompiled it would make the whole score matrix.

    Compiled once for each shape: sequence lengths do not change in training, and flash-attn-4 takes no
    symbolic sizes.
    """
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


@dataclass(frozen=True, slots=True)
class FlexMask(AttentionMask):
    """A block-sparse mask over B * S tokens.

    Attributes:
        block_mask: The pairs of blocks to compute, and the rule within partial ones.
        options: Which kernels.
    """

    block_mask: BlockMask
    options: FlexKernelOptions

    @classmethod
    def packed(
        cls,
        segments: Tensor,
        blocks: Tensor,
        device: torch.device,
        block_size: tuple[int, int] = TRITON_BLOCK,
        options: FlexKernelOptions = TRITON,
    ) -> FlexMask:
        """Mask of packed sequences from segment and block ids [B, S] on the host.

        Args:
            segments: Segment ids, 0 for padding.
            blocks: Action block ids.
            device: Of the mask.
            block_size: Queries and keys of a block.
            options: Which kernels.
        """
        ids = torch.where(segments == 0, segments.max() + 1, segments) - segments.min()  # padding is last
        ids = ids + torch.arange(len(ids)).unsqueeze(1) * (ids.max() + 1)  # rows share no ids
        segments = on_device(ids.flatten().to(torch.int32), device)
        blocks = on_device(blocks.flatten().to(torch.int32), device)
        return cls(block_mask(segments, blocks, block_size), options)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `AttentionMask.attend`."""
        mixed = compiled_attention()(
            _one_row(query),
            _one_row(key),
            _one_row(value),
            block_mask=self.block_mask,
            enable_gqa=query.shape[1] != key.shape[1],
            kernel_options=self.options,
        )
        batch, heads, length, size = query.shape
        return mixed.transpose(1, 2).reshape(batch, length, heads, size).transpose(1, 2)


def _one_row(x: Tensor) -> Tensor:
    """[B, N, S, D] -> [1, N, B * S, D]; a view where x is one of [B, S, N, D], as the layers make it."""
    batch, heads, length, size = x.shape
    return x.transpose(1, 2).reshape(1, batch * length, heads, size).transpose(1, 2)


def block_mask(segments: Tensor, blocks: Tensor, block_size: tuple[int, int]) -> BlockMask:
    """The block-sparse form of the rule of `pretrain.model.mask`, made without waiting for the device.

    Args:
        segments: Segment ids int32 [T].
        blocks: Action block ids int32 [T].
        block_size: Queries and keys of a block.
    """
    length = len(segments)
    queries = _Bounds.of(segments, blocks, block_size[0])
    keys = _Bounds.of(segments, blocks, block_size[1])
    partial, full = classify(queries, keys)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own, other = blocks[query], blocks[key]
        return (
            (key <= query) & (segments[query] == segments[key]) & ((own <= 0) | (other == 0) | (own == other))
        )

    return BlockMask(
        (length, length),
        *_ordered(partial),
        *_ordered(full),
        *_ordered(partial.T),
        *_ordered(full.T),
        BLOCK_SIZE=block_size,
        mask_mod=visible,
    )


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Least and greatest value of each block: of n blocks of `size` tokens, each [n].

    Attributes:
        first, last: Places in the sequence; the last of all blocks may lie beyond its end.
        segment: Segment ids.
        block: Action block ids.
        actions_only: Whether every token is in an action block.
        beyond: Whether the block reaches beyond the end of the sequence.
    """

    first: Tensor
    last: Tensor
    segment: tuple[Tensor, Tensor]
    block: tuple[Tensor, Tensor]
    actions_only: Tensor
    beyond: Tensor

    @classmethod
    def of(cls, segments: Tensor, blocks: Tensor, size: int) -> _Bounds:
        length = len(segments)
        count = -(-length // size)

        def cut(vector: Tensor) -> Tensor:
            # The last token stands in for what is missing of the last block: bounds stay as they are.
            return torch.cat([vector, vector[-1:].expand(count * size - length)]).view(count, size)

        first = torch.arange(count, device=segments.device) * size
        segments, blocks = cut(segments), cut(blocks)
        return cls(
            first=first,
            last=first + size - 1,
            segment=(segments.amin(1), segments.amax(1)),
            block=(blocks.amin(1), blocks.amax(1)),
            actions_only=(blocks != 0).all(1),
            beyond=first + size > length,
        )


def classify(queries: _Bounds, keys: _Bounds) -> tuple[Tensor, Tensor]:
    """Which pairs of blocks are partial and which are full, bool [Q, K] each; the others are empty.

    Never wrong, but in doubt partial.
    """
    q_segment, q_block = [[bound[:, None] for bound in pair] for pair in (queries.segment, queries.block)]
    k_segment, k_block = [[bound[None] for bound in pair] for pair in (keys.segment, keys.block)]

    def apart(one: list[Tensor], other: list[Tensor]) -> Tensor:
        return (one[1] < other[0]) | (other[1] < one[0])

    hidden = (q_block[0] > 0) & keys.actions_only & apart(q_block, k_block)
    empty = (keys.first > queries.last[:, None]) | apart(q_segment, k_segment) | hidden

    def all_equal(one: list[Tensor], other: list[Tensor]) -> Tensor:
        return (one[0] == one[1]) & (other[0] == other[1]) & (one[0] == other[0])

    no_answer = q_block[1] <= 0
    no_action = (k_block[0] == 0) & (k_block[1] == 0)
    full = (
        (keys.last <= queries.first[:, None])
        & all_equal(q_segment, k_segment)
        & (no_answer | no_action | all_equal(q_block, k_block))
        & ~queries.beyond[:, None]  # keys beyond the end are later than all queries anyway
    )
    return ~empty & ~full, full


def _ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of chosen columns of rows, int32 [1, 1, R], and the columns, the chosen first [1, 1, R, C]."""
    order = torch.argsort(chosen.to(torch.int8), dim=1, descending=True, stable=True)
    return chosen.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None].contiguous()

"""The backends `flex` (Triton) and `flash` (flash-attn-4): FlexAttention under a block-sparse mask.

A micro-batch [B, S] is attended as one sequence of B * S tokens: the mask then reads vectors of one
dimension (those of two are slow on flash-attn-4), and pairs of different rows are skipped like pairs of
different samples. The rule within partial blocks is that of intervals where the mask has that form, as
the samples of WorldVLA's training do: it reads nothing at the key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, FlexKernelOptions, flex_attention

from pretrain.model.attention.block_sparse import from_ids, from_intervals
from pretrain.model.attention.call import AttentionMask
from pretrain.model.attention.host import on_device
from pretrain.model.attention.intervals import intervals

TRITON_BLOCK = (128, 128)
TRITON: FlexKernelOptions = {"BACKEND": "TRITON"}
FLASH: FlexKernelOptions = {"BACKEND": "FLASH"}
_MOST_VERSIONS = 64


def flash_block(capability: tuple[int, int]) -> tuple[int, int]:
    """Queries and keys of a block that flash-attn-4 takes: two query tiles at once from Blackwell on."""
    return (128, 128) if capability[0] == 9 else (256, 128)


@cache
def compiled_attention() -> Callable[..., Tensor]:
    """FlexAttention as one fused kernel; called uncompiled it would make the whole score matrix.

    Compiled once for each shape, kind of mask and use (with gradients or without): a training needs a few,
    and flash-attn-4 takes no symbolic sizes. Torch's own limit of 8 versions, beyond which the call fails,
    is too low for a process that does several things: validation, benchmarks, tests.
    """
    compiler: Any = torch.compile  # its overloads do not name all settings
    return compiler(
        flex_attention,
        dynamic=False,
        fullgraph=True,
        recompile_limit=_MOST_VERSIONS,
        isolate_recompiles=True,
    )


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
        found = intervals(segments, blocks)
        if found is not None:
            start, end, own = (on_device(each, device) for each in (found.start, found.end, found.own))
            return cls(from_intervals(start, end, own, block_size), options)
        ids = torch.where(segments == 0, segments.max() + 1, segments) - segments.min()  # padding is last
        ids = ids + torch.arange(len(ids)).unsqueeze(1) * (ids.max() + 1)  # rows share no ids
        segments = on_device(ids.flatten().to(torch.int32), device)
        blocks = on_device(blocks.flatten().to(torch.int32), device)
        return cls(from_ids(segments, blocks, block_size), options)

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

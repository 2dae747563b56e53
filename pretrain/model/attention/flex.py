"""The backends `flex` (Triton) and `flash` (flash-attn-4): FlexAttention under a block-sparse mask.

A micro-batch [B, S] is attended as one sequence of B * S tokens: the mask then indexes one-dimensional
vectors (two-dimensional ones are slow on flash-attn-4), and pairs of different rows are skipped like pairs
of different samples. Within partial blocks the mask uses intervals where it has that form, as in all samples
of WorldVLA's training: it then reads nothing at the key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, FlexKernelOptions, flex_attention

from pretrain.model.attention.block_sparse import from_ids, from_intervals
from pretrain.model.attention.call import AttentionMask
from pretrain.model.attention.host import on_device
from pretrain.model.attention.intervals import intervals
from pretrain.model.config import AttentionBackend

TRITON_BLOCK = (128, 128)
TRITON: FlexKernelOptions = {"BACKEND": "TRITON"}
FLASH: FlexKernelOptions = {"BACKEND": "FLASH"}
_MAX_VERSIONS = 64


def flash_block(capability: tuple[int, int]) -> tuple[int, int]:
    """Queries and keys in a block for flash-attn-4, which takes two query tiles at once from Blackwell on."""
    return (128, 128) if capability[0] == 9 else (256, 128)


@cache
def compiled_attention() -> Callable[..., Tensor]:
    """FlexAttention as one fused kernel; uncompiled it would materialise the whole score matrix.

    For torch 2.11 and later.

    Compiled once for each shape, kind of mask and mode (with gradients or without): a training needs a few,
    and flash-attn-4 takes no symbolic sizes. Torch's default limit of 8 versions, beyond which the call
    fails, is too low for processes that also validate, benchmark or test.
    """
    compiler: Any = torch.compile  # its overloads lack some of the settings
    known = signature(torch.compile).parameters
    own = {"recompile_limit": _MAX_VERSIONS, "isolate_recompiles": True}
    settings = {name: value for name, value in own.items() if name in known}
    attend = compiler(flex_attention, dynamic=False, fullgraph=True, **settings)
    return attend if "recompile_limit" in settings else partial(_with_limit, attend)


def _with_limit(attend: Callable[..., Tensor], *inputs: Tensor, **settings: Any) -> Tensor:
    """A call under the limit that torch.compile does not take as an argument (torch 2.11)."""
    dynamo: Any = torch._dynamo  # type: ignore[attr-defined]
    with dynamo.config.patch(recompile_limit=_MAX_VERSIONS):
        return attend(*inputs, **settings)


@dataclass(frozen=True, slots=True)
class FlexMask(AttentionMask):
    """A block-sparse mask over B * S tokens.

    Attributes:
        block_mask: The pairs of blocks to compute, and the rule within partial ones.
        options: Selection of the kernels.
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
            block_size: Number of queries and of keys in a block.
            options: Selection of the kernels.
        """
        bounds = intervals(segments, blocks)
        if bounds is not None:
            start, end, own = (on_device(each, device) for each in (bounds.start, bounds.end, bounds.own))
            return cls(from_intervals(start, end, own, block_size), options)
        ids = torch.where(segments == 0, segments.max() + 1, segments) - segments.min()  # padding is last
        ids = ids + torch.arange(len(ids)).unsqueeze(1) * (ids.max() + 1)  # rows share no ids
        segments = on_device(ids.flatten().to(torch.int32), device)
        blocks = on_device(blocks.flatten().to(torch.int32), device)
        return cls(from_ids(segments, blocks, block_size), options)

    @property
    def backend(self) -> AttentionBackend:
        """See `AttentionMask.backend`."""
        return "flash" if self.options == FLASH else "flex"

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
    """[B, N, S, D] -> [1, N, B * S, D]; a view if x is a view of [B, S, N, D], as in the layers."""
    batch, heads, length, size = x.shape
    return x.transpose(1, 2).reshape(1, batch * length, heads, size).transpose(1, 2)

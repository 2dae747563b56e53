"""Chooses the attention backend and makes its mask."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pretrain.model.attention.call import AttentionMask
from pretrain.model.attention.dense import DenseMask
from pretrain.model.config import ModelConfig
from pretrain.model.mask import effective_blocks

BACKENDS = ("auto", "sdpa", "flex", "flash", "flash2")


def packed_mask(
    segments: ArrayLike | Tensor, blocks: ArrayLike | Tensor, config: ModelConfig, device: torch.device
) -> AttentionMask:
    """The mask of packed training sequences, made once a micro-batch.

    Args:
        segments: Segment ids [B, S], on the host.
        blocks: Block ids [B, S], on the host.
        config: Backend and ablations of the mask.
        device: Where attention is computed.
    """
    segments = torch.as_tensor(segments).to(device)
    blocks = torch.as_tensor(blocks).to(device)
    blocks = effective_blocks(blocks, config.action_mask, config.history_actions_visible)
    return DenseMask.packed(segments, blocks)

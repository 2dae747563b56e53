"""The mask of prompts that are read at once, one a row, padded on the right."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pretrain.model.attention.call import AttentionMask
from pretrain.model.attention.causal import CausalMask
from pretrain.model.attention.choose import packed_mask
from pretrain.model.config import ModelConfig
from pretrain.model.mask import effective_blocks


def prompt_mask(
    segments: Tensor, blocks: Tensor, config: ModelConfig, device: torch.device, dtype: torch.dtype
) -> AttentionMask:
    """Plain causal attention where no action block hides another, else the mask of the prompts' blocks.

    (Under plain causal attention padding attends to tokens, but no token attends to padding.) A mask of
    blocks is block-sparse on a GPU that has such kernels for `dtype`, whichever of them the training chose;
    on a CPU, and with `model.attention=sdpa`, it is dense.

    Args:
        segments: Segment ids int64 [B, S], on the host: 1, and 0 for padding.
        blocks: Block ids int64 [B, S], on the host.
        config: Backend and ablations of the mask.
        device: On which attention is computed.
        dtype: Of queries, keys and values.
    """
    hiding = effective_blocks(blocks, config.action_mask, config.history_actions_visible) > 0
    if not bool(hiding.any()):
        return CausalMask()
    if config.attention != "sdpa":  # a checkpoint may act on other hardware than it was trained on
        config = replace(config, attention="auto")
    return packed_mask(segments, blocks, config, device, dtype)

"""One attention call for training and decoding.

The backend is torch's scaled dot-product attention with a dense mask: it runs everywhere and is the
reference that faster backends are compared with.

Shapes: B batch, N heads of this rank, Q queries, K keys, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.model.mask import visible


@dataclass(frozen=True, slots=True)
class AttentionMask:
    """Which keys each query sees, built once a micro-batch and shared by all layers.

    Attributes:
        dense: bool [B, 1, Q, K], True where the query may attend.
    """

    dense: Tensor

    @classmethod
    def packed(cls, segments: Tensor, blocks: Tensor, action_mask: bool = True) -> AttentionMask:
        """Mask of packed training sequences.

        Args:
            segments: Segment ids [B, S].
            blocks: Block ids [B, S].
            action_mask: False for plain causal attention within each sample (the paper's ablation).
        """
        if not action_mask:
            blocks = torch.zeros_like(blocks)
        order = torch.arange(segments.shape[1], device=segments.device)
        return cls(visible(segments, blocks, order, segments, blocks, order).unsqueeze(1))


def attention(query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask) -> Tensor:
    """Softmax attention [B, N, Q, D] of queries [B, N, Q, D] over keys and values [B, N, K, D]."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask.dense)

"""The reference backend: torch's scaled dot-product attention with a dense mask. It runs everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.model.attention.call import AttentionMask
from pretrain.model.mask import visible


@dataclass(frozen=True, slots=True)
class DenseMask(AttentionMask):
    """A boolean mask with an entry for each pair.

    Attributes:
        dense: bool [B, 1, Q, K], True where the query may attend.
    """

    dense: Tensor

    @classmethod
    def packed(cls, segments: Tensor, blocks: Tensor) -> DenseMask:
        """Mask of packed sequences from segment and block ids [B, S] on the device."""
        order = torch.arange(segments.shape[1], device=segments.device)
        return cls(visible(segments, blocks, order, segments, blocks, order).unsqueeze(1))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `AttentionMask.attend`."""
        shared = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.dense, enable_gqa=shared)

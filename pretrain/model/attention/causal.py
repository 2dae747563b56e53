"""Plain causal attention: torch's scaled dot-product attention without a mask tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pretrain.model.attention.call import AttentionMask


@dataclass(frozen=True, slots=True)
class CausalMask(AttentionMask):
    """Every token sees itself and all earlier ones; for one sample a row, padded on the right."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `AttentionMask.attend`; as many queries as keys."""
        shared = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=shared)

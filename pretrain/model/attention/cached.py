"""The mask of decoding: few queries over a key/value cache of fixed capacity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.model.attention.call import AttentionMask


@dataclass(frozen=True, slots=True)
class CachedMask(AttentionMask):
    """A mask over the slots of a cache, those without a token included, as a term added to the scores.

    torch turns a boolean mask into such a term in every layer; here it is made once for all of them. On a
    GPU torch attends under it with its memory-efficient, cuDNN or math kernels, all of which a CUDA graph can
    capture; its flash kernels take no mask.

    Attributes:
        bias: [B, 1, Q, K] in the queries' dtype: 0 where the query may attend, else minus infinity.
    """

    bias: Tensor

    @classmethod
    def of(cls, seen: Tensor, dtype: torch.dtype) -> CachedMask:
        """From bool [B, Q, K], True where the query may attend.

        Args:
            seen: Every query has to see a key: the softmax over none is not a number.
            dtype: Of the queries.
        """
        bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return cls(bias.masked_fill_(~seen, -torch.inf).unsqueeze(1))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `AttentionMask.attend`; query heads that share a key/value head become queries of one head.

        So keys and values are read once: with a mask torch's fast kernels take no shared heads, and its
        math kernel would repeat them in memory.
        """
        heads, length = key.shape[1], query.shape[2]
        group = query.shape[1] // heads
        if group == 1:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias)
        folded = query.reshape(len(query), heads, group * length, -1)
        bias = self.bias.repeat(1, 1, group, 1)
        return F.scaled_dot_product_attention(folded, key, value, attn_mask=bias).reshape(query.shape)

"""The one attention call of training and decoding.

Shapes: B batch, N query heads of this rank, G key/value heads of this rank (N is a multiple of G),
Q queries, K keys, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from pretrain.model.attention.first_call import attend_at_first, is_proven
from pretrain.model.config import AttentionBackend


class AttentionMask(ABC):
    """Which keys each query sees, in the form that one backend takes; shared by all layers."""

    @property
    def backend(self) -> AttentionBackend:
        """Name of the backend."""
        return "sdpa"

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Softmax attention under this mask; shapes as in `attention`."""


def attention(query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask) -> Tensor:
    """Softmax attention [B, N, Q, D] of queries [B, N, Q, D] over keys and values [B, G, K, D].

    Scores are scaled by 1 / sqrt(D). Query head n reads key/value head n // (N / G).

    Raises:
        InputError: The first pass of the mask's backend fails; see `attention.first_call`.
    """
    if not is_proven(mask.backend):
        return attend_at_first(mask.attend, mask.backend, query, key, value)
    return mask.attend(query, key, value)

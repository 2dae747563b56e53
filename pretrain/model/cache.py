"""Keys and values of the tokens that were already read, so that decoding reads each token once."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.model.attention.call import AttentionMask
from pretrain.model.attention.causal import CausalMask
from pretrain.model.attention.dense import DenseMask
from pretrain.model.mask import visible


class LayerCache:
    """Keys and values of one layer, [B, G, K, D] each, in a buffer of fixed capacity and their own dtype."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add new tokens and return all keys and values so far."""
        if self._keys is None or self._values is None:
            batch, heads, _, size = key.shape
            self._keys = key.new_empty(batch, heads, self._capacity, size)
            self._values = torch.empty_like(self._keys)
        end = self._length + key.shape[2]
        if end > self._capacity:
            raise ValueError(f"{end} tokens do not fit a cache of {self._capacity}")
        self._keys[:, :, self._length : end] = key
        self._values[:, :, self._length : end] = value
        self._length = end
        return self._keys[:, :, :end], self._values[:, :, :end]


class DecodingCache:
    """What a decoding call needs to know of the tokens before it.

    Args:
        layers: Layers of the model.
        batch: B, sequences.
        capacity: Tokens of each that it can hold.
        device: Where the model is.

    Attributes:
        layers: One cache a layer.
    """

    def __init__(self, layers: int, batch: int, capacity: int, device: torch.device) -> None:
        self.layers = [LayerCache(capacity) for _ in range(layers)]
        self._length = 0
        self._order = torch.arange(capacity, device=device)
        self._segments = torch.zeros(batch, capacity, dtype=torch.int64, device=device)
        self._blocks = torch.zeros_like(self._segments)

    def extend(self, segments: Tensor, blocks: Tensor, causal: bool = False) -> AttentionMask:
        """Note new tokens and return which of all tokens so far each of them sees.

        Args:
            segments: Segment ids [B, Q]; 0 is padding, which no other token sees.
            blocks: Block ids [B, Q].
            causal: These are the first tokens and none is in an answer block, so no mask is made. (Padding
                then sees tokens, but no token sees padding.)
        """
        new = slice(self._length, self._length + segments.shape[1])
        self._length = new.stop
        self._segments[:, new] = segments
        self._blocks[:, new] = blocks
        if causal:
            return CausalMask()
        keys = slice(self._length)
        known = (self._segments[:, keys], self._blocks[:, keys], self._order[keys])
        return DenseMask(visible(segments, blocks, self._order[new], *known).unsqueeze(1))

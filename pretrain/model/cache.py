"""Key/value cache of decoding: each token passes the network once.

Shapes: B batch, G key/value heads, K keys so far, Q new tokens, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.model.attention.call import AttentionMask
from pretrain.model.attention.causal import CausalMask
from pretrain.model.attention.dense import DenseMask
from pretrain.model.mask import visible


class LayerCache:
    """Keys and values of one layer, [B, G, K, D] each, in buffers of fixed capacity.

    Args:
        capacity: Maximum number of tokens K.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append new tokens and return all keys and values so far.

        Args:
            key: [B, G, Q, D]; the first call fixes B, G, D, dtype and device of the buffers.
            value: Likewise.

        Returns:
            Keys and values [B, G, K, D] of all tokens, views of the buffers.

        Raises:
            ValueError: More tokens than the capacity.
        """
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
    """Keys, values, segments and blocks of the tokens that a decoding call attends to.

    Args:
        layers: Layers of the model.
        batch: B, sequences.
        capacity: Maximum number of tokens of each sequence.
        device: Of the model.

    Attributes:
        layers: One cache for each layer.
    """

    def __init__(self, layers: int, batch: int, capacity: int, device: torch.device) -> None:
        self.layers = [LayerCache(capacity) for _ in range(layers)]
        self._length = 0
        self._order = torch.arange(capacity, device=device)
        self._segments = torch.zeros(batch, capacity, dtype=torch.int64, device=device)
        self._blocks = torch.zeros_like(self._segments)

    def extend(self, segments: Tensor, blocks: Tensor, causal: bool = False) -> AttentionMask:
        """Append Q new tokens and return the mask of these queries over all K tokens so far.

        Args:
            segments: Segment ids [B, Q]; 0 is padding, which only padding attends to.
            blocks: Block ids [B, Q].
            causal: These are the first tokens and none is in an answer block, so no mask tensor is needed.
                (Padding then attends to tokens, but no token attends to padding.)

        Returns:
            A `CausalMask`, or a `DenseMask` [B, 1, Q, K].
        """
        new = slice(self._length, self._length + segments.shape[1])
        self._length = new.stop
        self._segments[:, new] = segments
        self._blocks[:, new] = blocks
        if causal:
            return CausalMask()
        keys = slice(self._length)
        key_vectors = (self._segments[:, keys], self._blocks[:, keys], self._order[keys])
        return DenseMask(visible(segments, blocks, self._order[new], *key_vectors).unsqueeze(1))

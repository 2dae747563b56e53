"""Keys and values of the tokens that were already read, so that decoding reads each token once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.model.attention.dense import DenseMask
from pretrain.model.mask import visible


class LayerCache:
    """Keys and values of one layer, [B, N, K, D] each, in a buffer of fixed capacity."""

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


@dataclass
class DecodingCache:
    """What a decoding call needs to know of the tokens before it.

    Attributes:
        layers: One cache a layer.
        segments: Segment ids of the cached tokens [B, K]; 0 is padding and never seen.
        blocks: Block ids of the cached tokens [B, K].
    """

    layers: list[LayerCache]
    segments: Tensor
    blocks: Tensor

    @classmethod
    def empty(cls, layers: int, batch: int, capacity: int, device: torch.device) -> DecodingCache:
        """A cache for `capacity` tokens of `batch` sequences."""
        nothing = torch.empty(batch, 0, dtype=torch.int64, device=device)
        return cls([LayerCache(capacity) for _ in range(layers)], nothing, nothing)

    def extend(self, segments: Tensor, blocks: Tensor) -> DenseMask:
        """Note new tokens [B, Q] and return which of all tokens so far each of them sees."""
        first = self.segments.shape[1]
        self.segments = torch.cat([self.segments, segments], dim=1)
        self.blocks = torch.cat([self.blocks, blocks], dim=1)
        order = torch.arange(self.segments.shape[1], device=segments.device)
        seen = visible(segments, blocks, order[first:], self.segments, self.blocks, order)
        return DenseMask(seen.unsqueeze(1))

"""Key/value cache of decoding: each token passes the network once.

The buffers have a fixed capacity and stay at their addresses. A decoding step that reads all of them, under a
mask that hides the slots without a token, has shapes that do not depend on how many tokens the cache holds:
it can be captured as a CUDA graph. A step that is not captured reads the slots in use alone.

Shapes: B batch, G key/value heads, C capacity, K slots that a step reads, S prompt tokens, Q new tokens,
D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.model.attention.cached import CachedMask
from pretrain.model.config import ModelConfig
from pretrain.model.mask import visible


class LayerCache:
    """Keys and values of one layer.

    Args:
        keys: Buffer [B, G, C, D].
        values: Likewise.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._keys, self._values = keys, values
        self._slots: Tensor | None = None
        self._end = 0

    def write_at(self, slots: Tensor | None, end: int = 0) -> None:
        """Where the next tokens go: slots int64 [Q] on the device, of which `end` are read.

        Args:
            slots: None: the tokens are prompts, from slot 0 on.
            end: K.
        """
        self._slots, self._end = slots, end

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store new tokens and return what they attend to.

        Args:
            key: [B, G, Q, D], in the buffers' dtype.
            value: Likewise.

        Returns:
            Of prompts their own keys and values; else those of the first K slots [B, G, K, D], views.
        """
        if self._slots is None:
            length = key.shape[2]
            self._keys[:, :, :length] = key
            self._values[:, :, :length] = value
            return key, value
        self._keys.index_copy_(2, self._slots, key)
        self._values.index_copy_(2, self._slots, value)
        return self._keys[:, :, : self._end], self._values[:, :, : self._end]


class DecodingCache:
    """Keys, values, segments and blocks of the tokens that a decoding call attends to.

    Args:
        config: Of the model.
        batch: B, sequences.
        capacity: C, maximum number of tokens of each sequence.
        device: Of the model.
        dtype: Of keys and values.

    Attributes:
        layers: One cache for each layer.
        capacity: C.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        heads, size = config.shared_heads, config.head_size
        # Zeros: what a mask hides counts 0 times its value, which must be a finite number.
        self._entries = torch.zeros(
            config.layers, 2, batch, heads, capacity, size, device=device, dtype=dtype
        )
        self.layers = [LayerCache(keys, values) for keys, values in self._entries]
        self.capacity = capacity
        self._order = torch.arange(capacity, device=device)
        self._segments = torch.zeros(batch, capacity, dtype=torch.int64, device=device)
        self._blocks = torch.zeros_like(self._segments)

    def begin(self, segments: Tensor, blocks: Tensor) -> None:
        """Forget all tokens and make room for prompts, which the layers append next.

        Args:
            segments: Segment ids int64 [B, S]; 0 is padding, which no later token attends to.
            blocks: Block ids int64 [B, S].

        Raises:
            ValueError: More tokens than the capacity.
        """
        length = segments.shape[1]
        if length > self.capacity:
            raise ValueError(f"{length} tokens do not fit a cache of {self.capacity}")
        self._entries[..., length:, :].zero_()  # an overflow of an earlier answer would outlast the mask
        for vector, ids in ((self._segments, segments), (self._blocks, blocks)):
            vector[:, :length] = ids
            vector[:, length:].zero_()
        for layer in self.layers:
            layer.write_at(None)

    def extend(self, slots: Tensor, blocks: Tensor, end: int | None = None) -> CachedMask:
        """Make room for Q new tokens and return their mask over the first K slots.

        Args:
            slots: int64 [Q] on the device, the same in all sequences. A token sees those in earlier slots.
            blocks: Block ids int64 [B, Q].
            end: K, above all slots in use; None: the capacity.
        """
        end = self.capacity if end is None else end
        self._segments.index_fill_(1, slots, 1)
        self._blocks.index_copy_(1, slots, blocks)
        for layer in self.layers:
            layer.write_at(slots, end)
        keys = (self._segments[:, :end], self._blocks[:, :end], self._order[:end])
        seen = visible(torch.ones_like(blocks), blocks, slots, *keys)
        return CachedMask.of(seen, self._entries.dtype)

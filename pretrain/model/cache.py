"""Key/value cache of decoding: each token passes the network once.

The buffers have a fixed capacity and stay at their addresses, and every decoding step reads all of them
under a mask that hides the slots without a token. So the shapes of a step do not depend on how many tokens
the cache holds: it can be captured as a CUDA graph.

Shapes: L layers, B batch, G key/value heads, C capacity, S prompt tokens, Q new tokens, D head size.
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

    Attributes:
        slots: int64 [Q] on the device, where the next tokens go; None: they are prompts, from slot 0 on.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._keys, self._values = keys, values
        self.slots: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store new tokens and return what they attend to.

        Args:
            key: [B, G, Q, D], in the buffers' dtype.
            value: Likewise.

        Returns:
            Of prompts their own keys and values; else the whole buffers [B, G, C, D].
        """
        if self.slots is None:
            length = key.shape[2]
            self._keys[:, :, :length] = key
            self._values[:, :, :length] = value
            return key, value
        self._keys.index_copy_(2, self.slots, key)
        self._values.index_copy_(2, self.slots, value)
        return self._keys, self._values


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
        self._write_at(None)

    def extend(self, slots: Tensor, blocks: Tensor) -> CachedMask:
        """Make room for Q new tokens and return their mask over all C slots.

        Args:
            slots: int64 [Q] on the device, the same in all sequences, all below the capacity. A token sees
                those in earlier slots, however late they were appended.
            blocks: Block ids int64 [B, Q].
        """
        self._segments.index_fill_(1, slots, 1)
        self._blocks.index_copy_(1, slots, blocks)
        self._write_at(slots)
        queries = (torch.ones_like(blocks), blocks, slots)
        seen = visible(*queries, self._segments, self._blocks, self._order)
        return CachedMask.of(seen, self._entries.dtype)

    def _write_at(self, slots: Tensor | None) -> None:
        for layer in self.layers:
            layer.slots = slots

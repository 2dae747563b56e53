"""The parts of a Chameleon layer; names and numbers as in Hugging Face's Chameleon.

Shapes: B batch, S tokens of a sequence, T = B * S tokens, R tokens of this rank's residual stream (T, or
T / ranks in sequence parallel), H hidden, N heads of this rank (of queries, or of keys and values), D head
size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.model.attention.call import AttentionMask, attention
from pretrain.model.cache import LayerCache
from pretrain.model.config import ModelConfig
from pretrain.model.factory import LayerFactory
from pretrain.model.pointwise import compiled, rms_norm, swiglu, turn_heads
from pretrain.model.recompute import element_wise, gathered


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in fp32."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self._whole = factory.whole_parameter
        self._norm = partial(compiled(rms_norm, config.compile), eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[R, H] -> [R, H], same dtype."""
        return element_wise(self._norm, x, self._whole(self.weight))


@dataclass(frozen=True, slots=True)
class Places:
    """Where the T tokens are.

    Attributes:
        batch: B.
        length: S.
        cosine: Of the rotary embedding [T, 1, D], in the network's dtype.
        sine: Likewise.
    """

    batch: int
    length: int
    cosine: Tensor
    sine: Tensor

    def by_sequence(self, x: Tensor) -> Tensor:
        """[T, N, D] -> [B, N, S, D], a view."""
        return x.view(self.batch, self.length, *x.shape[1:]).transpose(1, 2)


class RotaryTable:
    """Cosines and sines of the rotary embedding, made when first needed and always in fp32.

    Not a buffer: ZeRO casts buffers to bf16, which loses positions.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._head_size = config.head_size
        self._theta = config.rope_theta
        self._length = config.max_positions
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def at(self, positions: Tensor, dtype: torch.dtype) -> Places:
        """The places of tokens at positions [B, S]."""
        if positions.device not in self._tables:
            self._tables[positions.device] = self._make(positions.device)
        cosine, sine = (table[positions.flatten()] for table in self._tables[positions.device])
        batch, length = positions.shape
        return Places(batch, length, cosine.to(dtype).unsqueeze(1), sine.to(dtype).unsqueeze(1))

    def _make(self, device: torch.device) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self._head_size, 2, dtype=torch.float32, device=device) / self._head_size
        frequencies = 1.0 / self._theta**exponents
        places = torch.arange(self._length, dtype=torch.float32, device=device)
        angles = torch.outer(places, frequencies).repeat(1, 2)
        return angles.cos(), angles.sin()


class HeadNorm(nn.Module):
    """LayerNorm over each head's features, with an affine map of its own per head, and rotary embedding."""

    def __init__(self, config: ModelConfig, factory: LayerFactory, heads: int) -> None:
        super().__init__()
        self.weight = factory.sharded_parameter(torch.ones(heads // factory.size, config.head_size))
        self.bias = factory.sharded_parameter(torch.zeros(heads // factory.size, config.head_size))
        self._turn = partial(compiled(turn_heads, config.compile), eps=config.norm_eps)

    def forward(self, x: Tensor, places: Places) -> Tensor:
        """[T, N, D] -> [T, N, D]."""
        return element_wise(self._turn, x, self.weight, self.bias, places.cosine, places.sine)


class SelfAttention(nn.Module):
    """Multi-head attention with normalised queries and keys; key/value heads may be shared."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.head_size = config.head_size
        self.q_proj = factory.column(hidden, hidden)
        self.k_proj = factory.column(hidden, config.shared_heads * config.head_size)
        self.v_proj = factory.column(hidden, config.shared_heads * config.head_size)
        self.o_proj = factory.row(hidden, hidden)
        self.q_norm = HeadNorm(config, factory, config.heads)
        self.k_norm = HeadNorm(config, factory, config.shared_heads)
        self._enter = factory.enter

    def forward(self, x: Tensor, places: Places, mask: AttentionMask, cache: LayerCache | None) -> Tensor:
        """[R, H] -> [R, H]; with a cache, keys and values of earlier calls are seen too."""
        x = gathered(self._enter, x)
        query = self.q_norm(self._heads(self.q_proj(x)), places)
        key, value = self._keys_and_values(x, places)
        query = places.by_sequence(query)
        if cache is not None:
            key, value = cache.append(key, value)
        mixed = attention(query, key, value, mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(len(x), -1))

    def fill(self, x: Tensor, places: Places, cache: LayerCache) -> None:
        """Put keys and values of [R, H] into the cache, and no more."""
        cache.append(*self._keys_and_values(self._enter(x), places))

    def _keys_and_values(self, x: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """[T, H] -> [B, N, S, D] each."""
        key = self.k_norm(self._heads(self.k_proj(x)), places)
        return places.by_sequence(key), places.by_sequence(self._heads(self.v_proj(x)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, self.head_size)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.gate_proj = factory.column(config.hidden_size, config.ffn_size)
        self.up_proj = factory.column(config.hidden_size, config.ffn_size)
        self.down_proj = factory.row(config.ffn_size, config.hidden_size)
        self._enter = factory.enter
        self._swiglu = compiled(swiglu, config.compile)

    def forward(self, x: Tensor) -> Tensor:
        """[R, H] -> [R, H]."""
        x = gathered(self._enter, x)
        return self.down_proj(element_wise(self._swiglu, self.gate_proj(x), self.up_proj(x)))


class DecoderLayer(nn.Module):
    """Attention and feed-forward on the residual stream.

    Each branch is normalised before, or with swin norm after (Chameleon-34B), and dropped out at its end.
    """

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, factory)
        self.mlp = FeedForward(config, factory)
        self.input_layernorm = RMSNorm(config, factory)
        self.post_attention_layernorm = RMSNorm(config, factory)
        self.dropout = config.dropout
        self.swin_norm = config.swin_norm

    def forward(
        self, x: Tensor, places: Places, mask: AttentionMask, cache: LayerCache | None = None
    ) -> Tensor:
        """[R, H] -> [R, H]."""
        if self.swin_norm:
            x = x + self._drop(self.input_layernorm(self.self_attn(x, places, mask, cache)))
            return x + self._drop(self.post_attention_layernorm(self.mlp(x)))
        x = x + self._drop(self.self_attn(self.input_layernorm(x), places, mask, cache))
        return x + self._drop(self.mlp(self.post_attention_layernorm(x)))

    def fill(self, x: Tensor, places: Places, cache: LayerCache) -> None:
        """Put keys and values of [R, H] into the cache, and no more: enough of a prompt's last layer."""
        self.self_attn.fill(x if self.swin_norm else self.input_layernorm(x), places, cache)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

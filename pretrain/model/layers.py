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
from pretrain.model.pointwise import compiled, head_norm_rotary, rms_norm, swiglu
from pretrain.model.recompute import element_wise, gathered


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in fp32."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self._replicated = factory.replicated_parameter
        self._norm = partial(compiled(rms_norm, config.compile), eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[R, H] -> [R, H], same dtype."""
        return element_wise(self._norm, x, self._replicated(self.weight))


@dataclass(frozen=True, slots=True)
class RotaryPositions:
    """Batch shape and rotary embedding of T flattened tokens.

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
    """Cosines and sines of the rotary embedding in fp32, computed on first use.

    Not a module buffer: ZeRO casts buffers to bf16, which cannot represent all positions.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._head_size = config.head_size
        self._theta = config.rope_theta
        self._length = config.max_positions
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def at(self, positions: Tensor, dtype: torch.dtype) -> RotaryPositions:
        """Rotary embedding of tokens at positions int64 [B, S], rounded to the network's dtype."""
        if positions.device not in self._tables:
            self._tables[positions.device] = self._build(positions.device)
        cosine, sine = (table[positions.flatten()] for table in self._tables[positions.device])
        batch, length = positions.shape
        return RotaryPositions(batch, length, cosine.to(dtype).unsqueeze(1), sine.to(dtype).unsqueeze(1))

    def _build(self, device: torch.device) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self._head_size, 2, dtype=torch.float32, device=device) / self._head_size
        frequencies = 1.0 / self._theta**exponents
        positions = torch.arange(self._length, dtype=torch.float32, device=device)
        angles = torch.outer(positions, frequencies).repeat(1, 2)
        return angles.cos(), angles.sin()


class HeadNorm(nn.Module):
    """LayerNorm over each head's features, with an affine map of its own per head, and rotary embedding."""

    def __init__(self, config: ModelConfig, factory: LayerFactory, heads: int) -> None:
        super().__init__()
        self.weight = factory.sharded_parameter(torch.ones(heads // factory.size, config.head_size))
        self.bias = factory.sharded_parameter(torch.zeros(heads // factory.size, config.head_size))
        self._norm_rotary = partial(compiled(head_norm_rotary, config.compile), eps=config.norm_eps)

    def forward(self, x: Tensor, rotary: RotaryPositions) -> Tensor:
        """[T, N, D] -> [T, N, D]."""
        return element_wise(self._norm_rotary, x, self.weight, self.bias, rotary.cosine, rotary.sine)


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
        self._enter_branch = factory.enter_branch

    def forward(
        self, x: Tensor, rotary: RotaryPositions, mask: AttentionMask, cache: LayerCache | None
    ) -> Tensor:
        """[R, H] -> [R, H]; with a cache, also over keys and values of earlier calls."""
        x = gathered(self._enter_branch, x)
        query = self.q_norm(self._heads(self.q_proj(x)), rotary)
        key, value = self._keys_and_values(x, rotary)
        query = rotary.by_sequence(query)
        if cache is not None:
            key, value = cache.append(key, value)
        mixed = attention(query, key, value, mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(len(x), -1))

    def prefill(self, x: Tensor, rotary: RotaryPositions, cache: LayerCache) -> None:
        """Append keys and values of [R, H] to the cache; no attention is computed."""
        cache.append(*self._keys_and_values(self._enter_branch(x), rotary))

    def _keys_and_values(self, x: Tensor, rotary: RotaryPositions) -> tuple[Tensor, Tensor]:
        """Keys and values: [T, H] -> [B, N, S, D] each."""
        key = self.k_norm(self._heads(self.k_proj(x)), rotary)
        return rotary.by_sequence(key), rotary.by_sequence(self._heads(self.v_proj(x)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, self.head_size)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.gate_proj = factory.column(config.hidden_size, config.ffn_size)
        self.up_proj = factory.column(config.hidden_size, config.ffn_size)
        self.down_proj = factory.row(config.ffn_size, config.hidden_size)
        self._enter_branch = factory.enter_branch
        self._swiglu = compiled(swiglu, config.compile)

    def forward(self, x: Tensor) -> Tensor:
        """[R, H] -> [R, H]."""
        x = gathered(self._enter_branch, x)
        return self.down_proj(element_wise(self._swiglu, self.gate_proj(x), self.up_proj(x)))


class DecoderLayer(nn.Module):
    """Attention and feed-forward on the residual stream.

    Each branch is normalised at its input, or with swin norm at its output (Chameleon-34B), then dropout is
    applied.
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
        self, x: Tensor, rotary: RotaryPositions, mask: AttentionMask, cache: LayerCache | None = None
    ) -> Tensor:
        """[R, H] -> [R, H]."""
        if self.swin_norm:
            x = x + self._drop(self.input_layernorm(self.self_attn(x, rotary, mask, cache)))
            return x + self._drop(self.post_attention_layernorm(self.mlp(x)))
        x = x + self._drop(self.self_attn(self.input_layernorm(x), rotary, mask, cache))
        return x + self._drop(self.mlp(self.post_attention_layernorm(x)))

    def prefill(self, x: Tensor, rotary: RotaryPositions, cache: LayerCache) -> None:
        """Append keys and values of [R, H] to the cache: all that a prompt needs of the last layer."""
        self.self_attn.prefill(x if self.swin_norm else self.input_layernorm(x), rotary, cache)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

"""The parts of a Chameleon layer; names and numbers as in Hugging Face's Chameleon.

Shapes: B batch, S tokens, H hidden, N heads of this rank (of queries, or of keys and values), D head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.model.attention.call import AttentionMask, attention
from pretrain.model.cache import LayerCache
from pretrain.model.config import ModelConfig
from pretrain.model.factory import LayerFactory


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H], same dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class HeadNorm(nn.Module):
    """LayerNorm over each head's features, with an affine map of its own per head (Chameleon's q/k norm)."""

    def __init__(self, factory: LayerFactory, heads: int, head_size: int, eps: float) -> None:
        super().__init__()
        self.weight = factory.sharded_parameter(torch.ones(heads // factory.size, head_size))
        self.bias = factory.sharded_parameter(torch.zeros(heads // factory.size, head_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, N, D] -> [B, S, N, D]."""
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.weight + self.bias


class RotaryTable:
    """Cosines and sines of the rotary embedding, made when first needed and always in fp32.

    Not a buffer: ZeRO casts buffers to bf16, which loses positions.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._head_size = config.head_size
        self._theta = config.rope_theta
        self._length = config.max_positions
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B, S, 1, D] for positions [B, S]."""
        if positions.device not in self._tables:
            self._tables[positions.device] = self._make(positions.device)
        cosine, sine = self._tables[positions.device]
        return cosine[positions].unsqueeze(2), sine[positions].unsqueeze(2)

    def _make(self, device: torch.device) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self._head_size, 2, dtype=torch.float32, device=device) / self._head_size
        frequencies = 1.0 / self._theta**exponents
        places = torch.arange(self._length, dtype=torch.float32, device=device)
        angles = torch.outer(places, frequencies).repeat(1, 2)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of [B, S, N, D] in the half-split form of Hugging Face."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x * cosine.to(x.dtype) + turned * sine.to(x.dtype)


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
        self.q_norm = HeadNorm(factory, config.heads, config.head_size, config.norm_eps)
        self.k_norm = HeadNorm(factory, config.shared_heads, config.head_size, config.norm_eps)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: AttentionMask, cache: LayerCache | None
    ) -> Tensor:
        """[B, S, H] -> [B, S, H]; with a cache, keys and values of earlier calls are seen too."""
        batch, length, _ = x.shape
        split = (batch, length, -1, self.head_size)
        query = rotate(self.q_norm(self.q_proj(x).view(split)), *rotary).transpose(1, 2)
        key, value = self._keys_and_values(x, rotary)
        if cache is not None:
            key, value = cache.append(key, value)
        mixed = attention(query, key, value, mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))

    def fill(self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: LayerCache) -> None:
        """Put keys and values of [B, S, H] into the cache, and no more."""
        cache.append(*self._keys_and_values(x, rotary))

    def _keys_and_values(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        split = (*x.shape[:2], -1, self.head_size)
        key = rotate(self.k_norm(self.k_proj(x).view(split)), *rotary).transpose(1, 2)
        return key, self.v_proj(x).view(split).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.gate_proj = factory.column(config.hidden_size, config.ffn_size)
        self.up_proj = factory.column(config.hidden_size, config.ffn_size)
        self.down_proj = factory.row(config.ffn_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and feed-forward on the residual stream.

    Each branch is normalised before, or with swin norm after (Chameleon-34B), and dropped out at its end.
    """

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, factory)
        self.mlp = FeedForward(config, factory)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.dropout = config.dropout
        self.swin_norm = config.swin_norm

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: AttentionMask,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        if self.swin_norm:
            x = x + self._drop(self.input_layernorm(self.self_attn(x, rotary, mask, cache)))
            return x + self._drop(self.post_attention_layernorm(self.mlp(x)))
        x = x + self._drop(self.self_attn(self.input_layernorm(x), rotary, mask, cache))
        return x + self._drop(self.mlp(self.post_attention_layernorm(x)))

    def fill(self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: LayerCache) -> None:
        """Put keys and values of [B, S, H] into the cache, and no more: enough of a prompt's last layer."""
        self.self_attn.fill(x if self.swin_norm else self.input_layernorm(x), rotary, cache)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

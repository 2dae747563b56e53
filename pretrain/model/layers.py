"""The parts of a Chameleon layer; names and numbers as in Hugging Face's Chameleon.

Shapes: B batch, S tokens of a sequence, T = B * S tokens, R tokens of this rank's residual stream (T, or
T / ranks in sequence parallel), H hidden, N heads of this rank (of queries, or of keys and values), D head
size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pretrain.model.attention.call import AttentionMask, attention
from pretrain.model.cache import LayerCache
from pretrain.model.config import CompileChoice, ModelConfig
from pretrain.model.factory import LayerFactory
from pretrain.model.pointwise import (
    add_and_norm,
    add_dropped,
    add_normed,
    compiled,
    head_norm_rotary,
    is_compiled,
    rms_norm,
    swiglu,
    turn_heads,
)
from pretrain.model.recompute import element_wise, recomputed

Stream = tuple[Tensor, ...]
"""The residual stream [R, H]: the sum so far and, where there is a second tensor, the output of a branch that
is still to be dropped out and added, in one pass with the norm of the next branch."""


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in fp32, of the residual stream."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self._replicated = factory.replicated_parameter
        self._choice: CompileChoice = config.compile
        self._norm = partial(compiled(rms_norm, config.compile), eps=config.norm_eps)
        self._add = partial(compiled(add_dropped, config.compile), dropout=config.dropout)
        add_norm = compiled(add_and_norm, config.compile)
        self._add_norm = partial(add_norm, eps=config.norm_eps, dropout=config.dropout)

    def forward(self, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The stream as one tensor, with the branch's output, and its norm; [R, H] each, same dtype."""
        weight = self._replicated(self.weight)
        if branch is not None and is_compiled(self._choice, x):
            x, normed = self._add_norm(x, branch, weight, training=self.training)
            return x, recomputed(normed, self._norm, x, weight)
        if branch is not None:
            x = self._add(x, branch, training=self.training)
        return x, element_wise(self._norm, x, weight)


class BranchNorm(RMSNorm):
    """The same norm, of a branch's output (swin norm)."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__(config, factory)
        add_normed_ = compiled(add_normed, config.compile)
        self._add_normed = partial(add_normed_, eps=config.norm_eps, dropout=config.dropout)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """The sum of the stream and the branch's norm, which is dropped out; [R, H] each -> [R, H]."""
        weight = self._replicated(self.weight)
        if is_compiled(self._choice, x):
            return self._add_normed(x, branch, weight, training=self.training)
        return self._add(x, element_wise(self._norm, branch, weight), training=self.training)


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
        """[T, N, D] -> [T, N, D]; queries and keys together are computed by `SelfAttention`."""
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
        self._columns = factory.columns
        self._turn_heads = partial(compiled(turn_heads, config.compile), eps=config.norm_eps)

    def forward(
        self, x: Tensor, rotary: RotaryPositions, mask: AttentionMask, cache: LayerCache | None
    ) -> Tensor:
        """[R, H] -> [R, H]; with a cache, also over keys and values of earlier calls."""
        query, key, value = map(self._heads, self._columns(x, self.q_proj, self.k_proj, self.v_proj))
        query, key = self._turned(query, key, rotary)
        query, key, value = (rotary.by_sequence(each) for each in (query, key, value))
        if cache is not None:
            key, value = cache.append(key, value)
        mixed = attention(query, key, value, mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(rotary.batch * rotary.length, -1))

    def prefill(self, x: Tensor, rotary: RotaryPositions, cache: LayerCache) -> None:
        """Append keys and values of [R, H] to the cache; no attention is computed."""
        key, value = map(self._heads, self._columns(x, self.k_proj, self.v_proj))
        cache.append(rotary.by_sequence(self.k_norm(key, rotary)), rotary.by_sequence(value))

    def _turned(self, query: Tensor, key: Tensor, rotary: RotaryPositions) -> tuple[Tensor, Tensor]:
        """Normalised and rotated queries and keys [T, N, D], in one pass.

        The norms' parameters are used outside of their modules. ZeRO-3 gathers such parameters with the
        module that is running, this one, from their first use on.
        """
        affine = self.q_norm.weight, self.q_norm.bias, self.k_norm.weight, self.k_norm.bias
        return element_wise(self._turn_heads, query, key, *affine, rotary.cosine, rotary.sine)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, self.head_size)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.gate_proj = factory.column(config.hidden_size, config.ffn_size)
        self.up_proj = factory.column(config.hidden_size, config.ffn_size)
        self.down_proj = factory.row(config.ffn_size, config.hidden_size)
        self._columns = factory.columns
        self._swiglu = compiled(swiglu, config.compile)

    def forward(self, x: Tensor) -> Tensor:
        """[R, H] -> [R, H]."""
        gate, up = self._columns(x, self.gate_proj, self.up_proj)
        return self.down_proj(element_wise(self._swiglu, gate, up))


class DecoderLayer(nn.Module):
    """Attention and feed-forward on the residual stream.

    Each branch is normalised at its input, or with swin norm at its output (Chameleon-34B), then dropout is
    applied. A branch is added where the next one is normalised: that of the feed-forward by the next layer,
    or by the norm after the last one.
    """

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, factory)
        self.mlp = FeedForward(config, factory)
        norm = BranchNorm if config.swin_norm else RMSNorm
        self.input_layernorm = norm(config, factory)
        self.post_attention_layernorm = norm(config, factory)
        self.swin_norm = config.swin_norm
        self._add = partial(compiled(add_dropped, config.compile), dropout=config.dropout)

    def forward(
        self,
        stream: Stream,
        rotary: RotaryPositions,
        mask: AttentionMask,
        cache: LayerCache | None = None,
        whole: bool = False,
    ) -> Stream:
        """Run both branches.

        Args:
            stream: Of this rank's tokens.
            rotary: Of all tokens.
            mask: Of attention.
            cache: Keys and values of earlier calls.
            whole: Return the stream as one tensor: all that the next layer's checkpoint then has to save.
        """
        if self.swin_norm:
            (x,) = stream
            x = self.input_layernorm(x, self.self_attn(x, rotary, mask, cache))
            return (self.post_attention_layernorm(x, self.mlp(x)),)
        x, normed = self.input_layernorm(*stream)
        x, normed = self.post_attention_layernorm(x, self.self_attn(normed, rotary, mask, cache))
        branch = self.mlp(normed)
        return (self._add(x, branch, training=self.training),) if whole else (x, branch)

    def prefill(self, stream: Stream, rotary: RotaryPositions, cache: LayerCache) -> None:
        """Append keys and values of the tokens to the cache: all that a prompt needs of the last layer."""
        normed = stream[0] if self.swin_norm else self.input_layernorm(*stream)[1]
        self.self_attn.prefill(normed, rotary, cache)

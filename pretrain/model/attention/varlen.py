"""The backend `flash2`: flash-attn 2's varlen kernels, the action mask split into passes.

Forward: each pass returns its output and the log-sum-exp of its scores; for a query in two passes, with
outputs o and log-sum-exps l,

    l = log(exp(l_2) + exp(l_3))        o = exp(l_2 - l) o_2 + exp(l_3 - l) o_3

Backward: with the merged o and l, each pass returns the gradient of its own keys and its part of the
queries' gradient. A kernel needs the probabilities p = exp(score - l) over all keys of the query and
delta = sum(do * o), and computes both from the o and l that it receives. (Autograd of flash-attn cannot be
used: it treats the log-sum-exp as a constant.) Ring attention (arXiv 2310.01889) does the same.

Shapes: T = B * S tokens, N query heads, G key/value heads, D head size; Q queries and K keys of a pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from pretrain.model.attention.call import AttentionMask
from pretrain.model.attention.host import on_device
from pretrain.model.attention.split_plan import AttentionPass, split
from pretrain.model.config import AttentionBackend


@dataclass(frozen=True, slots=True)
class VarlenPass:
    """An `AttentionPass` on the device; attributes as there."""

    queries: Tensor
    keys: Tensor
    query_starts: Tensor
    key_starts: Tensor
    max_queries: int
    max_keys: int
    causal: bool

    @classmethod
    def of(cls, part: AttentionPass | None, device: torch.device) -> VarlenPass | None:
        """Copy a pass to a device without synchronising."""
        if part is None:
            return None
        return cls(
            queries=on_device(part.queries, device),
            keys=on_device(part.keys, device),
            query_starts=on_device(part.query_starts, device),
            key_starts=on_device(part.key_starts, device),
            max_queries=part.max_queries,
            max_keys=part.max_keys,
            causal=part.causal,
        )


class VarlenKernels(Protocol):
    """Attention of ranges of queries [Q, N, D] over their ranges of keys and values [K, G, D].

    These are gathered already: of the pass, kernels use starts, lengths and causality.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, part: VarlenPass) -> tuple[Tensor, Tensor]:
        """Output [Q, N, D] and log-sum-exp fp32 [N, Q] of the scores, scaled by 1 / sqrt(D)."""
        ...

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        part: VarlenPass,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value for the given output and log-sum-exp, in their shapes."""
        ...


class FlashAttention2:
    """The kernels of the package flash-attn 2.7 and 2.8."""

    def __init__(self) -> None:
        # An optional package that cannot be imported without a GPU.
        interface = import_module("flash_attn.flash_attn_interface")
        self._forward = interface._flash_attn_varlen_forward
        self._backward = interface._flash_attn_varlen_backward

    def forward(self, query: Tensor, key: Tensor, value: Tensor, part: VarlenPass) -> tuple[Tensor, Tensor]:
        """See `VarlenKernels.forward`."""
        output, lse, _, _ = self._forward(query, key, value, **_settings(query, part))
        return output, lse

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        part: VarlenPass,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `VarlenKernels.backward`."""
        gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        self._backward(
            gradient,
            query,
            key,
            value,
            output,
            lse,
            *gradients,
            deterministic=torch.are_deterministic_algorithms_enabled(),
            **_settings(query, part),
        )
        return gradients


def _settings(query: Tensor, part: VarlenPass) -> dict[str, Any]:
    """Arguments that flash-attn's forward and backward have in common."""
    return {
        "cu_seqlens_q": part.query_starts,
        "cu_seqlens_k": part.key_starts,
        "max_seqlen_q": part.max_queries,
        "max_seqlen_k": part.max_keys,
        "dropout_p": 0.0,
        "softmax_scale": query.shape[-1] ** -0.5,
        "causal": part.causal,
        "window_size_left": -1,
        "window_size_right": -1,
        "softcap": 0.0,
        "alibi_slopes": None,
    }


@cache
def flash_attention_2() -> FlashAttention2:
    """The kernels, imported once."""
    return FlashAttention2()


@dataclass(frozen=True, slots=True)
class VarlenMask(AttentionMask):
    """The passes of a micro-batch and the kernels that run them; see `split_plan.SplitPlan`."""

    ordinary: VarlenPass | None
    prefix: VarlenPass | None
    within: VarlenPass | None
    kernels: VarlenKernels

    @classmethod
    def packed(
        cls, segments: Tensor, blocks: Tensor, device: torch.device, kernels: VarlenKernels
    ) -> VarlenMask:
        """Mask of packed sequences from segment and block ids [B, S] on the host."""
        plan = split(segments, blocks)
        return cls(
            VarlenPass.of(plan.ordinary, device),
            VarlenPass.of(plan.prefix, device),
            VarlenPass.of(plan.within, device),
            kernels,
        )

    @property
    def backend(self) -> AttentionBackend:
        """See `AttentionMask.backend`."""
        return "flash2"

    @property
    def passes(self) -> list[VarlenPass]:
        """The passes that have queries."""
        return [each for each in (self.ordinary, self.prefix, self.within) if each is not None]

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `AttentionMask.attend`."""
        batch, heads, length, size = query.shape
        mixed = _SplitAttention.apply(_tokens(query), _tokens(key), _tokens(value), self)
        assert isinstance(mixed, Tensor)
        return mixed.view(batch, length, heads, size).transpose(1, 2)


def _tokens(x: Tensor) -> Tensor:
    """[B, N, S, D] -> [B * S, N, D]; a view if x is a view of [B, S, N, D], as in the layers."""
    return x.transpose(1, 2).flatten(0, 1)


class _SplitAttention(Function):
    """Query [T, N, D], key and value [T, G, D], mask -> output [T, N, D]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: VarlenMask) -> Tensor:
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        lse = query.new_empty(query.shape[1], query.shape[0], dtype=_wide(query))

        def run(part: VarlenPass) -> tuple[Tensor, Tensor]:
            part_keys, part_values = (x.index_select(0, part.keys) for x in (key, value))
            return mask.kernels.forward(query.index_select(0, part.queries), part_keys, part_values, part)

        for part in (mask.ordinary, mask.within):
            if part is not None:
                part_output, part_lse = run(part)
                output.index_copy_(0, part.queries, part_output)
                lse.index_copy_(1, part.queries, part_lse)
        if mask.prefix is not None:
            _merge(output, lse, mask.prefix.queries, *run(mask.prefix))
        ctx.mask = mask
        ctx.save_for_backward(query, key, value, output, lse)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, output, lse = ctx.saved_tensors
        # A key may be in several ranges: summed in fp32, rounded once.
        sums = [torch.zeros(x.shape, dtype=_wide(x), device=x.device) for x in (query, key, value)]
        for part in ctx.mask.passes:
            queries, keys = part.queries, part.keys
            gradients = ctx.mask.kernels.backward(
                gradient.index_select(0, queries),
                query.index_select(0, queries),
                key.index_select(0, keys),
                value.index_select(0, keys),
                output.index_select(0, queries),
                lse.index_select(1, queries),
                part,
            )
            for total, indices, addend in zip(sums, (queries, keys, keys), gradients, strict=True):
                total.index_add_(0, indices, addend.to(total.dtype))
        return sums[0].to(query.dtype), sums[1].to(key.dtype), sums[2].to(value.dtype), None


def _merge(output: Tensor, lse: Tensor, queries: Tensor, part_output: Tensor, part_lse: Tensor) -> None:
    """Merge a pass into output [T, N, D] and log-sum-exp [N, T], in place.

    Args:
        output: Output of the other passes.
        lse: Their log-sum-exp.
        queries: Token indices of the pass's queries, int64 [Q].
        part_output: Its output [Q, N, D].
        part_lse: Its log-sum-exp [N, Q].
    """
    other_lse = lse.index_select(1, queries)
    merged = torch.logaddexp(other_lse, part_lse)
    weights = [(each - merged).exp().T.unsqueeze(-1) for each in (other_lse, part_lse)]
    both = weights[0] * output.index_select(0, queries) + weights[1] * part_output
    output.index_copy_(0, queries, both.to(output.dtype))
    lse.index_copy_(1, queries, merged)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)

"""The element-wise parts of a layer as functions, each of which torch.compile makes one region of.

All but those with dropout are pure, so that they can be recomputed.

Shapes: T tokens, H hidden, F feed-forward, N heads of this rank, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.model.config import CompileChoice


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of [T, H], computed in fp32 and rounded to x's dtype before the weight.

    Rounded as in Hugging Face; torch's norm rounds internally and so saves no fp32 copy of x.
    """
    return weight * F.rms_norm(x, x.shape[-1:], eps=eps)


def add_dropped(x: Tensor, branch: Tensor, dropout: float, training: bool) -> Tensor:
    """A branch's output is dropped out and added to the residual stream, [T, H] each -> [T, H]."""
    return x + (F.dropout(branch, dropout, training) if dropout else branch)


def add_and_norm(
    x: Tensor, branch: Tensor, weight: Tensor, eps: float, dropout: float, training: bool
) -> tuple[Tensor, Tensor]:
    """`add_dropped`, then `rms_norm` of the sum for the next branch; both are returned, [T, H] each."""
    x = add_dropped(x, branch, dropout, training)
    return x, rms_norm(x, weight, eps)


def add_normed(
    x: Tensor, branch: Tensor, weight: Tensor, eps: float, dropout: float, training: bool
) -> Tensor:
    """`rms_norm` of a branch's output, then `add_dropped`: [T, H] each -> [T, H] (swin norm)."""
    return add_dropped(x, rms_norm(branch, weight, eps), dropout, training)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU of the gate times `up`, [T, F] each -> [T, F]."""
    return F.silu(gate) * up


def head_norm_rotary(
    x: Tensor, weight: Tensor, bias: Tensor, cosine: Tensor, sine: Tensor, eps: float
) -> Tensor:
    """LayerNorm of every head with its own affine map, then the rotary embedding -> [T, N, D].

    Args:
        x: Queries or keys [T, N, D].
        weight: [N, D].
        bias: [N, D].
        cosine: Of the rotary embedding, [T, 1, D], in the half-split form of Hugging Face.
        sine: Likewise.
        eps: Of the norm.
    """
    x = F.layer_norm(x, x.shape[-1:], eps=eps) * weight + bias
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


def turn_heads(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    key_weight: Tensor,
    key_bias: Tensor,
    cosine: Tensor,
    sine: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """`head_norm_rotary` of queries and keys.

    Args:
        query: [T, N, D].
        key: [T, G, D], of at most as many heads.
        query_weight: Of the queries' norm, [N, D].
        query_bias: Likewise.
        key_weight: Of the keys' norm, [G, D].
        key_bias: Likewise.
        cosine: Of the rotary embedding, [T, 1, D].
        sine: Likewise.
        eps: Of the norm.
    """
    query = head_norm_rotary(query, query_weight, query_bias, cosine, sine, eps)
    return query, head_norm_rotary(key, key_weight, key_bias, cosine, sine, eps)


def compiled(function: Callable[..., Any], choice: CompileChoice) -> Callable[..., Any]:
    """The function under torch.compile, or unchanged.

    Args:
        function: One of the above.
        choice: `on`, `off`, or `auto`: compiled for tensors on a GPU.
    """
    if choice == "off":
        return function

    def call(*inputs: Tensor, **settings: float) -> Any:
        chosen = _compile(function) if is_compiled(choice, inputs[0]) else function
        return chosen(*inputs, **settings)

    return call


def is_compiled(choice: CompileChoice, x: Tensor) -> bool:
    """Whether `compiled` functions of this tensor are compiled."""
    return choice == "on" or (choice == "auto" and x.is_cuda)


@cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled on first use (dynamo takes a second to import), once for all layers.

    Sizes that vary, such as the number of tokens in decoding, become symbolic after their first change.
    """
    return torch.compile(function)

"""The element-wise parts of a layer as pure functions, so that they can be compiled and recomputed.

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


def compiled(function: Callable[..., Any], choice: CompileChoice) -> Callable[..., Any]:
    """The function under torch.compile, or unchanged.

    Args:
        function: One of the above.
        choice: `on`, `off`, or `auto`: compiled for tensors on a GPU.
    """
    if choice == "off":
        return function

    def call(*inputs: Tensor, **settings: float) -> Any:
        chosen = _compile(function) if choice == "on" or inputs[0].is_cuda else function
        return chosen(*inputs, **settings)

    return call


@cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled on first use (dynamo takes a second to import), once for all layers.

    Sizes that vary, such as the number of tokens in decoding, become symbolic after their first change.
    """
    return torch.compile(function)

"""The element-wise parts of a layer as pure functions: they can be compiled, and made again.

Shapes: T tokens, H hidden, F feed-forward, N heads of this rank, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of [T, H], computed in fp32 and rounded to x's dtype before the weight.

    The rounding is Hugging Face's. Torch's own norm does it inside, and so keeps no fp32 copy of x.
    """
    return weight * F.rms_norm(x, x.shape[-1:], eps=eps)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU of the gate times the rest, [T, F] each."""
    return F.silu(gate) * up


def turn_heads(x: Tensor, weight: Tensor, bias: Tensor, cosine: Tensor, sine: Tensor, eps: float) -> Tensor:
    """LayerNorm of every head, each with its own affine map, then the rotary embedding: [T, N, D].

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


def compiled(function: Callable[..., Any], choice: str) -> Callable[..., Any]:
    """The function under torch.compile, or as it is.

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
    """Made when first needed (dynamo takes a second to import) and once for all layers.

    Sizes that change, as the number of tokens does in decoding, become symbols after their first change.
    """
    return torch.compile(function)

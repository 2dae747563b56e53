"""Communication between tensor-parallel ranks as functions with a gradient.

As megatron-core's mappings of the same purpose, but on the tensor's own device (megatron's gathers want
CUDA) and never in place (a caller may have kept the operand). T is the number of tokens, on dimension 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

Step = Callable[[Tensor, dist.ProcessGroup], Tensor]


def copy_to_ranks(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Identity; the gradient is summed over the ranks."""
    return _Communication.apply(x, group, _same, _sum)


def sum_over_ranks(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum over the ranks, on each of them; identity for the gradient."""
    return _Communication.apply(x, group, _sum, _same)


def sum_and_share(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum over the ranks of [T, ...], of which each rank gets its T / ranks; gathers the gradient."""
    return _Communication.apply(x, group, _share_of_sum, _gather)


def gather_for_shares(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All tokens from each rank's [T / ranks, ...], for work that is shared out.

    Each rank has a part of every token's gradient: they are summed.
    """
    return _Communication.apply(x, group, _gather, _share_of_sum)


def gather_for_all(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All tokens from each rank's [T / ranks, ...], for work that each rank does for all of them.

    Each rank has the whole gradient of every token: it takes that of its own.
    """
    return _Communication.apply(x, group, _gather, _own_share)


class _Communication(Function):
    """One step for the values and another for their gradient, over the same ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, values: Step, gradient: Step) -> Tensor:
        ctx.group, ctx.gradient = group, gradient
        return values(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.gradient(gradients[0], ctx.group), None, None, None


def _same(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return x.view_as(x)


def _sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)  # collectives take no strides
    dist.all_reduce(total, group=group)
    return total


def _share_of_sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    share = x.new_empty(len(x) // group.size(), *x.shape[1:])
    dist.reduce_scatter_tensor(share, x.contiguous(), group=group)
    return share


def _gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    whole = x.new_empty(len(x) * group.size(), *x.shape[1:])
    dist.all_gather_into_tensor(whole, x.contiguous(), group=group)
    return whole


def _own_share(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return x.chunk(group.size())[group.rank()]

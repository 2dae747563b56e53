"""Communication between tensor-parallel ranks as functions with a gradient.

Like megatron-core's mappings, but on the tensor's own device (megatron's gathers require CUDA) and never in
place (a caller may have saved the operand). T tokens are on dimension 0; `size` is the number of ranks.
Dtypes are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

Collective = Callable[[Tensor, dist.ProcessGroup], Tensor]


def copy_to_ranks(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Identity, any shape; the gradient is summed over the ranks."""
    return _Communication.apply(x, group, _identity, _all_reduce)


def sum_over_ranks(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum over the ranks, any shape, on each of them; identity for the gradient."""
    return _Communication.apply(x, group, _all_reduce, _identity)


def reduce_scatter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum of [T, ...] over the ranks, scattered: [T / size, ...]; the gradient is gathered.

    T must divide by the number of ranks.
    """
    return _Communication.apply(x, group, _reduce_scatter, _all_gather)


def gather_for_replicated_work(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Gather [T / size, ...] to [T, ...], for computation that every rank does for all tokens.

    Each rank has the whole gradient of every token: it takes that of its own tokens.
    """
    return _Communication.apply(x, group, _all_gather, _own_shard)


@dataclass(frozen=True, slots=True)
class Pending:
    """A collective that runs while the caller computes.

    Attributes:
        result: Not to be used before `wait`.
        source: Not to be released or changed before `wait`.
        work: The collective.
    """

    result: Tensor
    source: Tensor
    work: dist.Work

    def wait(self) -> Tensor:
        """The result; on a GPU the stream waits, not the host."""
        self.work.wait()
        return self.result


def start_all_reduce(x: Tensor, group: dist.ProcessGroup) -> Pending:
    """Start summing a contiguous tensor over the ranks, in place."""
    return Pending(x, x, _started(dist.all_reduce(x, group=group, async_op=True)))


def start_reduce_scatter(x: Tensor, group: dist.ProcessGroup) -> Pending:
    """Start summing a contiguous [T, ...] over the ranks and scattering it: [T / size, ...]."""
    share = x.new_empty(len(x) // group.size(), *x.shape[1:])
    return Pending(share, x, _started(dist.reduce_scatter_tensor(share, x, group=group, async_op=True)))


def start_all_gather(x: Tensor, group: dist.ProcessGroup) -> Pending:
    """Start gathering a contiguous [T / size, ...] to [T, ...]."""
    whole = x.new_empty(len(x) * group.size(), *x.shape[1:])
    return Pending(whole, x, _started(dist.all_gather_into_tensor(whole, x, group=group, async_op=True)))


def all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Gather [T / size, ...] to [T, ...], without a gradient."""
    return _all_gather(x, group)


def _started(work: dist.Work | None) -> dist.Work:
    assert work is not None, "this process is not in the group"
    return work


class _Communication(Function):
    """One collective for the values and another for their gradient, over the same ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, group: dist.ProcessGroup, values: Collective, gradient: Collective
    ) -> Tensor:
        ctx.group, ctx.gradient = group, gradient
        return values(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.gradient(gradients[0], ctx.group), None, None, None


def _identity(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return x.view_as(x)


def _all_reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)  # collectives take no strides
    dist.all_reduce(total, group=group)
    return total


def _reduce_scatter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    share = x.new_empty(len(x) // group.size(), *x.shape[1:])
    dist.reduce_scatter_tensor(share, x.contiguous(), group=group)
    return share


def _all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    whole = x.new_empty(len(x) * group.size(), *x.shape[1:])
    dist.all_gather_into_tensor(whole, x.contiguous(), group=group)
    return whole


def _own_shard(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return x.chunk(group.size())[group.rank()]

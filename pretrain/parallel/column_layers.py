"""The column layers of a branch as one function whose backward pass communicates while it computes.

All column layers of a branch (queries, keys and values; gate and up) have the same input, so one collective
serves them: the gradient of the input is the sum of what each of them contributes on each rank. Megatron's
own layer would communicate for every matrix. The backward pass

1. starts to gather the input again, if it saved only this rank's tokens (`selective`, sequence parallel);
2. computes the gradient of the input: this rank's part of the sum;
3. starts to sum it over the ranks, in sequence parallel also to scatter it;
4. computes the gradients of the weights, which need only the input and the gradients of the outputs;
5. waits for the sum, which the rest of the backward pass is made of.

So the products of 4 hide the collective of 3, and those of 2 that of 1. The collectives' kernels get through
beside the products because their stream has priority (`pretrain.parallel.groups`), rather than by
CUDA_DEVICE_MAX_CONNECTIONS=1, which would queue ZeRO's gathers behind the products.

Shapes: T tokens, R tokens of this rank's residual stream (T, or T / ranks in sequence parallel), I inputs, O
outputs of this rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from pretrain.model.recompute import is_selective
from pretrain.parallel.collectives import all_gather, start_all_gather, start_all_reduce, start_reduce_scatter


def apply_columns(
    x: Tensor, weights: Sequence[Tensor], group: dist.ProcessGroup, sequence_parallel: bool
) -> tuple[Tensor, ...]:
    """Products of a branch's input and the rows of each weight that this rank holds.

    Args:
        x: The input [R, I], the same on all ranks or, in sequence parallel, this rank's tokens.
        weights: [O, I] each.
        group: The tensor-parallel ranks.
        sequence_parallel: Whether the ranks hold different tokens.

    Returns:
        [T, O] for each weight.
    """
    return _Columns.apply(x, group, sequence_parallel, is_selective(), *weights)


class _Columns(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        group: dist.ProcessGroup,
        sequence_parallel: bool,
        selective: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        whole = all_gather(x, group) if sequence_parallel else x
        ctx.group, ctx.sequence_parallel = group, sequence_parallel
        ctx.gathers_again = sequence_parallel and selective
        ctx.save_for_backward(x if ctx.gathers_again else whole, *weights)
        return tuple(whole.matmul(weight.t()) for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        saved, *weights = ctx.saved_tensors
        gradients = tuple(gradient.contiguous() for gradient in gradients)  # two products read each
        gathering = start_all_gather(saved.contiguous(), ctx.group) if ctx.gathers_again else None
        part = _input_gradient(gradients, weights)
        whole = saved if gathering is None else gathering.wait()
        summing = (start_reduce_scatter if ctx.sequence_parallel else start_all_reduce)(part, ctx.group)
        of_weights = [gradient.t().matmul(whole) for gradient in gradients]
        return summing.wait(), None, None, None, *of_weights


def _input_gradient(gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """This rank's part [T, I]; summed from the last layer to the first, as autograd would."""
    *others, last = zip(gradients, weights, strict=True)
    total = last[0].matmul(last[1])
    for gradient, weight in reversed(others):
        total += gradient.matmul(weight)
    return total

"""Statistics of the next-token distribution without whole logits: log-sum-exp, label's logit, likeliest ids.

The vocabulary is processed in blocks of rows, forward and backward, so that the logits in memory are at
most `logit_bytes`. Only [N] vectors are saved; the backward pass recomputes each block's logits. Blocks run
over the vocabulary, not over the tokens: each block of the weight's gradient is then one matrix product over
all tokens, rounded once and written once, instead of a sum of many rounded parts, and needs no second
matrix. Only the hidden states' gradient is summed over blocks, in fp32: with bf16 inputs both gradients are
as accurate as those through whole logits (relative error 0.002; summing in bf16 would make it 0.02).

N labelled tokens, H hidden size, V this rank's rows of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from pretrain.model.factory import LayerFactory

# Logits of one block in fp32: large matrix products on an accelerator, fitting into the caches of a CPU.
CPU_LOGIT_BYTES = 8 * 2**20
ACCELERATOR_LOGIT_BYTES = 64 * 2**20

_INT32_MAX = 2**31 - 1
_OFFSETS = 2**24  # offsets that fit into a key beside the 32 bits of a number


def vocabulary_statistics(
    hidden: Tensor, weight: Tensor, labels: Tensor, factory: LayerFactory, among: range
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exp, label's logit and largest logit of each token, and its likeliest id in a range.

    Logits are rounded to the dtype of hidden states and weight, as in a plain linear layer; everything after
    that is fp32. Two collectives over the factory's ranks in the forward pass, none in the backward pass: the
    hidden states' gradient is that of this rank's rows alone, so `hidden` must come from
    `LayerFactory.copy_to_ranks`.

    Args:
        hidden: [N, H], the same on all ranks; N may be 0.
        weight: [V, H], this rank's rows, in the dtype of `hidden`.
        labels: int64 [N], ids in the whole vocabulary.
        factory: Of the ranks that shard the vocabulary.
        among: Consecutive ids, at most 2**24, whose likeliest is returned.

    Returns:
        Three fp32 [N] (the last has no gradient), and int64 [N]: the id in `among` with the largest
        logit, the lowest of several that are equal. Arbitrary if the vocabulary has no id in `among`.
    """
    return _VocabularyStatistics.apply(hidden, weight, labels, factory, among)  # pyright: ignore[reportReturnType]


def block_rows(tokens: int, device: torch.device) -> int:
    """Rows of the vocabulary in one block, so that its fp32 logits for all tokens fit `logit_bytes`."""
    return max(1, logit_bytes(device) // (4 * max(1, tokens)))


def logit_bytes(device: torch.device) -> int:
    """Maximum size of one block's fp32 logits in bytes."""
    return CPU_LOGIT_BYTES if device.type == "cpu" else ACCELERATOR_LOGIT_BYTES


class _VocabularyStatistics(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, factory: LayerFactory, among: range
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first = factory.rank * len(weight)
        local = labels - first
        largest = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
        best = order_key(largest, torch.zeros_like(labels))
        total, label_logit = torch.zeros_like(largest), torch.zeros_like(largest)
        rows = block_rows(len(hidden), hidden.device)
        for start in range(0, len(weight), rows):
            logits = hidden @ weight[start : start + rows].t()
            largest, total = extend_log_sum(logits, largest, total)
            mine, column = label_columns(local, start, logits.shape[1])
            label_logit = torch.where(mine, _pick(logits, column).float(), label_logit)
            best = extend_choice(logits, first + start, among, best)
        keys = factory.max_over_ranks(torch.stack([order_key(largest, torch.zeros_like(labels)), best]))
        global_largest, choice = key_value(keys[0]), among.start + key_offset(keys[1])
        sums = factory.sum_over_ranks(torch.stack([total * (largest - global_largest).exp(), label_logit]))
        log_sum, label_logit = sums[0].log() + global_largest, sums[1].clone()
        # The weight itself, not a copy: ZeRO releases it between the passes and gathers it again.
        ctx.save_for_backward(hidden, weight, local, log_sum, label_logit)
        ctx.mark_non_differentiable(global_largest, choice)
        return log_sum, label_logit, global_largest, choice

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, log_sum_gradient: Tensor, label_gradient: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, weight, local, log_sum, label_logit = ctx.saved_tensors
        at_label = (label_logit - log_sum).exp_() * log_sum_gradient + label_gradient
        hidden_gradient = torch.zeros_like(hidden, dtype=torch.float32)
        weight_gradient = torch.empty_like(weight)
        rows = block_rows(len(hidden), hidden.device)
        for start in range(0, len(weight), rows):
            block = weight[start : start + rows]
            logits = hidden @ block.t()
            gradient_of_logits(logits, log_sum, log_sum_gradient)
            mine, column = label_columns(local, start, len(block))
            values = torch.where(mine, at_label.to(logits.dtype), _pick(logits, column))
            logits.scatter_(1, column[:, None], values[:, None])
            torch.mm(logits.t(), hidden, out=weight_gradient[start : start + rows])
            _add_product(hidden_gradient, logits, block)
        return hidden_gradient.to(hidden.dtype), weight_gradient, None, None, None


def extend_log_sum(logits: Tensor, largest: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Add one more block to a running log-sum-exp, which is `total.log() + largest`.

    Args:
        logits: [N, rows] of the block.
        largest: fp32 [N], largest logit so far; initially minus infinity.
        total: fp32 [N], sum of exp(logit - largest) so far.

    Returns:
        The new pair (largest, total).
    """
    new = torch.maximum(largest, logits.amax(dim=1).float())
    return new, total * (largest - new).exp() + torch.sub(logits, new[:, None]).exp_().sum(dim=1)


def extend_choice(logits: Tensor, start: int, among: range, best: Tensor) -> Tensor:
    """Add one more block to the running choice of the likeliest id.

    Args:
        logits: [N, rows] of the block.
        start: Id of its first row.
        among: Ids to choose from.
        best: int64 [N], `order_key` of the largest logit so far and its id, relative to `among.start`.

    Returns:
        The new `best`.
    """
    low, high = max(start, among.start), min(start + logits.shape[1], among.stop)
    if low >= high:
        return best
    values, columns = logits[:, low - start : high - start].max(dim=1)
    return torch.maximum(best, order_key(values.float(), columns + (low - among.start)))


def order_key(values: Tensor, offsets: Tensor) -> Tensor:
    """Encode values and offsets as int64 [N] such that the maximum is the largest value, lowest offset first.

    One maximum, over blocks or over ranks, then finds both.

    Args:
        values: fp32 [N].
        offsets: int64 [N], from 0 to below 2**24.
    """
    bits = (values + 0.0).view(torch.int32)  # + 0: minus zero is equal to zero
    # As integers the bits of negative numbers are in reverse order.
    rising = (bits ^ ((bits >> 31) & _INT32_MAX)).long()
    return rising * _OFFSETS + (_OFFSETS - 1 - offsets)


def key_value(keys: Tensor) -> Tensor:
    """The values encoded by `order_key`, fp32 [N]."""
    rising = torch.div(keys, _OFFSETS, rounding_mode="floor").int()
    return (rising ^ ((rising >> 31) & _INT32_MAX)).view(torch.float32)


def key_offset(keys: Tensor) -> Tensor:
    """The offsets encoded by `order_key`, int64 [N]."""
    return _OFFSETS - 1 - keys.remainder(_OFFSETS)


def gradient_of_logits(logits: Tensor, log_sum: Tensor, log_sum_gradient: Tensor) -> None:
    """Turn a block's logits into their gradient through the log-sum-exp, softmax x log_sum_gradient.

    The label's own entry is written by the caller. Probabilities are fp32 and rounded once.

    Args:
        logits: [N, rows] of the block; overwritten.
        log_sum: fp32 [N] over the whole vocabulary.
        log_sum_gradient: fp32 [N].
    """
    probabilities = torch.sub(logits, log_sum[:, None]).exp_()
    logits.copy_(probabilities.mul_(log_sum_gradient[:, None]))


def label_columns(local: Tensor, start: int, rows: int) -> tuple[Tensor, Tensor]:
    """Whether each label is in a block, bool [N], and its column there, int64 [N] (0 where not).

    Args:
        local: int64 [N], labels relative to this rank's first row.
        start: First row of the block.
        rows: Rows of the block.
    """
    column = local - start
    mine = (column >= 0) & (column < rows)
    return mine, torch.where(mine, column, 0)


def _pick(values: Tensor, column: Tensor) -> Tensor:
    """One value of each row: [N, rows], [N] -> [N]."""
    return values.gather(1, column[:, None]).squeeze(1)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left [N, R] @ right [R, H] to total fp32 [N, H], in place."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)

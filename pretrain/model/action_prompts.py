"""Prompts of the action samples of packed sequences, and their targets: the inputs of the action head.

The tokens of all prompts, one prompt after the other, are a flat list of P rows: no row is padding. Only
attention, which has to keep the samples apart, sees them as N sequences of the longest one's length.

Shapes: N action samples, K actions of D numbers (the longest chunk and the widest action of all data sets),
Q = D K queries of a sample, P prompt tokens of all samples, L = Q + tokens of the longest prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.contracts import PackedBatch
from data.tokens.action import bin_centers
from data.tokens.vocabulary import block_length
from pretrain.model.attention.host import on_device
from pretrain.model.config import ActionHeadConfig


@dataclass(frozen=True, slots=True)
class ActionPrompts:
    """Where the prompts' tokens are, on the device.

    The head's rows are the queries of all samples, N * Q, and then the P prompt tokens.

    Attributes:
        count: N.
        queries: Q.
        length: L.
        tokens: int64 [P], place of each prompt token in the flattened sequences.
        slots: int64 [N * Q + P], place of each row of the head in N sequences of L, queries first.
        valid: bool [N, L], whether a place of these sequences holds a row.
    """

    count: int
    queries: int
    length: int
    tokens: Tensor
    slots: Tensor
    valid: Tensor

    @classmethod
    def of(
        cls,
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        queries: int,
        device: torch.device,
        width: int = 0,
    ) -> ActionPrompts:
        """Describe prompts by where they end; computed on the host.

        Args:
            starts: int64 [N], place of the first token after each prompt in the flattened sequences.
            lengths: int64 [N], tokens of each prompt.
            queries: Q.
            device: Of the model.
            width: Minimum number of tokens that the longest prompt counts as; 0: its own.
        """
        count, total = len(starts), int(lengths.sum())
        length = queries + max(width, int(lengths.max()))
        within = np.arange(total, dtype=np.int64) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        first = length * np.arange(count, dtype=np.int64)
        of_queries = first[:, None] + np.arange(queries, dtype=np.int64)
        of_tokens = np.repeat(first + queries, lengths) + within
        valid = np.arange(length) < queries + lengths[:, None]
        return cls(
            count,
            queries,
            length,
            on_device(np.repeat(starts - lengths, lengths) + within, device),
            on_device(np.concatenate([of_queries.ravel(), of_tokens]), device),
            on_device(valid, device),
        )

    def by_sequence(self, rows: Tensor) -> Tensor:
        """Rows [N * Q + P, W] -> sequences [N, L, W], zeros where there is no row."""
        padded = rows.new_zeros(self.count * self.length, rows.shape[1])
        # Not `index_copy`, which saves the rows for its backward pass.
        return padded.index_put((self.slots,), rows).view(self.count, self.length, -1)

    def rows_of(self, sequences: Tensor) -> Tensor:
        """Sequences [N, L, W] -> rows [N * Q + P, W]; the inverse of `by_sequence`."""
        return sequences.flatten(0, 1).index_select(0, self.slots)


@dataclass(frozen=True, slots=True)
class ActionInputs:
    """What the action head of a training step computes, on the device.

    Attributes:
        prompts: Of the action samples; of a micro-batch without any, one token that stands for a prompt:
            every rank runs the head, since ZeRO-3 gathers its weights on all ranks together.
        targets: fp32 [N, K, D], normalised.
        present: fp32 [N, K, D], 1 for targets that count, 0 for numbers that a sample does not have; None:
            all count.
        values: Number of targets that count.
        dropout_seed: Seed of the head's dropout; None: none is set.
    """

    prompts: ActionPrompts
    targets: Tensor
    present: Tensor | None
    values: int
    dropout_seed: int | None = None

    @classmethod
    def of(
        cls, batch: PackedBatch, head: ActionHeadConfig, bin_targets: bool, device: torch.device
    ) -> ActionInputs:
        """The inputs of a micro-batch, copied from the host without synchronising.

        Args:
            batch: On the host.
            head: K and D.
            bin_targets: Whether the targets are the centres of the actions' bins.
            device: Of the model.
        """
        starts, targets, present = batch.action_starts, batch.action_targets, batch.action_present
        lengths = batch.positions.reshape(-1)[starts].astype(np.int64)
        if len(starts) and bin_targets:
            targets = _bin_targets(batch)
        values = int(np.count_nonzero(present))
        if not len(starts):
            starts, lengths = np.ones(1, np.int64), np.ones(1, np.int64)
            targets = np.zeros((1, head.time_horizon, head.action_dim), np.float32)
        prompts = ActionPrompts.of(starts, lengths, head.time_horizon * head.action_dim, device)
        counted = None
        if values < present.size:
            counted = on_device(present.astype(np.float32), device)
        return cls(prompts, on_device(np.ascontiguousarray(targets), device), counted, values)


def _bin_targets(batch: PackedBatch) -> NDArray[np.float32]:
    """Centres of the bins of action samples' answers, float32 [N, K, D]; 0 beyond a sample's own K and D.

    How long the blocks of a sample are is read off its first one.
    """
    tokens, blocks = batch.tokens.reshape(-1), batch.blocks.reshape(-1)
    _, chunk, numbers = batch.action_targets.shape
    places = batch.action_starts[:, None] + np.arange(block_length(numbers), dtype=np.int64)
    # Where the tokens end first, the last one is repeated: it belongs to no block.
    first_block = np.logical_and.accumulate(blocks[np.minimum(places, len(blocks) - 1)] == 1, axis=1)
    lengths = np.count_nonzero(first_block, axis=1)
    first = batch.action_starts[:, None] + lengths[:, None] * np.arange(chunk, dtype=np.int64) + 1
    places = first[:, :, None] + np.arange(numbers, dtype=np.int64)
    steps = np.any(batch.action_present, axis=2, keepdims=True)
    has = (np.arange(numbers) < lengths[:, None, None] - 2) & steps
    centres = bin_centers(tokens[np.where(has, places, 0)]).astype(np.float32)
    return np.where(has, centres, np.float32(0))

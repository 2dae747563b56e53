"""Conversion of a packed batch on the host to the model's inputs on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.contracts import PackedBatch
from data.errors import InputError
from data.tokens.vocabulary import ACTION_BIN_END, ACTION_BIN_START, IGNORED_LABEL
from pretrain.model.action_head import check_head_size
from pretrain.model.action_prompts import ActionInputs
from pretrain.model.attention.call import AttentionMask
from pretrain.model.attention.choose import packed_mask
from pretrain.model.attention.host import on_device
from pretrain.model.config import ModelConfig
from pretrain.model.loss import ActionSources, LossSettings


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A micro-batch on the device: B sequences of S tokens, N labels.

    Attributes:
        tokens: int64 [B, S].
        positions: int64 [B, S], of each token within its sample.
        mask: Of attention.
        labelled: int64 [N], indices into the flattened B * S positions that have a label.
        labels: int64 [N], those labels.
        actions: Prompts and targets of the action head; None: the model has none.
        sources: Data sets of the action labels; None: they are not told apart.
    """

    tokens: Tensor
    positions: Tensor
    mask: AttentionMask
    labelled: Tensor
    labels: Tensor
    actions: ActionInputs | None
    sources: ActionSources | None = None

    @classmethod
    def of(
        cls,
        batch: PackedBatch,
        model: ModelConfig,
        loss: LossSettings,
        device: torch.device,
        dtype: torch.dtype,
        sources: int = 0,
    ) -> MicroBatch:
        """Copy a micro-batch from the host to the device without synchronising.

        The indices of labels are computed on the host.

        Args:
            batch: On the host.
            model: Attention backend, ablations of the mask, action head.
            loss: Which labels and targets count.
            device: Of the model.
            dtype: Of its activations.
            sources: Number of data sets whose action losses are told apart; 0: they are not.
        """
        flat = batch.labels.reshape(-1)
        if not loss.tokens_for_actions:
            flat = _without_action_answers(flat, batch)
        head, actions = model.action_head, None
        if head is not None:
            actions = ActionInputs.of(batch, head, loss.reference_compatible, device)
        labelled = np.flatnonzero(flat != IGNORED_LABEL)
        return cls(
            tokens=on_device(batch.tokens.astype(np.int64), device),
            positions=on_device(batch.positions.astype(np.int64), device),
            mask=packed_mask(batch.segments, batch.blocks, model, device, dtype),
            labelled=on_device(labelled, device),
            labels=on_device(flat[labelled].astype(np.int64), device),
            actions=actions,
            sources=_action_sources(batch, flat[labelled], labelled, sources, device) if sources else None,
        )


def _without_action_answers(labels: NDArray[np.int32], batch: PackedBatch) -> NDArray[np.int32]:
    """A copy of the flattened labels without those of action samples, all of which are of their answers."""
    rows, length = batch.segments.shape
    numbers = batch.segments + np.arange(rows)[:, None] * (int(batch.segments.max()) + 1)  # of all samples
    is_action = np.zeros(int(numbers.max()) + 1, bool)
    is_action[numbers.reshape(-1)[batch.action_starts]] = True
    return np.where(is_action[numbers].reshape(rows * length), np.int32(IGNORED_LABEL), labels)


def _action_sources(
    batch: PackedBatch, labels: NDArray[np.int32], places: NDArray[np.int64], count: int, device: torch.device
) -> ActionSources:
    """The data sets of the action labels among labels [N], at places [N] of the flattened tokens."""
    of_actions = np.flatnonzero((labels >= ACTION_BIN_START) & (labels < ACTION_BIN_END))
    at = places[of_actions]
    numbers = batch.sources[at // batch.segments.shape[1], batch.segments.reshape(-1)[at]]
    return ActionSources(count, on_device(of_actions, device), on_device(numbers.astype(np.int64), device))


def check_batch(batch: PackedBatch, model: ModelConfig) -> None:
    """Check that every token id and position is within the model's sizes.

    On a GPU larger ones end in a device assertion, and a sharded vocabulary embeds an unknown id as a zero
    vector without an error.

    Raises:
        InputError: One is not, or the action head predicts other chunks than the data has; states the largest
            id, the longest sample or both sizes.
    """
    largest = max(int(batch.tokens.max()), int(batch.labels.max()))
    if largest >= model.vocabulary_size:
        raise InputError(
            f"token id {largest} in the data, but model.vocabulary_size is {model.vocabulary_size}; "
            f"raise it to at least {largest + 1} or prepare the data with another text tokenizer"
        )
    longest = int(batch.positions.max()) + 1
    if longest > model.max_positions:
        raise InputError(
            f"a sample of {longest} tokens, but model.max_positions is {model.max_positions}; "
            f"raise it to at least {longest}"
        )
    head, (samples, chunk, numbers) = model.action_head, batch.action_targets.shape
    if head is not None and samples:
        check_head_size(head, chunk, numbers)

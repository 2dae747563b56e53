"""From a packed batch on the host to what the model is called with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.contracts import PackedBatch
from data.errors import InputError
from data.tokens.vocabulary import IGNORED_LABEL
from pretrain.model.attention.call import AttentionMask
from pretrain.model.attention.choose import packed_mask
from pretrain.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A micro-batch on the device; B sequences of S tokens, N labels.

    Attributes:
        tokens: int64 [B, S].
        positions: int64 [B, S], of each token within its sample.
        mask: Who sees whom.
        labelled: int64 [N], indices into the flattened B * S positions that have a label.
        labels: int64 [N], those labels.
    """

    tokens: Tensor
    positions: Tensor
    mask: AttentionMask
    labelled: Tensor
    labels: Tensor


def check_batch(batch: PackedBatch, model: ModelConfig) -> None:
    """Check that the model knows every token and position.

    On a GPU they end in a device assertion, and a vocabulary that is shared out takes an unknown id for
    a zero vector without an error.

    Raises:
        InputError: Names the largest id or the longest sample.
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


def on_device(batch: PackedBatch, model: ModelConfig, device: torch.device, dtype: torch.dtype) -> MicroBatch:
    """Move a micro-batch to the device.

    The indices of labels are found on the host, where the labels are, and copies start from pinned
    memory: nothing waits for the device.

    Args:
        batch: On the host.
        model: Attention backend and ablations of the mask.
        device: Where the model computes.
        dtype: In which it computes.
    """
    flat = batch.labels.reshape(-1)
    labelled = np.flatnonzero(flat != IGNORED_LABEL)

    def move(array: np.ndarray) -> Tensor:
        values = torch.from_numpy(array.astype(np.int64))
        return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values

    return MicroBatch(
        tokens=move(batch.tokens),
        positions=move(batch.positions),
        mask=packed_mask(batch.segments, batch.blocks, model, device, dtype),
        labelled=move(labelled),
        labels=move(flat[labelled]),
    )

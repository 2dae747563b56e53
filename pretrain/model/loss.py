"""The training loss: weighted cross entropy plus z-loss, over a vocabulary that may be shared out.

    loss = sum_i w_i (lse_i - logit_i) / sum_i w_i  +  z * mean_i lse_i^2

over the labelled positions i of the whole step: of all micro-batches and all data-parallel ranks, so the
gradient does not depend on the layout. w is 1, and 0.04 for image codes (WorldVLA, arXiv 2506.21539).

Logits never exist for the whole vocabulary at once: `pretrain.model.vocabulary`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.tokens.vocabulary import (
    ACTION_BIN_END,
    ACTION_BIN_START,
    IMAGE_CODE_END,
    IMAGE_CODE_START,
)
from pretrain.model.factory import LayerFactory
from pretrain.model.vocabulary import vocabulary_statistics


class LabelKind(IntEnum):
    """What a label is; the row in `LossTerms.sums`."""

    ACTION = 0
    IMAGE = 1
    STRUCTURE = 2


@dataclass(frozen=True, slots=True)
class LossSettings:
    """Weights of the loss; see `pretrain.config.LossConfig`.

    Attributes:
        image_weight: Of image codes; all other labels weigh 1.
        z_loss: Of the mean squared log-sum-exp.
        reference_compatible: The last image code weighs 1, as the published code's slice has it.
    """

    image_weight: float = 0.04
    z_loss: float = 1e-5
    reference_compatible: bool = False


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Loss of one micro-batch.

    Attributes:
        loss: Scalar fp32: this micro-batch's part of the step's loss (parts add up).
        sums: fp32 [3, 3], no gradient. Rows: `LabelKind`. Columns: summed cross entropy in nats,
            number of labels, number predicted right.
    """

    loss: Tensor
    sums: Tensor


def label_kinds(labels: Tensor) -> Tensor:
    """Kind of each label: ids [N] -> int64 [N] of `LabelKind`."""
    kinds = torch.full_like(labels, LabelKind.STRUCTURE, dtype=torch.int64)
    kinds[(labels >= ACTION_BIN_START) & (labels < ACTION_BIN_END)] = LabelKind.ACTION
    kinds[(labels >= IMAGE_CODE_START) & (labels < IMAGE_CODE_END)] = LabelKind.IMAGE
    return kinds


def label_weights(labels: Tensor, settings: LossSettings) -> Tensor:
    """Weight of each label: ids [N] -> fp32 [N]."""
    end = IMAGE_CODE_END - 1 if settings.reference_compatible else IMAGE_CODE_END
    image = (labels >= IMAGE_CODE_START) & (labels < end)
    return torch.where(image, settings.image_weight, 1.0)


class VocabularyHead(nn.Module):
    """The output matrix; holds this rank's rows of the vocabulary.

    Called with hidden states alone it gives this rank's logits, with labels the loss.
    """

    def __init__(self, factory: LayerFactory, vocabulary_size: int, hidden_size: int) -> None:
        super().__init__()
        self._factory = factory
        self.weight = factory.sharded_parameter(torch.empty(vocabulary_size // factory.size, hidden_size))

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        normaliser: Tensor | None = None,
        settings: LossSettings | None = None,
    ) -> Any:
        """Hidden states [..., H] -> logits [..., V / ranks]; or the loss of labelled positions.

        Args:
            hidden: [..., H], or [N, H] together with labels.
            labels: Ids [N] of the tokens that should follow.
            normaliser: fp32 [2]: sum of the weights and number of labels of the whole step.
            settings: Weights of the loss.

        Returns:
            Logits, or the pair (loss, sums) as in `LossTerms`: a plain tuple, since ZeRO's hooks look
            for tensors in tuples.
        """
        if labels is None:
            return F.linear(hidden, self.weight)
        if normaliser is None or settings is None:
            raise ValueError("a loss needs labels, normaliser and settings")
        hidden = self._factory.copy_to_ranks(hidden)
        log_sum, label_logit, largest = vocabulary_statistics(hidden, self.weight, labels, self._factory)
        entropy = log_sum - label_logit
        loss = (label_weights(labels, settings) * entropy).sum() / normaliser[0]
        loss = loss + settings.z_loss * log_sum.square().sum() / normaliser[1]
        right = (label_logit >= largest).float()
        columns = torch.stack([entropy, torch.ones_like(entropy), right], dim=1).detach()
        sums = torch.zeros(len(LabelKind), 3, device=hidden.device)
        return loss, sums.index_add_(0, label_kinds(labels), columns)

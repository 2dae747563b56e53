"""The training loss: weighted cross entropy plus z-loss, over a vocabulary that may be shared out.

    loss = sum_i w_i (lse_i - logit_i) / sum_i w_i  +  z * mean_i lse_i^2

over the labelled positions i of the whole step: of all micro-batches and all data-parallel ranks, so the
gradient does not depend on the layout. w is 1, and 0.04 for image codes (WorldVLA, arXiv 2506.21539).

Logits are made for a few tokens at a time and made again in the backward pass; they never exist for the
whole sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function
from torch.utils.checkpoint import checkpoint

from data.tokens.vocabulary import (
    ACTION_BIN_END,
    ACTION_BIN_START,
    IMAGE_CODE_END,
    IMAGE_CODE_START,
)
from pretrain.model.factory import LayerFactory

TOKENS_AT_ONCE = 256  # a few tens of MB of logits, small enough to stay near the processor


class LabelKind(IntEnum):
    """What a label is; the row in `LossTerms.sums`."""

    ACTION = 0
    IMAGE = 1
    STRUCTURE = 2


@dataclass(frozen=True, slots=True)
class LossSettings:
    """Weights of the loss; see `pretrain.config.LossConfig`."""

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
    image = (labels >= IMAGE_CODE_START) & (labels < IMAGE_CODE_END)
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
        loss = hidden.new_zeros((), dtype=torch.float32)
        sums = torch.zeros(len(LabelKind), 3, device=hidden.device)
        for start in range(0, max(len(labels), 1), TOKENS_AT_ONCE):
            part = slice(start, start + TOKENS_AT_ONCE)
            terms = checkpoint(
                self._chunk, hidden[part], labels[part], normaliser, settings, use_reentrant=False
            )
            assert isinstance(terms, tuple)
            loss, sums = loss + terms[0], sums + terms[1]
        return loss, sums

    def _chunk(
        self, hidden: Tensor, labels: Tensor, normaliser: Tensor, settings: LossSettings
    ) -> tuple[Tensor, Tensor]:
        logits = F.linear(hidden, self.weight).float()
        log_sum, label_logit, largest = _VocabularyStatistics.apply(logits, labels, self._factory)
        entropy = log_sum - label_logit
        weights = label_weights(labels, settings)
        loss = (weights * entropy).sum() / normaliser[0]
        loss = loss + settings.z_loss * log_sum.square().sum() / normaliser[1]
        right = (label_logit >= largest).float()
        columns = torch.stack([entropy.detach(), torch.ones_like(entropy), right], dim=1)
        sums = torch.zeros(len(LabelKind), 3, device=hidden.device)
        return loss, sums.index_add_(0, label_kinds(labels), columns.detach())


class _VocabularyStatistics(Function):
    """Log-sum-exp, label's logit and largest logit [N] of logits [N, V / ranks], over all ranks."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, factory: LayerFactory) -> tuple[Tensor, ...]:
        rows = logits.shape[1]
        local = labels - factory.rank * rows
        mine = (local >= 0) & (local < rows)
        local = torch.where(mine, local, 0)
        largest = factory.max_over_ranks(logits.amax(dim=1))
        exponentials = (logits - largest[:, None]).exp_()
        total = factory.sum_over_ranks(exponentials.sum(dim=1))
        label_logit = logits.gather(1, local[:, None]).squeeze(1)
        label_logit = factory.sum_over_ranks(torch.where(mine, label_logit, 0.0))
        ctx.save_for_backward(exponentials.div_(total[:, None]), local, mine)
        ctx.mark_non_differentiable(largest)
        return total.log() + largest, label_logit, largest

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        probabilities, local, mine = ctx.saved_tensors
        result = probabilities * gradients[0][:, None]
        result.scatter_add_(1, local[:, None], torch.where(mine, gradients[1], 0.0)[:, None])
        return result, None, None

"""The training loss: weighted cross entropy plus z-loss, over a vocabulary that may be sharded.

    loss = sum_i w_i (lse_i - logit_i) / sum_i w_i  +  z * mean_i lse_i^2

over the labelled positions i of the whole step: all micro-batches and all data-parallel ranks, so the
gradient does not depend on the layout. w is 1, and 0.04 for image codes (WorldVLA, arXiv 2506.21539). With a
continuous action head (RynnVLA-002, arXiv 2511.17502) there is a third term,

         + a * mean |predicted - target|

over the normalised actions of all action samples of the step, without the numbers that a sample does not
have; a is 10.

Logits of the whole vocabulary are never materialised: see `pretrain.model.vocabulary`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.tokens.action import BIN_WIDTH
from data.tokens.vocabulary import (
    ACTION_BIN_COUNT,
    ACTION_BIN_END,
    ACTION_BIN_START,
    IMAGE_CODE_END,
    IMAGE_CODE_START,
)
from pretrain.model.action_prompts import ActionInputs
from pretrain.model.factory import LayerFactory
from pretrain.model.vocabulary import vocabulary_statistics


class LabelKind(IntEnum):
    """Kind of a label; the row in `LossTerms.sums`."""

    ACTION = 0
    IMAGE = 1
    STRUCTURE = 2
    CONTINUOUS = 3
    """A target of the action head: a number, not a token. It has no cross entropy."""


class Total(IntEnum):
    """Quantity summed over the labels of a kind; the column in `LossTerms.sums`."""

    CROSS_ENTROPY = 0
    """In nats."""
    LABELS = 1
    """Their number."""
    RIGHT = 2
    """Number predicted correctly."""
    ACTION_L1 = 3
    """|decoded prediction - decoded label| in normalised units (-1 to 1), teacher forced; the prediction is
    the likeliest of the 256 action bins. Of the action head |prediction - target|. 0 for other kinds."""


TOKEN_KINDS = (LabelKind.ACTION, LabelKind.IMAGE, LabelKind.STRUCTURE)


def sums_shape(sources: int = 0) -> tuple[int, int]:
    """Shape of `LossTerms.sums` in a training on so many data sets; 0: it does not tell them apart."""
    return len(LabelKind) + sources, len(Total)


@dataclass(frozen=True, slots=True)
class LossSettings:
    """Weights of the loss; see `pretrain.config.LossConfig`.

    Attributes:
        image_weight: Weight of image codes; all other labels have weight 1.
        z_loss: Weight of the mean squared log-sum-exp.
        action_l1: Weight of the action head's mean absolute error.
        tokens_for_actions: Whether the answers of action samples have labels.
        reference_compatible: The last image code has weight 1, as in the published code.
    """

    image_weight: float = 0.04
    z_loss: float = 1e-5
    action_l1: float = 10.0
    tokens_for_actions: bool = True
    reference_compatible: bool = False


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Loss of one micro-batch.

    Attributes:
        loss: Scalar fp32: this micro-batch's part of the step's loss; the parts sum to the loss.
        sums: fp32 [4 + M, 4], no gradient. Rows: `LabelKind`, then the action labels of each of M data sets
            where the loss tells them apart (`ActionSources`). Columns: `Total`.
    """

    loss: Tensor
    sums: Tensor


@dataclass(frozen=True, slots=True)
class ActionSources:
    """The data sets of the action labels of a micro-batch, on the device.

    Attributes:
        count: M, number of data sets of the training.
        labels: int64 [A], number of each action label among all labels.
        sources: int64 [A], number of its data set.
    """

    count: int
    labels: Tensor
    sources: Tensor


def means(sums: Sequence[Sequence[float]], sources: Sequence[str] = ()) -> dict[str, float | None]:
    """Means over labels: `loss_<kind>`, `accuracy_<kind>`, `action_l1`; None without labels.

    Those of the action head, `action_head_l1`, are there only where it has had targets. Where the sums tell
    data sets apart, `loss_action/<data set>` is that of the action labels of each.

    Args:
        sums: `LossTerms.sums` as numbers, of any number of batches.
        sources: Names of the data sets.
    """
    result: dict[str, float | None] = {}
    for kind in TOKEN_KINDS:
        row, name = sums[kind], kind.name.lower()
        labels = row[Total.LABELS]
        result[f"loss_{name}"] = row[Total.CROSS_ENTROPY] / labels if labels else None
        result[f"accuracy_{name}"] = row[Total.RIGHT] / labels if labels else None
    actions = sums[LabelKind.ACTION]
    labels = actions[Total.LABELS]
    result["action_l1"] = actions[Total.ACTION_L1] / labels if labels else None
    continuous = sums[LabelKind.CONTINUOUS]
    if targets := continuous[Total.LABELS]:
        result["action_head_l1"] = continuous[Total.ACTION_L1] / targets
    for name, row in zip(sources, sums[len(LabelKind) :], strict=bool(sources)):
        labels = row[Total.LABELS]
        result[f"loss_action/{name}"] = row[Total.CROSS_ENTROPY] / labels if labels else None
    return result


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


def action_distances(predicted: Tensor, labels: Tensor) -> Tensor:
    """|decoded prediction - decoded label| of action bins in normalised units; 0 for other labels.

    A bin decodes to its middle and the last bin like the one before it (`data.tokens.action.decode`).

    Args:
        predicted: int64 [N], ids of action bins where the label is one.
        labels: int64 [N].

    Returns:
        fp32 [N].
    """
    bins = torch.stack([predicted, labels]).sub_(ACTION_BIN_START).clamp_(max=ACTION_BIN_COUNT - 2)
    distances = (bins[0] - bins[1]).abs_() * BIN_WIDTH
    return torch.where(label_kinds(labels) == LabelKind.ACTION, distances, 0.0)


def with_action_error(
    terms: tuple[Tensor, Tensor],
    predicted: Tensor,
    actions: ActionInputs,
    normaliser: Tensor | None,
    settings: LossSettings | None,
) -> tuple[Tensor, Tensor]:
    """Add the action head's term to the loss, and its row to the sums.

    Args:
        terms: (loss, sums) of the tokens.
        predicted: fp32 [N, K, D] of the head.
        actions: With the targets.
        normaliser: fp32 [3]; the last is the number of targets of the whole step.
        settings: Weights of the loss.

    Raises:
        ValueError: No normaliser or settings.
    """
    if normaliser is None or settings is None:
        raise ValueError("a loss needs normaliser and settings")
    loss, sums = terms
    # Times 0 where a token stands for the prompts: the head's parameters have gradients on every rank.
    errors = (predicted - actions.targets).abs()
    if actions.present is not None:
        errors = errors * actions.present
    error = errors.sum() * float(actions.values > 0)
    sums[LabelKind.CONTINUOUS, Total.LABELS] = actions.values
    sums[LabelKind.CONTINUOUS, Total.ACTION_L1] = error.detach()
    return loss + settings.action_l1 * error / normaliser[2], sums


class VocabularyHead(nn.Module):
    """The output matrix [V / ranks, H]: this rank's rows of the vocabulary.

    Called with hidden states alone it returns this rank's logits, with labels the loss.
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
        sources: ActionSources | None = None,
    ) -> Any:
        """Logits of hidden states, or the loss of labelled positions.

        Args:
            hidden: [..., H], or [N, H] together with labels.
            labels: int64 [N], ids of the tokens to predict.
            normaliser: fp32 [2]: sum of the weights and number of labels of the whole step.
            settings: Weights of the loss.
            sources: Data sets of the action labels; None: the sums do not tell them apart.

        Returns:
            Logits [..., V / ranks], or the pair (loss, sums) as in `LossTerms`: a plain tuple, since ZeRO's
            hooks look for tensors in tuples.

        Raises:
            ValueError: Labels without normaliser or settings.
        """
        if labels is None:
            return F.linear(hidden, self.weight)
        if normaliser is None or settings is None:
            raise ValueError("a loss needs labels, normaliser and settings")
        hidden = self._factory.copy_to_ranks(hidden)
        log_sum, label_logit, largest, action = vocabulary_statistics(
            hidden, self.weight, labels, self._factory, range(ACTION_BIN_START, ACTION_BIN_END)
        )
        entropy = log_sum - label_logit
        loss = (label_weights(labels, settings) * entropy).sum() / normaliser[0]
        loss = loss + settings.z_loss * log_sum.square().sum() / normaliser[1]
        correct = (label_logit >= largest).float()
        distances = action_distances(action, labels)
        columns = torch.stack([entropy, torch.ones_like(entropy), correct, distances], dim=1).detach()
        sums = torch.zeros(sums_shape(sources.count if sources else 0), device=hidden.device)
        sums.index_add_(0, label_kinds(labels), columns)
        if sources is not None:
            sums.index_add_(0, sources.sources + len(LabelKind), columns[sources.labels])
        return loss, sums

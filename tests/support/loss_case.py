"""Inputs of the loss, and the reference loss with whole logits in fp64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.tokens.action import ActionRanges, decode
from data.tokens.vocabulary import ACTION_BIN_COUNT, ACTION_BIN_START, ACTION_DIM
from pretrain.model.loss import LabelKind, LossSettings, label_kinds, label_weights


@dataclass
class LossCase:
    """Hidden states [N, H], the whole vocabulary's weight [V, H] and labels [N]."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor

    @classmethod
    def random(cls, tokens: int, rows: int, width: int, seed: int = 0) -> LossCase:
        """Logits that spread by a few units; every second label is the likeliest one."""
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(tokens, width, generator=generator)
        weight = torch.randn(rows, width, generator=generator) * 3 / width**0.5
        labels = torch.randint(0, rows, (tokens,), generator=generator)
        labels[::2] = (hidden[::2] @ weight.t()).argmax(dim=1)
        return cls(hidden, weight, labels)

    def normaliser(self, settings: LossSettings) -> Tensor:
        """Of these labels alone, fp32 [2]."""
        weights = label_weights(self.labels, settings)
        return torch.stack([weights.sum(), torch.ones_like(weights).sum()])


def naive_loss(case: LossCase, settings: LossSettings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, sums, gradient of hidden, gradient of weight) through whole logits, all fp64."""
    hidden = case.hidden.detach().double().requires_grad_()
    weight = case.weight.detach().double().requires_grad_()
    logits = hidden @ weight.t()
    probabilities = logits.log_softmax(dim=1)
    entropy = -probabilities[torch.arange(len(case.labels)), case.labels]
    normaliser = case.normaliser(settings).double()
    loss = (label_weights(case.labels, settings).double() * entropy).sum() / normaliser[0]
    loss = loss + settings.z_loss * logits.logsumexp(dim=1).square().sum() / normaliser[1]
    gradients = torch.autograd.grad(loss, (hidden, weight))
    sums = torch.zeros(len(LabelKind), 4, dtype=torch.float64)
    right = logits.argmax(dim=1) == case.labels
    distances = naive_distances(logits, case.labels)
    for number, kind in enumerate(label_kinds(case.labels).tolist()):
        row = [entropy[number].detach(), torch.tensor(1.0), right[number], torch.tensor(distances[number])]
        sums[kind] += torch.stack(row)
    return loss.detach(), sums, gradients[0], gradients[1]


def naive_distances(logits: Tensor, labels: Tensor) -> list[float]:
    """|decoded - decoded label| with the robot's decoder, of a range from -1 to 1; 0 for other labels."""
    unit = ActionRanges((-1.0,) * ACTION_DIM, (1.0,) * ACTION_DIM)

    def decoded(bin_id: int) -> float:
        return float(decode([[bin_id] * ACTION_DIM], unit)[0, 0])

    end = ACTION_BIN_START + ACTION_BIN_COUNT
    actual = [0.0] * len(labels)
    for number, label in enumerate(labels.tolist()):
        if ACTION_BIN_START <= label < end:
            bins = logits.detach()[number, ACTION_BIN_START:end]
            actual[number] = abs(decoded(ACTION_BIN_START + int(bins.argmax())) - decoded(label))
    return actual

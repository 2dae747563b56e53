"""Inputs of the loss, and the loss with whole logits in fp64: what the others are measured by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
    sums = torch.zeros(len(LabelKind), 3, dtype=torch.float64)
    right = logits.argmax(dim=1) == case.labels
    for number, kind in enumerate(label_kinds(case.labels).tolist()):
        sums[kind] += torch.stack([entropy[number].detach(), torch.tensor(1.0), right[number]])
    return loss.detach(), sums, gradients[0], gradients[1]

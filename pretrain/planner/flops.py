"""Floating-point operations of a training step, as model FLOP/s utilisation (MFU) counts them.

    FLOPs of a step = 6 N t + 6 V h l + 12 L h p + 3 a
    MFU             = FLOPs of the step / (seconds of the step * peak FLOP/s of all ranks)

N parameters of the layers (embedding and heads left out), t tokens without padding, V vocabulary, h
hidden size, l labelled positions (only they pass the vocabulary's head), L layers, p pairs (query, key) of
causal attention within the samples, a FLOPs of the action head's forward pass
(`pretrain.planner.action_head`). 6 = 2 FLOPs a multiply-add x (1 forward + 2 backward); 12 = the same for
the two products of attention. Recomputation is not counted: MFU measures the model's operations.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from data.contracts import PackedBatch
from data.tokens.vocabulary import IGNORED_LABEL
from pretrain.model.config import ModelConfig
from pretrain.planner.action_head import head_flops


@dataclass(frozen=True, slots=True)
class Workload:
    """Size of a number of packed sequences, as far as the FLOPs depend on it.

    Attributes:
        tokens: Tokens without padding.
        labelled: Positions with a label.
        pairs: Pairs (query, key) of causal attention within the samples.
        action_samples: Action samples.
        prompts: Tokens of their prompts.
    """

    tokens: int = 0
    labelled: int = 0
    pairs: int = 0
    action_samples: int = 0
    prompts: int = 0

    def __add__(self, other: Workload) -> Workload:
        return Workload(*(left + right for left, right in zip(astuple(self), astuple(other), strict=True)))

    @classmethod
    def of(cls, batch: PackedBatch) -> Workload:
        """Count one micro-batch, on the host."""
        real = batch.segments > 0
        return cls(
            tokens=int(real.sum()),
            labelled=int((batch.labels != IGNORED_LABEL).sum()),
            pairs=int((batch.positions[real].astype("int64") + 1).sum()),
            action_samples=len(batch.action_starts),
            prompts=int(batch.positions.reshape(-1)[batch.action_starts].sum()),
        )

    def flops(self, model: ModelConfig) -> float:
        """Floating-point operations of forward and backward, by the formula of this module."""
        return (
            6.0 * model.layers * model.layer_matrices * self.tokens
            + 6.0 * model.vocabulary_size * model.hidden_size * self.labelled
            + 12.0 * model.layers * model.hidden_size * self.pairs
            + 3.0 * head_flops(model, self.prompts, self.action_samples)
        )

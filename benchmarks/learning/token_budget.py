"""How many optimiser steps each variant takes, so that all train on as many tokens.

Trained tokens are the tokens of all samples of a training, prompts and answers, without padding: `tokens` of
`metrics.jsonl`. World samples, longer chunks and other sequence lengths change the tokens of a sequence. So
each variant has the number of sequences in a step that makes its steps about as large as those of the
reference variant, and then the number of steps that gives as many tokens in all. Both follow from the index
of the prepared data, before anything is trained: every step has the same number of samples of each kind, and
a kind's mean length over an epoch is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.learning.settings import Equal
from data.errors import InputError
from data.stream.order.plan import DataPlan, Kind
from data.stream.packing_advice import packing_advice
from data.stream.setup import make_plan
from pretrain.config import TrainingConfig

TOLERANCE = 0.01
"""Share by which the trained tokens of two variants may differ."""

_TRIED = (0.8, 1.25)  # of the requested length; around each, what `packing_advice` proposes


@dataclass(frozen=True, slots=True)
class StepContent:
    """What one optimiser step of a variant holds.

    Attributes:
        sequences: In it.
        length: Tokens of a sequence.
        tokens: Tokens of its samples, mean over an epoch.
        action_samples: Action samples.
        world_samples: World samples.
        padding: Share of the sequences that is padding.
    """

    sequences: int
    length: int
    tokens: float
    action_samples: int
    world_samples: int
    padding: float

    def amount(self, equal: Equal) -> float:
        """What of it the variants have equally much of."""
        return self.tokens if equal == "tokens" else self.action_samples


def step_content(config: TrainingConfig, tokens: float | None) -> StepContent:
    """The content of a step, with a sequence length near the configured one that pads little.

    Args:
        config: Settings of the training.
        tokens: Of a step of the reference variant, to which those of this one are near; None: it has as many
            sequences as configured.

    Raises:
        InputError: The data are missing, or a sequence cannot hold the samples.
    """
    asked, found, refused = config.trainer.sequence_length, list[StepContent](), None
    for length in (asked, *(round(asked * share) for share in _TRIED)):
        try:
            tried = _plan(config, length)
            for plan in (tried, _plan(config, packing_advice(tried).best_length)):
                found += [_content(plan)] if tokens is None else _near(config, plan, tokens)
        except InputError as error:  # too short for the longest sample, or for the mixture
            refused = refused or error
    if not found:
        raise refused or InputError(f"no sequence of about {asked} tokens holds the samples")

    def cost(content: StepContent) -> tuple[float, float]:
        difference = abs(math.log(content.tokens / tokens)) if tokens else 0.0
        return round(content.padding + difference, 3), abs(content.length - asked)

    return min(found, key=cost)


def _near(config: TrainingConfig, plan: DataPlan, tokens: float) -> Iterator[StepContent]:
    """Contents of steps of about so many tokens with sequences of a plan's length."""
    count = round(tokens / ((1 - plan.padding) * plan.sequence_length))
    for sequences in range(max(1, count - 1), count + 2):
        try:
            yield _content(_plan(config, plan.sequence_length, sequences))
        except InputError:  # so few sequences cannot hold the mixture
            continue


def _content(plan: DataPlan) -> StepContent:
    counts = plan.layout.counts.sum(axis=0)
    return StepContent(
        sequences=plan.global_batch,
        length=plan.sequence_length,
        tokens=(1 - plan.padding) * plan.global_batch * plan.sequence_length,
        action_samples=int(counts[Kind.ACTION]),
        world_samples=int(counts[Kind.WORLD]),
        padding=plan.padding,
    )


def steps_for(amount: float, content: StepContent, equal: Equal) -> int:
    """Optimiser steps that come nearest to so many tokens or action samples; at least one."""
    return max(1, round(amount / content.amount(equal)))


def largest_difference(tokens: Sequence[float]) -> float:
    """Difference of the largest and the smallest, as a share of the smallest."""
    return max(tokens) / min(tokens) - 1


def _plan(config: TrainingConfig, length: int, sequences: int | None = None) -> DataPlan:
    batch = config.trainer.global_batch if sequences is None else sequences
    return make_plan(config.data, replace(config.trainer, sequence_length=length, global_batch=batch), seed=0)

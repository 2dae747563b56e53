"""Share of padding in the sequences, and the sequence length nearby that has the least.

Samples are never cut, so a sequence ends where the next sample does not fit: samples of 600 tokens waste an
eighth of 2,048 tokens, and next to nothing of 1,824. All of it follows from the index; no episode is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from data.errors import InputError
from data.stream.order.layout import plan_layout
from data.stream.order.plan import DataPlan

NOTABLE_PADDING = 0.03
"""Share of padding above which another sequence length is suggested."""

_MAX_SEQUENCES = 256  # of the steps that are tried; more hardly change the padding
_COARSEST = 128  # tokens between the lengths that are tried: a block of the attention kernels


@dataclass(frozen=True, slots=True)
class PackingAdvice:
    """The padding of a plan, and the length with the least padding.

    Attributes:
        length: Tokens of a sequence.
        padding: Mean share of a step's tokens that are padding, over an epoch.
        best_length: The length with the least padding within an eighth of `length`; of equally good ones the
            nearest.
        best_padding: Its padding.
    """

    length: int
    padding: float
    best_length: int
    best_padding: float

    @property
    def notable(self) -> bool:
        """Whether the padding exceeds `NOTABLE_PADDING` and another length has less."""
        return self.padding > NOTABLE_PADDING and self.best_length != self.length

    def __str__(self) -> str:
        """One line for people."""
        text = f"{self.padding:.1%} of the {self.length}-token sequences is padding"
        if self.best_length == self.length:
            return f"{text}; no length near it pads less"
        return f"{text}; trainer.sequence_length={self.best_length} would pad {self.best_padding:.1%}"


def packing_advice(plan: DataPlan) -> PackingAdvice:
    """Compute the padding of lengths near that of the plan; a few milliseconds each."""
    length, padding = plan.sequence_length, {plan.sequence_length: plan.padding}
    grain = min(_COARSEST, max(length // 64, 1))
    sequences = min(plan.global_batch, _MAX_SEQUENCES)
    for candidate in range(-(-(length - length // 8) // grain) * grain, length + length // 8 + 1, grain):
        if candidate in padding:
            continue
        try:
            layout = plan_layout(plan.datasets, plan.mixture, sequences, candidate)
        except InputError:  # too short for the longest sample, or for the mixture
            continue
        padding[candidate] = layout.padding(plan.datasets, sequences * candidate)
    best = min(padding, key=lambda candidate: (padding[candidate], abs(candidate - length)))
    return PackingAdvice(length, padding[length], best, padding[best])

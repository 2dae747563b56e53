"""How much of the sequences is padding, and which sequence length near the wished one wastes least.

Samples are never cut, so a sequence ends where the next one does not fit any more: samples of 600 tokens
waste an eighth of 2,048 tokens, and next to nothing of 1,824. All of it follows from the index, without an
episode read.
"""

from __future__ import annotations

from dataclasses import dataclass

from data.errors import InputError
from data.stream.layout import plan_layout
from data.stream.plan import Plan

NOTABLE_PADDING = 0.03
"""Share of padding from which on another length is worth a thought."""

_MOST_SEQUENCES = 256  # of the steps that are tried; more change the padding by next to nothing
_COARSEST = 128  # tokens between lengths that are tried: a block of the attention kernels


@dataclass(frozen=True, slots=True)
class PackingAdvice:
    """The padding of a plan, and the length that has least.

    Attributes:
        length: Tokens of a sequence.
        padding: Mean share of a step's tokens that are padding, over an epoch.
        best_length: Of the lengths within an eighth of it, the one with the least padding; the nearest of
            equally good ones.
        best_padding: Its padding.
    """

    length: int
    padding: float
    best_length: int
    best_padding: float

    @property
    def notable(self) -> bool:
        """Whether it pads more than `NOTABLE_PADDING` and another length would pad less."""
        return self.padding > NOTABLE_PADDING and self.best_length != self.length

    def __str__(self) -> str:
        """One line for people."""
        text = f"{self.padding:.1%} of the {self.length}-token sequences is padding"
        if self.best_length == self.length:
            return f"{text}; no length near it pads less"
        return f"{text}; trainer.sequence_length={self.best_length} would pad {self.best_padding:.1%}"


def packing_advice(plan: Plan) -> PackingAdvice:
    """Try the lengths near that of the plan; a few milliseconds each."""
    length, found = plan.sequence_length, {plan.sequence_length: plan.padding}
    grain = min(_COARSEST, max(length // 64, 1))
    sequences = min(plan.global_batch, _MOST_SEQUENCES)
    for tried in range(-(-(length - length // 8) // grain) * grain, length + length // 8 + 1, grain):
        if tried in found:
            continue
        try:
            layout = plan_layout(plan.sources, plan.mixture, sequences, tried)
        except InputError:  # too short for the longest sample, or for the mixture
            continue
        found[tried] = layout.padding(plan.sources, sequences * tried)
    best = min(found, key=lambda tried: (found[tried], abs(tried - length)))
    return PackingAdvice(length, found[length], best, found[best])

"""What may run around each step of a training, beside the step itself."""

from __future__ import annotations

from typing import Protocol


class StepHook(Protocol):
    """Called on every rank around each optimiser step; subclass it and override what is needed."""

    def before_step(self, step: int) -> None:
        """Called before the batches of optimiser step `step` (counted from 1) are read."""

    def after_step(self, step: int) -> None:
        """Called when everything that belongs to step `step` is done, its checkpoint included."""

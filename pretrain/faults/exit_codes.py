"""How a training ends before its last step, and the exit codes that tell it."""

from __future__ import annotations

REQUEUE = 85  # a checkpoint was written as asked; the same command goes on from it
HUNG = 86  # no step finished within guard.step_timeout


class PreemptedError(RuntimeError):
    """The training was asked to end, and has: its newest checkpoint is of its last step, if it did one."""


class DivergedError(RuntimeError):
    """Step after step is bad, and going back to older checkpoints did not help."""

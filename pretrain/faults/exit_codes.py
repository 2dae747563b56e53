"""Errors that end a training before its last step, and the exit codes of its processes."""

from __future__ import annotations

EXIT_FAILED = 1  # a failure of the training, with one line or a traceback
EXIT_INVALID_INPUT = 2  # settings, files or machines that the user has to correct; one line
EXIT_PREEMPTED = 85  # a checkpoint was written as requested; the same command resumes from it
EXIT_HUNG = 86  # no step finished within guard.step_timeout


class PreemptedError(RuntimeError):
    """The training was asked to end and has ended, with a checkpoint of its last step (if it did one)."""


class DivergedError(RuntimeError):
    """Too many bad steps in a row, and rolling back to older checkpoints did not help."""

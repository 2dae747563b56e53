"""Failures of the processes that a command started."""

from __future__ import annotations

import os

from data.files import DISK_FULL


class CommandFailedError(Exception):
    """A process failed for a reason that is not the user's; the message names cause and log file.

    The command line prints it as one line and exits with code 1.
    """


class TrainingFailedError(CommandFailedError):
    """A rank of the training failed, or Ray did.

    Args:
        message: Cause and log file.
        kind: Class of the exception in the rank; None if a process ended without one.
        headline: Class and first line of the exception, which identify the failure when it is repeated.
    """

    def __init__(self, message: str, kind: str | None = None, headline: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.headline = headline


_OUT_OF_SPACE = tuple(map(os.strerror, DISK_FULL))


def is_out_of_space(message: str) -> bool:
    """Whether an error's message says that a disk or a quota was full, which may pass without a change."""
    return any(text in message for text in _OUT_OF_SPACE)

"""Failures of the processes that a command started."""

from __future__ import annotations


class CommandFailedError(Exception):
    """A process failed for a reason that is not the user's; the message names cause and log file.

    The command line prints it as one line and exits with code 1.
    """

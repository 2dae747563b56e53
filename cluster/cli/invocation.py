"""How a command was called, beside its settings."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console


@dataclass(frozen=True, slots=True)
class Invocation:
    """How a command was called, beside its settings.

    Attributes:
        console: Where progress and results are shown.
        json: Print one JSON object on standard output (the console then writes to standard error).
        overrides: The `key=value` words of the command line.
        dry_run: Show what would be done, and do nothing.
    """

    console: Console
    json: bool = False
    overrides: tuple[str, ...] = ()
    dry_run: bool = False


def make_console(stderr: bool = False) -> Console:
    """The console of a command; `stderr` leaves standard output to `--json`."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)

"""What an examination of `worldvla doctor` found."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        subject: What was looked at.
        state: `ok`, `warn` (works, but slower or less than it could) or `fail`.
        found: What was found, with units.
        remedy: What to do; empty where all is well.
    """

    subject: str
    state: str
    found: str
    remedy: str = ""

"""The result of one check of `worldvla doctor`."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of the doctor's table.

    Attributes:
        subject: What was checked.
        state: `ok`, `warn` (works, but slower or less than it could) or `fail`.
        found: What was found, with units.
        remedy: What to do; empty where nothing is wrong.
    """

    subject: str
    state: str
    found: str
    remedy: str = ""

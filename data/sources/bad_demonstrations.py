"""Demonstrations that cannot be used: how many may be left out, and one error that names all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from data.errors import InputError
from data.sources.interface import DemonstrationReference

_MAX_REASONS = 20
_MAX_KEYS = 200
_FIRST = 20


def allowed_bad(skip_bad: float, total: int) -> int:
    """The number of `total` demonstrations that may be left out: the setting itself, or below 1 their share.

    Raises:
        InputError: Negative, or neither a share nor a whole number.
    """
    if not (skip_bad >= 0 and math.isfinite(skip_bad)) or (skip_bad >= 1 and skip_bad != int(skip_bad)):
        raise InputError(
            f"skip_bad={skip_bad:g}: expected a number of demonstrations (5), or below 1 their share (0.02)"
        )
    return int(skip_bad) if skip_bad >= 1 else math.floor(skip_bad * total)


def faults(references: Sequence[DemonstrationReference]) -> dict[str, str]:
    """Key -> fault of the demonstrations that have one."""
    return {reference.key: reference.fault for reference in references if reference.fault}


def check_bad(bad: Mapping[str, str], allowed: int, source: str) -> None:
    """Refuse more bad demonstrations than may be left out.

    Args:
        bad: Key -> why it cannot be used.
        allowed: Of `allowed_bad`.
        source: The source, for the message.

    Raises:
        InputError: Names them, with their reasons.
    """
    if len(bad) <= allowed:
        return
    limit = f", skip_bad allows {allowed}" if allowed else ""
    raise InputError(
        f"{source}: demonstrations that cannot be used: {len(bad)}{limit}: {_listed(bad)}; repair or delete "
        f"them, or leave them out with skip_bad={len(bad)}"
    )


def check_first(references: Sequence[DemonstrationReference], skip_bad: float, source: str) -> None:
    """Refuse a source of which all demonstrations that were looked at so far, the first 20, are bad.

    Then the settings do not fit the source, which is told without reading all of it.

    Raises:
        InputError: They are, and `skip_bad` does not allow so many, nor a share that is known at the end.
    """
    may_be_allowed = 0 < skip_bad < 1 or skip_bad >= _FIRST
    if len(references) == _FIRST and not may_be_allowed and all(each.fault for each in references):
        raise InputError(
            f"{source}: none of its first {_FIRST} demonstrations can be used; of the first: "
            f"{references[0].fault}"
        )


def _listed(bad: Mapping[str, str]) -> str:
    """Some with their reasons, more by key, the rest by number."""
    reasons = list(dict.fromkeys(bad.values()))[:_MAX_REASONS]
    left = [key for key, reason in bad.items() if reason not in reasons]
    parts = reasons + ([f"and {', '.join(left[:_MAX_KEYS])}"] if left else [])
    return "; ".join(parts) + (f" and {len(left) - _MAX_KEYS} more" if len(left) > _MAX_KEYS else "")

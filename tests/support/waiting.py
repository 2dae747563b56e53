"""Waiting for a condition instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable

# Only a guard against hangs: no test's outcome depends on how fast the machine is. Below pytest's own limit.
HANG_SECONDS = 900.0


def wait_until(
    condition: Callable[[], bool],
    describe: Callable[[], str] = str,
    seconds: float = HANG_SECONDS,
    poll: float = 0.05,
) -> None:
    """Poll until `condition()` holds.

    Args:
        condition: Called again and again.
        describe: Gives the message of the failure more to say; called only then.
        seconds: After these the wait fails.
        poll: Seconds between two calls.

    Raises:
        AssertionError: The condition did not hold in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {describe()}"
        time.sleep(poll)

"""Retries of requests to an object store, with random, exponentially growing pauses."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
    wait_random_exponential,
)

from data.storage.store_errors import describe_error

_LOG = logging.getLogger(__name__)
RETRY_SECONDS = 300.0
FIRST_PAUSE = 0.1  # seconds; the upper limit of the first pause, doubled at every try
LONGEST_PAUSE = 15.0  # seconds

Result = TypeVar("Result")


class RetryPolicy:
    """How long requests to one server are retried; for any number of threads.

    Pauses grow exponentially and are drawn at random ("full jitter"), so that thousands of ranks do not
    return to a restarted server at the same moment.

    Args:
        where: URL of the store, for messages.
        seconds: Time from the first failure of a request to its last try.
        is_transient: Whether a request that failed with an error may succeed later.
    """

    def __init__(self, where: str, seconds: float, is_transient: Callable[[BaseException], bool]) -> None:
        self._where, self._seconds, self._is_transient = where, seconds, is_transient
        self._lock = threading.Lock()
        self._waiting = 0
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Stop retrying: requests that wait now, or fail from now on, raise. For any thread."""
        self._cancelled.set()

    def run(self, request: Callable[[], Result]) -> Result:
        """Run a request, and run it again while it fails with a transient error.

        Raises:
            Exception: The last failure, with a note (`__notes__`) of the number of tries and the seconds.
        """
        waits = False

        def report_first_failure(state: RetryCallState) -> None:
            nonlocal waits
            if not waits:
                waits = True
                self._begin_waiting(state.outcome.exception() if state.outcome else None)

        random = wait_random_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE)

        def wait(state: RetryCallState) -> float:
            """At most the time that is left: the last try is made at the end of `seconds`."""
            return min(random(state), max(self._seconds - (state.seconds_since_start or 0), 0))

        retrying = Retrying(
            retry=retry_if_exception(self._is_transient),
            stop=stop_any(stop_after_delay(self._seconds), stop_when_event_set(self._cancelled)),
            wait=wait,
            sleep=lambda seconds: pause(seconds, self._cancelled),
            before_sleep=report_first_failure,
            reraise=True,
        )
        began = time.monotonic()
        try:
            return retrying(request)
        except Exception as error:
            if waits:
                tries, seconds = retrying.statistics["attempt_number"], time.monotonic() - began
                error.add_note(f"tried {tries} times in {seconds:.0f} s")
            raise
        finally:
            if waits:
                self._end_waiting()

    def _begin_waiting(self, error: BaseException | None) -> None:
        """Report that the server does not respond, once for all threads."""
        with self._lock:
            self._waiting += 1
            if self._waiting > 1:
                return
        reason = describe_error(self._where, error) if error is not None else "no answer"
        _LOG.warning("%s: %s; trying again for up to %g s", self._where, reason, self._seconds)

    def _end_waiting(self) -> None:
        with self._lock:
            self._waiting -= 1


def pause(seconds: float, cancelled: threading.Event) -> None:
    """Wait between two tries, or until the policy is cancelled."""
    cancelled.wait(seconds)

"""Requests that are tried again until the server is back or patience ends."""

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

from data.storage.credentials import told

_LOG = logging.getLogger(__name__)
RETRY_SECONDS = 300.0
FIRST_PAUSE = 0.1  # seconds, doubled at every try: a pause is a random part of it
LONGEST_PAUSE = 15.0

Result = TypeVar("Result")


class Patience:
    """How long the requests to one server are tried again.

    Pauses grow exponentially and are drawn at random ("full jitter"), so that thousands of ranks do not come
    back to a restarted server at the same moment.

    Args:
        where: The place, for messages.
        seconds: From the first failure of a request to its last try.
        passing: Whether an error may pass by itself.
    """

    def __init__(self, where: str, seconds: float, passing: Callable[[BaseException], bool]) -> None:
        self._where, self._seconds, self._passing = where, seconds, passing
        self._lock = threading.Lock()
        self._waiting = 0
        self._over = threading.Event()

    def end(self) -> None:
        """Have no more patience: every request fails that waits now or fails from now on; for any thread."""
        self._over.set()

    def insist(self, request: Callable[[], Result]) -> Result:
        """Carry out a request, again and again while it fails for a reason that may pass.

        Raises:
            Exception: The last failure, with a note (`__notes__`) of the number of tries and the seconds.
        """
        waits = False

        def begin_waiting(state: RetryCallState) -> None:
            nonlocal waits
            if not waits:
                waits = True
                self._begin(state.outcome.exception() if state.outcome else None)

        random = wait_random_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE)

        def wait(state: RetryCallState) -> float:
            """Not longer than what is left: the last try comes when patience ends."""
            return min(random(state), max(self._seconds - (state.seconds_since_start or 0), 0))

        retrying = Retrying(
            retry=retry_if_exception(self._passing),
            stop=stop_any(stop_after_delay(self._seconds), stop_when_event_set(self._over)),
            wait=wait,
            sleep=lambda seconds: pause(seconds, self._over),
            before_sleep=begin_waiting,
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
                self._end()

    def _begin(self, error: BaseException | None) -> None:
        """Say once for all threads that the server does not serve."""
        with self._lock:
            self._waiting += 1
            if self._waiting > 1:
                return
        reason = told(self._where, error) if error is not None else "no answer"
        _LOG.warning("%s: %s; trying again for up to %g s", self._where, reason, self._seconds)

    def _end(self) -> None:
        with self._lock:
            self._waiting -= 1


def pause(seconds: float, over: threading.Event) -> None:
    """Wait between two tries, or until patience is over."""
    over.wait(seconds)

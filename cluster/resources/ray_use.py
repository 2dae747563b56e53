"""Calls of Ray in a thread, which have to be over before Ray is shut down.

Ray frees its memory then, whoever waits in it: a thread that is in `ray.wait` reads what is freed, and the
command ends by SIGSEGV instead of with its exit code. So a thread waits in short steps, and the end of a
session refuses further steps and waits for the one that is under way.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

STEP_SECONDS = 0.25
_CLOSE_SECONDS = 5.0
_unfinished = threading.Event()


class SessionClosedError(Exception):
    """Ray is being shut down; raised in threads that would use it."""


class RayUse:
    """Counts the calls of Ray that threads are in."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls, self._closed = 0, False

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around a call of Ray that takes `STEP_SECONDS` at most, unless Ray hangs.

        Raises:
            SessionClosedError: It is closed.
        """
        with self._changed:
            if self._closed:
                raise SessionClosedError("Ray is being shut down")
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def close(self, seconds: float = _CLOSE_SECONDS) -> None:
        """Refuse further calls, and wait for those that are under way; see `ray_is_in_use`."""
        with self._changed:
            self._closed = True
            if not self._changed.wait_for(lambda: self._calls == 0, seconds):
                _unfinished.set()

    def wait(
        self, results: Sequence[Any], count: int = 1, timeout: float | None = None
    ) -> tuple[list[Any], list[Any]]:
        """`ray.wait` in steps: the results that are there, and the others.

        Args:
            results: Ray's references.
            count: Number of results to wait for.
            timeout: Seconds after which fewer may be there; None: never.

        Raises:
            SessionClosedError: It is closed.
        """
        import ray

        ended: list[Any] = []
        running = list(results)

        def step(seconds: float) -> bool:
            nonlocal ended, running
            ended, running = ray.wait(list(results), num_returns=count, timeout=seconds)
            return len(ended) >= count

        self.wait_for(step, timeout)
        return ended, running

    def wait_for(self, step: Callable[[float], bool], timeout: float | None = None) -> bool:
        """Call `step` with seconds to wait until it returns true; return whether it has.

        Args:
            step: Waits in Ray at most as long as it is told.
            timeout: Seconds after which false is returned; None: never.

        Raises:
            SessionClosedError: It is closed.
        """
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            with self.call():
                if step(min(left, STEP_SECONDS)):
                    return True
            if left <= STEP_SECONDS:
                return False


def ray_is_in_use() -> bool:
    """Whether a thread was still in Ray when its session ended: a call that hangs, as without a GCS.

    Ray cannot be shut down then, and the interpreter cannot be finished (`end_process`).
    """
    return _unfinished.is_set()


def end_process(code: int) -> None:
    """End this process at once where a thread hangs in Ray, with what it has written; else return."""
    if ray_is_in_use():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

"""Ends a process whose steps have stopped finishing, after writing the stack of each of its threads."""

from __future__ import annotations

import faulthandler
import os
import re
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pretrain.faults.exit_codes import EXIT_HUNG
from pretrain.hooks import StepHook

_MAX_GRACE = 10.0
_LAST_LINE = re.compile(r"^rank \d+ ends itself: (no step has finished for .*)$", re.MULTILINE)
_STDERR = 2  # the rank's log; Python's own sys.stderr may be another object, without a descriptor


class Watchdog(StepHook):
    """Watches one rank for the length of a `with` block; as a hook it learns of each finished step.

    When no step has finished for `timeout` seconds, the stacks of all threads go to standard error. A rank
    that hangs blocks its peers, whose watchdogs report at about the same time; each waits a grace period
    before it ends its process with `EXIT_HUNG`, so that none is ended before it has reported.

    The watchdog's thread cannot run while foreign code holds the interpreter's lock: a timer of faulthandler,
    which needs no lock, ends such a process a little later, with exit code 1.

    Args:
        timeout: Seconds; 0: nothing is watched.
        rank: Number of this rank, for the line above the stacks.
        clock: Seconds, rising.
    """

    def __init__(self, timeout: float, rank: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout = timeout
        self._rank = rank
        self._clock = clock
        self._grace = min(_MAX_GRACE, timeout / 4)
        self._last_progress = clock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @property
    def seconds_left(self) -> float:
        """Seconds until the step at hand counts as hung; negative once it does."""
        return self._last_progress + self._timeout - self._clock()

    def after_step(self, step: int) -> None:
        """Start the count anew: a step has finished."""
        if self._timeout:
            self._last_progress = self._clock()
            hard_limit = self._timeout + 2 * self._grace
            faulthandler.dump_traceback_later(hard_limit, exit=True, file=_STDERR)

    def __enter__(self) -> Self:
        if self._timeout:
            self.after_step(0)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timeout:
            self._closed.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closed.wait(max(0.0, self.seconds_left)):
            last_progress = self._last_progress
            if self.seconds_left > 0:
                continue  # a step has finished meanwhile
            self._dump_stacks()
            self._closed.wait(self._grace)
            if self._last_progress == last_progress and not self._closed.is_set():
                os.write(_STDERR, f"rank {self._rank} ends itself: {self._cause}\n".encode())
                os._exit(EXIT_HUNG)

    @property
    def _cause(self) -> str:
        return f"no step has finished for {self._timeout:g} s (guard.step_timeout)"

    def _dump_stacks(self) -> None:
        os.write(_STDERR, f"rank {self._rank}: {self._cause}; all threads:\n".encode())
        faulthandler.dump_traceback(_STDERR, all_threads=True)


def cause_of_end(log: str) -> str | None:
    """Cause that a rank's watchdog wrote to standard error when it ended the rank; None if it did not."""
    match = _LAST_LINE.search(log)
    return match.group(1) if match else None

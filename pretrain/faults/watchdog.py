"""Ends a process whose steps do not finish any more, and says where each of its threads hangs."""

from __future__ import annotations

import faulthandler
import os
import re
import threading
import time
from types import TracebackType
from typing import Self

from pretrain.faults.exit_codes import HUNG

_LONGEST_GRACE = 10.0
_ENDED = re.compile(r"^rank \d+ ends itself: (no step has finished for .*)$", re.MULTILINE)
_STDERR = 2  # the rank's log; Python's own sys.stderr may be another object, without a descriptor


class Watchdog:
    """Watches one rank for the length of a `with` block.

    When no step has finished for `timeout` seconds the stacks of all threads go to standard error. A rank
    that hangs holds up its peers, whose watchdogs speak at about the same time; so that none is ended
    before it has spoken, each waits a moment more before it ends its process with `HUNG`.

    A thread of Python cannot speak while another holds the interpreter's lock in foreign code: a timer of
    faulthandler, which needs no lock, ends such a process a little later, with exit code 1.

    Args:
        timeout: Seconds; 0: nothing is watched.
        rank: For the line above the stacks.
    """

    def __init__(self, timeout: float, rank: int) -> None:
        self._timeout = timeout
        self._rank = rank
        self._grace = min(_LONGEST_GRACE, timeout / 4)
        self._latest = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def step_finished(self) -> None:
        """Begin to count anew."""
        if self._timeout:
            self._latest = time.monotonic()
            later = self._timeout + 2 * self._grace
            faulthandler.dump_traceback_later(later, exit=True, file=_STDERR)

    def __enter__(self) -> Self:
        if self._timeout:
            self.step_finished()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timeout:
            self._over.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._over.wait(max(0.0, self._latest + self._timeout - time.monotonic())):
            latest = self._latest
            if time.monotonic() < latest + self._timeout:
                continue  # a step has finished meanwhile
            self._speak()
            self._over.wait(self._grace)
            if self._latest == latest and not self._over.is_set():
                os.write(_STDERR, f"rank {self._rank} ends itself: {self._cause}\n".encode())
                os._exit(HUNG)

    @property
    def _cause(self) -> str:
        return f"no step has finished for {self._timeout:g} s (guard.step_timeout)"

    def _speak(self) -> None:
        os.write(_STDERR, f"rank {self._rank}: {self._cause}; all threads:\n".encode())
        faulthandler.dump_traceback(_STDERR, all_threads=True)


def cause_of_end(log: str) -> str | None:
    """Why a rank's watchdog has ended it, from what the rank wrote to standard error; None: it has not."""
    found = _ENDED.search(log)
    return found.group(1) if found else None
